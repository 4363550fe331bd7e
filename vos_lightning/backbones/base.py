"""The interface of every backbone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.backbones.normalization import Norm
from vos_lightning.structures import FeaturePyramid


class Backbone(nn.Module, ABC):
    """An image encoder. A network takes one as an argument, so that any backbone serves any system.

    Attributes:
        channels: numbers of channels of the features at strides 4, 8 and 16.
        norm: how the backbone normalises, see :data:`vos_lightning.backbones.normalization.Norm`.
    """

    training_arguments: ClassVar[frozenset[str]] = frozenset({"weights", "norm", "train_from"})
    """Arguments of the constructor that do not change predictions once the parameters are given. Instance and batch normalisation
    cannot be confused, as the names of their parameters differ."""
    channels: tuple[int, int, int]
    norm: Norm
    _frozen_norms: Sequence[nn.Module] = ()
    """Batch normalisation whose statistics stay as they are, in training too."""

    mean: Tensor
    std: Tensor

    def _set_statistics(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Keep the mean and the standard deviation of the colours for which the weights are made."""
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def _normalized(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return (image - self.mean) / self.std

    def _freeze(self, norms: Sequence[nn.Module]) -> None:
        """Keep the statistics of batch normalisation, and, but for ``frozen_statistics``, its affine parameters."""
        self._frozen_norms = norms
        if self.norm != "frozen_statistics":
            for layer in norms:
                layer.requires_grad_(False)

    def train(self, mode: bool = True) -> Backbone:
        """Set training mode; frozen batch normalisation stays in evaluation mode."""
        super().train(mode)
        for layer in self._frozen_norms:
            layer.eval()
        return self

    @abstractmethod
    def forward(self, image: Float[Tensor, "B 3 H W"]) -> FeaturePyramid:
        """Encode RGB images in [0, 1], whose sides are multiples of 16; the backbone normalises colours itself."""

    def start_smooth(self) -> None:
        """Change random weights so that features vary slowly over an image, for training from scratch.

        The default does not change the weights.
        """


class StemBackbone(Backbone):
    """A backbone that can be entered after its first convolution, so that masks can be added to its result.

    Attributes:
        conv1: the first convolution, over normalised colours; None if the backbone starts with several, and then it encodes
            images only.
    """

    conv1: nn.Conv2d | None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> FeaturePyramid:
        """Encode RGB images in [0, 1]; ``H`` and ``W`` are multiples of 16."""
        return self.pyramid(self.stem(image))

    def stem(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C H1 W1"]:
        """The first convolution alone, on RGB images in [0, 1]."""
        normalized = self._normalized(image)
        return normalized if self.conv1 is None else self.conv1(normalized)

    @abstractmethod
    def pyramid(self, stem: Float[Tensor, "B C H1 W1"]) -> FeaturePyramid:
        """The features from the output of the first convolution."""

    @abstractmethod
    def fine(self, stem: Float[Tensor, "B C H1 W1"]) -> Float[Tensor, "B C4 H4 W4"]:
        """The features at stride 4 alone; nothing later is computed."""
