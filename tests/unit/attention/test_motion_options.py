from typing import Any

import pytest

from vos_lightning.attention.msam import MotionOptions


@pytest.mark.parametrize(
    "arguments",
    [
        {"window": 1, "temperature": 0.001},
        *({"uncertainty": form} for form in ("maximum", "one_minus_maximum", "softmax_peak", None)),
        *({"sign": sign} for sign in (-1, 1)),
        *({"out_of_frame": form} for form in ("zero", "mask", "mean")),
        *({"norm": norm} for norm in ("none", "group")),
    ],
    ids=str,
)
def test_documented_values_are_taken(arguments: dict[str, Any]) -> None:
    built = MotionOptions(**arguments)
    assert {name: getattr(built, name) for name in arguments} == arguments


@pytest.mark.usefixtures("_types_are_not_checked")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"uncertainty": "entropy"}, "motion.uncertainty must be one of"),
        ({"sign": 0}, "motion.sign must be one of"),
        ({"out_of_frame": "reflect"}, "motion.out_of_frame must be one of"),
        ({"norm": "batch"}, "motion.norm must be one of"),
        ({"window": -1}, "motion.window must be an odd number of cells, not -1"),
        ({"window": 2}, "motion.window must be an odd number of cells, not 2"),
        ({"temperature": 0.0}, "motion.temperature must be positive, not 0.0"),
    ],
)
def test_other_values_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MotionOptions(**arguments)
