"""Backbones: image in, feature pyramid out; each owns its input statistics."""

from vos_lightning.backbones.densenet import DenseNetPyramid

__all__ = ["DenseNetPyramid"]
