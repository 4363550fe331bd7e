"""Half precision at the ends of its range: every matching, every loss and the aggregation against the same in double precision.

Tensors are given as float16, because autocast on a CPU leaves most operations in float32 and hides what a GPU would do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.double import double_precision
from vos_lightning.losses import auxiliary, segmentation
from vos_lightning.losses import matching as matching_losses
from vos_lightning.mask_ops import logits_from_masks, soft_aggregate
from vos_lightning.matching import (
    alignment,
    assignment,
    bijective,
    local_window,
    medial,
    points,
    readout,
    similarity,
    trajectories,
)
from vos_lightning.matching.equalized import equalized_match
from vos_lightning.matching.surjective import surjective_match

B, N, C, H, W = 2, 2, 16, 3, 4
S, Q, K = 12, H * W, 5
RANDOM = torch.Generator().manual_seed(3)
LARGEST = 60000.0


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=RANDOM)


def features(*shape: int) -> Tensor:
    """Their norms are in the hundreds, so that their inner products and squares are above 65504."""
    return (100 * noise(*shape)).half()


def probabilities(*shape: int) -> Tensor:
    """With 0, 1, and values near both, of which 1e-7 is the smallest."""
    values = torch.rand(*shape, generator=RANDOM)
    for start, value in enumerate((0.0, 1e-7, 1 - 1e-3, 1.0)):
        values.view(-1)[start::7] = value
    return values.half()


def logits(*shape: int) -> Tensor:
    values = 5 * noise(*shape)
    values.view(-1)[::4] = LARGEST
    values.view(-1)[1::4] = -LARGEST
    return values.half()


def volume(*shape: int) -> Tensor:
    return (LARGEST / 3 * noise(*shape)).clamp(-LARGEST, LARGEST).half()


def doubled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return dataclasses.replace(value, **{f.name: doubled(getattr(value, f.name)) for f in dataclasses.fields(value)})


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        return [tensor for f in dataclasses.fields(value) for tensor in tensors(getattr(value, f.name))]
    return [tensor for part in value for tensor in tensors(part)]


READABLE = torch.rand(B, N, S, generator=RANDOM) > 0.3
READABLE[0, 0] = False
VALID = torch.tensor([[True, True], [True, False]])
ALL = torch.ones(B, N, dtype=torch.bool)
CELLS = torch.ones(B, N, H, W, dtype=torch.bool)
PROPOSALS = torch.ones(B, K, dtype=torch.bool)
POINTS = torch.ones(B, N, K, dtype=torch.bool)
MANY = torch.ones(B, N, 900, dtype=torch.bool)
OF_MAPS = torch.arange(B * N)
LABELS = torch.randint(0, N + 1, (B, H, W), generator=RANDOM).to(torch.uint8)
LABELS[0, 0, 0] = 255
WIDE = torch.ones(1, 300, 300, dtype=torch.uint8)
"""More cells than 65504."""
ONE = torch.ones(1, 1, dtype=torch.bool)
CHOSEN = points.sample_points(torch.rand(B, N, H, W, generator=RANDOM), CELLS, torch.full((B, N), 3))
FOLLOWED = trajectories.Trajectories(
    torch.randint(0, Q, (B, S), generator=RANDOM), (8 * torch.rand(B, S, generator=RANDOM)).half()
)
FAR = trajectories.Trajectories(torch.arange(0, 4800, 533)[None], torch.full((1, 10), 8.0).half())
DISTANCES = local_window.LocalMatch(
    torch.zeros(B, H, W, dtype=torch.long), -1e-7 * torch.rand(B, H, W).half(), -LARGEST * torch.rand(B, H, W).half()
)
COSINES = local_window.LocalMatch(
    torch.zeros(B, H, W, dtype=torch.long), torch.rand(B, H, W).half(), 1e-7 * torch.rand(B, H, W).half()
)


def read_points(kind: similarity.Similarity) -> Callable[..., Tensor]:
    def read(query: Tensor, key: Tensor, shared: Tensor, own: Tensor, grid_key: Tensor, grid_value: Tensor) -> Tensor:
        grid, seen = points.PointGrid(grid_key, grid_value), points.PointMap(key, shared, own)
        index = CHOSEN.index.flatten(0, 1)
        return points.match_points(query, index, points.point_memory(grid, seen, OF_MAPS, kind), 3, kind)

    return read


def followed(kind: similarity.Similarity, top_k: int | None, order: trajectories.TopKOrder) -> Callable[..., Tensor]:
    options = trajectories.AdaptiveMatching(top_k_order=order)
    return lambda keys, query, values, positions: trajectories.read_followed(
        keys, query, values, READABLE, positions, options, similarity=kind, top_k=top_k
    )


KEYS, QUERY, VALUES, QUERY_MAP = features(B, C, S), features(B, C, Q), features(B, N, 5, S), features(B, C, H, W)
MASKS, MAP = probabilities(B, N, S), features(B, C, H, W)
KINDS: tuple[similarity.Similarity, ...] = ("dot", "cosine", "l2")
MOTION = volume(B, 9, H, W)
POINT_ARGUMENTS = (
    features(B * N, 3, C), MAP, features(B, 4, H, W), features(B, N, 1, H, W), features(B, N, C, 4), features(B, N, 5, 4),
)  # fmt: skip
TEMPLATES, PATCHES = features(B, N, C, 6), features(B, K, C, 6)
OBJECTS = probabilities(B, N, H, W)
WITH_BACKGROUND = probabilities(B, N + 1, H, W)
WHOLE = torch.stack([torch.zeros(1, 300, 300), torch.ones(1, 300, 300)], dim=1).half()

CASES: dict[str, tuple[Any, ...]] = {
    "dot": (similarity.dot, KEYS, QUERY),
    "cosine": (similarity.cosine, KEYS, QUERY),
    "l2": (similarity.negative_squared_l2, KEYS, QUERY),
    "unit length": (similarity.l2_normalize, MAP),
    "unit length of tiny keys": (similarity.l2_normalize, torch.full((1, C, 2), 6e-8).half()),
    **{f"logits {kind}": (lambda m, q, k=kind: similarity.memory_logits(m, q, k, C**-0.5), KEYS, QUERY) for kind in KINDS},
    **{f"memory part {kind}": (lambda m, k=kind: similarity.memory_part(m, k, C**-0.5), KEYS) for kind in KINDS},
    **{f"query part {kind}": (lambda q, k=kind: similarity.query_part(q, k), QUERY) for kind in KINDS},
    **{
        f"read {kind} {top}": (
            lambda m, q, v, k=kind, t=top: readout.read_memory(m, q, v, READABLE, similarity=k, top_k=t), KEYS, QUERY, VALUES,
        )
        for kind in KINDS for top in (None, 3)
    },
    "read with a prior": (
        lambda m, q, v, p: readout.read_memory(m, q, v, READABLE, similarity="l2", log_prior=p),
        KEYS, QUERY, VALUES, (100 * noise(B, N, S, Q)).half(),
    ),
    "surjective": (lambda s, m: surjective_match(s, m, READABLE), probabilities(B, S, Q), MASKS),
    "surjective, large": (lambda s, m: surjective_match(s, m, READABLE), volume(B, S, Q), MASKS),
    "equalized": (lambda s, m: equalized_match(s, m, READABLE), volume(B, S, Q), MASKS),
    "equalized inner products": (lambda k, q, m: equalized_match(similarity.dot(k, q), m, READABLE), KEYS, QUERY, MASKS),
    "bijective, kernel": (lambda s: bijective.gaussian_kernel(s, (4, 400), 32.0), probabilities(1, 3, 1600)),
    "bijective, top k": (lambda s: bijective.top_k(s, 4), probabilities(B, S, Q)),
    "bijective, top k, minimum": (lambda s: bijective.top_k(s, 4, "minimum"), probabilities(B, S, Q)),
    "medial, paper": (medial.medial_template, MAP, OBJECTS),
    "medial, released": (lambda k, m: medial.medial_template(k, m, "released"), MAP, OBJECTS),
    "medial match": (medial.medial_match, features(B, N, 2, C), QUERY),
    "correspondence": (lambda q, s: alignment.correspondence(q, s, 20.0), QUERY, KEYS),
    **{
        f"alignment {pool}": (
            lambda t, p, w, how=pool: alignment.aligned_similarity(t, p, 20.0, how, w),
            TEMPLATES, PATCHES, probabilities(B, N, 6),
        )
        for pool in ("mean", "flat", "masked")
    },
    "pooled": (alignment.pooled_similarity, TEMPLATES, PATCHES),
    "assignment": (lambda s: assignment.relaxed_assignment(s, ALL, PROPOSALS), probabilities(B, N, K)),
    "assignment, large": (lambda s: assignment.relaxed_assignment(s, ALL, PROPOSALS), volume(B, N, K)),
    "pruning": (lambda a: assignment.prune(a, "all"), probabilities(B, N, K)),
    **{f"window {kind}": (lambda a, b, k=kind: local_window.local_similarity(a, b, 3, k), MAP, QUERY_MAP) for kind in KINDS},
    **{f"best match {kind}": (lambda a, b, k=kind: local_window.best_match(a, b, 3, k), MAP, QUERY_MAP) for kind in KINDS},
    **{f"weights {sign}": (lambda v, s=sign: local_window.match_weights(v, s, 0.05), MOTION) for sign in (1, -1)},
    "displacement": (local_window.soft_displacement, MOTION),
    "displacement of cosines": (local_window.soft_displacement, probabilities(B, 625, H, W)),
    **{
        f"confidence {form}": (lambda v, f=form: local_window.match_confidence(v, f), MOTION)
        for form in ("maximum", "one_minus_maximum", "softmax_peak")
    },
    **{
        f"uncertain points {form}": (lambda x, f=form: points.probability_uncertainty(x, VALID, f), logits(B, N, H, W))
        for form in ("ratio", "margin")
    },
    **{f"points {kind}": (read_points(kind), *POINT_ARGUMENTS) for kind in KINDS},
    "trajectories": (
        lambda t: torch.einsum("bcs,bcq->bsq", *trajectories.gaussian_keys(t, 60, 80, trajectories.AdaptiveMatching())).exp(),
        FAR,
    ),
    **{
        f"followed {kind} {top} {order}": (followed(kind, top, order), KEYS, QUERY_MAP, VALUES, FOLLOWED)
        for kind in KINDS for top, order in ((None, "after"), (3, "after"), (3, "before"))
    },
    **{
        f"spread {form}": (lambda m, f=form: trajectories.step_spread(m, 8.0, f), COSINES if form == "cosine" else DISTANCES)
        for form in ("exponential", "inverse_distance", "inverse_squared_distance", "cosine")
    },
    **{
        # Logits of absent objects are the smallest number of their type; probabilities are compared.
        f"aggregation {mode}": (lambda x, m=mode: soft_aggregate(x, VALID, m)[1], logits(B, N, H, W))
        for mode in ("product", "minimum", "none")
    },
    "aggregation, logits": (lambda x: soft_aggregate(x, ALL, "product")[0], logits(B, N, H, W)),
    "logits of masks": (logits_from_masks, OBJECTS),
    "cross-entropy": (lambda x: segmentation.cross_entropy(x, LABELS), logits(B, N + 1, H, W)),
    "bootstrapped": (lambda x: segmentation.bootstrapped_cross_entropy(x, LABELS, 0.5), logits(B, N + 1, H, W)),
    "bootstrapped, binary": (
        lambda p: segmentation.bootstrapped_binary_cross_entropy(p, LABELS, ALL, 0.5), WITH_BACKGROUND,
    ),
    "mask IoU": (lambda p: segmentation.mask_iou_loss(p, LABELS, ALL), WITH_BACKGROUND),
    "mask IoU of many pixels": (lambda p: segmentation.mask_iou_loss(p, WIDE, ONE), WHOLE * 0.9),
    "IoU": (lambda p: segmentation.foreground_iou(p, LABELS), WITH_BACKGROUND),
    "IoU of many pixels": (lambda p: segmentation.foreground_iou(p, WIDE), WHOLE),
    **{
        f"uncertainty by {name}": (
            lambda u, t, by=name: auxiliary.uncertainty_loss(u, t, CELLS, 0.5, by), OBJECTS, probabilities(B, N, H, W),
        )
        for name in ("predicted", "loss", "target")
    },
    "points, loss": (
        lambda x, t: auxiliary.point_loss(x, t, POINTS), logits(B, N, K), probabilities(B, N, K),
    ),
    "mean over objects": (
        lambda x: auxiliary.mean_over_objects(x, MANY), torch.full((B, N, 900), 100.0).half(),
    ),
    "soft IoU": (lambda m, t: matching_losses.soft_iou_loss(m, t, ALL), OBJECTS, probabilities(B, N, H, W)),
    "soft IoU of many cells": (lambda m, t: matching_losses.soft_iou_loss(m, t, ONE), WHOLE[:, 1:] * 0.9, WHOLE[:, 1:]),
    "soft IoU of nothing": (
        lambda m, t: matching_losses.soft_iou_loss(m, t, ALL),
        torch.full((B, N, H, W), 1e-7).half(), torch.zeros(B, N, H, W).half(),
    ),
    "matching": (
        lambda s, p, t: matching_losses.matching_loss(s, p, t, ALL, PROPOSALS),
        1000 * probabilities(B, N, K), probabilities(B, K, H, W), OBJECTS,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_as_in_double_precision(case: str) -> None:
    function, *arguments = CASES[case]
    found = tensors(function(*arguments))
    with double_precision():
        expected = tensors(function(*map(doubled, arguments)))
    assert len(found) == len(expected)
    for value, exact in zip(found, expected, strict=True):
        if not value.is_floating_point():
            assert torch.equal(value, exact)
            continue
        assert bool(value.isfinite().all())
        # The rounding of float16 results is relative to the largest of the terms of which they are sums.
        largest = float(exact.abs().max())
        torch.testing.assert_close(value.double(), exact.double(), rtol=0, atol=2e-3 * largest + 1e-12)


def test_cells_are_counted_under_autocast() -> None:
    """Products of masks count more cells than half precision has numbers."""
    whole = WHOLE[:, 1:].float()
    most = whole.clone()
    most[:, :, :20] = 0
    with torch.autocast("cpu", dtype=torch.float16):
        both = torch.ones(1, 2, dtype=torch.bool)
        loss = matching_losses.matching_loss(torch.tensor([[[0.0, 1.0]]]), torch.cat([most, whole], dim=1), whole, ONE, both)
    assert loss.tolist() == [0.0]  # the second is the better one


def test_offsets_are_exact_under_autocast() -> None:
    weights = torch.rand(1, 625, 2, 2, generator=RANDOM).softmax(dim=1)
    expected = local_window.expected_offset(weights)
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(local_window.expected_offset(weights), expected)


def test_weights_of_trajectories_under_autocast() -> None:
    """Their logarithms are small differences of large products."""
    options = trajectories.AdaptiveMatching(top_k_order="before")
    generator = torch.Generator().manual_seed(0)
    keys, query, values = (torch.rand(1, 4, *shape, generator=generator) for shape in ((10,), (60, 80), (10,)))

    def read() -> Tensor:
        positions = trajectories.Trajectories(FAR.position, FAR.spread.float())
        return trajectories.read_followed(keys, query, values.unsqueeze(1), None, positions, options, top_k=5)

    expected = read()
    with torch.autocast("cpu", dtype=torch.float16):
        torch.testing.assert_close(read().float(), expected, rtol=0, atol=2e-3)
