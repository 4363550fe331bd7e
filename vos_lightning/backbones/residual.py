"""Pre-activated residual block, and convolutions in which some input channels do not depend on the object."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


def shared_conv(
    conv: nn.Conv2d, own: Float[Tensor, "B N C1 h w"], shared: Float[Tensor, "B C2 h w"]
) -> Float[Tensor, "B N C3 h w"]:
    """Convolve the concatenation of every object's channels and its frame's channels.

    A convolution of concatenated channels is the sum of two convolutions; the one over the frame's channels does not depend on
    the object and is computed once.

    Args:
        conv: a convolution with ``C1 + C2`` input channels.
        own: features of every object.
        shared: features of the frame, shared by its objects.

    Returns:
        The result of ``conv`` on the concatenation.
    """
    batch, num_objects, channels = own.shape[:3]
    of_own, of_shared = conv.weight.tensor_split((channels,), dim=1)
    once = F.conv2d(shared, of_shared, conv.bias, conv.stride, conv.padding)
    each = F.conv2d(own.flatten(0, 1), of_own, None, conv.stride, conv.padding)
    return each.unflatten(0, (batch, num_objects)) + once.unsqueeze(1)


def merge_objects(x: Float[Tensor, "B N C h w"]) -> Float[Tensor, "R C h w"]:
    """The features of all objects as one batch of ``B N`` rows, without a copy.

    A single row may have any stride, which hides from some layers (enlarging, pooling, normalisation) that channels come last in
    memory; they would then work in the other order, and every layer between the two would copy its input. So it gets its proper
    stride (without gradients, because that of a new stride costs more than it saves).
    """
    rows = x.flatten(0, 1)
    if len(rows) != 1 or torch.is_grad_enabled():
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

    def fuse(self, own: Float[Tensor, "B N C1 h w"], shared: Float[Tensor, "B C2 h w"]) -> Float[Tensor, "B N C3 h w"]:
        """Apply the block to the concatenation of every object's and its frame's channels, see :func:`shared_conv`.

        Only for blocks that change the number of channels.
        """
        assert isinstance(self.shortcut, nn.Conv2d)
        hidden = shared_conv(self.conv1, F.relu(own), F.relu(shared))
        residual = self.conv2(F.relu(hidden.flatten(0, 1), inplace=True)).unflatten(0, own.shape[:2])
        return shared_conv(self.shortcut, own, shared) + residual

    @torch.no_grad()
    def start_as_copier(self, carriers: int) -> None:
        """Initialise so that the first channels pass unchanged and the others change little."""
        if isinstance(self.shortcut, nn.Conv2d):
            hand_through(self.shortcut, carriers)
        self.conv2.weight *= 0.1
        self.conv2.weight[:carriers] = 0
        assert self.conv2.bias is not None
        self.conv2.bias.zero_()
