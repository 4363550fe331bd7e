"""Heads that turn features into keys and values."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class KeyValueProjection(nn.Module):
    """Key and value of every pixel: two 3 x 3 convolutions with biases, without normalisation or activation.

    Args:
        in_channels: of the features.
        key_channels: of the key.
        value_channels: of the value.
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
