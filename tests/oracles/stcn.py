"""STCN and STM as their fact sheets describe the released code: concatenated channels, one object at a time, dense affinities.

Functions take the parameters of modules of ours and none of their methods.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv(x: Tensor, layer, stride: int = 1) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, stride=stride, padding=layer.weight.shape[-1] // 2)


def residual(x: Tensor, block) -> Tensor:
    shortcut = conv(x, block.shortcut) if hasattr(block.shortcut, "weight") else x
    return shortcut + conv(F.relu(conv(F.relu(x), block.conv1)), block.conv2)


def batch_norm(x: Tensor, layer) -> Tensor:
    """With running statistics."""
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)


def cbam(x: Tensor, block) -> Tensor:
    def gate(pooled: Tensor) -> Tensor:
        return conv(F.relu(conv(pooled, block.channel_gate[0])), block.channel_gate[2])

    x = x * torch.sigmoid(gate(x.mean((2, 3), keepdim=True)) + gate(x.amax((2, 3), keepdim=True)))
    maps = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
    return x * torch.sigmoid(conv(maps, block.spatial_gate[0]))


def resnet(x: Tensor, trunk, first: Tensor) -> list[Tensor]:
    """Features at strides 4, 8 and 16 of an input with any number of channels; ``first`` is the first convolution's weight."""
    x = F.conv2d(x, first, trunk.conv1.bias, stride=2, padding=3)
    x = F.max_pool2d(F.relu(batch_norm(x, trunk.bn1)), 3, 2, 1)
    features = []
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3):
        for block in stage:
            convolutions = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
            if hasattr(block, "conv3"):
                convolutions.append((block.conv3, block.bn3))
            y = x
            for n, (layer, norm) in enumerate(convolutions):
                y = batch_norm(conv(y, layer, layer.stride[0]), norm)
                y = F.relu(y) if n < len(convolutions) - 1 else y
            if block.downsample is not None:
                layer, norm = block.downsample
                x = batch_norm(F.conv2d(x, layer.weight, layer.bias, stride=layer.stride), norm)
            x = F.relu(x + y)
        features.append(x)
    return features


def masked_encoder(image: Tensor, channels: list[Tensor], encoder) -> list[Tensor]:
    """``image`` is normalised; ``channels`` are masks ``(H, W)``."""
    x = torch.cat([image, *[c[None, None] for c in channels]], 1)
    return resnet(x, encoder.trunk, torch.cat([encoder.trunk.conv1.weight, encoder.mask_conv.weight], 1))


def value(image: Tensor, channels: list[Tensor], shared: Tensor, encoder) -> Tensor:
    x = residual(torch.cat([masked_encoder(image, channels, encoder.trunk)[2], shared], 1), encoder.block1)
    return residual(x + cbam(x, encoder.attention), encoder.block2)


def decode(pyramid: list[Tensor], read: Tensor, query_value: Tensor, decoder) -> Tensor:
    """``(1, classes, H, W)``."""

    def up(x: Tensor, factor: int) -> Tensor:
        return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)

    x = torch.cat([read, query_value], 1)
    x = residual(x, decoder.entry) if hasattr(decoder.entry, "conv1") else residual(conv(x, decoder.entry), decoder.block16)
    for stage, skip in ((decoder.stage8, pyramid[1]), (decoder.stage4, pyramid[0])):
        s = conv(skip, stage.skip)
        s = residual(s, stage.skip_block) if hasattr(stage.skip_block, "conv1") else s
        x = residual(s + up(x, 2), stage.block)
    return up(conv(F.relu(x), decoder.predictor), 4)


def aggregate(foreground: list[Tensor]) -> Tensor:
    """Probabilities of objects -> distribution over background and objects, ``(K + 1, H, W)``."""
    background = torch.stack([1 - p for p in foreground]).prod(0)
    p = torch.stack([background, *foreground]).double().clamp(1e-7, 1 - 1e-7)
    odds = p / (1 - p)
    return (odds / odds.sum(0)).float()
