"""Decoder that refines features from stride 16 to stride 4, with the frame's features as skip connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.backbones.residual import OfObjects, ResidualBlock, conv_of_frame, hand_through, merge_objects
from vos_lightning.mask_ops import by_objects
from vos_lightning.structures import FeaturePyramid

Entry = Literal["residual", "convolution"]
"""First block at stride 16: a residual block (STCN), or a convolution and then a residual block (STM)."""


class RefineBlock(nn.Module):
    r"""One step to a finer scale: enlarge the features of every object by two, and join them with the frame's features.

    .. math:: y = R(s + \mathrm{up}_2(x))

    Here :math:`R` is a residual block and :math:`s` the skip connection: a 3 x 3 convolution of the frame's features, followed in
    STM by a residual block. The skip connection is computed once for all objects of a frame.

    Args:
        skip_channels: number of channels of the frame's features.
        in_channels: number of channels of the coarser features of every object.
        out_channels: number of channels of the result.
        refine_skip: add the residual block to the skip connection (STM).

    Reference: STM (Oh et al., ICCV 2019), refinement module; STCN (Cheng et al., NeurIPS 2021), released code.
    """

    def __init__(self, skip_channels: int, in_channels: int, out_channels: int, refine_skip: bool) -> None:
        super().__init__()
        self.skip = nn.Conv2d(skip_channels, in_channels, 3, padding=1)
        self.skip_block = ResidualBlock(in_channels, in_channels) if refine_skip else nn.Identity()
        self.block = ResidualBlock(in_channels, out_channels)

    def forward(self, coarse: Float[Tensor, "B N C h w"], skip: Float[Tensor, "B C1 h2 w2"]) -> Float[Tensor, "B N C2 h2 w2"]:
        """Refine the features of every object."""
        return self.of_frame(skip)(coarse)

    def of_frame(self, skip: Float[Tensor, "B C1 h2 w2"]) -> OfObjects:
        """Compute the skip connection, and return what refines objects with it."""
        shared = self.skip_block(self.skip(skip)).unsqueeze(1)

        def refine(coarse: Tensor) -> Tensor:
            grown = F.interpolate(merge_objects(coarse), scale_factor=2, mode="bilinear", align_corners=False)
            x = grown.unflatten(0, coarse.shape[:2]) + shared
            refined: Tensor = self.block(merge_objects(x)).unflatten(0, coarse.shape[:2])
            return refined

        return refine

    @torch.no_grad()
    def start_as_copier(self, carriers: int) -> None:
        """Initialise so that the first channels of every object are enlarged and passed on; see :class:`RefineDecoder`."""
        assert self.skip.bias is not None
        self.skip.weight[:carriers] = 0
        self.skip.bias[:carriers] = 0
        if isinstance(self.skip_block, ResidualBlock):
            self.skip_block.start_as_copier(carriers)
        self.block.start_as_copier(carriers)


class RefineDecoder(nn.Module):
    """Decoder of STM and STCN: readout and query value in, one foreground logit a pixel out.

    The defaults are STCN's; STM's decoder is ``RefineDecoder(..., channels=(256, 256, 256), entry="convolution",
    refine_skip=True, num_classes=2)``.

    Args:
        feature_channels: numbers of channels of the pyramid at strides 4 and 8 (a third number is ignored).
        read_channels: number of channels of the readout of every object.
        query_channels: number of channels of the frame's query value.
        channels: numbers of channels of the features at strides 16, 8 and 4.
        entry: first block at stride 16.
        refine_skip: add a residual block to the skip connections, see :class:`RefineBlock`.
        num_classes: 1 for a foreground logit, or 2 for background and foreground, whose difference is the logit.

    Raises:
        ValueError: ``entry`` or ``num_classes`` is unknown.

    Reference: STM (Oh et al., ICCV 2019) section 3.3; STCN (Cheng et al., NeurIPS 2021), released code.
    """

    def __init__(
        self,
        feature_channels: tuple[int, ...] = (256, 512, 1024),
        read_channels: int = 512,
        query_channels: int = 512,
        channels: tuple[int, int, int] = (512, 256, 256),
        entry: Entry = "residual",
        refine_skip: bool = False,
        num_classes: Literal[1, 2] = 1,
    ) -> None:
        super().__init__()
        if entry not in get_args(Entry):
            raise ValueError(f"entry must be one of {get_args(Entry)}, not {entry!r}")
        if num_classes not in (1, 2):
            raise ValueError(f"num_classes must be 1 or 2, not {num_classes}")
        s4, s8 = feature_channels[:2]
        inputs = read_channels + query_channels
        if entry == "residual":
            self.entry: ResidualBlock | nn.Conv2d = ResidualBlock(inputs, channels[0])
            self.block16: nn.Module = nn.Identity()
        else:
            self.entry = nn.Conv2d(inputs, channels[0], 3, padding=1)
            self.block16 = ResidualBlock(channels[0], channels[0])
        self.stage8 = RefineBlock(s8, channels[0], channels[1], refine_skip)
        self.stage4 = RefineBlock(s4, channels[1], channels[2], refine_skip)
        self.predictor = nn.Conv2d(channels[2], num_classes, 3, padding=1)
        self.channels = channels
        """Numbers of channels of :meth:`refine` at strides 16, 8 and 4."""

    def forward(
        self, pyramid: FeaturePyramid, readout: Float[Tensor, "B N CV h w"], query_value: Float[Tensor, "B CQ h w"]
    ) -> Float[Tensor, "B N H W"]:
        """Foreground logits at the input's resolution.

        Args:
            pyramid: features of the frame; strides 4 and 8 are read.
            readout: readout of the memory for every object.
            query_value: query value of the frame.
        """
        refine = self.of_frame(pyramid, query_value)

        def decode(part: Tensor) -> Tensor:
            return self.enlarge(self.predict(refine(part)[-1]))

        logits: Tensor = by_objects(decode, self.bytes_of_one(pyramid), readout)
        return logits

    def of_frame(
        self, pyramid: FeaturePyramid, query_value: Float[Tensor, "B CQ h w"]
    ) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
        """Compute what all objects share.

        Args:
            pyramid: features of the frame; strides 4 and 8 are read.
            query_value: query value of the frame.

        Returns:
            A function from the readouts of objects, ``(B, N, CV, h, w)``, to their features at strides 16, 8 and 4.
        """
        enter = (
            self.entry.of_frame(query_value) if isinstance(self.entry, ResidualBlock) else conv_of_frame(self.entry, query_value)
        )
        to8, to4 = self.stage8.of_frame(pyramid.s8), self.stage4.of_frame(pyramid.s4)

        def refine(readout: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x16 = self.block16(enter(readout).flatten(0, 1)).unflatten(0, readout.shape[:2])
            x8 = to8(x16)
            return x16, x8, to4(x8)

        return refine

    def bytes_of_one(self, pyramid: FeaturePyramid) -> float:
        """About how many bytes one object takes: some six tensors at stride 4 at a time."""
        return 3.0 * (self.channels[1] + self.channels[2]) * pyramid.s4[:, 0].numel() * pyramid.s4.element_size()

    def predict(self, features: Float[Tensor, "B N C4 h4 w4"]) -> Float[Tensor, "B N h4 w4"]:
        """Foreground logits at stride 4 from the features at stride 4."""
        x = self.predictor(F.relu(features.flatten(0, 1))).float()
        # In a softmax over background and foreground, the foreground probability is the sigmoid of their difference.
        return (x[:, -1] - x[:, 0] if x.shape[1] == 2 else x[:, 0]).unflatten(0, features.shape[:2])

    @staticmethod
    def enlarge(logits: Float[Tensor, "B N h4 w4"]) -> Float[Tensor, "B N H W"]:
        """Enlarge bilinearly from stride 4 to the input's resolution."""
        return F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)

    @torch.no_grad()
    def start_as_copier(self, evidence: float = 6.0) -> None:
        """Initialise so that the untrained decoder enlarges the first two channels of the readout.

        These channels are the shares of the object and of the rest in the readout. The contributions of all other channels start
        small.

        Args:
            evidence: logit of a readout that is wholly inside the object.
        """
        carriers = 2
        if isinstance(self.entry, ResidualBlock):
            self.entry.start_as_copier(carriers)
        else:
            hand_through(self.entry, carriers)
        if isinstance(self.block16, ResidualBlock):
            self.block16.start_as_copier(carriers)
        self.stage8.start_as_copier(carriers)
        self.stage4.start_as_copier(carriers)
        classes = self.predictor.out_channels
        assert self.predictor.bias is not None
        self.predictor.weight *= 0.05
        self.predictor.bias.zero_()
        self.predictor.weight[:, :carriers] = 0
        for row, sign in ((0, -1), (classes - 1, 1)):
            for carrier, other in ((0, 1), (1, -1)):
                self.predictor.weight[row, carrier, 1, 1] = sign * other * evidence / classes
