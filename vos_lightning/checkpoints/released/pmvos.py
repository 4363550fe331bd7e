"""Released checkpoints of PMVOS."""

from __future__ import annotations

from vos_lightning.backbones.resnet import ResNetPyramid
from vos_lightning.checkpoints.released.format import ReleasedFormat, describe
from vos_lightning.networks.pmvos import PMVOS

FORMAT = ReleasedFormat(
    module="vos_lightning.modules.pmvos.PMVOSModule",
    network=PMVOS,
    describe=lambda: {"backbone": describe(ResNetPyramid, weights=None), "medial": "released"},
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
    # The classifier of the backbone is not used.
    dropped={"vos.backbone.fc.weight": (1000, 2048), "vos.backbone.fc.bias": (1000,)},
)
