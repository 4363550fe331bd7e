"""Frames and masks as users hand them over: what is accepted, and every message to the letter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vos_lightning.propagation.inputs import as_frame, as_label_map

SIZE = (4, 6)
TENSOR = "a frame must have shape (3, H, W) as a tensor"
ARRAY = "a frame must have shape (H, W, 3) as a NumPy array"
HALF = 0.5 / 255


def grey(*shape: int, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


pytestmark = pytest.mark.usefixtures("_types_are_not_checked")


def message_of(function: Any, *arguments: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        function(*arguments)
    return str(caught.value)


# Frames ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float32, torch.float64])
def test_frames_keep_type_and_values(dtype: torch.dtype) -> None:
    tensor = torch.randint(0, 2, (3, *SIZE)).to(dtype)
    assert as_frame(tensor) is tensor
    found = as_frame(tensor.permute(1, 2, 0).numpy())
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_the_order_of_dimensions_follows_from_the_type() -> None:
    """A frame of three by three pixels has three channels on either side."""
    tensor = torch.rand(3, 3, 3)
    assert torch.equal(as_frame(tensor), tensor)
    assert torch.equal(as_frame(tensor.numpy()), tensor.permute(2, 0, 1))


@pytest.mark.parametrize("low", [0.0, -HALF])
@pytest.mark.parametrize("high", [1.0, 1 + HALF])
def test_half_a_grey_level_is_rounding(low: float, high: float) -> None:
    frame = torch.full((3, *SIZE), 0.5, dtype=torch.float64)
    frame[0, 0, 0], frame[1, 1, 1] = low, high
    assert as_frame(frame) is frame


RANGE = ": divide values of 0..255 by 255 (or pass uint8), undo a normalisation, clamp what interpolation has overshot"


@pytest.mark.parametrize(("low", "high"), [(-1.01 * HALF, 1.0), (0.0, 1 + 1.01 * HALF), (0.0, 255.0)])
def test_values_out_of_range_are_named(low: float, high: float) -> None:
    frame = torch.full((3, *SIZE), 0.5, dtype=torch.float64)
    frame[0, 0, 0], frame[1, 1, 1] = low, high
    expected = f"a floating-point frame must lie in [0, 1]; this one goes from {low:.4g} to {high:.4g}"
    assert message_of(as_frame, frame) == expected + RANGE


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_frames_are_finite(value: float) -> None:
    frame = torch.rand(3, *SIZE)
    frame[0, 0, 0] = value
    assert message_of(as_frame, frame) == "a floating-point frame must be finite and in [0, 1]; this one holds NaN or infinity"


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (grey(4, 6, 3), f"{TENSOR}, not (4, 6, 3): frame.permute(2, 0, 1)"),
        (grey(3, 4, 6).numpy(), f"{ARRAY}, not (3, 4, 6): frame.transpose(1, 2, 0)"),
        (grey(4, 6), f"{TENSOR}, not (4, 6): repeat grey three times"),
        (grey(4, 6).numpy(), f"{ARRAY}, not (4, 6): repeat grey three times"),
        (grey(1, 4, 6), f"{TENSOR}, not (1, 4, 6): repeat grey three times"),
        (grey(4, 6, 1).numpy(), f"{ARRAY}, not (4, 6, 1): repeat grey three times"),
        (grey(4, 5, 6), f"{TENSOR}, not (4, 5, 6): leave the fourth channel out"),
        (grey(5, 6, 4).numpy(), f"{ARRAY}, not (5, 6, 4): leave the fourth channel out"),
        (grey(5, 4, 6), f"{TENSOR}, not (5, 4, 6)"),
        (grey(5, 4, 6).numpy(), f"{ARRAY}, not (5, 4, 6)"),
        (grey(1, 3, 4, 6), f"{TENSOR}, not (1, 3, 4, 6)"),
        (grey(3), f"{TENSOR}, not (3,)"),
        (grey(3, 0, 6), f"{TENSOR}, not (3, 0, 6)"),
        (grey(3, 4, 6, dtype=torch.int16), "a frame must be uint8 in 0..255 or floating point in [0, 1], not int16"),
        (grey(3, 4, 6, dtype=torch.bool), "a frame must be uint8 in 0..255 or floating point in [0, 1], not bool"),
        ([[1]], "a frame must be a torch tensor or a NumPy array, not list; see numpy.asarray"),
        (np.zeros((4, 6, 3), dtype="M8[s]"), "a frame cannot be of the NumPy type datetime64[s]"),
    ],
)
def test_other_frames_are_named(frame: Any, expected: str) -> None:
    assert message_of(as_frame, frame) == expected


def test_arrays_that_cannot_be_shared_are_copied() -> None:
    array = np.random.default_rng(0).integers(0, 255, (4, 6, 3), dtype=np.uint8)
    assert torch.equal(as_frame(array[:, ::-1, ::-1]), torch.from_numpy(array[:, ::-1, ::-1].copy()).permute(2, 0, 1))
    array.flags.writeable = False
    assert torch.equal(as_frame(array), torch.from_numpy(array.copy()).permute(2, 0, 1))


# Masks ----------------------------------------------------------------------------------------------------------------


def plane(*cells: tuple[int, int], dtype: torch.dtype = torch.bool, value: float = 1) -> torch.Tensor:
    mask = torch.zeros(SIZE, dtype=dtype)
    for cell in cells:
        mask[cell] = value
    return mask


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_label_maps_of_any_integers(dtype: torch.dtype) -> None:
    labels = plane((0, 0), dtype=dtype, value=7) + plane((1, 1), dtype=dtype, value=3)
    found = as_label_map(labels, SIZE)
    assert found is not None
    assert found.dtype == torch.uint8
    assert torch.equal(found.to(dtype), labels)
    assert as_label_map(torch.zeros(SIZE, dtype=dtype), SIZE) is None


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_a_map_of_bool_or_of_255_is_object_1(dtype: torch.dtype) -> None:
    for labels in (plane((0, 0)), plane((0, 0), dtype=dtype, value=255)):
        found = as_label_map(labels.numpy(), SIZE)
        assert found is not None
        assert torch.equal(found, plane((0, 0), dtype=torch.uint8))


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (torch.zeros(4, 5, dtype=torch.uint8), "the label map is (4, 5), the frame (4, 6) (height, width)"),
        (
            torch.zeros(SIZE),
            "a label map must hold integer ids (uint8), not float32; soft masks go into a mapping id -> mask",
        ),
        (plane((0, 0), dtype=torch.int64, value=-2), "id -2 of the label map is not in 0..254"),
        (plane((0, 0), dtype=torch.int64, value=256), "id 256 of the label map is not in 0..254"),
        ("labels", "a label map must be a torch tensor or a NumPy array, not str; see numpy.asarray"),
    ],
)
def test_other_label_maps_are_named(labels: Any, expected: str) -> None:
    assert message_of(as_label_map, labels, SIZE) == expected


@pytest.mark.parametrize(
    "mask",
    [
        plane((1, 1), (2, 3)),
        plane((1, 1), (2, 3), dtype=torch.uint8, value=255),
        plane((1, 1), (2, 3), dtype=torch.int64, value=-4),
        plane((1, 1), (2, 3), value=0.6, dtype=torch.float32) + plane((0, 0), dtype=torch.float32, value=0.5),
        plane((1, 1), (2, 3)).numpy(),
    ],
)
@pytest.mark.parametrize("object_id", [1, np.int64(9), 254])
def test_masks_by_id(mask: Any, object_id: Any) -> None:
    found = as_label_map({object_id: mask}, SIZE)
    assert found is not None
    assert torch.equal(found, plane((1, 1), (2, 3), dtype=torch.uint8, value=int(object_id)))


def test_later_masks_cover_earlier_ones() -> None:
    masks = {3: plane((0, 0), (0, 1), (0, 2)), 1: plane((0, 1)), 2: plane((0, 2), (1, 1))}
    found = as_label_map(masks, SIZE)
    assert found is not None
    assert found[:2, :3].tolist() == [[3, 1, 2], [0, 2, 0]]
    assert as_label_map({}, SIZE) is None


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ({"dog": plane((0, 0))}, "object ids are integers, not 'dog'"),
        ({0: plane((0, 0))}, "object id 0 is not in 1..254"),
        ({255: plane((0, 0))}, "object id 255 is not in 1..254"),
        ({2: torch.ones(6, 4)}, "the mask of object 2 is (6, 4), the frame (4, 6) (height, width)"),
        ({2: plane()}, "the mask of object 2 is empty: annotate it in a frame where it is visible"),
        (
            {2: plane((0, 0), dtype=torch.float32, value=0.5)},
            "the mask of object 2 is empty: annotate it in a frame where it is visible",
        ),
        (
            {2: plane((0, 0), dtype=torch.float32, value=1.5)},
            "the mask of object 2 must lie in [0, 1] if it is floating point; it goes from 0 to 1.5",
        ),
        (
            {2: plane((0, 0), dtype=torch.float32, value=-0.25)},
            "the mask of object 2 must lie in [0, 1] if it is floating point; it goes from -0.25 to 0",
        ),
        (
            {2: plane((0, 0), dtype=torch.float32, value=float("nan"))},
            "the mask of object 2 must lie in [0, 1] if it is floating point; it goes from nan to nan",
        ),
        (
            {2: torch.arange(24).view(SIZE).clamp_max(2)},
            "the mask of object 2 must be 0 and one other value, not 0 and 1, 2; pass soft masks as floats in [0, 1]",
        ),
        (
            {2: torch.arange(24).view(SIZE).clamp_max(5)},
            "the mask of object 2 must be 0 and one other value, not 0 and 1, 2, 3, 4, 5; pass soft masks as floats in [0, 1]",
        ),
        (
            {2: torch.arange(24).view(SIZE).clamp_max(6)},
            "the mask of object 2 must be 0 and one other value, not 0 and 1, 2, 3, 4, 5, ...; "
            "pass soft masks as floats in [0, 1]",
        ),
        (
            {2: torch.arange(24).view(SIZE)},
            "the mask of object 2 must be 0 and one other value, not 0 and 1, 2, 3, 4, 5, ...; "
            "pass soft masks as floats in [0, 1]",
        ),
        (
            {4: plane((0, 0), (0, 1)), 5: plane((0, 0)), 6: plane((0, 1))},
            "the mask of object 4 lies wholly under that of 5 and 6, so that nothing is left of it: masks that come later in "
            "the mapping lie over earlier ones; change their order, or cut one out of the other",
        ),
        ({2: [[1]]}, "the mask of object 2 must be a torch tensor or a NumPy array, not list; see numpy.asarray"),
    ],
)
def test_other_masks_are_named(masks: Any, expected: str) -> None:
    assert message_of(as_label_map, masks, SIZE) == expected
