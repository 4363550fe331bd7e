"""Released checkpoints of STM."""

from __future__ import annotations

import torch
from torch import Tensor

from vos_lightning.checkpoints.released.format import Adapted, ReleasedFormat, describe, trunk
from vos_lightning.encoders.masked import MaskedEncoder
from vos_lightning.networks.stm import STM

_MASKS = ("Encoder_M.conv1_m.weight", "Encoder_M.conv1_o.weight")


def _adapt(state: dict[str, Tensor]) -> Adapted:
    """Join the two convolutions of the mask channels into one."""
    state = dict(state)
    if all(key in state for key in _MASKS) and len({state[key].shape for key in _MASKS}) == 1:
        state["Encoder_M.conv1_m.weight, conv1_o.weight"] = torch.cat([state.pop(key) for key in _MASKS], dim=1)
    return state, {}


def _encoder(theirs: str, ours: str) -> dict[str, str]:
    stages = {f"{theirs}.res{n + 1}.": f"{ours}.layer{n}." for n in (1, 2, 3)}
    return {f"{theirs}.conv1.": f"{ours}.conv1.", f"{theirs}.bn1.": f"{ours}.bn1.", **stages}


def _projection(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.Key.": f"{ours}.key.", f"{theirs}.Value.": f"{ours}.value."}


def _stage(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.convFS.": f"{ours}.skip.", f"{theirs}.ResFS.": f"{ours}.skip_block.", f"{theirs}.ResMM.": f"{ours}.block."}


FORMAT = ReleasedFormat(
    module="vos_lightning.modules.stm.STMModule",
    network=STM,
    describe=lambda: {"backbone": trunk(), "mask_encoder": describe(MaskedEncoder, trunk=trunk(), others="clamped")},
    renamed={
        **_encoder("Encoder_M", "memory_encoder.trunk"),
        **_encoder("Encoder_Q", "query_encoder"),
        "Encoder_M.conv1_m.weight, conv1_o.weight": "memory_encoder.mask_conv.weight",
        **_projection("KV_M_r4", "memory_projection"),
        **_projection("KV_Q_r4", "query_projection"),
        "Decoder.convFM.": "decoder.entry.",
        "Decoder.ResMM.": "decoder.block16.",
        **_stage("Decoder.RF3", "decoder.stage8"),
        **_stage("Decoder.RF2", "decoder.stage4"),
        "Decoder.pred2.": "decoder.predictor.",
    },
    # ImageNet's mean and standard deviation, which are constants of the encoders here.
    dropped={f"Encoder_{which}.{name}": (1, 3, 1, 1) for which in "MQ" for name in ("mean", "std")},
    adapt=_adapt,
)
