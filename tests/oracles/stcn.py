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
    """``image`` is normalised; ``channels`` are masks ``(H, W)``, or ``(N, H, W)`` for a batch of ``N``."""
    x = torch.cat([image, *[c.reshape(-1, 1, *c.shape[-2:]) for c in channels]], 1)
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


def padding(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, right, top, bottom; the smaller half first."""
    height, width = (-side % 16 for side in size)
    return width // 2, width - width // 2, height // 2, height - height // 2


def crop(x: Tensor, pad: tuple[int, int, int, int]) -> Tensor:
    return x[..., pad[2] : x.shape[-2] - pad[3], pad[0] : x.shape[-1] - pad[1]]


def read(memory_key: Tensor, memory_value: Tensor, query: Tensor, kind: str, top_k: int | None) -> Tensor:
    """``(C, S), (V, S), (1, C, h, w) -> (1, V, h, w)`` by the whole affinity matrix."""
    height, width = query.shape[-2:]
    flat = query[0].flatten(1)
    scale = flat.shape[0] ** -0.5
    if kind == "l2":
        affinity = -scale * (memory_key[:, :, None] - flat[:, None]).square().sum(0)
    else:
        affinity = scale * (memory_key.t() @ flat)
    if top_k is not None and top_k < len(affinity):
        lowest = affinity.topk(top_k, dim=0)[0][-1]
        affinity = affinity.masked_fill(affinity < lowest, -torch.inf)
    return (memory_value @ affinity.softmax(0)).view(1, -1, height, width)


def others(masks: dict[int, Tensor], n: int) -> Tensor:
    return sum((mask for k, mask in masks.items() if k != n), torch.zeros_like(masks[n]))


def stcn(
    network,
    frames: Tensor,
    given: dict[int, dict[int, Tensor]],
    stride: int,
    top_k: int | None,
    from_latest: bool = True,
    include_previous: bool = False,
) -> dict[tuple[int, int], Tensor]:
    """Every (frame, object) -> foreground ``(H, W)``; a bank for every object.

    Args:
        frames: ``(T, 3, H, W)``, normalised by mean and deviation.
        given: frame -> object -> binary mask ``(H, W)``.
        stride: frames between remembered ones.
        top_k: or None.
        from_latest: count from the latest remembered frame (YouTube-VOS) or from the first (DAVIS).
        include_previous: have the previous frame as a temporary entry.
    """
    pad = padding(frames.shape[-2:])
    banks: dict[int, list[tuple[Tensor, Tensor]]] = {}
    temporary: dict[int, tuple[Tensor, Tensor]] = {}
    predicted = {}
    latest = 0
    for t, frame in enumerate(frames):
        image = F.pad(frame[None], pad)
        pyramid = resnet(image, network.key_encoder, network.key_encoder.conv1.weight)
        key, query_value = conv(pyramid[2], network.projection.key), conv(pyramid[2], network.projection.value)
        masks: dict[int, Tensor] = {}
        if banks:
            logits = {}
            for n, bank in banks.items():
                entries = [*bank, temporary[n]] if n in temporary else bank
                keys, values = (torch.cat(part, dim=1) for part in zip(*entries, strict=True))
                logits[n] = decode(pyramid, read(keys, values, key, "l2", top_k), query_value, network.decoder)[0, 0]
            soft = aggregate([logit.sigmoid() for logit in logits.values()])
            masks = dict(zip(logits, soft[1:], strict=True))
        new = {n: F.pad(mask, pad) for n, mask in given.get(t, {}).items()}
        if new:
            covered = sum(new.values()) > 0.5
            masks = {n: mask.masked_fill(covered, 0.0) for n, mask in masks.items()} | new
            masks = dict(zip(masks, aggregate(list(masks.values()))[1:], strict=True))
        lasting = bool(new) or (t - latest >= stride if from_latest else t % stride == 0)
        if lasting or include_previous:
            for n, mask in masks.items():
                value_of = value(image, [mask, others(masks, n)], pyramid[2], network.value_encoder)[0].flatten(1)
                entry = (key[0].flatten(1), value_of)
                if lasting:
                    banks.setdefault(n, []).append(entry)
                    temporary.pop(n, None)
                else:
                    temporary[n] = entry
            latest = t if lasting else latest
        predicted |= {(t, n): crop(mask, pad) for n, mask in masks.items()}
    return predicted


def stm(network, frames: Tensor, given: dict[int, Tensor], normalize, top_k: int | None = None) -> dict[tuple[int, int], Tensor]:
    """As :func:`stcn`; ``frames`` in [0, 1] are padded with zeros and then normalised; ``given`` are the masks of frame 0."""
    pad = padding(frames.shape[-2:])
    bank: dict[int, dict[int, tuple[Tensor, Tensor]]] = {n: {} for n in given}
    masks, predicted = given, {(0, n): mask for n, mask in given.items()}
    for t in range(1, len(frames)):
        # The frame before is encoded with its mask, cropped and padded anew, and stays if its number is a multiple of 5.
        before = normalize(F.pad(frames[t - 1][None], pad))
        padded = {n: F.pad(mask, pad) for n, mask in masks.items()}
        for n, mask in padded.items():
            feature = masked_encoder(before, [mask, others(padded, n).clamp(0, 1)], network.memory_encoder)[2]
            projection = network.memory_projection
            bank[n] = {k: entry for k, entry in bank[n].items() if k % 5 == 0}
            bank[n][t - 1] = tuple(conv(feature, layer)[0].flatten(1) for layer in (projection.key, projection.value))
        pyramid = resnet(normalize(F.pad(frames[t][None], pad)), network.query_encoder, network.query_encoder.conv1.weight)
        key, query_value = (conv(pyramid[2], layer) for layer in (network.query_projection.key, network.query_projection.value))
        foreground = []
        for entries in bank.values():
            keys, values = (torch.cat(part, dim=1) for part in zip(*entries.values(), strict=True))
            logits = decode(pyramid, read(keys, values, key, "dot", top_k), query_value, network.decoder)[0]
            foreground.append(crop(logits.softmax(0)[1], pad))
        masks = dict(zip(bank, aggregate(foreground)[1:], strict=True))
        predicted |= {(t, n): mask for n, mask in masks.items()}
    return predicted
