"""Decoder whose three scales each give two-channel maps, which a last transposed convolution merges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.decoders.deconv import FusionBlock, bilinear_kernel, initialize, transposed_convolution
from vos_lightning.mask_ops import by_objects
from vos_lightning.structures import FeaturePyramid


class CRVOSDecoder(nn.Module):
    """Decoder of CRVOS and PMVOS: a :class:`FusionBlock` without attention at each of three scales; the last layer merges them.

    Convolutions start with Kaiming-uniform weights and zero biases, transposed convolutions with PyTorch's default.

    Args:
        feature_channels: numbers of channels of the pyramid at strides 4, 8 and 16.
        map_channels: number of map channels of one object at stride 16.
        lateral_channels: number of channels of the reduced features at stride 16; half as many at the other strides.
        channels: number of channels of the fused features at every scale.
        normalize: instance-normalise the reduced features, see :class:`FusionBlock`.

    Reference: CRVOS (Cho et al., ICIP 2020); PMVOS (Cho et al., arXiv 2009.08855), released code.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        map_channels: int,
        lateral_channels: int = 256,
        channels: int = 128,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        s4, s8, s16 = feature_channels
        half = lateral_channels // 2
        self.stage16 = FusionBlock(s16, map_channels, lateral_channels, channels, attention=None, normalize=normalize)
        self.stage8 = FusionBlock(s8, 2, half, channels, attention=None, normalize=normalize)
        self.stage4 = FusionBlock(s4, 2, half, channels, 3, 1, 1, attention=None, normalize=normalize)
        self.grow16 = nn.ConvTranspose2d(2, 2, 4, 2, 1)
        self.predictor = nn.ConvTranspose2d(6, 2, 6, 4, 1)
        for stage in (self.stage16, self.stage8, self.stage4):
            initialize(stage.lateral)
            initialize(stage.blend)

    def forward(self, pyramid: FeaturePyramid, maps: Float[Tensor, "B N M h w"]) -> Float[Tensor, "B N 2 H W"]:
        """Decode the maps of every object at stride 16 to logits (background, foreground) at the input's resolution."""
        stage16, stage8, stage4 = (
            self.stage16.of_frame(pyramid.s16), self.stage8.of_frame(pyramid.s8), self.stage4.of_frame(pyramid.s4)
        )  # fmt: skip

        def decode(part: Tensor) -> Tensor:
            a = stage16(part)
            b = stage8(a)
            grown = transposed_convolution(a.flatten(0, 1), self.grow16)
            together = torch.cat([grown, b.flatten(0, 1), stage4(b).flatten(0, 1)], dim=1)
            return transposed_convolution(together, self.predictor).unflatten(0, part.shape[:2])

        logits: Tensor = by_objects(decode, self.stage4.bytes_of_one(pyramid.s4), maps)
        return logits

    @torch.no_grad()
    def start_as_copier(self, evidence: Mapping[int, float]) -> None:
        """Initialise so that the untrained decoder passes on the evidence of its maps, enlarged bilinearly.

        The evidence goes directly from stride 16 to the last layer; the contributions of the finer scales start small. See
        :meth:`DeconvDecoder.start_as_copier`.

        Args:
            evidence: weights of the map channels at stride 16 in ``foreground - background``.
        """
        self.stage16.start_as_copier(evidence)
        for layer in (self.grow16, self.predictor):
            layer.weight *= 0.05
            layer.weight[:2] = 0
            for carrier in range(2):
                layer.weight[carrier, carrier] = bilinear_kernel(layer.kernel_size[0], layer.stride[0])
