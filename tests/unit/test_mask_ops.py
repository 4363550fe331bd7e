from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.tolerances import assert_close
from vos_lightning import mask_ops
from vos_lightning.mask_ops import (
    MAX_LOGIT,
    Aggregation,
    Padding,
    PadMode,
    as_object_map,
    by_objects,
    by_rows,
    ids_to_slots,
    label_map_from_probabilities,
    logits_from_masks,
    masks_from_label_map,
    object_ids_in,
    pad,
    padding_for,
    pool_to_stride,
    slots_to_ids,
    soft_aggregate,
    unpad,
)


def odds_oracle(probabilities: np.ndarray, mode: str) -> np.ndarray:
    """Normalised odds, one pixel at a time, in double precision, as the papers' sheets state them."""
    num_objects, height, width = probabilities.shape
    result = np.zeros((num_objects + 1, height, width))
    for y, x in itertools.product(range(height), range(width)):
        p = np.clip(probabilities[:, y, x], 1e-7, 1 - 1e-7)
        background = min(1 - p) if mode == "minimum" else np.prod(1 - p)
        background = np.clip(background, 1e-7, 1 - 1e-7)
        odds = np.array([background / (1 - background), *(p / (1 - p))])
        result[:, y, x] = odds / odds.sum()
    return result


@pytest.mark.parametrize("mode", ["minimum", "product"])
@pytest.mark.parametrize("num_objects", [1, 2, 5])
def test_soft_aggregation_equals_normalised_odds(mode: str, num_objects: int) -> None:
    logits = torch.randn(2, num_objects, 4, 5) * 6
    logits[0, 0, 0, :3] = torch.tensor([60.0, -60.0, 0.0])
    merged, probabilities = soft_aggregate(logits, torch.ones(2, num_objects, dtype=torch.bool), mode)
    for b in range(2):
        expected = odds_oracle(torch.sigmoid(logits[b].double()).numpy(), mode)
        assert_close(probabilities[b], torch.from_numpy(expected).float())
    assert_close(merged.softmax(dim=1), probabilities)


def test_aggregation_sharpens_a_single_object() -> None:
    p = torch.tensor([0.7, 0.2]).view(1, 1, 1, 2)
    for mode in ("minimum", "product"):
        _, probabilities = soft_aggregate(torch.logit(p), torch.ones(1, 1, dtype=torch.bool), mode)
        assert_close(probabilities[:, 1:], p**2 / (p**2 + (1 - p) ** 2))
    _, plain = soft_aggregate(torch.logit(p), torch.ones(1, 1, dtype=torch.bool), "none")
    assert_close(plain[:, 1:], p)


@pytest.mark.parametrize("mode", ["minimum", "product", "none"])
def test_aggregation_does_not_see_slots_that_do_not_exist(mode: Aggregation) -> None:
    logits = 6 * torch.randn(2, 4, 3, 4)
    valid = torch.tensor([[True, False, True, False], [False, True, True, False]])
    merged, probabilities = soft_aggregate(logits, valid, mode)
    for b in range(2):
        alone = soft_aggregate(logits[b : b + 1, valid[b]], torch.ones(1, 2, dtype=torch.bool), mode)
        kept = torch.cat([torch.tensor([True]), valid[b]])
        assert_close(merged[b : b + 1, kept], alone[0])
        assert_close(probabilities[b : b + 1, kept], alone[1])
        assert probabilities[b, ~kept].eq(0).all()


def test_objects_that_are_not_merged_keep_their_own_probabilities() -> None:
    logits = 3 * torch.randn(2, 3, 4, 5)
    merged, probabilities = soft_aggregate(logits, torch.ones(2, 3, dtype=torch.bool), "none")
    assert torch.equal(merged[:, 1:], logits)
    assert merged[:, 0].eq(0).all()
    assert_close(probabilities[:, 1:], logits.sigmoid())
    assert_close(probabilities[:, 0], 1 - logits.sigmoid().amax(dim=1))


@pytest.mark.parametrize("mode", ["minimum", "product"])
def test_merged_logits_are_those_of_clamped_probabilities(mode: Aggregation) -> None:
    """So that a pixel which is certainly wrong has a loss that is bounded."""
    logits = torch.tensor([-1e4, -20.0, -1.0, 20.0, 1e4])
    merged, _ = soft_aggregate(logits.view(1, 1, 1, 5), torch.ones(1, 1, dtype=torch.bool), mode)
    largest = math.log(1e7 - 1)
    assert_close(merged[0, 1, 0], torch.tensor([-largest, -largest, -1.0, largest, largest]))
    assert_close(merged[0, 0, 0], -merged[0, 1, 0])
    both, _ = soft_aggregate(torch.full((1, 2, 1, 1), 30.0), torch.ones(1, 2, dtype=torch.bool), mode)
    assert_close(both.flatten(), torch.tensor([-largest, largest, largest]))


