"""The notebook runs, and prints what is kept in it."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).resolve().parents[2] / "docs" / "python.ipynb"
SHARE = re.compile(r"(\d+)%")
ROUNDING = 3
"""Percent by which a printed share may differ on another processor."""


def test_the_notebook_prints_what_is_kept_in_it() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    names: dict[str, Any] = {}
    for number, cell in enumerate(cells, start=1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec("".join(cell["source"]), names)
        assert [output["output_type"] for output in cell["outputs"] if output["output_type"] == "error"] == []
        kept = "".join(line for output in cell["outputs"] if output["output_type"] == "stream" for line in output["text"])
        assert SHARE.sub("%", printed.getvalue()) == SHARE.sub("%", kept), f"cell {number}"
        for found, expected in zip(SHARE.findall(printed.getvalue()), SHARE.findall(kept), strict=True):
            assert abs(int(found) - int(expected)) <= ROUNDING, f"cell {number}"
        assert cell["execution_count"] == number, "run all cells from the first to the last before it is kept"
    assert {output["output_type"] for cell in cells for output in cell["outputs"]} == {"stream", "execute_result"}
