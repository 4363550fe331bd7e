"""Label maps, masks, soft aggregation and padding: the small operations that all VOS systems share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped, UInt8
from torch import Tensor

from vos_lightning.labels import as_object_map as as_object_map
from vos_lightning.labels import object_ids_in as object_ids_in

Aggregation = Literal["none", "product", "minimum"]
PadMode = Literal["zero", "mean", "reflect"]

PROBABILITY_EPSILON = 1e-7
"""Probabilities are clamped to [eps, 1 - eps] before odds are taken (in STM, STCN, PMVOS and EMVOS)."""
MAX_LOGIT = math.log((1 - PROBABILITY_EPSILON) / PROBABILITY_EPSILON)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# Label maps and masks -------------------------------------------------------------------------------------------------


def masks_from_label_map(label_map: UInt8[Tensor, "*batch H W"], num_objects: int) -> Float[Tensor, "*batch N H W"]:
    """One binary plane for each slot 1..N of a slot label map; 0 and 255 (ignore) belong to none.

    Args:
        label_map: ``(..., H, W)`` slots.
        num_objects: ``N >= 0``.

    Returns:
        ``(..., N, H, W)`` in {0, 1}.
    """
    slots = torch.arange(1, num_objects + 1, device=label_map.device, dtype=label_map.dtype).view(-1, 1, 1)
    return (label_map.unsqueeze(-3) == slots).float()


def label_map_from_probabilities(probabilities: Float[Tensor, "*batch N1 H W"]) -> UInt8[Tensor, "*batch H W"]:
    """Slot label map: the most probable channel (0 = background); ties go to the lower slot."""
    # On CPUs, argmax over a dimension that is not the last walks pixel by pixel and takes 50 times as long as these elementwise
    # operations. The first of the largest values has the highest rank.
    count = probabilities.shape[-3]
    rank = torch.arange(count, 0, -1, device=probabilities.device, dtype=torch.uint8).view(-1, 1, 1)
    largest = probabilities.amax(dim=-3, keepdim=True)
    return count - ((probabilities == largest) * rank).amax(dim=-3)


def _lookup(label_map: Tensor, table: Tensor) -> UInt8[Tensor, "*shape"]:
    return table.to(label_map.device)[label_map.long()]


def ids_to_slots(label_map: UInt8[Tensor, "*shape"], object_ids: Sequence[int]) -> UInt8[Tensor, "*shape"]:
    """Replace original ids by slots 1..N (the order of ``object_ids``); other ids become 0, 255 (ignore) stays."""
    table = torch.zeros(256, dtype=torch.uint8)
    table[255] = 255
    for slot, object_id in enumerate(object_ids, start=1):
        table[object_id] = slot
    return _lookup(label_map, table)


def slots_to_ids(label_map: UInt8[Tensor, "*shape"], object_ids: Sequence[int]) -> UInt8[Tensor, "*shape"]:
    """Inverse of :func:`ids_to_slots`: slots 1..N become original ids; slots beyond N become 0."""
    table = torch.zeros(256, dtype=torch.uint8)
    for slot, object_id in enumerate(object_ids, start=1):
        table[slot] = object_id
    return _lookup(label_map, table)


# Many objects, a part at a time ---------------------------------------------------------------------------------------

PART_BYTES = 2**27
"""Most bytes that a part of a computation may take beside its result (128 MiB), see :func:`by_objects`."""


def by_objects(function: Callable[..., Any], bytes_of_one: float, *tensors: Shaped[Tensor, "B N ..."]) -> Any:
    """Apply a function to some objects at a time and join the results, so that many objects take not much more memory than some.

    What all objects share has to be computed before, and be bound to the function. With gradients, everything that is computed
    stays until the backward pass, so that all objects are one part there.

    Args:
        function: takes one part of every tensor; its result, or each tensor of a tuple of results, has the objects in dimension
            1, and does not mix them.
        bytes_of_one: bytes that the function takes for one object; it decides how many are a part.
        tensors: what the function takes, with all objects in dimension 1.

    Returns:
        What the function would return for all objects at once.
    """
    return _in_parts(function, bytes_of_one, 1, tensors)


def by_rows(function: Callable[..., Any], bytes_of_one: float, *tensors: Shaped[Tensor, "... H W"]) -> Any:
    """The same as :func:`by_objects` for rows of pixels: a function of pixels that mixes objects, but not pixels.

    Args:
        function: takes some rows of every tensor; its results have the same rows.
        bytes_of_one: bytes that the function takes for one row.
        tensors: what the function takes, with all rows in the last dimension but one.
    """
    return _in_parts(function, bytes_of_one, tensors[0].ndim - 2, tensors)


def _in_parts(function: Callable[..., Any], bytes_of_one: float, dim: int, tensors: Sequence[Tensor]) -> Any:
    if torch.is_grad_enabled():  # also while a graph is exported, whose sizes must stay open
        return function(*tensors)
    count = tensors[0].shape[dim]
    at_once = max(1, int(PART_BYTES / max(1.0, bytes_of_one)))
    if count <= at_once:
        return function(*tensors)
    joined: list[Tensor] = []
    several = False
    for start in range(0, count, at_once):
        length = min(at_once, count - start)
        result = function(*(tensor.narrow(dim, start, length) for tensor in tensors))
        several = isinstance(result, tuple)
        parts = result if several else (result,)
        # Written into their places, as joining them at the end would hold everything twice.
        joined = joined or [x.new_empty((*x.shape[:dim], count, *x.shape[dim + 1 :])) for x in parts]
        for whole, x in zip(joined, parts, strict=True):
            whole.narrow(dim, start, length).copy_(x)
    return tuple(joined) if several else joined[0]


# Soft aggregation -----------------------------------------------------------------------------------------------------


def soft_aggregate(
    logits: Float[Tensor, "B N H W"], valid: Bool[Tensor, "B N"], mode: Aggregation
) -> tuple[Float[Tensor, "B N1 H W"], Float[Tensor, "B N1 H W"]]:
    r"""Merge per-object foreground logits into one distribution over background and objects.

    With :math:`p_k = \sigma(l_k)` clamped to [1e-7, 1 - 1e-7], the log-odds of every object and of the background enter a
    softmax. The modes differ in the background:

    - ``product``: :math:`p_0 = \prod_k (1 - p_k)` (STM, STCN);
    - ``minimum``: :math:`p_0 = \min_k (1 - p_k)` (PMVOS, EMVOS, A-GAME);
    - ``none``: no merging. Each object keeps its own :math:`\sigma(l_k)`, the background logit is 0 and its probability
      :math:`\min_k (1 - p_k)`; for one object this is the plain two-class softmax.

    ``product`` and ``minimum`` sharpen even a single object: :math:`p \to p^2 / (p^2 + (1 - p)^2)`.

    Args:
        logits: foreground log-odds of each object, any finite value.
        valid: object slots that exist; the others get a probability of exactly 0.
        mode: aggregation mode, see above.

    Returns:
        Logits and probabilities, ``(B, N+1, H, W)``, channel 0 background, float32. The softmax of the logits is the
        probabilities, except for ``none`` with several objects.

    Reference: STM (Oh et al., ICCV 2019) section 3.4; PMVOS and EMVOS released code (odds with the minimum background).
    """
    if mode not in get_args(Aggregation):
        raise ValueError(f"aggregation must be one of {get_args(Aggregation)}, not {mode!r}")
    batch, num_objects, height, width = logits.shape
    if num_objects == 0:
        background = logits.new_zeros(batch, 1, height, width, dtype=torch.float32)
        return background, torch.ones_like(background)
    # Some eight tensors of 4 bytes at a time.
    merged, probabilities = by_rows(lambda part: _aggregate(part.float(), valid, mode), 32.0 * logits[..., 0, :].numel(), logits)
    return merged, probabilities


def _aggregate(
    logits: Float[Tensor, "B N h W"], valid: Bool[Tensor, "B N"], mode: Aggregation
) -> tuple[Float[Tensor, "B N1 h W"], Float[Tensor, "B N1 h W"]]:
    absent = ~valid[:, :, None, None]
    lowest = torch.finfo(logits.dtype).min
    if mode == "none":
        own = logits.masked_fill(absent, lowest)
        probability = own.sigmoid()
        background = (1 - probability).amin(dim=1, keepdim=True)
        return torch.cat([torch.zeros_like(own[:, :1]), own], dim=1), torch.cat([background, probability], dim=1)
    # In log-odds, clamping p to [eps, 1 - eps] clamps the logit, and min(1 - p) is -max(logit). Nothing under- or overflows, even
    # in half precision.
    clamped = logits.clamp(-MAX_LOGIT, MAX_LOGIT)
    if mode == "minimum":
        background = -clamped.masked_fill(absent, -MAX_LOGIT).amax(dim=1, keepdim=True)
    else:
        log_p0 = F.logsigmoid(-clamped).masked_fill(absent, 0.0).sum(dim=1, keepdim=True)
        # log(p0 / (1 - p0)); the inner clamp keeps log(1 - p0) finite if no object is present at all.
        log_p0 = log_p0.clamp(max=-PROBABILITY_EPSILON)
        background = (log_p0 - torch.log(-torch.expm1(log_p0))).clamp(-MAX_LOGIT, MAX_LOGIT)
    merged = torch.cat([background, clamped.masked_fill(absent, lowest)], dim=1)
    return merged, merged.softmax(dim=1)


def logits_from_masks(masks: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Log-odds of probabilities clamped to [1e-7, 1 - 1e-7]: how a given mask takes part in the aggregation."""

    def logits_of(part: Tensor) -> Tensor:
        return torch.logit(part.double(), eps=PROBABILITY_EPSILON).float()

    if masks.ndim < 2:
        return logits_of(masks)
    logits: Tensor = by_rows(logits_of, 20.0 * masks[..., 0, :].numel(), masks)
    return logits