def test_aggregation_without_objects_is_background() -> None:
    for dtype in (torch.float16, torch.float32, torch.float64):
        nobody = torch.zeros(1, 0, 2, 2, dtype=dtype)
        logits, probabilities = soft_aggregate(nobody, torch.zeros(1, 0, dtype=torch.bool), "minimum")
        assert torch.equal(probabilities, torch.ones(1, 1, 2, 2))
        assert torch.equal(logits, torch.zeros(1, 1, 2, 2))
        assert (logits.dtype, probabilities.dtype) == (torch.float32, torch.float32)
    for mode in ("minimum", "product", "none"):
        _, probabilities = soft_aggregate(torch.randn(1, 3, 2, 2), torch.zeros(1, 3, dtype=torch.bool), mode)
        assert_close(probabilities[:, 0], torch.ones(1, 2, 2))
        assert probabilities[:, 1:].eq(0).all()


def test_aggregation_gradients_are_finite_where_saturated() -> None:
    for mode in ("minimum", "product", "none"):
        logits = torch.tensor([-1e4, -20.0, 0.0, 20.0, 1e4]).view(1, 1, 1, 5).requires_grad_()
        merged, _ = soft_aggregate(logits, torch.ones(1, 1, dtype=torch.bool), mode)
        F.cross_entropy(merged, torch.ones(1, 1, 5, dtype=torch.long)).backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_unknown_aggregation_is_named() -> None:
    with pytest.raises(Exception, match=r"aggregation|parameter 'mode'"):
        soft_aggregate(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, dtype=torch.bool), "mean")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "larger_first", "expected"),
    [
        ((480, 854), True, Padding(5, 5, 0, 0)),
        ((480, 853), True, Padding(6, 5, 0, 0)),
        ((480, 853), False, Padding(5, 6, 0, 0)),
        ((120, 214), True, Padding(5, 5, 4, 4)),
        ((475, 853), True, Padding(6, 5, 3, 2)),
        ((475, 853), False, Padding(5, 6, 2, 3)),
        ((64, 64), True, Padding(0, 0, 0, 0)),
    ],
)
def test_padding_amounts(size: tuple[int, int], larger_first: bool, expected: Padding) -> None:
    assert padding_for(*size, 16, larger_first) == expected


@pytest.mark.parametrize("mode", ["zero", "mean", "reflect"])
@pytest.mark.parametrize("size", [(30, 41), (16, 17), (5, 3), (1, 1)])
def test_padding_round_trip(mode: str, size: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *size)
    padding = padding_for(*size, 16, larger_half_first=True)
    padded = pad(x, padding, mode)
    assert padded.shape[-2] % 16 == padded.shape[-1] % 16 == 0
    assert torch.equal(unpad(padded, padding), x) if mode != "mean" else torch.allclose(unpad(padded, padding), x)


def test_reflection_is_pytorchs() -> None:
    x = torch.rand(1, 3, 30, 41)
    padding = Padding(4, 3, 1, 1)
    assert torch.equal(pad(x, padding, "reflect"), F.pad(x, (4, 3, 1, 1), mode="reflect"))


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (2, 3), (3, 5)])
def test_reflection_goes_back_and_forth(size: tuple[int, int]) -> None:
    """More padding than there are pixels, on every side another amount."""
    x = torch.rand(2, 1, *size)
    expected = np.pad(x.numpy(), ((0, 0), (0, 0), (11, 3), (7, 14)), mode="reflect")
    assert torch.equal(pad(x, Padding(left=7, right=14, top=11, bottom=3), "reflect"), torch.from_numpy(expected))


