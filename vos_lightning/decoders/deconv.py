"""Decoder that enlarges two-channel maps with transposed convolutions and fuses them with the features of each scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from vos_lightning.attention.cbam import CBAM
from vos_lightning.backbones.normalization import instance_norm
from vos_lightning.backbones.residual import OfObjects
from vos_lightning.mask_ops import by_objects
from vos_lightning.structures import FeaturePyramid


def initialize(module: nn.Module) -> None:
    """Kaiming-uniform weights (a = 0) and zero biases in every convolution of a module, as PMVOS, BMVOS, TBD and EMVOS do."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.kaiming_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class FusionBlock(nn.Module):
    """One scale of the decoder: fuse object maps with the features of the frame and enlarge them.

    ``lateral`` (1 x 1, ReLU) reduces the features and ``blend`` (3 x 3, ReLU) fuses them with the maps of an object. Then follow
    ``attention`` and ``deconv``, whose two output channels have no activation.

    Args:
        feature_channels: number of channels of the backbone at this scale.
        map_channels: number of map channels of one object.
        lateral_channels: number of channels of the reduced features.
        blend_channels: number of channels of the fused features.
        kernel: side of the kernel of the transposed convolution.
        stride: stride of the transposed convolution.
        padding: padding of the transposed convolution.
        attention: function that makes the attention block for a number of channels; None for no attention.
        normalize: instance-normalise the reduced features before their ReLU, so that a few map channels are not outweighed by
            features of any scale (not in the published systems).
    """

    def __init__(
        self,
        feature_channels: int,
        map_channels: int,
        lateral_channels: int = 256,
        blend_channels: int = 256,
        kernel: int = 4,
        stride: int = 2,
        padding: int = 1,
        attention: Callable[[int], nn.Module] | None = CBAM,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.lateral = nn.Conv2d(feature_channels, lateral_channels, 1)
        self.norm = instance_norm(lateral_channels) if normalize else nn.Identity()
        self.blend = nn.Conv2d(lateral_channels + map_channels, blend_channels, 3, padding=1)
        self.attention = nn.Identity() if attention is None else attention(blend_channels)
        self.deconv = nn.ConvTranspose2d(blend_channels, 2, kernel, stride, padding)

    def forward(self, feature: Float[Tensor, "B C h w"], maps: Float[Tensor, "B N M h w"]) -> Float[Tensor, "B N 2 h2 w2"]:
        """Fuse the features with the maps, and enlarge the result.

        Args:
            feature: features of the frame, shared by its objects.
            maps: maps of every object.

        Returns:
            Maps ``(B, N, 2, h2, w2)`` of (background, foreground).
        """
        return self.of_frame(feature)(maps)

    def of_frame(self, feature: Float[Tensor, "B C h w"]) -> OfObjects:
        """Compute what all objects share, and return what fuses and enlarges the maps of objects with it."""
        # A convolution of concatenated channels is the sum of two convolutions. The one over the features is by far the larger;
        # it does not depend on the object and is computed once a frame.
        of_feature, of_maps = self.blend.weight.tensor_split((self.lateral.out_channels,), dim=1)
        shared = F.conv2d(F.relu(self.norm(self.lateral(feature)), inplace=True), of_feature, self.blend.bias, padding=1)

        def fuse(maps: Tensor) -> Tensor:
            own = F.conv2d(maps.flatten(0, 1), of_maps, padding=1).unflatten(0, maps.shape[:2])
            x = F.relu(own.add_(shared.unsqueeze(1)).flatten(0, 1), inplace=True)
            return transposed_convolution(self.attention(x), self.deconv).unflatten(0, maps.shape[:2])

        return fuse

    def bytes_of_one(self, feature: Float[Tensor, "B C h w"]) -> float:
        """About how many bytes one object takes: three fused features, and the windows of the transposed convolution."""
        windows = self.deconv.out_channels * self.deconv.kernel_size[0] * self.deconv.kernel_size[1]
        return (3.0 * self.blend.out_channels + 2 * windows) * feature[:, 0].numel() * feature.element_size()

    @torch.no_grad()
    def start_as_copier(self, evidence: Mapping[int, float]) -> None:
        """Initialise so that the block passes on the positive parts of the evidence for the background and for the foreground.

        Two carrier channels hold them. Nothing else feeds these channels, the attention starts as a constant, and the
        contributions of the other channels start small.

        Args:
            evidence: weights of the map channels in ``foreground - background``.
        """
        own = self.blend.weight[:, self.lateral.out_channels :]
        self.blend.weight[:2] = 0
        for carrier, sign in enumerate((-1.0, 1.0)):
            for channel, weight in evidence.items():
                own[carrier, channel, 1, 1] = sign * weight
        gain = self.attention.start_as_constant(carriers=2) if isinstance(self.attention, CBAM) else 1.0
        self.deconv.weight *= 0.05
        self.deconv.weight[:2] = 0
        for carrier in range(2):
            self.deconv.weight[carrier, carrier] = bilinear_kernel(self.deconv.kernel_size[0], self.deconv.stride[0]) / gain


class DeconvDecoder(nn.Module):
    """Decoder of TBD and EMVOS: a :class:`FusionBlock` at each of three scales; each enlarges the output of the one before.

    Args:
        feature_channels: numbers of channels of the pyramid at strides 4, 8 and 16.
        map_channels: number of map channels of one object at stride 16.
        channels: number of channels at every scale.
        attention: function that makes the attention block of a scale; None for no attention (BMVOS).
        normalize: instance-normalise the reduced features, see :class:`FusionBlock`.

    Reference: EMVOS (Cho et al., arXiv 2209.03139) section 3.6 and its released code.
    """

    def __init__(
        self,
        feature_channels: Sequence[int],
        map_channels: int,
        channels: int = 256,
        attention: Callable[[int], nn.Module] | None = CBAM,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        s4, s8, s16 = feature_channels
        self.stage16 = FusionBlock(s16, map_channels, channels, channels, attention=attention, normalize=normalize)
        self.stage8 = FusionBlock(s8, 2, channels, channels, attention=attention, normalize=normalize)
        self.stage4 = FusionBlock(s4, 2, channels, channels, 6, 4, 1, attention, normalize)
        initialize(self)

    def forward(self, pyramid: FeaturePyramid, maps: Float[Tensor, "B N M h w"]) -> Float[Tensor, "B N 2 H W"]:
        """Decode the maps of every object at stride 16 to logits (background, foreground) at the input's resolution."""
        stages = (self.stage16.of_frame(pyramid.s16), self.stage8.of_frame(pyramid.s8), self.stage4.of_frame(pyramid.s4))

        def decode(part: Tensor) -> Tensor:
            for stage in stages:
                part = stage(part)
            return part

        logits: Tensor = by_objects(decode, self.stage4.bytes_of_one(pyramid.s4), maps)
        return logits

    @torch.no_grad()
    def start_as_copier(self, evidence: Mapping[int, float]) -> None:
        """Initialise so that the untrained decoder passes on a quarter of the evidence of its maps, enlarged bilinearly.

        Only one of the two carriers is positive behind the ReLU, so that each of the two finer scales, which takes half
        of either, halves the difference. Training from random features then starts from a copy of the maps, instead of having to
        find the few channels that matter; see :meth:`FusionBlock.start_as_copier`.

        Args:
            evidence: weights of the map channels at stride 16 in ``foreground - background``.
        """
        self.stage16.start_as_copier(evidence)
        self.stage8.start_as_copier({0: -0.5, 1: 0.5})
        self.stage4.start_as_copier({0: -0.5, 1: 0.5})


def transposed_convolution(x: Float[Tensor, "B C h w"], layer: nn.ConvTranspose2d) -> Float[Tensor, "B C2 H W"]:
    """The output of the layer, computed as a matrix product and a sum of overlapping windows.

    With very few output channels, as here, this takes half the time of PyTorch's transposed convolution.
    """
    assert isinstance(layer.padding, tuple)
    kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
    windows = F.conv2d(x, layer.weight.flatten(1).t()[:, :, None, None]).flatten(2).float()
    size = tuple((n - 1) * s - 2 * p + k for n, k, s, p in zip(x.shape[2:], kernel, stride, padding, strict=True))
    summed = F.fold(windows, size, kernel, padding=padding, stride=stride)
    return summed if layer.bias is None else summed + layer.bias[:, None, None]


def bilinear_kernel(size: int, stride: int) -> Float[Tensor, "k k"]:
    """Kernel of a transposed convolution that enlarges bilinearly, as far as its size allows; constants stay constant."""
    overlap = size - stride
    ramp = (torch.arange(overlap) + 0.5) / overlap
    row = torch.cat([ramp, torch.ones(size - 2 * overlap), ramp.flip(0)])
    return torch.outer(row, row)
