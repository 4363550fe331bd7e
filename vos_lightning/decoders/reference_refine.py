"""Decoder that refines a coarse mask with the features and masks of two reference frames at three scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.structures import FeaturePyramid

COPIED = 4.0
"""Weight of the coarse mask in a copier start."""


class ResidualNormBlock(nn.Module):
    """Two rectified, group-normalised 3 x 3 convolutions around an identity."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Same shape in and out."""
        residual = self.norm1(self.conv1(F.relu(x)))
        return x + self.norm2(self.conv2(F.relu(residual, inplace=True)))


@dataclass(frozen=True)
class References:
    """What the reference frames contribute, moved to where it is in the current frame."""

    first: FeaturePyramid
    """Of the frames that introduced objects: ``R`` frames of every clip, rows ``r * B + b``."""
    previous: FeaturePyramid
    owner: Float[Tensor, "R B N"] | None
    """1 where frame ``r`` introduced the object; None where there is one such frame, for all objects."""


class ReferenceFusion(nn.Module):
    """One scale: features of the current, the first and the previous frame with the three masks of every object.

    The convolution of the concatenated channels is computed as a sum: what comes from features does not depend on the object and
    is computed once a frame.
    """

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.channels = channels
        self.blend = nn.Conv2d(3 * channels + 3, width, 3, padding=1)
        self.norm = nn.GroupNorm(groups, width)
        self.block = ResidualNormBlock(width, groups)

    def forward(
        self,
        current: Float[Tensor, "B C h w"],
        first: Float[Tensor, "RB C h w"],
        previous: Float[Tensor, "B C h w"],
        owner: Float[Tensor, "R B N"] | None,
        masks: Float[Tensor, "B N 3 h w"],
    ) -> Float[Tensor, "BN W h w"]:
        """Fuse; objects are rows of the result."""
        batch, num_objects = masks.shape[:2]
        c = self.channels
        of_current, of_first, of_previous, of_masks = self.blend.weight.split((c, c, c, 3), dim=1)
        of_frames = torch.cat([of_current, of_previous], dim=1)
        shared = F.conv2d(torch.cat([current, previous], dim=1), of_frames, self.blend.bias, padding=1).unsqueeze(1)
        from_first = F.conv2d(first, of_first, padding=1).unflatten(0, (-1, batch))
        if owner is None:
            shared = shared + from_first[0].unsqueeze(1)
        else:
            shared = shared + torch.einsum("rbn,rbchw->bnchw", owner.to(from_first.dtype), from_first)
        own = F.conv2d(masks.flatten(0, 1), of_masks, padding=1).unflatten(0, (batch, num_objects))
        return self.block(self.norm((own + shared).flatten(0, 1)))


class ReferenceRefineDecoder(nn.Module):
    """RefineNet of DMN-AOA: three blocks from stride 16 to 4, then background and foreground at the input's resolution.

    A block has the features of three frames and three masks; the two finer ones add the enlarged result of the one before and
    refine the sum, as STM's decoder does with its skip connections. Every convolution but the last is group-normalised.

    Args:
        channels: of the pyramid, the same at every stride.
        width: of every block.
        groups: of the group normalisation.
        kernel: of the last convolution: 1 (DMN-AOA) or 3 (STM).

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.1; STM (Oh et al., ICCV 2019), section 3.3.
    """

    def __init__(self, channels: int = 256, width: int = 256, groups: int = 32, kernel: Literal[1, 3] = 1) -> None:
        super().__init__()
        if kernel not in (1, 3):
            raise ValueError(f"kernel must be 1 or 3, not {kernel}")
        self.fuse16 = ReferenceFusion(channels, width, groups)
        self.fuse8 = ReferenceFusion(channels, width, groups)
        self.fuse4 = ReferenceFusion(channels, width, groups)
        self.block8 = ResidualNormBlock(width, groups)
        self.block4 = ResidualNormBlock(width, groups)
        self.predictor = nn.Conv2d(width, 2, kernel, padding=kernel // 2)

    def forward(
        self,
        current: FeaturePyramid,
        references: References,
        masks: tuple[Float[Tensor, "B N 3 h4 w4"], Float[Tensor, "B N 3 h8 w8"], Float[Tensor, "B N 3 h16 w16"]],
    ) -> Float[Tensor, "B N H W"]:
        """Foreground logits of every object.

        Args:
            current: features of the frame.
            references: moved features of the first and the previous frame.
            masks: at strides 4, 8 and 16: moved masks of the first and of the previous frame, coarse mask of the current one.
        """
        first, previous, owner = references.first, references.previous, references.owner
        m4, m8, m16 = masks
        x = self.fuse16(current.s16, first.s16, previous.s16, owner, m16)
        x = self.block8(self.fuse8(current.s8, first.s8, previous.s8, owner, m8) + _double(x))
        x = self.block4(self.fuse4(current.s4, first.s4, previous.s4, owner, m4) + _double(x))
        background, foreground = self.predictor(F.relu(x, inplace=True)).float().unbind(dim=1)
        # Of a softmax over the two, only the difference counts, and enlarging is linear.
        logits = F.interpolate((foreground - background).unsqueeze(1), scale_factor=4, mode="bilinear", align_corners=False)
        return logits.squeeze(1).unflatten(0, m4.shape[:2])

    @torch.no_grad()
    def start_as_copier(self) -> None:
        """Initialise so that the untrained decoder hands on the sign of the coarse mask.

        In every block two channels carry the coarse mask and its opposite and nothing else feeds them; residual blocks start near
        the identity, and the last convolution reads little else. The two carriers cancel in the mean that the group normalisation
        subtracts, so that a probability of one half stays at zero.
        """
        for fusion in (self.fuse16, self.fuse8, self.fuse4):
            fusion.blend.weight[:2] = 0
            assert fusion.blend.bias is not None
            for carrier, sign in enumerate((-1.0, 1.0)):
                fusion.blend.weight[carrier, -1, 1, 1] = sign * COPIED
                fusion.blend.bias[carrier] = -sign * COPIED / 2
        for block in (self.fuse16.block, self.fuse8.block, self.fuse4.block, self.block8, self.block4):
            block.norm2.weight.fill_(0.1)
            block.norm2.weight[:2] = 0
        self.predictor.weight *= 0.05
        middle = self.predictor.kernel_size[0] // 2
        for carrier in range(2):
            self.predictor.weight[carrier, carrier, middle, middle] = 1


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
