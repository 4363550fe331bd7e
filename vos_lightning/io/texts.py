"""Reading text files that may come from strangers: lists, JSON and YAML, with limits.

A small file can describe an enormous value: nested lists overflow the stack, and an alias in YAML (``*name``) repeats a value, so
that ten lines of ten aliases stand for ten thousand million entries. Such files are refused with one line that names them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vos_lightning.io.files import regular_file

MAX_JSON_BYTES = 256 << 20
"""Largest JSON file, in bytes; the description of the training videos of YouTube-VOS has a hundredth of it."""
MAX_YAML_BYTES = 4 << 20
"""Largest YAML file, in bytes."""
MAX_DEPTH = 100
"""Most levels of lists and mappings inside each other; the experiments of this project have up to 12."""
MAX_VALUES = 200_000
"""Most values in a YAML file or in the description of a system, where a value that is referred to again counts again."""

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""Loader for the same YAML as ``SafeLoader``, ten times as fast where PyYAML has its C library."""


def read_text(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> str:
    """Content of a text file.

    Args:
        path: the file, in UTF-8.
        max_bytes: largest size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no regular file, is too large or no text; the message names it.
    """
    # At most one byte more than allowed is read, as the size of some files (under /proc) is not known before.
    with regular_file(path).open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"{os.fspath(path)}: the file has more than {max_bytes} bytes, the most that are read")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{os.fspath(path)}: this is no text file ({error})") from error


def read_json(path: str | os.PathLike[str], max_bytes: int = MAX_JSON_BYTES) -> Any:
    """Value in a JSON file.

    Args:
        path: the file.
        max_bytes: largest size.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or is not JSON; the message names it.
    """
    return parse_json(read_text(path, max_bytes), path)


def parse_json(text: str, source: str | os.PathLike[str]) -> Any:
    """Value of a JSON text.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply; the message names ``source``.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{os.fspath(source)}: the values are nested too deeply to be read") from None
    except ValueError as error:
        raise ValueError(f"{os.fspath(source)} is not valid JSON: {error}") from error


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Value in a YAML file; only plain values are made, see :func:`parse_yaml`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read or is not YAML; the message names it.
    """
    return parse_yaml(read_text(path, MAX_YAML_BYTES), path)


def parse_yaml(text: str, source: str | os.PathLike[str]) -> Any:
    """Value of a YAML text: plain values only.

    Raises:
        ValueError: the text is not YAML, is nested too deeply, refers to itself, or repeats too many values; the message names
            ``source``.
    """
    where = os.fspath(source)
    try:
        _check_events(text, where)
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from error
    except ValueError as error:  # the loader raises it for a day or a number that does not exist, and does not name the file
        message = str(error)
        raise error if message.startswith(where) else ValueError(f"{where} is not valid YAML: {message}") from error


def _check_events(text: str, where: str) -> None:
    """Refuse what would overflow the stack or memory. The events of the parser come one by one, so nothing is built."""
    sizes = [0]
    open_anchors: list[str | None] = []
    known: dict[str, int] = {}
    for event in yaml.parse(text, Loader=_LOADER):
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            sizes.append(1)
            open_anchors.append(anchor)
            if len(open_anchors) > MAX_DEPTH:
                raise ValueError(f"{where}: values are nested more than {MAX_DEPTH} levels deep")
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            size, anchor = sizes.pop(), open_anchors.pop()
        elif isinstance(event, yaml.AliasEvent):
            if anchor in open_anchors:
                raise ValueError(f"{where}: the value &{anchor} contains itself")
            size, anchor = known.get(str(anchor), 1), None
        elif isinstance(event, yaml.ScalarEvent):
            size = 1
        else:
            continue
        if anchor is not None:
            known[anchor] = size
        sizes[-1] += size
        if sizes[-1] > MAX_VALUES:
            raise ValueError(f"{where}: the file stands for more than {MAX_VALUES} values")


def check_plain(value: Any, source: str | os.PathLike[str]) -> None:
    """Refuse a value of mappings and lists that is nested too deeply, contains itself, or is too large, see the module.

    Raises:
        ValueError: the value is refused; the message names ``source``.
    """
    waiting = [(value, 0)]
    count = 0
    while waiting:
        entry, depth = waiting.pop()
        count += 1
        if depth > MAX_DEPTH or count + len(waiting) > MAX_VALUES:
            raise ValueError(
                f"{Path(source)}: the description is nested more than {MAX_DEPTH} levels deep, or holds more than "
                f"{MAX_VALUES} values"
            )
        if isinstance(entry, Mapping):
            waiting += [(inner, depth + 1) for inner in entry.values()]
        elif isinstance(entry, (list, tuple, set, frozenset)):
            waiting += [(inner, depth + 1) for inner in entry]
