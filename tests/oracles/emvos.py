"""EMVOS as the released code computes it: one clip, object by object and frame by frame, two-channel masks, concatenations.

It uses the parameters (and the backbone) of a network of ours and none of its methods.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.pmvos import aggregate


def conv(x: Tensor, layer, padding: int = 0) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=padding)


def cbam(x: Tensor, block) -> Tensor:
    x = conv(x, block.entry, 1)

    def mlp(v: Tensor) -> Tensor:
        return conv(F.relu(conv(v, block.channel_gate[0])), block.channel_gate[2])

    x = x * torch.sigmoid(mlp(F.adaptive_avg_pool2d(x, 1)) + mlp(F.adaptive_max_pool2d(x, 1)))
    spatial = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * torch.sigmoid(conv(F.relu(conv(spatial, block.spatial_gate[0], 1)), block.spatial_gate[2], 1))


def stage(feature: Tensor, maps: list[Tensor], block, stride: int) -> Tensor:
    x = torch.cat([F.relu(conv(feature, block.lateral)), *maps], 1)
    x = cbam(F.relu(conv(x, block.blend, 1)), block.attention)
    return F.conv_transpose2d(x, block.deconv.weight, block.deconv.bias, stride=stride, padding=1)


def decode(pyramid, scores: Tensor, mask: Tensor, decoder) -> Tensor:
    x = stage(pyramid.s16, [scores, mask], decoder.stage16, 2)
    x = stage(pyramid.s8, [x], decoder.stage8, 2)
    return stage(pyramid.s4, [x], decoder.stage4, 4)


def affinity_maps(affinity: Tensor, mask: Tensor) -> Tensor:
    """``(1, S, h, w), (1, 2, h, w) -> (1, 2, h, w)``."""
    class_maps = [(affinity * mask[:, k].reshape(1, -1, 1, 1)).max(dim=1, keepdim=True)[0] for k in range(2)]
    return torch.cat(class_maps, 1)


def surjective(reference: Tensor, query: Tensor, mask: Tensor) -> Tensor:
    height, width = query.shape[2:]
    inner = reference[0].flatten(1).t() @ query[0].flatten(1)
    return affinity_maps(((inner + 1) / 2).view(1, -1, height, width), mask)


def equalized(reference: Tensor, query: Tensor, mask: Tensor) -> Tensor:
    height, width = query.shape[2:]
    inner = reference[0].flatten(1).t() @ query[0].flatten(1)
    return affinity_maps(torch.softmax(inner, dim=1).view(1, -1, height, width), mask)


def keys(network, pyramid) -> tuple[Tensor, Tensor]:
    norm_key = conv(pyramid.s16, network.cosine_key)
    return norm_key / norm_key.norm(dim=1, keepdim=True), conv(pyramid.s16, network.dot_key)


def two_channels(mask: Tensor) -> Tensor:
    """``(H, W)`` foreground -> pooled ``(1, 2, h, w)``."""
    return F.avg_pool2d(torch.stack([1 - mask, mask])[None], 16)


def propagate(
    network, frames: Tensor, given: dict[int, dict[int, Tensor]], aggregated: bool = True, add: bool = False
) -> dict[tuple[int, int], Tensor]:
    """Two-channel logits ``(2, H, W)`` of every (frame, object) that is predicted.

    An object that is given in a frame, for the first time or again, starts from its hard mask: that is its reference for good.
    In the frame of an object that appears late, the hard mask is also its prediction; all predictions are aggregated, and what
    comes out is the previous mask of every object.

    Args:
        frames: ``(T, 3, H, W)``.
        given: frame -> object -> binary mask ``(H, W)``.
        aggregated: feed the odds rule back, as in a test; otherwise the plain softmax, as in training.
        add: an object that is given again keeps its earlier reference beside the new one (the released code replaces it).
    """
    references: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
    previous: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    predicted: dict[tuple[int, int], Tensor] = {}
    for t, image in enumerate(frames):
        pyramid = network.backbone(image[None])
        norm_key, key = keys(network, pyramid)
        pairs: dict[int, tuple[Tensor, Tensor]] = {}
        for n in references:
            scores = []
            for match, which, query in ((surjective, 0, norm_key), (equalized, 1, key)):
                for frames_seen in (references[n], [previous[n]]):
                    maps = [match(seen[which], query, seen[2]) for seen in frames_seen]
                    scores.append(torch.stack(maps).max(dim=0)[0])
            predicted[t, n] = decode(pyramid, torch.cat(scores, 1), previous[n][2], network.decoder)[0]
            background, foreground = predicted[t, n].softmax(0)
            pairs[n] = (background, foreground)
        for n, mask in given.get(t, {}).items():
            reference = (norm_key, key, two_channels(mask))
            references[n] = [*references.get(n, []), reference] if add else [reference]
            pairs[n] = (1 - mask, mask)
        soft = aggregate(pairs) if aggregated and t > 0 else {n: foreground for n, (_, foreground) in pairs.items()}
        previous = {n: (norm_key, key, two_channels(soft[n])) for n in references}
    return predicted
