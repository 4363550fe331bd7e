"""Checks and conversions of what users pass to the engine: frames and masks, as tensors or NumPy arrays."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from vos_lightning.labels import MAX_OBJECTS as MAX_OBJECTS
from vos_lightning.labels import as_object_map, object_ids_in

Array: TypeAlias = Tensor | np.ndarray
Masks: TypeAlias = Array | Mapping[int, Array] | Mapping[np.integer, Array]
"""A label map, or a mapping from object ids to masks."""
HALF_A_GREY_LEVEL = 0.5 / 255
"""How far a floating-point frame may exceed [0, 1] through rounding, without having another range."""


def as_frame(frame: Array) -> Tensor:
    """One RGB frame with the channels first.

    Args:
        frame: a tensor ``(3, H, W)`` or a NumPy array ``(H, W, 3)``, uint8 or floating point in [0, 1]. The order of the
            dimensions follows from the type alone, never from the shape. The channels are red, green, blue; ``frame[:, :, ::-1]``
            converts frames that OpenCV has read.

    Returns:
        The frame as ``(3, H, W)``, in the same type and on the same device.

    Raises:
        ValueError: the shape or type is another one, or values lie outside the range.
    """
    tensor = _as_tensor(frame, "a frame")
    last = isinstance(frame, np.ndarray)
    wanted = "a frame must have shape (H, W, 3) as a NumPy array" if last else "a frame must have shape (3, H, W) as a tensor"
    if tensor.ndim != 3 or tensor.shape[2 if last else 0] != 3 or not tensor.numel():
        raise ValueError(f"{wanted}, not {tuple(tensor.shape)}{_hint(tensor, last)}")
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ValueError(f"a frame must be uint8 in 0..255 or floating point in [0, 1], not {_type_name(tensor)}")
    if tensor.is_floating_point():
        low, high = torch.stack(tensor.aminmax()).tolist()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError("a floating-point frame must be finite and in [0, 1]; this one holds NaN or infinity")
        if low < -HALF_A_GREY_LEVEL or high > 1 + HALF_A_GREY_LEVEL:
            raise ValueError(
                f"a floating-point frame must lie in [0, 1]; this one goes from {low:.4g} to {high:.4g}: divide values of 0..255 "
                "by 255 (or pass uint8), undo a normalisation, clamp what interpolation has overshot"
            )
    return tensor.permute(2, 0, 1) if last else tensor


def as_label_map(masks: Masks, size: tuple[int, int]) -> UInt8[Tensor, "H W"] | None:
    """Annotations of a frame as one label map in original ids, on the host.

    Args:
        masks: a label map ``(H, W)`` of integers, see :func:`vos_lightning.mask_ops.as_object_map` for their meaning; a map of
            bool is the mask of object 1. Or a mapping from object ids to masks ``(H, W)``: bool, integers that are 0 and one
            other value, or floating point in [0, 1], where values above 0.5 are the object. Where masks overlap, later ones cover
            earlier ones.
        size: height and width of the frame.

    Returns:
        The label map; None if nothing is annotated (no object in the label map, no mask in the mapping).

    Raises:
        ValueError: a type, size or id is wrong, a mask is empty, or a mask is covered completely by later ones.
    """
    if isinstance(masks, Mapping):
        label_map = _from_mapping(masks, size)
    else:
        label_map = _as_tensor(masks, "a label map").detach().cpu()
        if tuple(label_map.shape) != size:
            raise ValueError(f"the label map is {tuple(label_map.shape)}, the frame {size} (height, width)")
        if label_map.is_floating_point() or label_map.is_complex():
            raise ValueError(
                f"a label map must hold integer ids (uint8), not {_type_name(label_map)}; soft masks go into a mapping id -> mask"
            )
        if label_map.dtype not in (torch.uint8, torch.bool):
            label_map = label_map.long()
            low, high = torch.stack(label_map.aminmax()).tolist()
            if low < 0 or high > 255:
                raise ValueError(f"id {low if low < 0 else high} of the label map is not in 0..{MAX_OBJECTS}")
        label_map = as_object_map(label_map.to(torch.uint8))
    return label_map if bool(label_map.any()) else None


def _from_mapping(masks: Mapping[Any, Array], size: tuple[int, int]) -> UInt8[Tensor, "H W"]:
    label_map = torch.zeros(size, dtype=torch.uint8)
    planes: dict[int, Tensor] = {}
    for key, mask in masks.items():
        try:
            object_id = operator.index(key)
        except TypeError:
            raise ValueError(f"object ids are integers, not {key!r}") from None
        if not 0 < object_id <= MAX_OBJECTS:
            raise ValueError(f"object id {object_id} is not in 1..{MAX_OBJECTS}")
        planes[object_id] = _as_plane(mask, f"the mask of object {object_id}", size)
        label_map[planes[object_id]] = object_id
    for object_id, plane in planes.items():
        over = label_map[plane]
        if not bool((over == object_id).any()):
            others = " and ".join(map(str, object_ids_in(over)))
            raise ValueError(
                f"the mask of object {object_id} lies wholly under that of {others}, so that nothing is left of it: masks that "
                "come later in the mapping lie over earlier ones; change their order, or cut one out of the other"
            )
    return label_map


def _as_plane(mask: Array, what: str, size: tuple[int, int]) -> Bool[Tensor, "H W"]:
    tensor = _as_tensor(mask, what).detach().cpu()
    if tuple(tensor.shape) != size:
        raise ValueError(f"{what} is {tuple(tensor.shape)}, the frame {size} (height, width)")
    if tensor.is_floating_point():
        low, high = torch.stack(tensor.aminmax()).tolist()
        if not (low >= 0 and high <= 1):
            raise ValueError(f"{what} must lie in [0, 1] if it is floating point; it goes from {low:.4g} to {high:.4g}")
        plane = tensor > 0.5
    else:
        values = [] if tensor.dtype == torch.bool else [int(v) for v in torch.unique(tensor.long()) if v]
        if len(values) > 1:
            shown = ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
            raise ValueError(f"{what} must be 0 and one other value, not 0 and {shown}; pass soft masks as floats in [0, 1]")
        plane = tensor != 0
    if not bool(plane.any()):
        raise ValueError(f"{what} is empty: annotate it in a frame where it is visible")
    return plane


def _as_tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{what} must be a torch tensor or a NumPy array, not {type(value).__name__}; see numpy.asarray")
    try:
        # Arrays that PyTorch cannot share (reversed or read-only ones) are copied.
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    except (TypeError, ValueError):
        raise ValueError(f"{what} cannot be of the NumPy type {value.dtype}") from None


def _type_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _hint(tensor: Tensor, last: bool) -> str:
    """Advice for a frame of a common wrong shape."""
    if tensor.ndim == 3 and tensor.shape[0 if last else 2] == 3:
        return ": frame.transpose(1, 2, 0)" if last else ": frame.permute(2, 0, 1)"
    channels = 1 if tensor.ndim == 2 else int(tensor.shape[2 if last else 0]) if tensor.ndim == 3 else None
    if channels == 1:
        return ": repeat grey three times"
    if channels == 4:
        return ": leave the fourth channel out"
    return ""
