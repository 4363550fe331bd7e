"""Experiments by name: find, compose, list.

``emvos_davis17`` names ``experiments/emvos/davis17.yaml``. Beside the sections of LightningCLI (``model``, ``data``, ``trainer``
...), an experiment file may have

- ``extends``: files that it builds on, in order, relative to the experiments folder and without suffix (``_shared/trainer``,
  ``emvos/davis17``). Mappings merge key by key, anything else is replaced. No file may change a ``class_path``: its
  ``init_args`` would be meaningless;
- ``stages``: names of experiments that run one after the other, each from the weights of the one before;
- ``hand_over``: which weights a stage passes on: its ``last`` (default) or its ``best``;
- ``select``: which weights are evaluated, the ``last`` (default) or the ``best`` of all validations. The score of the best ones
  is optimistic where the validation videos are the reported ones. An experiment that evaluates the checkpoint of another one
  uses the ``select`` of that experiment;
- ``checkpoint_of``: the experiment whose checkpoint this one evaluates; it is not trained itself;
- ``published``: the row of the paper that the experiment reproduces, for listings and the results table;
- ``description``: one sentence.

An experiment without a ``model.class_path`` fine-tunes: ``train EXP --checkpoint FILE`` takes the system from the checkpoint, and
``model.init_args`` overrides the arguments that the checkpoint describes.

``${VOS_DATA}`` in a value is the folder of data sets: that environment variable, else ``data``. Files and folders that start with
``_`` are fragments, not experiments.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import importlib.resources
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import (
    Any,
    Literal,
    NotRequired,  # pydantic reads these from `typing` from Python 3.12 on
)

from pydantic import FiniteFloat
from typing_extensions import TypedDict

from vos_lightning.app import tables
from vos_lightning.io.documents import checked
from vos_lightning.io.files import check_name
from vos_lightning.io.texts import parse_yaml, read_yaml

OWN_KEYS = ("extends", "stages", "hand_over", "select", "checkpoint_of", "published", "description")

Which = Literal["last", "best"]

NEUTRAL_OPTIONS = (
    "trainer.devices", "trainer.num_nodes", "trainer.accelerator", "trainer.strategy", "trainer.precision", "trainer.benchmark",
    "trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.log_every_n_steps", "trainer.default_root_dir",
    "seed_everything", "initial_weights", "wandb", "pictures", "predictions", "throughput", "finite", "last_checkpoint",
    "data.init_args.loading.seed", "data.init_args.loading.num_workers", "data.init_args.loading.pin_memory",
    "data.init_args.loading.predict_root", "data.init_args.loading.max_device_batch",
)  # fmt: skip
"""Options that decide where and how conveniently an experiment runs, but not what it computes. A run that changes any other
option is not a reproduction of the experiment."""


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


class _File(_Sections, total=False):
    """An experiment as it is written."""

    extends: list[str]
    stages: list[str]
    hand_over: Literal["last", "best"]
    select: Literal["last", "best"] | None
    checkpoint_of: str | None
    published: Published | None
    description: str
    set: dict[str, Any] | None


@dataclass(frozen=True)
class Experiment:
    """A composed experiment."""

    name: str
    path: Path
    config: Mapping[str, Any]
    """The configuration that LightningCLI gets."""
    source: Mapping[str, Any] = field(default_factory=dict)
    """The same configuration, before ``${VOS_DATA}`` is replaced."""
    stages: tuple[str, ...] = ()
    hand_over: Which = "last"
    select: Which | None = None
    checkpoint_of: str | None = None
    published: Mapping[str, Any] = field(default_factory=dict)
    description: str = ""
    fingerprint: str = ""
    """Digest of everything that decides the result, independent of where the data lie."""

    @property
    def fine_tunes(self) -> bool:
        """Whether the system comes from a checkpoint."""
        return not self.stages and "class_path" not in (self.config.get("model") or {})


def experiments_folder() -> Path:
    """The folder of experiment files: ``$VOS_EXPERIMENTS``, else the one that comes with the library.

    A folder called ``experiments`` in the working directory is not used instead; to use another folder, set ``VOS_EXPERIMENTS``.
    """
    named = os.environ.get("VOS_EXPERIMENTS")
    # In a checkout, this is a link to the folder `experiments` at its top.
    folder = Path(named) if named else Path(str(importlib.resources.files("vos_lightning"))) / "recipes"
    if not folder.is_dir():
        raise ExperimentError(f"no experiments folder at {folder}: set VOS_EXPERIMENTS to the folder of experiment files")
    return folder


def experiment_files(folder: Path | None = None) -> dict[str, Path]:
    """Name -> file of every experiment, sorted."""
    folder = folder or experiments_folder()
    files: dict[str, Path] = {}
    for path in sorted(folder.glob("*/*.yaml")):
        if path.name.startswith("_") or path.parent.name.startswith("_"):
            continue
        for stem in _tables(path) if path.name == tables.FILE else (path.stem,):
            name = f"{path.parent.name}_{stem}"
            if name in files:
                raise ExperimentError(f"{path} and {files[name]} both define {name}: remove one of them")
            files[name] = path
    return dict(sorted(files.items()))


def load_experiment(name: str) -> Experiment:
    """Compose an experiment.

    Args:
        name: ``<paper>_<file>``, or the path of a YAML file.

    Raises:
        ExperimentError: unknown name, unreadable file, circular ``extends``, ``stages`` or ``checkpoint_of``, or a changed
            ``class_path``.
    """
    folder = experiments_folder()
    files = functools.cache(lambda: experiment_files(folder))  # a file that is named by its path may need no other one
    name, path, source = _find(name, files)
    if path.name == tables.FILE:
        own, config = _combine(_row(name, path), source, folder, (), {})
    else:
        own, config = _compose(path, folder, (), {})
    for key in ("hand_over", "select"):
        if own.get(key, "last") not in ("best", "last"):
            raise ExperimentError(f"{source}: {key} must be best or last, not {own[key]!r}")
    # A stage is trained by a process of its own, which gets its name: that of a file might be the name of another experiment.
    by_path = next((stage for stage in _names(own, "stages", source) if stage.endswith(".yaml")), None)
    if by_path is not None:
        raise ExperimentError(
            f"{source}: stages are names of experiments, as `vos list --plain` prints them, not files ({by_path})"
        )
    _refuse_cycles(name, own, source, files)
    stages, hand_over = _names(own, "stages", source), own.get("hand_over", "last")
    return Experiment(
        name=name,
        path=path,
        config=_expand(config),
        source=config,
        stages=tuple(stages),
        hand_over=hand_over,
        select=own.get("select"),
        checkpoint_of=own.get("checkpoint_of"),
        fingerprint=digest([stages, hand_over if stages else None, own.get("checkpoint_of"), without_neutral(config)]),
        published=own.get("published") or {},
        description=own.get("description", ""),
    )


def _find(name: str, files: Callable[[], Mapping[str, Path]]) -> tuple[str, Path, Path | str]:
    """Name and file of an experiment, and how messages call it."""
    path = Path(name)
    if path.suffix != ".yaml":
        known = files()
        if name not in known:
            close = difflib.get_close_matches(name, known, n=3)
            hint = f"did you mean {' or '.join(close)}?" if close else "`vos list --plain` prints all names"
            raise ExperimentError(f"there is no experiment {name!r}: {hint}")
        path = known[name]
    elif not path.is_file():
        raise ExperimentError(f"there is no experiment file {path}")
    else:
        name = path.stem
    if path.name == tables.FILE:
        return name, path, f"{path} (experiment {name.removeprefix(f'{path.parent.name}_')})"
    return name, path, path


def _row(name: str, path: Path) -> dict[str, Any]:
    """The row of a table that is an experiment."""
    rows, row = _tables(path), name.removeprefix(f"{path.parent.name}_")
    if row not in rows:
        raise ExperimentError(f"{path} holds many experiments: name one of them, as `vos list` prints them")
    return dict(rows[row])


def _refuse_cycles(name: str, own: Mapping[str, Any], source: Path | str, files: Callable[[], Mapping[str, Path]]) -> None:
    """Refuse an experiment that trains or evaluates itself, through whatever others, before a process is started for any of them.

    Files that do not exist are passed over: whoever needs them says so.
    """
    finished: set[str] = set()

    def follow(name: str, own: Mapping[str, Any], source: Path | str, chain: tuple[str, ...]) -> None:
        chain = (*chain, name)
        evaluated = own.get("checkpoint_of")
        for other in [*_names(own, "stages", source), *([str(evaluated)] if evaluated else [])]:
            try:
                found, path, where = _find(other, files)
            except ExperimentError:
                continue
            if found in chain:
                raise ExperimentError(
                    f"{source} needs itself: {' -> '.join((*chain[chain.index(found) :], found))} (stages, checkpoint_of)"
                )
            if found not in finished:
                follow(found, _row(found, path) if path.name == tables.FILE else read_mapping(path), where, chain)
        finished.add(name)

    follow(name, own, source, ())


def without_neutral(config: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A configuration (or dotted options) without :data:`NEUTRAL_OPTIONS`."""
    kept: dict[str, Any] = {}
    for key, value in config.items():
        here = f"{where}.{key}" if where else str(key)
        if any(here == option or here.startswith(f"{option}.") for option in NEUTRAL_OPTIONS):
            continue
        kept[key] = without_neutral(value, here) if isinstance(value, Mapping) else value
    return kept


