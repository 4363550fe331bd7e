"""Options as they are built where nobody checks types; in the tests, the type checker is faster than the options themselves."""

from __future__ import annotations

import dataclasses
from typing import Any


def unchecked(options: type, **arguments: Any) -> Any:
    built = object.__new__(options)
    for field in dataclasses.fields(options):
        object.__setattr__(built, field.name, arguments.get(field.name, field.default))
    built.__post_init__()
    return built
