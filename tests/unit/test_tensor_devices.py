"""Whatever makes a tensor makes it where its arguments are: the default device is one on which nothing can be computed."""

from __future__ import annotations

import pytest
import torch

from tests.unit.test_half_precision import CASES, tensors


@pytest.mark.parametrize("case", CASES)
def test_new_tensors_are_where_the_arguments_are(case: str) -> None:
    function, *arguments = CASES[case]
    expected = tensors(function(*arguments))
    with torch.device("meta"):
        found = tensors(function(*arguments))
    assert len(found) == len(expected)
    assert all(torch.equal(value, other) for value, other in zip(found, expected, strict=True))
