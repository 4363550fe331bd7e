"""Released checkpoints of EMVOS."""

from __future__ import annotations

from vos_lightning.backbones.densenet import DenseNetPyramid
from vos_lightning.checkpoints.released.format import ReleasedFormat, describe
from vos_lightning.networks.emvos import EMVOS


def _decoder() -> dict[str, str]:
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


FORMAT = ReleasedFormat(
    module="vos_lightning.modules.emvos.EMVOSModule",
    network=EMVOS,
    describe=lambda: {"backbone": describe(DenseNetPyramid, weights=None), "train_encoder": False},
    renamed={
        "vos.encoder.": "backbone.",
        "vos.matcher.conv1.conv.": "cosine_key.",
        "vos.matcher.conv2.conv.": "dot_key.",
        **_decoder(),
    },
    # ImageNet's mean and standard deviation, which are constants of the backbone here.
    dropped={"vos.encoder.mean": (1, 3, 1, 1), "vos.encoder.std": (1, 3, 1, 1)},
)