# Padding and strides --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PaddingRule:
    """How a network expects frames to be padded to a multiple of its stride.

    Attributes:
        mode: ``reflect`` (EMVOS, PMVOS), ``zero`` before normalisation (STM), or ``mean``: the ImageNet mean colour, which is
            zero after normalisation (STCN). Masks are padded by reflection or with zeros.
        larger_half_first: for an odd amount, put the larger half on the left and top (EMVOS, PMVOS) or on the right and
            bottom (STM, STCN).
        repad_masks: crop predicted masks and pad them again before they are remembered (STM), instead of keeping them as
            predicted.
    """

    mode: PadMode = "reflect"
    larger_half_first: bool = True
    repad_masks: bool = False


@dataclass(frozen=True)
class Padding:
    """Amounts of padding in pixels."""

    left: int
    right: int
    top: int
    bottom: int


def padding_for(height: int, width: int, stride: int, larger_half_first: bool) -> Padding:
    """Padding that makes ``height`` and ``width`` multiples of ``stride``, split over both sides."""
    extra_h, extra_w = -height % stride, -width % stride
    first_h, first_w = ((extra_h + 1) // 2, (extra_w + 1) // 2) if larger_half_first else (extra_h // 2, extra_w // 2)
    return Padding(first_w, extra_w - first_w, first_h, extra_h - first_h)


def _reflected_index(size: int, before: int, after: int, device: torch.device) -> Int64[Tensor, " padded"]:
    # A triangle wave allows any amount of padding, also more than the size (where F.pad fails).
    period = max(2 * (size - 1), 1)
    position = torch.arange(-before, size + after, device=device) % period
    return torch.where(position < size, position, period - position)


def pad(x: Float[Tensor, "*batch C H W"], padding: Padding, mode: PadMode) -> Float[Tensor, "*batch C H2 W2"]:
    """Pad images or masks. ``mean`` expects RGB in [0, 1]."""
    if padding == Padding(0, 0, 0, 0):
        return x
    if mode == "reflect":
        if padding.left or padding.right:
            x = x.index_select(-1, _reflected_index(x.shape[-1], padding.left, padding.right, x.device))
        if padding.top or padding.bottom:
            x = x.index_select(-2, _reflected_index(x.shape[-2], padding.top, padding.bottom, x.device))
        return x
    amounts = (padding.left, padding.right, padding.top, padding.bottom)
    if mode == "mean":
        mean = x.new_tensor(IMAGENET_MEAN).view(3, 1, 1)
        return F.pad(x - mean, amounts) + mean
    return F.pad(x, amounts)


def unpad(x: Float[Tensor, "*batch H2 W2"], padding: Padding) -> Float[Tensor, "*batch H W"]:
    """Crop what :func:`pad` added."""
    height, width = x.shape[-2:]
    return x[..., padding.top : height - padding.bottom, padding.left : width - padding.right]


def pool_to_stride(masks: Float[Tensor, "B N H W"], stride: int) -> Float[Tensor, "B N h w"]:
    """Average of the masks in every ``stride x stride`` cell; H and W are multiples of the stride."""
    # Objects move to the batch dimension, the only one that may be empty in pooling.
    return F.avg_pool2d(masks.flatten(0, 1).unsqueeze(1), stride).squeeze(1).unflatten(0, masks.shape[:2])
