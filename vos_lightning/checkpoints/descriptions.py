"""What a checkpoint may say about its network: classes of this library, words and numbers, and nothing that is opened."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import importlib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

_LIBRARY = __name__.partition(".")[0]
_WORD = re.compile(r"[\w+\- ]*", re.ASCII)
_PARTS = re.compile(r"\w+(\.\w+)*", re.ASCII)
_CLASS_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


def checked_class(path: Path, section: Mapping[str, Any]) -> dict[str, Any]:
    """Check a section with ``class_path`` of a checkpoint's description.

    Args:
        path: the checkpoint, for messages.
        section: ``class_path`` and ``init_args``.

    Returns:
        The section, without names of files with weights.

    Raises:
        ValueError: it names a class that :func:`own_class` refuses, or something in it might be imported or opened.
    """
    class_path = section["class_path"]
    kind = own_class(class_path) if isinstance(class_path, str) else None
    if kind is None:
        module = str(class_path).rpartition(".")[0]
        ours = module.startswith(f"{_LIBRARY}.") or module in sys.modules
        why = ", which is no class of this version of the library" if ours else f"; import {module} first if you trust it"
        raise ValueError(f"{path}: the checkpoint needs {str(class_path)[:100]}{why}")
    # A class may take further arguments for the one that it derives from.
    known = _hints_of(vars(base).get("__init__") for base in reversed(kind.__mro__))
    rest = {key: _checked(path, value, key, None) for key, value in section.items() if key not in ("class_path", "init_args")}
    return {"class_path": class_path, "init_args": _checked_arguments(path, section.get("init_args") or {}, known), **rest}


def _checked_arguments(
    path: Path, arguments: Any, known: Mapping[str, Sequence[Any]], allowed: re.Pattern[str] | None = None
) -> dict[str, Any]:
    if not isinstance(arguments, Mapping):
        raise ValueError(
            f"{path}: the checkpoint describes its network with {str(arguments)[:60]!r} where arguments are expected"
        )
    for name in arguments:
        if not isinstance(name, str) or not (allowed or _WORD).fullmatch(name):
            raise ValueError(
                f"{path}: the checkpoint describes its network with the argument {str(name)[:60]!r}, which is no name"
            )
    return {name: _checked(path, value, name, known.get(name)) for name, value in arguments.items()}


def _checked(path: Path, value: Any, key: str, kinds: Sequence[Any] | None) -> Any:
    """A value of a checkpoint's description with nothing in it that is imported or opened.

    Args:
        path: the checkpoint, for messages.
        value: a plain value.
        key: name of the argument that has the value.
        kinds: types that the argument may have, see :func:`_kinds`; None if no such argument is known, so that nothing reads it.
    """
    if isinstance(value, Mapping):
        if "class_path" in value:
            return checked_class(path, value)
        groups = [kind for kind in kinds or () if dataclasses.is_dataclass(kind)]
        if groups or kinds is None:
            return _checked_arguments(path, value, _hints_of(groups))
        # In any other mapping, the values have the types that the argument names. Keys of plain values may name parts of a
        # network.
        names = _PARTS if all(_is_text(kind) for kind in kinds) else _WORD
        return _checked_arguments(path, value, dict.fromkeys(value, kinds), names)
    if isinstance(value, (list, tuple)):
        return [_checked(path, entry, key, kinds) for entry in value]
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str) and all(_is_text(kind) for kind in kinds or ()):
        if _WORD.fullmatch(value):
            return value
        if key in ("weights", "pretrained"):
            return None
    raise ValueError(
        f"{path}: the checkpoint describes its network with {key}: {str(value)[:60]!r}, which might be the name of a file; a "
        "number, a word or a class is needed"
    )


def _hints_of(annotated: Iterable[Any]) -> dict[str, Sequence[Any]]:
    """Types of the arguments of functions, or of the fields of dataclasses, see :func:`_kinds`."""
    found: dict[str, Sequence[Any]] = {}
    for one in annotated:
        try:
            hints = get_type_hints(one)
        except Exception:  # a type is imported for type checkers only, and so on: it counts as a class
            hints = dict.fromkeys(getattr(one, "__annotations__", {}), object)
        found |= {name: _kinds(hint) for name, hint in hints.items()}
    return found


def _kinds(hint: Any) -> list[Any]:
    """The types that a union or a collection consists of."""
    if get_origin(hint) is None or get_origin(hint) is Literal:
        return [hint]
    return [kind for inner in get_args(hint) for kind in _kinds(inner)]


def _is_text(kind: Any) -> bool:
    """Whether a word that is given for this type is nothing but a word. For a class, it might be a file that describes one."""
    return kind in (str, int, float, bool, type(None), Any, ...) or get_origin(kind) is Literal or (
        isinstance(kind, type) and issubclass(kind, enum.Enum)
    )  # fmt: skip


def own_class(class_path: str) -> type[Any] | None:
    """The class with a path if a checkpoint may name it, else None. No module from outside of the library is imported.

    Only the module in which a class is defined counts, because other modules, and other libraries, can be reached through it. A
    class from elsewhere has to derive from one of this library, so that what Python has imported for itself is out of reach.
    """
    if not _CLASS_PATH.fullmatch(class_path):
        return None
    module_name, _, name = class_path.rpartition(".")
    if module_name.startswith(f"{_LIBRARY}."):
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(module_name)
    found = vars(sys.modules[module_name]).get(name) if module_name in sys.modules else None
    if not isinstance(found, type) or found.__module__ != module_name:
        return None
    ours = any(base.__module__.startswith(f"{_LIBRARY}.") for base in found.__mro__)
    return found if ours else None
