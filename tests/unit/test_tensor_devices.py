"""Whatever makes a tensor makes it where its arguments are: the default device is one on which nothing can be computed."""

from __future__ import annotations

import pytest
import torch

from tests.unit.test_half_precision import CASES, LABELS, MASKS, WITH_BACKGROUND, tensors
from vos_lightning import mask_ops
from vos_lightning.losses.segmentation import trainable_labels
from vos_lightning.matching import alignment, points

KNOWN = torch.tensor([[True, False], [True, True]])
COUNTS = torch.tensor([[3, 1], [0, 2]])
PICTURES = torch.rand(2, 3, 5, 6)
SIDES = mask_ops.Padding(1, 2, 3, 4)


def chosen(score: torch.Tensor) -> list[torch.Tensor]:
    found = points.sample_points(score, score > 0.2, COUNTS)
    return [found.index, found.valid]


OTHERS = {
    "masks of labels": (lambda labels: mask_ops.masks_from_label_map(labels, 2), LABELS),
    "labels of probabilities": (mask_ops.label_map_from_probabilities, WITH_BACKGROUND),
    "padding, reflect": (lambda x: mask_ops.pad(x, SIDES, "reflect"), PICTURES),
    "padding, mean": (lambda x: mask_ops.pad(x, SIDES, "mean"), PICTURES),
    "logits of masks": (mask_ops.logits_from_masks, MASKS),
    "nothing to aggregate": (lambda x, valid: mask_ops.soft_aggregate(x, valid, "minimum"), PICTURES[:, :0], KNOWN[:, :0]),
    "moved blocks": (
        lambda x, w: alignment.move_blocks(alignment.Moves.of(w, 3), x, 2),
        torch.rand(2, 3, 4, 6),
        torch.rand(2, 6, 6),
    ),
    "chosen points": (chosen, torch.rand(2, 2, 4, 5)),
    "enlarged boxes": (lambda labels: points.enlarged_boxes(mask_ops.masks_from_label_map(labels, 2) > 0), LABELS),
    "labels to train": (lambda labels: trainable_labels(labels, KNOWN), LABELS),
}
"""They know no half precision."""


@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_new_tensors_are_where_the_arguments_are(case: str) -> None:
    function, *arguments = (CASES | OTHERS)[case]
    expected = tensors(function(*arguments))
    with torch.device("meta"):
        found = tensors(function(*arguments))
    assert len(found) == len(expected)
    assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))