def selection(experiment: Experiment) -> Which:
    """Which weights of its training an experiment evaluates."""
    while experiment.select is None and experiment.checkpoint_of:
        experiment = load_experiment(experiment.checkpoint_of)
    return experiment.select or "last"


def training_identity(experiment: Experiment, overrides: Sequence[str] = (), start: Any = None) -> str:
    """What a training computes, as 16 hexadecimal digits: trainings with equal digits end with the same weights.

    Args:
        experiment: an experiment that is trained and has no stages.
        overrides: options of the command line. Unlike in the fingerprint of the experiment, the seeds count.
        start: where the training starts, see :func:`vos_lightning.app.runs.starting_point`; None takes it from the configuration.
    """
    config = with_overrides(experiment.source, overrides)
    arguments = (config.get("data") or {}).get("init_args") or {}
    seeds = [config.get("seed_everything", 0), (arguments.get("loading") or {}).get("seed", 0)]
    return digest([without_neutral(config), seeds, start])


def digest(value: Any) -> str:
    """16 hexadecimal digits of a value of plain types."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _expand(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("${VOS_DATA}", os.environ.get("VOS_DATA") or "data")
    if isinstance(value, Mapping):
        return {key: _expand(entry) for key, entry in value.items()}
    return [_expand(entry) for entry in value] if isinstance(value, list) else value


Composed = tuple[dict[str, Any], dict[str, Any]]
"""An experiment's own keys, and its merged configuration."""


