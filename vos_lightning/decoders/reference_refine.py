"""Decoder that refines a coarse mask with the features and masks of two reference frames at three scales."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vos_lightning.attention.aoa import DEFAULT_ALIGNMENT, AlignmentOptions, Sharpness, projector
from vos_lightning.encoders.projection import start_isometric
from vos_lightning.mask_ops import by_objects, pool_to_stride
from vos_lightning.matching.alignment import Moves, correspondence, move_blocks
from vos_lightning.structures import FeaturePyramid, per_object

LastKernel = Literal[1, 3]
Copied = Literal["coarse", "references"]
COPIED = 4.0
"""Weight of the mask that a copier start copies."""


@dataclass(frozen=True)
class ReferenceRefinement:
    """Options of the refinement of coarse masks with the first and the previous frame.

    Attributes:
        width: number of channels of every block of the decoder.
        kernel: side of the kernel of the decoder's last convolution: 1 in the paper, 3 in STM.
        move_masks: move the masks of the reference frames together with their features; otherwise the masks stay in place.
        top_k: number of positions of a reference frame from which a position of the current frame is composed; None for all, as
            in equation 3. With few, their blocks are gathered instead of multiplied with everything.

    Raises:
        ValueError: a value is out of range.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.1.
    """

    width: int = 256
    kernel: LastKernel = 1
    move_masks: bool = True
    top_k: int | None = None

    def __post_init__(self) -> None:
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"refinement.top_k must be at least 1 or null, not {self.top_k}")
        if self.width <= 0:
            raise ValueError(f"refinement.width must be positive, not {self.width}")
        if self.kernel not in get_args(LastKernel):
            raise ValueError(f"refinement.kernel must be one of {get_args(LastKernel)}, not {self.kernel}")


DEFAULT_REFINEMENT = ReferenceRefinement()


class ResidualNormBlock(nn.Module):
    """Two group-normalised 3 x 3 convolutions, each after a ReLU, added to the input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, channels)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        """Apply the block; same shape in and out."""
        residual = self.norm1(self.conv1(F.relu(x)))
        return x + self.norm2(self.conv2(F.relu(residual, inplace=True)))


@dataclass(frozen=True)
class ReferenceFrame:
    """A frame that the refinement uses as a reference."""

    pyramid: FeaturePyramid
    projected: Float[Tensor, "B CD h w"]
    """Projection of the frame by which later frames are aligned to it."""
    masks: Float[Tensor, "B N h4 w4"] = per_object()  # noqa: RUF009
    """Masks of all objects at stride 4."""
    owner: Bool[Tensor, "B N"] = per_object()  # noqa: RUF009
    """Objects that were introduced in this frame."""


@dataclass(frozen=True)
class References:
    """Features and masks of the reference frames, moved to their places in the current frame."""

    first: FeaturePyramid
    """Features of the frames that introduced objects: ``R`` frames of every clip, rows ``r * B + b``."""
    previous: FeaturePyramid
    owner: Float[Tensor, "R B N"] | None
    """1 where frame ``r`` introduced the object; None if a single frame introduced all objects."""


class ReferenceFusion(nn.Module):
    """One scale: fuses features of the current, the first and the previous frame with the three masks of every object.

    The convolution of the concatenated channels is computed as a sum: the part that comes from features does not depend on the
    object and is computed once a frame.
    """

    def __init__(self, channels: int, width: int, groups: int) -> None:
        super().__init__()
        self.channels = channels
        self.blend = nn.Conv2d(3 * channels + 3, width, 3, padding=1)
        self.norm = nn.GroupNorm(groups, width)
        self.block = ResidualNormBlock(width, groups)

    def of_frame(
        self, current: Float[Tensor, "B C h w"], first: Float[Tensor, "RB C h w"], previous: Float[Tensor, "B C h w"]
    ) -> Callable[[Tensor, Tensor | None], Tensor]:
        """Compute what all objects share.

        Returns:
            A function from the masks of objects, ``(B, N, 3, h, w)``, and the frames that introduced them, ``(B, N, R)`` or None
            (see :class:`References`), to their features, which are rows of the result ``(B*N, W, h, w)``.
        """
        batch, c = len(current), self.channels
        of_current, of_first, of_previous, of_masks = self.blend.weight.split((c, c, c, 3), dim=1)
        of_frames = torch.cat([of_current, of_previous], dim=1)
        shared = F.conv2d(torch.cat([current, previous], dim=1), of_frames, self.blend.bias, padding=1).unsqueeze(1)
        from_first = F.conv2d(first, of_first, padding=1).unflatten(0, (-1, batch))

        def fuse(masks: Tensor, owner: Tensor | None) -> Tensor:
            if owner is None:
                together = shared + from_first[0].unsqueeze(1)
            else:
                together = shared + torch.einsum("bnr,rbchw->bnchw", owner.to(from_first.dtype), from_first)
            own = F.conv2d(masks.flatten(0, 1), of_masks, padding=1).unflatten(0, masks.shape[:2])
            fused: Tensor = self.block(self.norm((own + together).flatten(0, 1)))
            return fused

        return fuse