@pytest.mark.parametrize(
    "sides", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 2, 0, 0), (0, 0, 1, 2), (4, 3, 2, 1), (0, 0, 0, 0)]
)
@pytest.mark.parametrize("mode", ["zero", "mean", "reflect"])
def test_every_side_is_padded_by_itself(mode: PadMode, sides: tuple[int, int, int, int]) -> None:
    left, right, top, bottom = sides
    x = torch.rand(2, 3, 5, 6)
    padded = pad(x, Padding(*sides), mode)
    if mode == "reflect":
        expected = np.pad(x.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)), mode="reflect")
    else:
        expected = np.zeros((2, 3, 5 + top + bottom, 6 + left + right), dtype=np.float32)
        if mode == "mean":
            expected[:] = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
        expected[:, :, top : top + 5, left : left + 6] = x
    assert_close(padded, torch.from_numpy(expected))
    assert_close(unpad(padded, Padding(*sides)), x)
    assert torch.equal(pad(x[1], Padding(*sides), mode), padded[1])
    assert torch.equal(unpad(padded[1, 2], Padding(*sides)), unpad(padded, Padding(*sides))[1, 2])


def test_mean_padding_is_zero_after_normalisation() -> None:
    padded = pad(torch.zeros(1, 3, 1, 1), Padding(1, 0, 0, 0), "mean")
    assert_close(padded[0, :, 0, 0], torch.tensor([0.485, 0.456, 0.406]))


def test_ids_and_slots_are_inverse() -> None:
    label_map = torch.tensor([[0, 3, 7], [200, 255, 9]], dtype=torch.uint8)
    slots = ids_to_slots(label_map, (7, 200, 3))
    assert slots.tolist() == [[0, 3, 1], [2, 255, 0]]
    assert slots_to_ids(slots.where(slots != 255, torch.tensor(0, dtype=torch.uint8)), (7, 200, 3)).tolist() == [
        [0, 3, 7],
        [200, 0, 0],
    ]
    assert object_ids_in(label_map) == (3, 7, 9, 200)
    assert object_ids_in(torch.tensor([0, 1, 254, 255, 1], dtype=torch.uint8)) == (1, 254)


def test_masks_and_label_maps() -> None:
    label_map = torch.randint(0, 4, (2, 5, 6), dtype=torch.uint8)
    label_map[0, 0, 0] = 255
    masks = masks_from_label_map(label_map, 3)
    assert masks.shape == (2, 3, 5, 6)
    assert masks[0, :, 0, 0].sum() == 0
    background = 1 - masks.amax(dim=1, keepdim=True)
    again = label_map_from_probabilities(torch.cat([background, masks], dim=1))
    assert torch.equal(again, label_map.masked_fill(label_map == 255, 0))


def test_certain_logits_are_the_clamped_log_odds() -> None:
    assert_close(logits_from_masks(torch.tensor([0.0, 1.0, 0.5])), torch.tensor([-16.118095, 16.118095, 0.0]))


def test_pooling_averages_cells() -> None:
    masks = torch.rand(2, 3, 32, 48)
    assert_close(pool_to_stride(masks, 16)[1, 2, 1, 2], masks[1, 2, 16:, 32:48].mean())
    assert pool_to_stride(masks[:, :0], 16).shape == (2, 0, 2, 3)


@pytest.mark.parametrize("num_objects", [0, 1, 3, 254])
def test_label_map_is_the_first_of_the_most_probable(num_objects: int) -> None:
    probabilities = torch.randint(0, 4, (2, num_objects + 1, 5, 6)).float()  # many ties
    label_map = label_map_from_probabilities(probabilities)
    assert label_map.dtype == torch.uint8
    for b, y, x in itertools.product(range(2), range(5), range(6)):
        column = probabilities[b, :, y, x].tolist()
        assert int(label_map[b, y, x]) == column.index(max(column))


def test_black_and_white_masks_are_object_1_and_void_must_be_allowed() -> None:
    white = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert as_object_map(white).tolist() == [[0, 1]]
    assert as_object_map(white, has_void=True).tolist() == [[0, 255]]
    mixed = torch.tensor([[0, 3, 255]], dtype=torch.uint8)
    assert as_object_map(mixed, has_void=True).tolist() == [[0, 3, 255]]
    with pytest.raises(ValueError, match="255 beside the ids 3"):
        as_object_map(mixed)
    plain = torch.tensor([[0, 3, 254]], dtype=torch.uint8)
    assert as_object_map(plain).tolist() == [[0, 3, 254]]
    assert as_object_map(plain[:, :0]).tolist() == [[]]


