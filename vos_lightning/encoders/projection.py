"""Heads that turn features into keys and values."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn


@torch.no_grad()
def start_isometric(layer: nn.Module, gain: float = 1.0, *, reads_pairs: bool = False, writes_pairs: bool = False) -> None:
    """Initialise a convolution as a random rotation of its input, which keeps the inner products of pixels, up to a factor.

    A random matrix takes much of what pretrained features tell apart, and short trainings do not win it back. With fewer output
    than input channels, the rotated features are projected onto a random subspace, which loses a part of it.

    A value and its negative in two neighbouring channels are a pair. A ReLU keeps the positive part of one and the negative part
    of the other, so that the next layer can join them to the value again. A group normalisation subtracts nothing from a group of
    whole pairs.

    Args:
        layer: convolution with an odd kernel; only its middle is set, the rest becomes zero, as does the bias.
        gain: factor of the output.
        reads_pairs: the input is the ReLU of pairs.
        writes_pairs: the output are pairs.
    """
    assert isinstance(layer, nn.Conv2d)
    rows, columns, height, width = layer.weight.shape
    signs = layer.weight.new_tensor([1.0, -1.0])
    of_output, of_input = signs[: 1 + writes_pairs], signs[: 1 + reads_pairs]
    rotation = nn.init.orthogonal_(layer.weight.new_empty(rows // len(of_output), columns // len(of_input)), gain)
    layer.weight.zero_()
    layer.weight[:, :, height // 2, width // 2] = torch.kron(rotation, torch.outer(of_output, of_input))
    if layer.bias is not None:
        layer.bias.zero_()


class KeyValueProjection(nn.Module):
    """Key and value of every pixel: two 3 x 3 convolutions with biases, without normalisation or activation.

    Args:
        in_channels: number of channels of the features.
        key_channels: number of channels of the key.
        value_channels: number of channels of the value.
        orthogonal_key: start with an orthogonal key weight and a zero bias (STCN) instead of PyTorch's default (STM).

    Reference: STM (Oh et al., ICCV 2019), STCN (Cheng et al., NeurIPS 2021); released code.
    """

    def __init__(self, in_channels: int, key_channels: int, value_channels: int, orthogonal_key: bool = False) -> None:
        super().__init__()
        self.key = nn.Conv2d(in_channels, key_channels, 3, padding=1)
        self.value = nn.Conv2d(in_channels, value_channels, 3, padding=1)
        if orthogonal_key:
            nn.init.orthogonal_(self.key.weight)
            assert self.key.bias is not None
            nn.init.zeros_(self.key.bias)

    def forward(self, features: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B CK h w"], Float[Tensor, "B CV h w"]]:
        """Key and value."""
        return self.key(features), self.value(features)

    @torch.no_grad()
    def start_as_matcher(self, gain: float = 5.0) -> None:
        """Initialise the key as a random rotation of smoothed features, for training from random weights.

        Args:
            gain: scale of the key for features of unit variance; a larger gain makes the softmax over the memory sharper.
        """
        start_isometric(self.key, gain)
        row = self.key.weight.new_tensor([0.25, 0.5, 0.25])
        self.key.weight.copy_(self.key.weight[:, :, 1:2, 1:2] * torch.outer(row, row))

    def start_isometric(self, gain: float = 2.0) -> None:
        """Initialise the key as a random rotation of the features, for short trainings from pretrained weights.

        Args:
            gain: scale of the key for features of unit variance; a larger gain makes the softmax over the memory sharper.
        """
        start_isometric(self.key, gain)
