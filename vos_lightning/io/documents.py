"""Documents of plain values (JSON, YAML): what a reader takes for granted is declared as a type and checked when a file is read.

The types are ``TypedDict`` classes beside the code that reads the document. Keys that they do not name are allowed and kept, so
that a file of a newer version can be read.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from vos_lightning.io.texts import MAX_JSON_BYTES, read_json

T_ = TypeVar("T_")
_TYPES = {
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "a text",
    "float_type": "a number",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "none_required": "null",
}
"""pydantic's name of an error -> what the value should have been, in the words of users."""
MAX_VALUE = 60
"""Most characters of a wrong value in a message."""


def read_document(path: Path, kind: type[T_], mend: str, max_bytes: int = MAX_JSON_BYTES) -> T_:
    """The content of a JSON file.

    Args:
        path: the file.
        kind: type of the content.
        mend: what the user can do if the file is another one, for the message.
        max_bytes: largest size of the file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON or not of this type; the message names file and key.
    """
    try:
        content = read_json(path, max_bytes)
    except ValueError as error:
        raise ValueError(f"{error}; {mend}") from error
    return checked(content, kind, path, mend)


def checked(content: Any, kind: Any, source: object, mend: str = "") -> Any:
    """Plain values, after a look at their types.

    Args:
        content: mappings, lists and plain values.
        kind: type that they should have; a text does not pass for a number, nor a number for a text.
        source: where they come from, for the message.
        mend: what the user can do, for the message.

    Returns:
        The same object.

    Raises:
        ValueError: the content has another type; the message names the first wrong key and its value.
    """
    try:
        _adapter(kind).validate_python(content, strict=True)
    except ValidationError as error:
        raise ValueError(f"{source}: {_complaint(content, error)}" + (f"; {mend}" if mend else "")) from None
    return content


@functools.lru_cache(maxsize=64)
def _adapter(kind: Any) -> Any:  # a TypeAdapter, which the type checks of the tests do not know
    return TypeAdapter(kind)


def _complaint(content: Any, error: ValidationError) -> str:
    """What is wrong with the first wrong value; where it may have several types, with all of them."""
    found = [(*_follow(content, each["loc"]), each) for each in error.errors(include_url=False)]
    # Of the types that a value may have, the one that was meant has its fault deeper inside.
    first_place = found[0][0]
    key, value, first = max((one for one in found if one[0][: len(first_place)] == first_place), key=lambda one: len(one[0]))
    if first["type"] == "missing":
        return f"{'.'.join(filter(None, (_dotted(key, ''), str(first['loc'][-1]))))} is missing"
    texts = dict.fromkeys(
        _TYPES.get(each["type"], each["msg"].removeprefix("Input should be ")) for place, _, each in found if place == key
    )
    if not first["msg"].startswith("Input should "):
        return f"{_dotted(key)}: {first['msg'].replace(' after validation', '')}"
    wrong = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) or value else "an empty text"
    return f"{_dotted(key)} must be {' or '.join(texts)}, not {wrong[:MAX_VALUE]}"


def _follow(content: Any, location: Sequence[int | str]) -> tuple[list[str], Any]:
    """The part of an error's location that are keys of the content (others name types), and the value there."""
    key: list[str] = []
    for part in location:
        holder = content
        try:
            content = content[part]
        except (KeyError, IndexError, TypeError):
            continue
        key.append(f"[{part}]" if isinstance(holder, list) else f".{part}")
    return key, content


def _dotted(key: Sequence[str], whole: str = "the content") -> str:
    return "".join(key).removeprefix(".") or whole
