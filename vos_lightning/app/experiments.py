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

import difflib
import functools
import hashlib
import importlib.resources
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vos_lightning.app import tables
from vos_lightning.app.composition import Composed, ExperimentError, combine, compose, read_mapping, with_overrides

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
    return load_experiments([name])[0]


def load_experiments(names: Iterable[str]) -> list[Experiment]:
    """Find and compose several experiments; the files that they share are listed and read once. See :func:`load_experiment`."""
    folder = experiments_folder()
    files = functools.cache(lambda: experiment_files(folder))  # a file that is named by its path may need no other one
    composed: dict[Path, Composed] = {}
    return [_load(name, folder, files, composed) for name in names]


def parts_of(experiment: Experiment) -> list[Experiment]:
    """The experiments that train or evaluate in its place: its stages in their order, or itself where it has none."""
    return load_experiments(experiment.stages) or [experiment]


def _load(name: str, folder: Path, files: Callable[[], Mapping[str, Path]], composed: dict[Path, Composed]) -> Experiment:
    name, path, source = _find(name, files)
    if path.name == tables.FILE:
        own, config = combine(_row(name, path), source, folder, (), composed)
    else:
        own, config = compose(path, folder, (), composed)
    stages, hand_over = own.get("stages", []), own.get("hand_over", "last")
    # A stage is trained by a process of its own, which gets its name: that of a file might be the name of another experiment.
    by_path = next((stage for stage in stages if stage.endswith(".yaml")), None)
    if by_path is not None:
        raise ExperimentError(
            f"{source}: stages are names of experiments, as `vos list --plain` prints them, not files ({by_path})"
        )
    _refuse_cycles(name, own, source, files)
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


def _names(own: Mapping[str, Any], key: str, source: Path | str) -> list[str]:
    """The names that a key lists."""
    names = own.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExperimentError(f"{source}: {key} must be a list of names, not {str(names)[:80]!r}")
    return names


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


def _tables(path: Path) -> dict[str, dict[str, Any]]:
    return _read_tables(path, path.stat().st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_tables(path: Path, changed: int) -> dict[str, dict[str, Any]]:  # noqa: ARG001
    try:
        return tables.table_experiments(path, read_mapping(path))
    except ValueError as error:
        raise ExperimentError(str(error)) from error
