"""How a system is evaluated: what is refused."""

import dataclasses

import pytest

from vos_lightning.modules.evaluation import Evaluation


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("short_side", 15, r"evaluation\.short_side must be at least 16 pixels, not 15"),
        ("short_side", 0, r"evaluation\.short_side must be at least 16 pixels, not 0"),
        ("min_object_pixels", -1, r"evaluation\.min_object_pixels must not be negative, not -1"),
    ],
)
def test_refusals(option: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(Evaluation(), **{option: value})


def test_what_is_allowed() -> None:
    assert Evaluation(short_side=16, min_object_pixels=0).short_side == 16
    assert Evaluation().short_side is None