@pytest.mark.parametrize(
    ("ids", "arguments", "beginning"),
    [
        ([4], {}, "id 255 beside the ids 4: number"),
        ([5, 4, 3, 2, 1], {"name": "a.png"}, "a.png: id 255 beside the ids 1, 2, 3, 4, 5: number"),
        ([6, 5, 4, 3, 2, 1], {"name": "a.png"}, "a.png: id 255 beside the ids 1, 2, 3, 4, 5, ...: number"),
    ],
)
def test_the_message_names_the_file_and_the_first_ids(ids: list[int], arguments: dict[str, str], beginning: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared)
        as_object_map(torch.tensor([0, 255, *ids], dtype=torch.uint8), **arguments)  # type: ignore[arg-type]
    assert str(caught.value).startswith(beginning)


# Many objects, a part at a time ---------------------------------------------------------------------------------------


def test_objects_are_taken_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vos_lightning.mask_ops.PART_BYTES", 100)
    seen: list[tuple[int, int]] = []

    def function(one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((one.shape[1], other.shape[1]))
        return one.sum(dim=2), torch.cat([one, other], dim=2)

    one, other = torch.rand(2, 7, 3), torch.rand(2, 7, 2)
    with torch.no_grad():
        for size, widths in ((100.0, [1] * 7), (40.0, [2, 2, 2, 1]), (14.0, [7]), (1e9, [1] * 7), (0.0, [7])):
            seen.clear()
            total, joined = by_objects(function, size, one, other)
            assert seen == [(width, width) for width in widths]
            assert torch.equal(total, one.sum(dim=2))
            assert torch.equal(joined, torch.cat([one, other], dim=2))
        assert torch.equal(by_objects(lambda x: x * 2, 50.0, one), one * 2)
    seen.clear()
    by_objects(function, 100.0, one, other)
    assert seen == [(7, 7)], "with gradients, nothing is gained by parts"


def test_rows_are_taken_a_part_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vos_lightning.mask_ops.PART_BYTES", 100)
    x = torch.rand(2, 3, 5, 4)
    seen: list[int] = []

    def function(part: torch.Tensor) -> torch.Tensor:
        seen.append(part.shape[2])
        return part.softmax(dim=1)

    with torch.no_grad():
        assert_close(by_rows(function, 50.0, x), x.softmax(dim=1))
    assert seen == [2, 2, 1]


@pytest.mark.parametrize("mode", ["product", "minimum", "none"])
def test_an_aggregation_in_parts_is_the_same(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, valid = torch.randn(1, 4, 9, 5) * 6, torch.tensor([[True, False, True, True]])
    with torch.no_grad():
        whole = soft_aggregate(logits, valid, mode)  # type: ignore[arg-type]
        monkeypatch.setattr("vos_lightning.mask_ops.PART_BYTES", 1)
        for one, other in zip(whole, soft_aggregate(logits, valid, mode), strict=True):  # type: ignore[arg-type]
            assert_close(one, other)


def heights(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[int]:
    """Heights of what a function is given, filled when it is called."""
    found: list[int] = []
    function = getattr(module, name)
    monkeypatch.setattr(module, name, lambda part, *a, **k: found.append(part.shape[-2]) or function(part, *a, **k))
    return found


def test_an_aggregation_takes_eight_floats_a_pixel_and_object(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = heights(monkeypatch, mask_ops, "_aggregate")
    monkeypatch.setattr(mask_ops, "PART_BYTES", 3 * (8 * 4 * 2 * 4 * 5))
    with torch.no_grad():
        soft_aggregate(torch.randn(2, 4, 8, 5), torch.ones(2, 4, dtype=torch.bool), "minimum")
    assert seen == [3, 3, 2]


@pytest.mark.parametrize("shape", [(8, 5), (2, 8, 5), (2, 3, 8, 5)])
def test_log_odds_take_five_floats_a_pixel(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two doubles and a float, also for a single mask."""
    masks, seen = torch.rand(shape), heights(monkeypatch, torch, "logit")
    monkeypatch.setattr(mask_ops, "PART_BYTES", 3 * 20 * masks[..., 0, :].numel())
    with torch.no_grad():
        found = logits_from_masks(masks)
    assert seen == [3, 3, 2]
    assert_close(found, torch.log(masks.double() / (1 - masks.double())).float())


def test_log_odds_of_a_single_row_and_of_single_values() -> None:
    values = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for shape in ((4,), (1, 4), (1, 1, 1, 4)):
        found = logits_from_masks(values.view(shape))
        assert_close(found.flatten(), torch.tensor([-MAX_LOGIT, -math.log(3), 0.0, MAX_LOGIT]))
