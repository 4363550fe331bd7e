"""What the values of label maps mean. This module imports no PyTorch, so that commands without a network start at once."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np

IGNORE_LABEL = 255
"""Label-map value of pixels that neither train nor score."""
MAX_OBJECTS = 254
"""Label maps have 8 bits: ids 1..254 (255 is white or void)."""

MapT = TypeVar("MapT")


def object_ids_in(label_map: Any) -> tuple[int, ...]:
    """Ids in a label map, ascending, without background and 255.

    Args:
        label_map: a tensor or array of uint8, of any shape.
    """
    values = np.asarray(label_map.cpu() if hasattr(label_map, "cpu") else label_map)
    return tuple(int(i) for i in np.flatnonzero(np.bincount(values.ravel(), minlength=256)) if 0 < i < 255)


def as_object_map(label_map: MapT, has_void: bool = False, name: object = "") -> MapT:
    """A label map in its one meaning, wherever it was read or given: ids 1..254 are objects and 0 is background.

    A map that holds only 0 and 255 is a black and white mask, whose white is object 1. In data sets that have void pixels, which
    are neither trained nor scored, 255 is always void.

    Args:
        label_map: ids as they are stored.
        has_void: whether 255 means void; it then stays 255.
        name: name of the file, for the message.

    Returns:
        The same map; for a black and white mask, object 1 where it was white.

    Raises:
        ValueError: the map holds 255 beside other ids and ``has_void`` is False.
    """
    values: Any = label_map
    if has_void or 0 in values.shape or int(values.max()) < 255:
        return label_map
    ids = object_ids_in(label_map)
    if not ids:
        return values // 255  # type: ignore[no-any-return]
    shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
    where = f"{name}: " if name else ""
    raise ValueError(
        f"{where}id 255 beside the ids {shown}: number the objects 1, 2, ... up to 254 without smoothed edges, or draw a single "
        "object in pure white"
    )
