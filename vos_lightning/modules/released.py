"""Checkpoints that authors have released, as checkpoints of this library."""

from __future__ import annotations

import argparse
import io
import pickle
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor

from vos_lightning.label_io import write_atomically
from vos_lightning.networks.emvos import EMVOS
from vos_lightning.networks.pmvos import PMVOS
from vos_lightning.propagation.network import VOSNetwork


@dataclass(frozen=True)
class ReleasedLayout:
    """How the keys of a released file read here.

    Attributes:
        module: class path of the LightningModule.
        network: class of the network.
        arguments: of the network, as the released code computes.
        renamed: prefix of their keys -> prefix of ours; the longest that fits counts.
        dropped: keys that nobody needs, with their shapes.
    """

    module: str
    network: type[VOSNetwork[Any, Any, Any]]
    arguments: Mapping[str, Any]
    renamed: Mapping[str, str]
    dropped: Mapping[str, tuple[int, ...]]

    def rename(self, key: str) -> str | None:
        """Our name of their key; None if it belongs to nothing."""
        fitting = [prefix for prefix in self.renamed if key.startswith(prefix)]
        if not fitting:
            return None
        prefix = max(fitting, key=len)
        return self.renamed[prefix] + key.removeprefix(prefix)


def _emvos_decoder() -> dict[str, str]:
    renamed: dict[str, str] = {}
    for number, stride in ((1, 16), (2, 8), (3, 4)):
        theirs, ours = "vos.decoder", f"decoder.stage{stride}"
        renamed |= {
            f"{theirs}.conv{number}.conv.": f"{ours}.lateral.",
            f"{theirs}.blend{number}.conv.": f"{ours}.blend.",
            f"{theirs}.cbam{number}.conv1.conv.": f"{ours}.attention.entry.",
            f"{theirs}.cbam{number}.conv2.0.conv.": f"{ours}.attention.channel_gate.0.",
            f"{theirs}.cbam{number}.conv2.1.conv.": f"{ours}.attention.channel_gate.2.",
            f"{theirs}.cbam{number}.conv3.0.conv.": f"{ours}.attention.spatial_gate.0.",
            f"{theirs}.cbam{number}.conv3.1.conv.": f"{ours}.attention.spatial_gate.2.",
            f"{theirs}.deconv{number}.deconv.": f"{ours}.deconv.",
        }
    return renamed


LAYOUTS = {
    "pmvos": ReleasedLayout(
        module="vos_lightning.modules.pmvos.PMVOSModule",
        network=PMVOS,
        arguments={"weights": None, "medial": "released"},
        renamed={
            "vos.backbone.": "backbone.",
            "vos.pm.conv_in.conv.": "key.",
            "vos.att.sa.query_conv.conv.": "attention.spatial.query.",
            "vos.att.sa.key_conv.conv.": "attention.spatial.key.",
            "vos.att.sa.value_conv.conv.": "attention.spatial.value.",
            "vos.att.sa.gamma": "attention.spatial.gamma",
            "vos.att.ca.gamma": "attention.channel.gamma",
            "vos.refine.conv_s16.conv.": "decoder.stage16.lateral.",
            "vos.refine.blend_s16.conv.": "decoder.stage16.blend.",
            "vos.refine.deconv1_1.": "decoder.stage16.deconv.",
            "vos.refine.deconv1_2.": "decoder.grow16.",
            "vos.refine.conv_s8.conv.": "decoder.stage8.lateral.",
            "vos.refine.blend_s8.conv.": "decoder.stage8.blend.",
            "vos.refine.deconv2.": "decoder.stage8.deconv.",
            "vos.refine.conv_s4.conv.": "decoder.stage4.lateral.",
            "vos.refine.blend_s4.conv.": "decoder.stage4.blend.",
            "vos.refine.deconv3.": "decoder.stage4.deconv.",
            "vos.refine.predictor.": "decoder.predictor.",
        },
        # The classifier of the backbone.
        dropped={"vos.backbone.fc.weight": (1000, 2048), "vos.backbone.fc.bias": (1000,)},
    ),
    "emvos": ReleasedLayout(
        module="vos_lightning.modules.emvos.EMVOSModule",
        network=EMVOS,
        arguments={"weights": None, "train_encoder": False},
        renamed={
            "vos.encoder.": "backbone.",
            "vos.matcher.conv1.conv.": "cosine_key.",
            "vos.matcher.conv2.conv.": "dot_key.",
            **_emvos_decoder(),
        },
        # ImageNet's mean and standard deviation, which the backbone has as constants.
        dropped={"vos.encoder.mean": (1, 3, 1, 1), "vos.encoder.std": (1, 3, 1, 1)},
    ),
}


