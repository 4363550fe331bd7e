"""MUNet as the paper describes it, on STM's memory: one clip, object by object, frame by frame, cell by cell.

It uses the parameters of a network of ours, and its encoders and decoder as they are (tested elsewhere), an object at a time.
Motion, attention, projections, memory and aggregation are written out. The frame before is encoded again for every frame.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles import local_window


def conv(x: Tensor, layer) -> Tensor:
    return F.conv2d(x, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)


def cells_of(x: Tensor):
    return ((i, j) for j in range(x.shape[-2]) for i in range(x.shape[-1]))


def motion_maps(
    current: Tensor, before: Tensor, window: int, sign: int, tau: float, normalize: bool, out: str, form: str | None = "maximum"
) -> Tensor:
    """``(C, h, w)`` reduced features twice -> ``(3, h, w)``: displacement x, y, and uncertainty; two maps without ``form``."""
    maps = torch.zeros(3, *current.shape[1:])
    for (x, y), costs in local_window.cost_volume(current, before, window, "cosine").items():
        moved = local_window.displacement(costs, window, sign, tau, out)
        scale = window // 2 if normalize else 1
        best = local_window.maximum(costs, window, out)
        peak = max(local_window.weights(costs, window, sign, tau, out).values())
        sure = {"maximum": best, "one_minus_maximum": 1 - best, "softmax_peak": peak, None: 0.0}[form]
        maps[:, y, x] = torch.tensor([moved[0] / scale, moved[1] / scale, sure])
    return maps[: 2 if form is None else 3]


def motion_network(maps: Tensor, layers) -> Tensor:
    """Table 1: convolutions with a rectification between them, and before it what ``norm: group`` adds."""
    x = maps[None]
    convolutions = [layer for layer in layers if isinstance(layer, torch.nn.Conv2d)]
    norms = [layer for layer in layers if isinstance(layer, torch.nn.GroupNorm)]
    for i, layer in enumerate(convolutions[:-1]):
        x = conv(x, layer)
        if norms:
            centred = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
            x = centred * norms[i].weight.view(1, -1, 1, 1) + norms[i].bias.view(1, -1, 1, 1)
        x = x.clamp(min=0)
    return conv(x, convolutions[-1])


def attend(semantic: Tensor, motion: Tensor, gate) -> Tensor:
    """Equation 3, ``(1, C, h, w)``."""
    out = torch.zeros_like(semantic)
    for x, y in cells_of(semantic):
        score = float((motion[0, :, y, x] * gate.weight[0, :, 0, 0]).sum() + gate.bias[0])
        out[0, :, y, x] = semantic[0, :, y, x] * (1 / (1 + math.exp(-score))) + semantic[0, :, y, x]
    return out


def join(network, semantic: Tensor, motion: Tensor) -> Tensor:
    return semantic + motion if network.attention is None else attend(semantic, motion, network.attention.gate)


def read(key: Tensor, remembered: list[tuple[Tensor, Tensor]]) -> Tensor:
    """``(1, CK, h, w)`` and (key, value) of every remembered frame -> ``(CV, h, w)``."""
    out = torch.zeros(remembered[0][1].shape[1], *key.shape[2:])
    for x, y in cells_of(key):
        logits, values = [], []
        for k, v in remembered:
            for i, j in cells_of(k):
                logits.append((k[0, :, j, i] * key[0, :, y, x]).sum() / math.sqrt(key.shape[1]))
                values.append(v[0, :, j, i])
        weights = torch.softmax(torch.stack(logits), dim=0)
        out[:, y, x] = sum(w * v for w, v in zip(weights, values, strict=True))
    return out


def aggregate(probabilities: dict[int, Tensor]) -> dict[int, Tensor]:
    """Odds of every object against the product of the others' absence."""
    background = torch.stack([1 - p for p in probabilities.values()]).prod(dim=0)
    odds = {}
    for n, p in {0: background, **probabilities}.items():
        clamped = p.clamp(1e-7, 1 - 1e-7)
        odds[n] = clamped / (1 - clamped)
    return {n: odds[n] / sum(odds.values()) for n in probabilities}


def propagate(
    network, frames: Tensor, given: dict[int, dict[int, Tensor]], stride: int, **motion
) -> dict[tuple[int, int], Tensor]:
    """Foreground ``(H, W)`` after aggregation of every (frame, object) that is predicted.

    Args:
        frames: ``(T, 3, H, W)``, sides multiples of 16.
        given: frame -> object -> binary mask ``(H, W)``; an object that is given late is one more to all others from there on.
        stride: of the memory; the frame before is remembered too.
        motion: options of :func:`motion_maps`.
    """
    remembered: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}
    predicted: dict[tuple[int, int], Tensor] = {}
    masks: dict[int, Tensor] = {}
    for t, image in enumerate(frames):
        pyramid = network.stm.query_encoder(image[None])
        semantic = pyramid.s16
        if t > 0 and network.motion is not None:
            ways = (network.motion.reduction, network.motion.earlier_reduction or network.motion.reduction)
            reduced = [
                conv(network.stm.query_encoder(f[None]).s16, way)[0] for f, way in zip((image, frames[t - 1]), ways, strict=True)
            ]
            feature = motion_network(motion_maps(*reduced, **motion), network.motion.network)
            semantic = join(network, semantic, feature)
        key, value = conv(semantic, network.stm.query_projection.key), conv(semantic, network.stm.query_projection.value)
        soft = {}
        for n, slots in remembered.items():
            read_out = read(key, list(slots.values()))
            soft[n] = network.stm.decoder(pyramid, read_out[None, None], value)[0, 0].sigmoid()
        new = given.get(t, {})
        if new and soft:
            soft = aggregate(soft)
        for n, mask in new.items():
            # What is given covers the final probabilities of the others.
            soft = {m: p * (mask < 0.5) for m, p in soft.items()}
            soft[n] = mask
        masks = aggregate(soft)
        projection = network.stm.query_projection if network.stm.memory_projection is None else network.stm.memory_projection
        for n, mask in masks.items():
            if n not in new:
                predicted[t, n] = mask
            slots = remembered.setdefault(n, {})
            for old in [s for s in slots if s % stride and s not in given]:
                del slots[old]
            masked = network.stm.memory_encoder(image[None], mask[None, None])[0]
            if network.store_motion and t > 0:
                masked = join(network, masked, feature)
            slots[t] = (conv(masked, projection.key), conv(masked, projection.value))
    return predicted
