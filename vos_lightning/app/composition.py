"""How an experiment is put together: files that extend each other and options of the command line, merged and checked.

What the argument parser of the classes would take for a fault of its own is refused here, with the file and the key.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic reads these from `typing` from Python 3.12 on
)

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from vos_lightning.io.documents import checked
from vos_lightning.io.files import check_name
from vos_lightning.io.texts import parse_yaml, read_yaml

OWN_KEYS = ("extends", "stages", "hand_over", "select", "checkpoint_of", "published", "description")


class ExperimentError(ValueError):
    """An experiment that does not exist or cannot be composed; the message is one line for the user."""


class Published(TypedDict):
    """The section ``published``: a row of a table of a paper."""

    paper: str
    table: int | str
    row: str | int | FiniteFloat
    dataset: str
    metrics: dict[str, FiniteFloat]
    fps: NotRequired[str | FiniteFloat]
    hardware: NotRequired[str]
    departs: NotRequired[str]


class _Arguments(TypedDict, total=False):
    loading: dict[str, Any] | None
    train: list[Any] | None


class _Data(TypedDict, total=False):
    class_path: str
    init_args: _Arguments | None


class _Model(TypedDict, total=False):
    class_path: str
    init_args: dict[str, Any] | None


class _Sections(TypedDict, total=False):
    """What is read of a configuration before the argument parser checks all of it."""

    model: _Model | None
    data: _Data | None
    trainer: dict[str, Any] | None
    # The callbacks that `lightning_cli` adds by name, whose options the parser takes for granted to be a mapping.
    best_checkpoint: dict[Any, Any]
    last_checkpoint: dict[Any, Any]
    predictions: dict[Any, Any]
    pictures: dict[Any, Any]
    panels: dict[Any, Any]
    throughput: dict[Any, Any]
    finite: dict[Any, Any]
    wandb: dict[Any, Any]


class ExperimentFile(_Sections, total=False):
    """An experiment as it is written."""

    extends: list[str]
    stages: list[str]
    hand_over: Literal["last", "best"]
    select: Literal["last", "best"] | None
    checkpoint_of: str | None
    published: Published | None
    description: str
    set: dict[str, Any] | None


Composed = tuple[dict[str, Any], dict[str, Any]]
"""An experiment's own keys, and its merged configuration."""


def compose(
    path: Path, folder: Path, chain: tuple[Path, ...], composed: dict[Path, Composed], extended_by: Path | str | None = None
) -> Composed:
    """The file's own keys and the merged configuration of its chain.

    Args:
        path: the file.
        folder: folder of experiments.
        chain: files that extend this one, the first one first.
        composed: what was composed before, so that a file that many others extend is composed once.
        extended_by: what extends the file, for the message.
    """
    path = Path(os.path.realpath(path))  # unlike `resolve`, it lets a link to itself pass, which cannot be read below
    if path in chain:
        raise ExperimentError(f"{path} extends itself through {' -> '.join(p.stem for p in (*chain, path))}")
    if path not in composed:
        composed[path] = combine(read_mapping(path, extended_by), path, folder, (*chain, path), composed)
    return composed[path]


def combine(
    content: dict[str, Any], source: Path | str, folder: Path, chain: tuple[Path, ...], composed: dict[Path, Composed]
) -> Composed:
    """An experiment's own keys, and its sections and options merged over the files that it extends."""
    check(content, ExperimentFile, source)
    own = {key: content.pop(key) for key in (*OWN_KEYS, "set") if key in content}
    config: dict[str, Any] = {}
    for base in own.get("extends", ()):
        try:
            for part in base.split("/"):
                check_name(part, source)
        except ValueError as error:
            raise ExperimentError(f"{error}: extends names files inside of {folder}, without .yaml") from error
        _, inherited = compose(folder / f"{base}.yaml", folder, chain, composed, source)
        config = merge(config, inherited, source)
    config = merge(merge(config, content, source), _nested((own.pop("set", None) or {}).items(), source), source)
    check(config, _Sections, source)
    return own, config


def check(content: Mapping[str, Any], kind: type, source: Path | str) -> None:
    """Raise what is wrong with an experiment, or with the part of it that is read before the argument parser does."""
    try:
        checked(content, kind, source)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    strange = next(_strange(content), None)
    if strange is not None:
        raise ExperimentError(f"{source}: {strange}")


