"""What every VOS system owes, for all architectures of DMN-AOA's tables, in training mode too, with proposals in every frame."""

# ruff: noqa: F401 (pytest collects the tests that are imported, and finds the fixture)

from __future__ import annotations

import pytest
import torch

from tests.dmn_aoa import PAPER, small
from tests.invariants.test_networks import (
    propagation,
    test_a_clip_does_not_depend_on_its_batch_mates,
    test_a_late_object_leaves_earlier_frames_alone,
    test_a_removed_object_leaves_no_trace,
    test_advance_leaves_its_state_untouched,
    test_an_invalid_slot_changes_nothing,
    test_any_size_comes_back,
    test_every_trainable_parameter_gets_a_gradient,
    test_finite_when_an_object_may_read_nothing,
    test_given_masks_are_shown_as_given,
    test_growing_equals_a_reserved_slot,
    test_permuting_slots_permutes_outputs,
    test_probabilities_are_a_distribution,
    test_streaming_equals_unroll,
    test_the_future_does_not_change_the_past,
)
from vos_lightning.networks.dmn_aoa import DMNAOA
from vos_lightning.propagation.policies import EveryKth, MemoryPolicy


@pytest.fixture
def policy() -> MemoryPolicy:
    return EveryKth(2, include_previous=True)


# The full model in evaluation mode is among all networks.
@pytest.fixture(params=[f"{name}-{mode}" for name in PAPER for mode in ("inference", "training")][1:])
def network(request: pytest.FixtureRequest, device: torch.device) -> DMNAOA:
    name, mode = request.param.split("-")
    return small(**PAPER[name]).to(device).train(mode == "training")
