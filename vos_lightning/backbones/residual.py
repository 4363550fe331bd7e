"""Pre-activated residual block, and convolutions in which some input channels do not depend on the object."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

OfObjects = Callable[[Tensor], Tensor]
"""What a layer does to the features of objects ``(B, N, C1, h, w)``, when those of their frame are known."""


def conv_of_frame(conv: nn.Conv2d, shared: Float[Tensor, "B C2 h w"]) -> OfObjects:
    """Convolve the concatenation of every object's channels and its frame's channels.

    A convolution of concatenated channels is the sum of two convolutions; the one over the frame's channels does not depend on
    the object and is computed once, here.

    Args:
        conv: a convolution with ``C1 + C2`` input channels.
        shared: features of the frame, shared by its objects.

    Returns:
        A function from the features of objects to the result of ``conv`` on the concatenation.
    """
    of_own, of_shared = conv.weight.tensor_split((conv.in_channels - shared.shape[1],), dim=1)
    once = F.conv2d(shared, of_shared, conv.bias, conv.stride, conv.padding).unsqueeze(1)

    def apply(own: Tensor) -> Tensor:
        each = F.conv2d(own.flatten(0, 1), of_own, None, conv.stride, conv.padding)
        return each.unflatten(0, own.shape[:2]) + once

    return apply


def merge_objects(x: Float[Tensor, "B N C h w"]) -> Float[Tensor, "R C h w"]:
    """The features of all objects as one batch of ``B N`` rows, without a copy.

    A single row may have any stride, which hides from some layers (enlarging, pooling, normalisation) that channels come last in
    memory; they would then work in the other order, and every layer between the two would copy its input. So it gets its proper
    stride (without gradients, because that of a new stride costs more than it saves).
    """
    rows = x.flatten(0, 1)
    if torch.is_grad_enabled() or len(rows) != 1:  # in this order: an exported graph leaves the number of rows open
        return rows
    return rows.as_strided(rows.shape, (rows.numel(), *rows.stride()[1:]))


@torch.no_grad()
def hand_through(conv: nn.Conv2d, carriers: int) -> None:
    """Initialise a convolution so that it passes its first input channels on unchanged."""
    conv.weight[:carriers] = 0
    middle = conv.weight.shape[-1] // 2
    for channel in range(carriers):
        conv.weight[channel, channel, middle, middle] = 1
    if conv.bias is not None:
        conv.bias[:carriers] = 0


class ResidualBlock(nn.Module):
    r"""Two 3 x 3 convolutions, each after a ReLU: :math:`d(x) + c_2(\mathrm{relu}(c_1(\mathrm{relu}(x))))`.

    The shortcut :math:`d` is the identity, or a 3 x 3 convolution (of the input without the ReLU) where the number of channels
    changes. There is no normalisation; all convolutions have biases.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.

    Reference: STM (Oh et al., ICCV 2019) and STCN (Cheng et al., NeurIPS 2021), released code; pre-activation: He et al.,
    "Identity Mappings in Deep Residual Networks", ECCV 2016.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C2 h w"]:
        """Apply the block."""
        return self.shortcut(x) + self.conv2(F.relu(self.conv1(F.relu(x)), inplace=True))

    def of_frame(self, shared: Float[Tensor, "B C2 h w"]) -> OfObjects:
        """Apply the block to the concatenation of every object's and its frame's channels, see :func:`conv_of_frame`.

        Only for blocks that change the number of channels.
        """
        assert isinstance(self.shortcut, nn.Conv2d)
        conv1, shortcut = conv_of_frame(self.conv1, F.relu(shared)), conv_of_frame(self.shortcut, shared)

        def apply(own: Tensor) -> Tensor:
            hidden = conv1(F.relu(own))
            residual: Tensor = self.conv2(F.relu(hidden.flatten(0, 1), inplace=True)).unflatten(0, own.shape[:2])
            return shortcut(own) + residual

        return apply

    @torch.no_grad()
    def start_as_copier(self, carriers: int) -> None:
        """Initialise so that the first channels pass unchanged and the others change little."""
        if isinstance(self.shortcut, nn.Conv2d):
            hand_through(self.shortcut, carriers)
        self.conv2.weight *= 0.1
        self.conv2.weight[:carriers] = 0
        assert self.conv2.bias is not None
        self.conv2.bias.zero_()
