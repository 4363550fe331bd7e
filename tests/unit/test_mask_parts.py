"""Objects and rows of pixels are computed a part at a time, so that many of them take not much more memory than some."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tolerances import assert_close
from vos_lightning import mask_ops
from vos_lightning.mask_ops import MAX_LOGIT, by_objects, by_rows, logits_from_masks, soft_aggregate


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


def heights(monkeypatch: pytest.MonkeyPatch, name: str) -> list[int]:
    """Heights of what a function of ``mask_ops`` is given, filled when it is called."""
    found: list[int] = []
    function = getattr(mask_ops, name)

    def spy(part: torch.Tensor, *arguments: object) -> object:
        found.append(part.shape[-2])
        return function(part, *arguments)

    monkeypatch.setattr(mask_ops, name, spy)
    return found


def test_an_aggregation_takes_eight_floats_a_pixel_and_object(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = heights(monkeypatch, "_aggregate")
    monkeypatch.setattr(mask_ops, "PART_BYTES", 3 * (8 * 4 * 2 * 4 * 5))
    with torch.no_grad():
        soft_aggregate(torch.randn(2, 4, 8, 5), torch.ones(2, 4, dtype=torch.bool), "minimum")
    assert seen == [3, 3, 2]


@pytest.mark.parametrize("shape", [(8, 5), (2, 8, 5), (2, 3, 8, 5)])
def test_log_odds_take_five_floats_a_pixel(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of two doubles and a float, also for a single mask."""
    masks, seen = torch.rand(shape), list[int]()
    logit, row = torch.logit, masks[..., 0, :].numel()

    def spy(part: torch.Tensor, eps: float) -> torch.Tensor:
        seen.append(part.shape[-2])
        return logit(part, eps=eps)

    monkeypatch.setattr(torch, "logit", spy)
    monkeypatch.setattr(mask_ops, "PART_BYTES", 3 * 20 * row)
    with torch.no_grad():
        found = logits_from_masks(masks)
    assert seen == [3, 3, 2]
    assert_close(found, torch.log(masks.double() / (1 - masks.double())).float())


def test_log_odds_of_a_single_row_and_of_single_values() -> None:
    values = torch.tensor([0.0, 0.25, 0.5, 1.0])
    for shape in ((4,), (1, 4), (1, 1, 1, 4)):
        found = logits_from_masks(values.view(shape))
        assert_close(found.flatten(), torch.tensor([-MAX_LOGIT, -math.log(3), 0.0, MAX_LOGIT]))
