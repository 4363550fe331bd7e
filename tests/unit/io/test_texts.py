"""Text files from strangers: what is too large, too deep or no file is one line that names it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vos_lightning.io import texts
from vos_lightning.io.texts import check_plain, parse_yaml, read_json, read_text, read_yaml


def laughs(levels: int = 9) -> str:
    """Ten aliases of ten aliases and so on: a few lines that stand for 10 ** levels values."""
    lines = ["v0: &v0 [" + ", ".join("x" * 10) + "]"]
    return "\n".join(lines + [f"v{i + 1}: &v{i + 1} [{', '.join([f'*v{i}'] * 10)}]" for i in range(levels - 1)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested more than 100 levels deep"),
        ("{a: " * 100_000, "nested more than 100 levels deep"),
        ("- " * 5_000 + "x", "nested more than 100 levels deep"),
        (laughs(), "stands for more than 200000 values"),
        ("a: &a [*a]", "the value &a contains itself"),
        ("a: &a {b: {c: *a}}", "the value &a contains itself"),
        ("a: 2020-13-45", "not valid YAML: month must be"),
        ("a: " + "1" * 5_000, "not valid YAML: Exceeds the limit"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "not valid YAML: could not determine a constructor"),
    ],
)
def test_yaml_with_limits(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_yaml(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_usual_aliases_are_read() -> None:
    assert parse_yaml("a: &a {b: [1, 2]}\nc: *a\nd: {<<: *a, e: 3}", "x") == {
        "a": {"b": [1, 2]},
        "c": {"b": [1, 2]},
        "d": {"b": [1, 2], "e": 3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("1" * 5_000, "not valid JSON: Exceeds the limit"),
        ("{", "not valid JSON"),
    ],
)
def test_json_with_limits(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        read_json(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize("read", [read_text, read_json, read_yaml])
def test_only_regular_files_of_some_size(tmp_path: Path, read: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe: this is a pipe, not a file"):
        read(tmp_path / "pipe")
    with pytest.raises(ValueError, match="this is a folder, not a file"):
        read(tmp_path)
    with pytest.raises(ValueError, match="this is a device, not a file"):
        read(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such file"):
        read(tmp_path / "nowhere")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="binary: this is no text file"):
        read(tmp_path / "binary")
    monkeypatch.setattr(texts, "MAX_YAML_BYTES", 10)
    (tmp_path / "large").write_bytes(b"1" * 11)
    with pytest.raises(ValueError, match="large: the file has more than 10 bytes"):
        read_text(tmp_path / "large", 10)
    with pytest.raises(ValueError, match="large: the file has more than 10 bytes"):
        read_yaml(tmp_path / "large")


def test_values_that_were_read_by_others() -> None:
    shared: list[Any] = [1]
    for _ in range(40):
        shared = [shared, shared]
    itself: dict[str, Any] = {}
    itself["itself"] = itself
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    for value in (shared, itself, deep, [0] * (texts.MAX_VALUES + 1)):
        with pytest.raises(ValueError, match="c: the description is nested more than"):
            check_plain(value, "c")
    check_plain({"a": [1, {"b": (2, 3)}], "c": [shared[:0]] * 10}, "c")
