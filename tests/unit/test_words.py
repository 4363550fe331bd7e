"""Docstrings say what things are in whole phrases and in the words of the field."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for folder in ("vos_lightning", "data_modules") for path in (ROOT / folder).rglob("*.py"))
ITEM = re.compile(r"^\s+(?P<name>\*{0,2}[A-Za-z_][\w, *]*): (?P<text>.*)$")
FRAGMENT = re.compile(r"(of\b|likewise\b|(also|all|the)? ?likewise\b)", re.IGNORECASE)
UNWANTED = {
    "likewise": r"\blikewise\b",
    "processor (say CPU)": r"\bprocessors?\b",
    "rectification (say ReLU)": r"\brectif",
    "in use (say at inference)": r"\b(?:training and in|in training, \d+ in) use\b",
    "at test time (say at inference)": r"\bat test time\b",
    "masks that are none": r"\bmasks that are none\b",
    "objects that are not asked": r"\bare not asked\b",
    "the host cannot run ahead": r"\brun ahead of it\b",
}


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and text of every docstring, those of attributes included."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if (
                isinstance(statement, ast.Expr)
                and isinstance(value := statement.value, ast.Constant)
                and isinstance(value.value, str)
            ):
                yield statement.lineno, value.value


def complaints(source: str) -> list[str]:
    """What is wrong with the words of a file, with line numbers."""
    found = []
    for first, text in docstrings(ast.parse(source)):
        if FRAGMENT.match(text.strip()):
            found.append(f"{first}: the docstring begins with a fragment: {text.strip()[:60]!r}")
        for number, line in enumerate(text.splitlines(), start=first):
            item = ITEM.match(line)
            if item and FRAGMENT.match(item["text"]):
                found.append(f"{number}: {item['name']} is described by a fragment: {item['text']!r}")
        flat = " ".join(text.split())
        found += [f"{first}: {name}" for name, pattern in UNWANTED.items() if re.search(pattern, flat, re.IGNORECASE)]
    return found


def test_files_are_found() -> None:
    assert len(FILES) > 100


def test_docstrings_use_whole_phrases_and_field_terms() -> None:
    found = [f"{path.relative_to(ROOT)}:{one}" for path in FILES for one in complaints(path.read_text(encoding="utf-8"))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("description", "complaint"),
    [
        ("key: of the query.", "key is described by a fragment"),
        ("width: likewise.", "width is described by a fragment"),
        ("height, width: of the frame.", "height, width is described by a fragment"),
        ("steps: gradient steps (10 in training, 40 in use).", "in use"),
        ("x: linear layers with\n            rectifications between them.", "rectification"),
        ("x: cores of the\n            processor.", "processor"),
    ],
)
def test_fragments_and_old_words_are_refused(description: str, complaint: str) -> None:
    source = f'def f():\n    """Do it.\n\n    Args:\n        {description}\n    """\n'
    assert any(complaint in one for one in complaints(source))


def test_attribute_docstrings_are_read() -> None:
    assert complaints('class A:\n    t: int\n    """Of the frame."""\n') == [
        "3: the docstring begins with a fragment: 'Of the frame.'"
    ]


def test_whole_phrases_pass() -> None:
    source = 'def f():\n    """Do it.\n\n    Args:\n        key: key of the query.\n        offset: offset in cells.\n    """\n'
    assert not complaints(source)
