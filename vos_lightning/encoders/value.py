"""Value encoder: what a frame with its masks writes into the memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.attention.cbam import CBAM
from vos_lightning.backbones.residual import ResidualBlock, hand_through
from vos_lightning.encoders.masked import CARRIERS, MaskedEncoder
from vos_lightning.mask_ops import by_objects


class ValueEncoder(nn.Module):
    r"""A shallow ResNet over frame and masks, fused with the features of the frame's own, deeper encoder.

    .. math:: x = R_1([f, g]), \qquad v = R_2(x + \mathrm{CBAM}(x))

    Here :math:`f` are the features of the object, :math:`g` those of the frame, and :math:`R_1, R_2` are residual blocks.

    Args:
        trunk: encoder of a frame with its masks, a ResNet-18 in the papers.
        shared_channels: number of channels of the frame's features at stride 16.
        value_channels: number of channels of the value.
        attention: use the CBAM; without it, :math:`v = R_2(x)` (a variant of STCN).
        reduction: factor by which the channel gate of the CBAM narrows.
        convolution: put a 3 x 3 convolution between the trunk and the fusion, as PMNet (2022, section 4.1) says of its ResNet-18.

    Reference: STCN (Cheng et al., NeurIPS 2021) section 3.1 and its released code.
    """

    def __init__(
        self,
        trunk: MaskedEncoder,
        shared_channels: int = 1024,
        value_channels: int = 512,
        *,
        attention: bool = True,
        reduction: int = 16,
        convolution: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        coarse = trunk.channels[2]
        self.convolution = nn.Conv2d(coarse, coarse, 3, padding=1) if convolution else None
        self.fine_channels = self.trunk.channels[0]
        """Number of channels of :meth:`fine`."""
        self.block1 = ResidualBlock(self.trunk.channels[2] + shared_channels, value_channels)
        self.attention = (
            CBAM(
                value_channels,
                entry_conv=False,
                reduction=reduction,
                spatial_hidden=None,
                spatial_kernel=7,
                spatial_pools=("max", "mean"),
            )
            if attention
            else None
        )
        self.block2 = ResidualBlock(value_channels, value_channels)

    def forward(
        self, image: Float[Tensor, "B 3 H W"], masks: Float[Tensor, "B N H W"], shared: Float[Tensor, "B C h w"]
    ) -> Float[Tensor, "B N CV h w"]:
        """Values of a frame.

        Args:
            image: RGB in [0, 1].
            masks: soft masks of all objects.
            shared: features of the frame at stride 16.
        """
        encode = self._of_frame(image, shared)
        channels = self.trunk.mask_channels(masks)
        value: Tensor = by_objects(lambda *part: encode(*part)[1], self.trunk.bytes_of_one(image), masks, channels)
        return value

    def fine(self, image: Float[Tensor, "B 3 H W"], masks: Float[Tensor, "B N H W"]) -> Float[Tensor, "B N C4 H4 W4"]:
        """Features of frame and masks at stride 4; nothing later is computed."""
        return self.trunk.fine(image, masks)

    def fine_and_value(
        self, image: Float[Tensor, "B 3 H W"], masks: Float[Tensor, "B N H W"], shared: Float[Tensor, "B C h w"]
    ) -> tuple[Float[Tensor, "B N C4 H4 W4"], Float[Tensor, "B N CV h w"]]:
        """Features of frame and masks at stride 4, and the values; see :meth:`forward`."""
        encode, channels = self._of_frame(image, shared), self.trunk.mask_channels(masks)
        fine, value = by_objects(encode, self.trunk.bytes_of_one(image), masks, channels)
        return fine, value

    def _of_frame(
        self, image: Float[Tensor, "B 3 H W"], shared: Float[Tensor, "B C h w"]
    ) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Compute what all objects share, and return what encodes objects with it."""
        trunk, fuse = self.trunk.of_frame(image), self.block1.of_frame(shared)

        def encode(masks: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
            fine, coarse = trunk(masks, channels)
            if self.convolution is not None:
                coarse = self.convolution(coarse.flatten(0, 1)).unflatten(0, masks.shape[:2])
            x = fuse(coarse).flatten(0, 1)
            if self.attention is not None:
                x = x + self.attention(x)
            return fine, self.block2(x).unflatten(0, masks.shape[:2])

        return encode

    @torch.no_grad()
    def start_as_copier(self) -> None:
        """Initialise so that the first two channels of the value are the mask and its complement.

        See :meth:`MaskedEncoder.start_as_copier`.
        """
        self.trunk.start_as_copier()
        if self.convolution is not None:
            hand_through(self.convolution, CARRIERS)
        self.block1.start_as_copier(CARRIERS)
        self.block2.start_as_copier(CARRIERS)
        if self.attention is not None:
            # The CBAM multiplies by a constant here, and the sum with its input adds 1 to that factor.
            gain = 1 + self.attention.start_as_constant(CARRIERS)
            assert isinstance(self.block1.shortcut, nn.Conv2d)
            self.block1.shortcut.weight[:CARRIERS] /= gain