def _strange(value: Any, where: str = "") -> Iterator[str]:
    """What the argument parser would take for a fault of its own, at any depth."""
    for key, entry in value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ():
        here = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and not isinstance(key, str):
            yield f"the key {here} is not a text: write it in quotes"
        if key == "init_args" and not isinstance(entry, Mapping) and entry is not None:
            yield f"{here} must be a mapping, not {str(entry)[:60]!r}"
        yield from _strange(entry, here)


def read_mapping(path: Path, extended_by: Path | str | None = None) -> dict[str, Any]:
    """The content of a YAML file that holds a mapping.

    Args:
        path: the file.
        extended_by: what names the file, for the message if it cannot be read.

    Raises:
        ExperimentError: it cannot be read, or holds something else.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        raise ExperimentError(
            f"{extended_by} extends {path}, which cannot be read" if extended_by else f"{path} cannot be read"
        ) from error
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    if not isinstance(content, dict):
        raise ExperimentError(f"{path} must hold a mapping")
    return content


def _nested(options: Iterable[tuple[str, Any]], source: Path | str) -> dict[str, Any]:
    """Dotted options as nested mappings; of two options with one name the later one holds."""
    nested: dict[str, Any] = {}
    for key, value in options:
        target = nested
        *parents, last = str(key).split(".")
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise ExperimentError(f"{source} sets {key}, and {parent} above it to a plain value: leave one of them out")
        target[last] = value
    return nested


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any], source: Path | str, where: str = "") -> dict[str, Any]:
    """A configuration with another one on top: mappings are merged key by key, anything else is replaced.

    A part of a model or of data (a backbone ...) is replaced as a whole by one that names another ``class_path`` and its
    ``init_args``, even if these are empty. Arguments of the former class would not fit the other one.

    Args:
        base: what is below.
        overlay: what is on top.
        source: where the overlay comes from, for messages.
        where: the dotted place of both, for messages.

    Raises:
        ExperimentError: the overlay changes a ``class_path`` in another way.
    """
    if "." in where and "init_args" in overlay and overlay.get("class_path", base.get("class_path")) != base.get("class_path"):
        return dict(overlay)
    merged = dict(base)
    for key, value in overlay.items():
        here = f"{where}.{key}" if where else str(key)
        if key == "class_path" and merged.get(key, value) != value:
            raise ExperimentError(
                f"{source} changes {here} from {merged[key]} to {value}: "
                + ("name its init_args too, which replace the former ones" if "." in where else "extend another file instead")
            )
        if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping):
            merged[key] = merge(merged[key], value, source, here)
        else:
            merged[key] = value
    return merged


def with_overrides(config: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """A configuration with command-line options on top.

    They are merged here and not by the argument parser, so that ``--a.b.c=null`` has the same meaning as in a file, at any depth.

    Args:
        config: a composed configuration.
        arguments: ``--key=value`` or ``--key value`` with dotted keys and YAML values.

    Raises:
        ExperimentError: an argument is not an option, or a value is not YAML.
    """
    options: list[tuple[str, Any]] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        key, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not key:
            raise ExperimentError(f"{argument!r} is not an option: options are --key=value")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ExperimentError(f"option --{key} has no value: write --{key}=VALUE")
            value = rest.pop(0)
        try:
            parsed = parse_yaml(value, f"--{key}={value[:80]}")
        except ValueError as error:
            raise ExperimentError(str(error)) from error
        # YAML 1.1 takes 1e-4 for a text.
        if isinstance(parsed, str):
            with contextlib.suppress(ValueError):
                parsed = float(parsed)
        options.append((key, parsed))
    merged = merge(config, _nested(options, "the command line"), "the command line")
    check(merged, _Sections, "the command line")
    return merged


def differing_keys(one: Mapping[str, Any], other: Mapping[str, Any], where: str = "") -> list[str]:
    """Dotted keys in which two configurations differ."""
    differing = []
    for key in sorted({*one, *other}, key=str):
        here = f"{where}.{key}" if where else str(key)
        left, right = one.get(key), other.get(key)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            differing += differing_keys(left, right, here)
        elif left != right:
            differing.append(here)
    return differing


def value_at(section: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None if there is no such key."""
    value: Any = section
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