def _compose(
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
        composed[path] = _combine(read_mapping(path, extended_by), path, folder, (*chain, path), composed)
    return composed[path]


def _combine(
    content: dict[str, Any], source: Path | str, folder: Path, chain: tuple[Path, ...], composed: dict[Path, Composed]
) -> Composed:
    """An experiment's own keys, and its sections and options merged over the files that it extends."""
    _check(content, _File, source)
    own = {key: content.pop(key) for key in (*OWN_KEYS, "set") if key in content}
    config: dict[str, Any] = {}
    for base in _names(own, "extends", source):
        try:
            for part in base.split("/"):
                check_name(part, source)
        except ValueError as error:
            raise ExperimentError(f"{error}: extends names files inside of {folder}, without .yaml") from error
        _, inherited = _compose(folder / f"{base}.yaml", folder, chain, composed, source)
        config = merge(config, inherited, source)
    config = merge(merge(config, content, source), _nested((own.pop("set", None) or {}).items(), source), source)
    _check(config, _Sections, source)
    return own, config


def _names(own: Mapping[str, Any], key: str, source: Path | str) -> list[str]:
    """The names that a key lists."""
    names = own.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExperimentError(f"{source}: {key} must be a list of names, not {str(names)[:80]!r}")
    return names


def _check(content: Mapping[str, Any], kind: type, source: Path | str) -> None:
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


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    return _read_tables(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_tables(path: Path, changed: int) -> dict[str, dict[str, Any]]:  # noqa: ARG001
    try:
        return tables.table_experiments(path, read_mapping(path))
    except ValueError as error:
        raise ExperimentError(str(error)) from error


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
    _check(merged, _Sections, "the command line")
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