class ReferenceRefineDecoder(nn.Module):
    """RefineNet of DMN-AOA: three blocks from stride 16 to 4, then background and foreground at the input's resolution.

    A block receives the features of three frames and three masks. The two finer blocks add the enlarged result of the block
    before and refine the sum, like the skip connections of STM's decoder. Every convolution but the last is group-normalised.

    Args:
        channels: numbers of channels of the pyramid at strides 4, 8 and 16.
        width: number of channels of every block.
        kernel: side of the kernel of the last convolution.
        groups: number of groups of the group normalisation.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.1; STM (Oh et al., ICCV 2019), section 3.3.
    """

    def __init__(
        self, channels: tuple[int, int, int] = (64, 128, 256), width: int = 256, kernel: LastKernel = 1, *, groups: int = 32
    ) -> None:
        super().__init__()
        at4, at8, at16 = channels
        self.fuse16 = ReferenceFusion(at16, width, groups)
        self.fuse8 = ReferenceFusion(at8, width, groups)
        self.fuse4 = ReferenceFusion(at4, width, groups)
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
            current: features of the current frame.
            references: features of the first and the previous frame, moved to the current one.
            masks: masks at strides 4, 8 and 16: the moved ones of the first and the previous frame, and the coarse one of the
                current frame.
        """
        first, previous, owner = references.first, references.previous, references.owner
        fuse16 = self.fuse16.of_frame(current.s16, first.s16, previous.s16)
        fuse8 = self.fuse8.of_frame(current.s8, first.s8, previous.s8)
        fuse4 = self.fuse4.of_frame(current.s4, first.s4, previous.s4)

        def decode(m4: Tensor, m8: Tensor, m16: Tensor, frames: Tensor | None = None) -> Tensor:
            x = fuse16(m16, frames)
            x = self.block8(fuse8(m8, frames) + _double(x))
            x = self.block4(fuse4(m4, frames) + _double(x))
            background, foreground = self.predictor(F.relu(x, inplace=True)).float().unbind(dim=1)
            # In a softmax over the two channels only their difference matters, and enlarging is linear.
            logits = F.interpolate((foreground - background).unsqueeze(1), scale_factor=4, mode="bilinear", align_corners=False)
            return logits.squeeze(1).unflatten(0, m4.shape[:2])

        owners = () if owner is None else (owner.permute(1, 2, 0),)
        # Some six tensors at stride 4 at a time.
        bytes_of_one = 6.0 * self.predictor.in_channels * current.s4[:, 0].numel() * current.s4.element_size()
        logits: Tensor = by_objects(decode, bytes_of_one, *masks, *owners)
        return logits

    @torch.no_grad()
    def start_as_copier(self, source: Copied = "coarse") -> None:
        """Initialise so that the untrained decoder passes on the sign of a mask, see :meth:`ReferenceRefiner.start_as_copier`.

        In every block, two channels carry the mask and its negative, and nothing else feeds them. Residual blocks start near the
        identity, and the last convolution reads little else. The two carriers cancel in the mean that the group normalisation
        subtracts, so that a probability of one half stays at zero.
        """
        copied = [-1] if source == "coarse" else [-3, -2]
        for fusion in (self.fuse16, self.fuse8, self.fuse4):
            fusion.blend.weight[:2] = 0
            assert fusion.blend.bias is not None
            for carrier, sign in enumerate((-1.0, 1.0)):
                fusion.blend.weight[carrier, copied, 1, 1] = sign * COPIED / len(copied)
                fusion.blend.bias[carrier] = -sign * COPIED / 2
        for block in (self.fuse16.block, self.fuse8.block, self.fuse4.block, self.block8, self.block4):
            block.norm2.weight.fill_(0.1)
            block.norm2.weight[:2] = 0
        self.predictor.weight *= 0.05
        middle = self.predictor.kernel_size[0] // 2
        for carrier in range(2):
            self.predictor.weight[carrier, carrier, middle, middle] = 1


class ReferenceRefiner(nn.Module):
    """Aligns reference frames to the current one and refines coarse masks with them.

    The correspondence to the reference frames is computed at stride 16, and moves the pixels of finer scales in blocks. All
    objects share it.

    Args:
        channels: numbers of channels of the pyramid at strides 4, 8 and 16.
        alignment: options of the space in which frames are aligned.
        options: options of the refinement.
        groups: number of groups of the group normalisation.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 3.1 and equations 2 and 3.
    """

    def __init__(
        self,
        channels: tuple[int, int, int] = (64, 128, 256),
        alignment: AlignmentOptions = DEFAULT_ALIGNMENT,
        options: ReferenceRefinement = DEFAULT_REFINEMENT,
        *,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.move_masks = options.move_masks
        self.top_k = options.top_k
        self.query = projector(channels[2], alignment.channels, groups=groups)
        self.reference = projector(channels[2], alignment.channels, groups=groups)
        self.sharpness = Sharpness(alignment.sharpness, learned=alignment.learned_sharpness)
        self.decoder = ReferenceRefineDecoder(channels, options.width, options.kernel, groups=groups)

    def start_isometric(self) -> None:
        """Initialise both projections as one rotation of features that are the ReLU of pairs, see :func:`start_isometric`."""
        start_isometric(self.query[0], reads_pairs=True, writes_pairs=True)
        start_isometric(self.query[3], reads_pairs=True)
        self.reference.load_state_dict(self.query.state_dict())

    @torch.no_grad()
    def start_as_copier(self, source: Copied = "coarse") -> None:
        """Initialise so that the untrained refinement passes on a mask.

        Args:
            source: ``coarse`` passes on the coarse mask; ``references`` the mean of the moved masks of the first and the previous
                frame, where a coarse mask is worth nothing before training. Both projections then start with the same weights, so
                that frames are aligned by what looks alike: cosines between the spaces of two random ones say nothing.
        """
        if source == "references":
            self.reference.load_state_dict(self.query.state_dict())
        self.decoder.start_as_copier(source)

    def project(self, s16: Float[Tensor, "B C h w"]) -> tuple[Float[Tensor, "B CD h w"], Float[Tensor, "B CD h w"]]:
        """Projections of a frame, as the current one and as a reference frame."""
        return self.query(s16), self.reference(s16)

    def forward(
        self,
        current: FeaturePyramid,
        query: Float[Tensor, "B CD h w"],
        first: tuple[ReferenceFrame, ...],
        previous: ReferenceFrame,
        coarse: Float[Tensor, "B N h4 w4"],
    ) -> Float[Tensor, "B N H W"]:
        """Foreground logits of every object.

        Args:
            current: features of the current frame.
            query: projection of the current frame, see :meth:`project`.
            first: the frames that introduced objects.
            previous: the previous frame.
            coarse: coarse masks of the current frame, in [0, 1].
        """
        frames = (*first, previous)
        batch = coarse.shape[0]
        # All reference frames are rows of one batch.
        source = torch.cat([frame.projected for frame in frames]).flatten(2)
        moves = Moves.of(correspondence(query.flatten(2).repeat(len(frames), 1, 1), source, self.sharpness()), self.top_k)
        levels = [
            move_blocks(moves, torch.cat([getattr(frame.pyramid, name) for frame in frames]), block)
            for name, block in (("s4", 4), ("s8", 2), ("s16", 1))
        ]
        masks = torch.cat([frame.masks for frame in frames])
        if self.move_masks:
            masks = move_blocks(moves, masks, 4)
        owner = None if len(first) == 1 else torch.stack([frame.owner for frame in first]).float()
        first_masks = masks[:-batch].unflatten(0, (-1, batch))
        own = first_masks[0] if owner is None else torch.einsum("rbn,rbnyx->bnyx", owner, first_masks)
        three = torch.stack([own.float(), masks[-batch:].float(), coarse], dim=2)
        half, quarter = (pool_to_stride(three.flatten(1, 2), s).unflatten(1, three.shape[1:3]) for s in (2, 4))
        moved = References(
            FeaturePyramid(*(level[:-batch] for level in levels)), FeaturePyramid(*(level[-batch:] for level in levels)), owner
        )
        return self.decoder(current, moved, (three, half, quarter))


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
