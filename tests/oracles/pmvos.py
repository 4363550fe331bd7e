"""PMVOS as the sheet describes the released code: one clip, object by object and frame by frame, two-channel masks.

It uses the parameters (and the backbone) of a network of ours and none of its methods. Templates are kept as weighted features,
attention holds its whole matrix, odds are ratios of clamped probabilities.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def conv(x: Tensor, layer, padding: int = 0) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=padding)


def grow(x: Tensor, layer, stride: int) -> Tensor:
    return F.conv_transpose2d(x, layer.weight, layer.bias, stride=stride, padding=1)


def key(network, pyramid) -> Tensor:
    """``(C, h, w)``, of unit length."""
    x = conv(pyramid.s16, network.key)[0]
    return x / x.norm(dim=0, keepdim=True)


def two_channels(mask: Tensor) -> Tensor:
    """``(H, W)`` foreground -> pooled ``(2, h, w)``."""
    return F.avg_pool2d(torch.stack([1 - mask, mask])[None], 16)[0]


def best_match(template: Tensor, x: Tensor) -> Tensor:
    """``(C, h, w)`` weighted features and ``(C, h, w)`` query -> ``(h, w)``: a 1 x 1 convolution with a filter a pixel."""
    filters = template.flatten(1).t()[:, :, None, None]
    return F.conv2d(x[None], filters)[0].max(dim=0)[0]


def template_of(x: Tensor, mask: Tensor, form: str) -> Tensor:
    weighted = (x * mask).sum(dim=(1, 2))
    if form == "paper":
        return weighted / mask.sum()
    clamped = weighted.clamp(min=1e-7)
    return clamped / clamped.norm()


def spatial_attention(x: Tensor, block) -> Tensor:
    channels, height, width = x.shape
    query, keys, value = (conv(x[None], layer)[0].flatten(1) for layer in (block.query, block.key, block.value))
    weights = torch.softmax(query.t() @ keys, dim=1)
    return block.gamma * (value @ weights.t()).view(channels, height, width) + x


def channel_attention(x: Tensor, block) -> Tensor:
    flat = x.flatten(1)
    energy = flat @ flat.t()
    weights = torch.softmax(energy.max(dim=1, keepdim=True)[0] - energy, dim=1)
    return block.gamma * (weights @ flat).view_as(x) + x


def decode(pyramid, maps: Tensor, decoder) -> Tensor:
    def fuse(feature: Tensor, more: Tensor, stage) -> Tensor:
        return F.relu(conv(torch.cat([F.relu(conv(feature, stage.lateral)), more], 1), stage.blend, 1))

    a = grow(fuse(pyramid.s16, maps, decoder.stage16), decoder.stage16.deconv, 2)
    b = grow(fuse(pyramid.s8, a, decoder.stage8), decoder.stage8.deconv, 2)
    c = grow(fuse(pyramid.s4, b, decoder.stage4), decoder.stage4.deconv, 1)
    return grow(torch.cat([grow(a, decoder.grow16, 2), b, c], 1), decoder.predictor, 4)


def aggregate(pairs: dict[int, tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
    """(background, foreground) of every object -> foreground of every object after the odds rule."""

    def clamp(p: Tensor) -> Tensor:
        return p.clamp(1e-7, 1 - 1e-7)

    odds = {n: clamp(foreground) / clamp(background) for n, (background, foreground) in pairs.items()}
    background = torch.stack([background for background, _ in pairs.values()]).min(dim=0)[0]
    total = clamp(background) / clamp(1 - background) + sum(odds.values())
    return {n: value / total for n, value in odds.items()}


def propagate(
    network, frames: Tensor, given: dict[int, dict[int, Tensor]], form: str, add: bool = False
) -> dict[tuple[int, int], Tensor]:
    """Two-channel logits ``(2, H, W)`` of every (frame, object) that is predicted.

    The released code knows one frame with given masks, the first. An object that is given later, or again, starts in the same
    way: its hard mask is its reference and begins its template. In such a frame the hard mask is also its prediction; all are
    aggregated, and what comes out is the previous mask of every object.

    Args:
        frames: ``(T, 3, H, W)``, sides multiples of 16.
        given: frame -> object -> binary mask ``(H, W)``.
        form: of the medial templates, ``paper`` or ``released``.
        add: an object that is given again keeps its earlier reference beside the new one.
    """
    kinds, attention = network.kinds, network.attention
    states: dict[int, dict] = {}
    predicted: dict[tuple[int, int], Tensor] = {}
    for t, image in enumerate(frames):
        pyramid = network.backbone(image[None])
        x = key(network, pyramid)
        pairs = {}
        for n, state in states.items():
            bundles = []
            for k in range(2):
                maps = [torch.stack([best_match(initial[k], x) for initial in state["initial"]]).max(dim=0)[0]]
                if "local" in kinds:
                    maps.append(best_match(state["previous"][k], x))
                if "medial" in kinds:
                    maps.append((state["medial"][k][:, None, None] * x).sum(0))
                bundle = torch.stack(maps)
                if hasattr(attention, "spatial"):
                    bundles += [spatial_attention(bundle, attention.spatial), channel_attention(bundle, attention.channel)]
                else:
                    bundles.append(bundle)
            predicted[t, n] = decode(pyramid, torch.cat([*bundles, state["mask"]])[None], network.decoder)[0]
            background, foreground = predicted[t, n].softmax(0)
            pairs[n] = (background, foreground)
        new = given.get(t, {})
        for n, mask in new.items():
            pairs[n] = (1 - mask, mask)
            hard = two_channels(mask)
            earlier = states[n]["initial"] if add and n in states else []
            states[n] = {
                "initial": [*earlier, [x * hard[k] for k in range(2)]],
                "medial": [template_of(x, hard[k], form) for k in range(2)],
            }
        soft = aggregate(pairs) if t > 0 else {n: foreground for n, (_, foreground) in pairs.items()}
        for n, state in states.items():
            pooled = two_channels(soft[n])
            state.update(previous=[x * pooled[k] for k in range(2)], mask=pooled)
            if n not in new:
                fresh = [template_of(x, pooled[k], form) for k in range(2)]
                state["medial"] = [0.9 * o + 0.1 * f for o, f in zip(state["medial"], fresh, strict=True)]
    return predicted
