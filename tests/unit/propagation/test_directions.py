"""Parts of both directions by themselves: who is known, who has no mask, and frames in which nobody is."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.tolerances import assert_close
from tests.unit.dummies import DummyNetwork, make_frames, make_label_map
from vos_lightning.propagation.directions import _Distances, _Waiting, blend
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import AnnotatedOnly
from vos_lightning.propagation.step import Propagation
from vos_lightning.structures import FramePrediction

SIZE = (2, 3)


def predicted(index: int, ids: tuple[int, ...], given: tuple[int, ...] = ()) -> FramePrediction:
    planes = torch.rand(len(ids), *SIZE)
    return FramePrediction(index, torch.zeros(3, *SIZE), torch.zeros(SIZE, dtype=torch.uint8), planes, ids, given)


@pytest.mark.parametrize("aggregation", ["none", "minimum", "product"])
def test_a_blend_of_nobody_is_empty(aggregation: Any) -> None:
    mixed = blend(predicted(3, ()), {}, predicted(3, ()), {}, aggregation)
    assert (mixed.object_ids, mixed.probabilities.shape) == ((), (0, *SIZE))
    assert mixed.label_map.eq(0).all()


@pytest.mark.parametrize("aggregation", ["none", "minimum", "product"])
def test_everybody_may_be_gone_between_two_annotations(aggregation: Any) -> None:
    engine, label_map = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), aggregation)), make_label_map()
    found = list(engine.segment(make_frames(5), {0: label_map, 4: label_map}, direction="both", gone={1: [1, 2]}))
    assert {p.frame_index: p.object_ids for p in found} == {0: (1, 2), 1: (), 2: (), 3: (), 4: (1, 2)}


def test_a_distance_is_counted_from_the_last_annotation() -> None:
    distances = _Distances()
    assert distances.at(predicted(9, (4, 2), (4, 2))) == {4: 0, 2: 0}
    assert distances.at(predicted(6, (4, 2))) == {4: 3, 2: 3}
    assert distances.at(predicted(5, (4, 2, 8), (2, 8))) == {4: 4, 2: 0, 8: 0}
    assert distances.at(predicted(1, (4, 2, 8))) == {4: 8, 2: 4, 8: 4}
    assert distances.at(predicted(0, (2,))) == {2: 5}


def test_what_waits_is_rounded_to_8_bits_and_taken_in_any_order() -> None:
    predictions = [predicted(t, tuple(range(1, 2 + t))) for t in range(3)]
    with _Waiting() as waiting:
        for prediction in predictions:
            waiting.put(prediction, dict.fromkeys(prediction.object_ids, prediction.frame_index))
        for t in (1, 0, 2):
            other = predicted(t, ())
            found, distances = waiting.take(other)
            assert distances == dict.fromkeys(predictions[t].object_ids, t)
            assert (found.frame_index, found.object_ids) == (t, predictions[t].object_ids)
            assert found.frame is other.frame
            assert_close(found.probabilities, (predictions[t].probabilities * 255).round() / 255)
        with pytest.raises(KeyError):
            waiting.take(predicted(1, ()))


@pytest.mark.usefixtures("_types_are_not_checked")
def test_an_unknown_direction_is_named() -> None:
    engine = InferenceEngine(DummyNetwork(), Propagation(AnnotatedOnly(), "minimum"))
    with pytest.raises(ValueError, match=r"direction must be one of \('forward', 'backward', 'both'\), not 'up'"):
        engine.segment(make_frames(3), {0: make_label_map()}, direction="up")  # type: ignore[arg-type]
