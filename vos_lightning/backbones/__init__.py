"""Backbones: image in, feature pyramid out; each owns its input statistics."""

from vos_lightning.backbones.densenet import DenseNetPyramid
from vos_lightning.backbones.residual import ResidualBlock, hand_through, shared_conv
from vos_lightning.backbones.resnet import ResNetPyramid

__all__ = ["DenseNetPyramid", "ResNetPyramid", "ResidualBlock", "hand_through", "shared_conv"]
