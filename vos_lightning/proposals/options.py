"""Names that options of a detector may have, which the command line reads without PyTorch."""

from __future__ import annotations

from typing import Literal

Architecture = Literal[
    "resnet50", "resnet50_v2", "resnet101", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "resnet18"
]
"""Backbones of the feature pyramid; ``resnet50_v2`` is torchvision's improved Mask R-CNN."""
Order = Literal["nms_first", "top_first", "objectness"]
Pretrained = Literal["COCO_V1"]
"""Member of ``MaskRCNN_ResNet50_FPN_Weights`` or ``MaskRCNN_ResNet50_FPN_V2_Weights``."""