def import_released(file: Path, paper: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Read a file of the authors.

    Only tensors and plain values are unpickled (``weights_only=True``).

    Args:
        file: a bare state dict, as the authors have published it.
        paper: ``pmvos`` or ``emvos``.

    Returns:
        A checkpoint for :func:`vos_lightning.modules.loading.load_engine`, and the keys of the file that it does not need.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is something else: not a state dict, or keys or shapes are not those of the paper's network.
    """
    layout = LAYOUTS[paper]
    own = layout.network(**layout.arguments).state_dict()
    state: dict[str, Tensor] = {}
    unknown, wrong, dropped = [], [], []
    for key, value in _read(file).items():
        name = layout.rename(key)
        if key in layout.dropped:
            dropped.append(key)
            expected = layout.dropped[key]
        elif name in own:
            assert name is not None
            state[f"network.{name}"] = value.to(own[name].dtype)
            expected = tuple(own[name].shape)
        else:
            unknown.append(key)
            continue
        if tuple(value.shape) != expected:
            wrong.append(f"{key} is {tuple(value.shape)} instead of {expected}")
    missing = [name for name in own if f"network.{name}" not in state]
    problems = [f"{text} {_some(names)}" for text, names in (
        ("unknown keys", unknown), ("wrong shapes:", wrong), ("nothing for", missing)
    ) if names]  # fmt: skip
    if problems:
        raise ValueError(f"{file}: this is no released checkpoint of {paper}: {'; '.join(problems)}")
    checkpoint = {
        "state_dict": state,
        "hyper_parameters": {
            "network": {"class_path": f"{layout.network.__module__}.{layout.network.__name__}", "init_args": layout.arguments},
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "_class_path": layout.module,
        },
        "pytorch-lightning_version": lightning.__version__,
        "epoch": 0,
        "global_step": 0,
    }
    return checkpoint, tuple(dropped)


def _read(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such checkpoint")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError) as error:
        raise ValueError(f"{file}: this is no PyTorch file of plain tensors, or it is damaged or truncated") from error
    if not (isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values())):
        raise ValueError(f"{file}: this is no released checkpoint: it must hold parameter names and tensors and nothing else")
    return {str(key): value for key, value in content.items()}


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def main(argv: Sequence[str]) -> int:
    """``import-checkpoint FILE --paper PAPER --output OUT.ckpt``."""
    parser = argparse.ArgumentParser(
        prog="python -m vos_lightning import-checkpoint",
        description="Turn a checkpoint that the authors have released into one of this library, checked strictly.",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="PMVOS_best.tar, coco_davis_best.pth ...")
    parser.add_argument("--paper", choices=sorted(LAYOUTS), required=True)
    parser.add_argument("--output", type=Path, required=True, metavar="OUT.ckpt")
    arguments = parser.parse_args(argv)
    checkpoint, dropped = import_released(arguments.file, arguments.paper)
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    write_atomically(arguments.output, buffer.getvalue())
    number = len(checkpoint["state_dict"])
    sys.stdout.write(f"{arguments.output}: {number} tensors of {arguments.paper}; dropped {', '.join(dropped) or 'none'}\n")
    return 0
