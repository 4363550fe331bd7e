"""Options of matching: every value that is documented is taken, and every other one is named."""

from typing import Any

import pytest
import torch

from vos_lightning.matching.assignment import AssignmentOptions
from vos_lightning.matching.bijective import GaussianKernel, TopK
from vos_lightning.matching.local_window import best_match
from vos_lightning.matching.trajectories import AdaptiveMatching, step_spread

LEGAL: list[tuple[type, dict[str, Any]]] = [
    (AssignmentOptions, {}),
    (AssignmentOptions, {"train_steps": 0, "eval_steps": 0, "sweeps": 0, "step_size": 0.01}),
    *((AssignmentOptions, {"output": output}) for output in ("last", "mean_pre", "mean_post")),
    *((AssignmentOptions, {"eval_kept": kept}) for kept in ("all", "best")),
    *((GaussianKernel, {"std": 0.01, "unit": unit}) for unit in ("cells", "pixels")),
    *((TopK, {"k": 1, "fill": fill}) for fill in ("zero", "minimum")),
    (AdaptiveMatching, {}),
    (AdaptiveMatching, {"window": 2, "beta": 0.01, "smallest_sigma": 0.01, "exclusion_radius": 0}),
    (AdaptiveMatching, {"smallest_sigma": 3.0, "largest_sigma": 3.0}),
    (AdaptiveMatching, {"beta": 4.0, "smallest_sigma": 2.0, "spread_is": "variance"}),
    *(
        (AdaptiveMatching, {"spread_form": form})
        for form in ("exponential", "inverse_distance", "inverse_squared_distance", "cosine")
    ),
    *((AdaptiveMatching, {"top_k_order": order}) for order in ("after", "before")),
]
ILLEGAL: list[tuple[type, dict[str, Any], str]] = [
    (AssignmentOptions, {"output": "first"}, "output"),
    (AssignmentOptions, {"eval_kept": "worst"}, "eval_kept"),
    *((AssignmentOptions, {name: -1}, name) for name in ("train_steps", "eval_steps", "sweeps")),
    (AssignmentOptions, {"step_size": 0.0}, "step_size"),
    (GaussianKernel, {"std": 0.0}, "std"),
    (GaussianKernel, {"std": 1.0, "unit": "metres"}, "unit"),
    (TopK, {"k": 0}, "k"),
    (TopK, {"k": 1, "fill": "mean"}, "fill"),
    (AdaptiveMatching, {"spread_form": "linear"}, "spread_form"),
    (AdaptiveMatching, {"spread_is": "range"}, "spread_is"),
    (AdaptiveMatching, {"top_k_order": "between"}, "top_k_order"),
    (AdaptiveMatching, {"window": 1}, "window"),
    (AdaptiveMatching, {"beta": 0.0}, "window must be at least 2, beta above 0"),
    (AdaptiveMatching, {"exclusion_radius": -1}, "window must be at least 2, beta above 0"),
    (AdaptiveMatching, {"smallest_sigma": 0.0}, "smallest_sigma"),
    (AdaptiveMatching, {"smallest_sigma": 3.1, "largest_sigma": 3.0}, "smallest_sigma"),
    (AdaptiveMatching, {"beta": 4.0, "smallest_sigma": 2.1, "spread_is": "variance"}, "smallest_sigma"),
]


@pytest.mark.parametrize(("options", "arguments"), LEGAL, ids=str)
def test_documented_values_are_taken(options: type, arguments: dict[str, Any]) -> None:
    built = options(**arguments)
    assert {name: getattr(built, name) for name in arguments} == arguments


@pytest.mark.usefixtures("_types_are_not_checked")
@pytest.mark.parametrize(("options", "arguments", "name"), ILLEGAL, ids=str)
def test_other_values_are_named(options: type, arguments: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"\.{name}\b"):
        options(**arguments)


def test_a_spread_takes_the_defaults_of_the_options() -> None:
    """And the scale of keys of 64 channels."""
    match, options = best_match(*torch.randn(2, 1, 4, 6, 7), window=5), AdaptiveMatching()
    expected = step_spread(match, beta=options.beta, form=options.spread_form, scale=64**-0.5)
    assert torch.equal(step_spread(match), expected)
    assert expected.max() > 1
