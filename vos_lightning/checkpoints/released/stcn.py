"""Released checkpoints of STCN."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vos_lightning.checkpoints.released.format import Adapted, ReleasedFormat, describe, trunk
from vos_lightning.encoders.masked import MaskedEncoder, OtherObjects
from vos_lightning.networks.stcn import STCN

_FIRST = "value_encoder.conv1.weight"
_CBAM = "value_encoder.fuser.attention."


def _adapt(state: dict[str, Tensor]) -> Adapted:
    """Split the value encoder's first convolution, make the channel gate 1 x 1 convolutions, and find the file's variant."""
    state, arguments = dict(state), dict[str, Any]()
    if _FIRST in state and state[_FIRST].ndim == 4:
        first = state.pop(_FIRST)
        state["value_encoder.conv1.weight (colours)"], state["value_encoder.conv1.weight (masks)"] = first[:, :3], first[:, 3:]
        if first.shape[1] == 4:
            # This file is from the training on still images, where there are no other objects.
            arguments["others"] = None
    for layer in (1, 3):
        key = f"{_CBAM}ChannelGate.mlp.{layer}.weight"
        if key in state:
            state[key] = state[key][..., None, None]
    if not any(key.startswith(_CBAM) for key in state):
        arguments["attention"] = False
    return state, arguments


def _describe(others: OtherObjects | None = "sum", **options: Any) -> dict[str, Any]:
    shallow = trunk(block="basic", blocks=(2, 2, 2, 2), conv_bias=True)
    encoder = describe(MaskedEncoder, trunk=shallow, others=others, mask_init="orthogonal")
    return {"backbone": trunk(), "mask_encoder": encoder, **options}


def _residual(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.": f"{ours}.", f"{theirs}.downsample.": f"{ours}.shortcut."}


FORMAT = ReleasedFormat(
    module="vos_lightning.modules.stcn.STCNModule",
    network=STCN,
    describe=_describe,
    renamed={
        "key_encoder.": "key_encoder.",
        "key_encoder.res2.": "key_encoder.layer1.",
        "key_proj.key_proj.": "projection.key.",
        "key_comp.": "projection.value.",
        "value_encoder.": "value_encoder.trunk.trunk.",
        "value_encoder.conv1.weight (colours)": "value_encoder.trunk.trunk.conv1.weight",
        "value_encoder.conv1.weight (masks)": "value_encoder.trunk.mask_conv.weight",
        **_residual("value_encoder.fuser.block1", "value_encoder.block1"),
        **_residual("value_encoder.fuser.block2", "value_encoder.block2"),
        f"{_CBAM}ChannelGate.mlp.1.": "value_encoder.attention.channel_gate.0.",
        f"{_CBAM}ChannelGate.mlp.3.": "value_encoder.attention.channel_gate.2.",
        f"{_CBAM}SpatialGate.spatial.conv.": "value_encoder.attention.spatial_gate.0.",
        **_residual("decoder.compress", "decoder.entry"),
        "decoder.up_16_8.skip_conv.": "decoder.stage8.skip.",
        **_residual("decoder.up_16_8.out_conv", "decoder.stage8.block"),
        "decoder.up_8_4.skip_conv.": "decoder.stage4.skip.",
        **_residual("decoder.up_8_4.out_conv", "decoder.stage4.block"),
        "decoder.pred.": "decoder.predictor.",
    },
    dropped={},
    adapt=_adapt,
)
