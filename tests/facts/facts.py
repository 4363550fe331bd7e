"""What the papers say, transcribed into ``tests/facts/<paper>.yaml``, compared with what the experiments do.

::

    paper: EMVOS, arXiv 2209.03139     # as the section `published` of a row names it
    statements:                        # the first ones hold for all experiments, later ones are the differences of some
      - says: Adam, 1e-4 without decay
        source: paper 3.7
        values: {model.optimisation: {optimizer: adam, learning_rate: 1.0e-4, schedule.kind: constant}}
        guard: tests/unit/modules/test_optimisation.py::test_one
      - says: 10 consecutive frames
        source: paper 3.7
        of: ["*_main", davis17_only]   # experiments of the paper, without its name in front; the default is all of them
        values: {data.recipe: {num_frames: 10, max_gap: 1}}
      - says: the clips of STCN
        source: paper 4.1
        as_in: {experiment: stcn/main, options: [data]}   # what the facts of another paper say; `values` come on top
    trains: {davis17_main: {}}         # experiments that no table prints
    published:                         # table -> data set -> experiment -> its row
      2:
        DAVIS 2017 val:
          davis17: {row: EMVOS (+S), stages: [coco, davis17_main], scores: {J&F: 79.0}}
    not_of_the_paper: [smoke]          # experiments that follow no paper

Options are those of the command line without ``init_args``; ``class`` is the name of a class, ``${VOS_DATA}/`` is left out, and a
data set inside of others is a line, as ``YouTubeVOS root=YouTube-VOS/2018``, with a recipe of its own beside it, as
``data.train[0].recipe``. Of several statements about one option the last one holds. Every option that an experiment sets has to
be in a statement, so that nothing is set that nobody has justified; statements about options that an experiment leaves out are
compared with the defaults of the classes.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import inspect
import pkgutil
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vos_lightning.app.experiments import Experiment, experiment_files, load_experiments, without_neutral

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PAPERS = sorted(path.stem for path in FOLDER.glob("*.yaml"))

UNIMPORTANT = ("trainer.val_check_interval", "trainer.limit_val_batches", "last_checkpoint")
"""Settings that change no training: how often is validated."""
OF_A_TRAINING = (
    "trainer", "model.optimisation", "data.recipe", "data.loading", "data.train", "data.repeats", "data.frame_steps",
    "data.source.recipe", "data.source.train", "data.source.repeats",
)  # fmt: skip
"""Settings that an evaluation takes over from the training that it extends, and that change nothing in it."""


@dataclasses.dataclass(frozen=True)
class Statement:
    """Something that a paper (or the code that belongs to it) says, with the options that it decides."""

    says: str
    source: str
    values: Mapping[str, Any]
    of: tuple[str, ...] = ("*",)
    guard: str = ""
    """Further tests, ``file::test``, that notice if the code does something else under these options."""

    def holds_for(self, name: str) -> bool:
        """Whether the statement is about an experiment, named without its paper; a pattern after ``!`` takes some out."""
        matched = [not pattern.startswith("!") for pattern in self.of if fnmatch.fnmatchcase(name, pattern.lstrip("!"))]
        return bool(matched) and matched[-1]


@dataclasses.dataclass(frozen=True)
class Facts:
    """The facts of one paper."""

    name: str
    paper: str
    statements: tuple[Statement, ...]
    experiments: Mapping[str, Mapping[str, Any]]
    """Expected ``stages``, ``checkpoint_of``, ``select`` and ``published`` of every experiment of the paper."""
    not_of_the_paper: tuple[str, ...]

    def expected(self, name: str) -> dict[str, tuple[Any, Statement]]:
        """Option -> its value and the statement that decides it.

        A part that a later statement gives arguments, or takes away, is not what an earlier one says of it any more.
        """
        found: dict[str, tuple[Any, Statement]] = {}
        for statement in self.statements:
            if statement.holds_for(name):
                for option, value in statement.values.items():
                    found = {key: fact for key, fact in found.items() if not f"{option}.".startswith(f"{key}.")}
                    found = {key: fact for key, fact in found.items() if not key.startswith(f"{option}.")}
                    found[option] = (value, statement)
        return found


def read_facts(paper: str) -> Facts:
    """The facts of ``tests/facts/<paper>.yaml``."""
    content = yaml.safe_load((FOLDER / f"{paper}.yaml").read_text(encoding="utf-8"))
    experiments: dict[str, dict[str, Any]] = {
        f"{paper}_{name}": _run(paper, run or {}) for name, run in content["trains"].items()
    }
    for table, datasets in content["published"].items():
        for dataset, rows in datasets.items():
            for name, row in rows.items():
                assert f"{paper}_{name}" not in experiments, f"{paper}.yaml states {name} twice"
                published = {"paper": row.get("paper", content["paper"]), "table": table, "row": row["row"], "dataset": dataset}
                scores = dict(row["scores"])
                speed = {"fps": scores.pop("fps")} if "fps" in scores else {}
                departs = {"departs": True} if row.get("departs") else {}
                published |= {"metrics": scores} | speed | departs
                experiments[f"{paper}_{name}"] = _run(paper, row) | {"published": published}
    return Facts(
        name=paper,
        paper=content["paper"],
        statements=tuple(
            Statement(
                says=one["says"],
                source=one["source"],
                values=_of_another_paper(one.get("as_in")) | dict(_flat(one.get("values", {}))),
                of=tuple(one.get("of", ("*",))),
                guard=one.get("guard", ""),
            )
            for one in content["statements"]
        ),
        experiments=experiments,
        not_of_the_paper=tuple(f"{paper}_{name}" for name in content["not_of_the_paper"]),
    )


def _of_another_paper(source: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the facts of another paper say of an experiment about the options that begin in a certain way.

    The beginning becomes ``become``, for a network that is a part of another one.
    """
    if source is None:
        return {}
    paper, _, name = source["experiment"].partition("/")
    return {
        source.get("become", beginning) + option.removeprefix(beginning): value
        for option, (value, _) in read_facts(paper).expected(name).items()
        for beginning in source["options"]
        if f"{option}.".startswith(f"{beginning}.")
    }


def _run(paper: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """How an experiment comes to its weights; experiments of other papers are named in full, with a slash in front."""

    def full(name: str) -> str:
        return name[1:] if name.startswith("/") else f"{paper}_{name}"

    return {
        "stages": tuple(full(name) for name in run.get("stages", ())),
        "checkpoint_of": full(run["checkpoint_of"]) if "checkpoint_of" in run else None,
        "select": run.get("select"),
    }


def differences(facts: Facts) -> list[str]:
    """What the experiments of a paper do otherwise than its facts say, each beginning with the name of an experiment."""
    names = [name for name, path in experiment_files().items() if path.parent.name == facts.name]
    found = [
        f"{name}: is no experiment, but tests/facts/{facts.name}.yaml states it"
        for name in facts.experiments
        if name not in names
    ]
    found += [f"{name}: is no experiment, but stands in not_of_the_paper" for name in facts.not_of_the_paper if name not in names]
    for experiment in load_experiments(names):
        if experiment.name in facts.experiments:
            found += [f"{experiment.name}: {difference}" for difference in _differences(experiment, facts)]
        elif experiment.name not in facts.not_of_the_paper:
            found.append(f"{experiment.name}: has no facts in tests/facts/{facts.name}.yaml")
        elif experiment.published:
            found.append(f"{experiment.name}: publishes scores, so it is of the paper")
    return found


def _differences(experiment: Experiment, facts: Facts) -> Iterator[str]:
    wanted = facts.experiments[experiment.name]
    for key in ("stages", "checkpoint_of", "select"):
        if getattr(experiment, key) != wanted[key]:
            yield f"{key} is {getattr(experiment, key)}, not {wanted[key]}"
    published = dict(experiment.published)
    published.pop("hardware", None)
    if "departs" in published:
        published["departs"] = bool(published["departs"])
    for key in sorted({*published, *wanted.get("published", {})}):
        stated = wanted.get("published", {}).get(key)
        if published.get(key) != stated:
            yield f"published {key} is {published.get(key)}, not {stated}"
    if experiment.stages:
        return
    config = without_neutral(experiment.source)
    done = {option: value for option, value in _flat(config) if not option.startswith(UNIMPORTANT)}
    expected = facts.expected(experiment.name.removeprefix(f"{facts.name}_"))
    if experiment.checkpoint_of:
        done = {option: value for option, value in done.items() if not option.startswith(OF_A_TRAINING)}
        expected = {option: value for option, value in expected.items() if not option.startswith(OF_A_TRAINING)}
    for option, (value, statement) in expected.items():
        found = done[option] if option in done else default(config, option)
        if found != value:
            yield f"{option} is {found}, not {value} ({statement.source}: {statement.says})"
    for option in sorted(done.keys() - expected.keys()):
        yield f"{option} is set to {done[option]}, of which no fact speaks"


# Options --------------------------------------------------------------------------------------------------------------


def _flat(section: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted options of a configuration, or of values in a file of facts."""
    for key, value in section.items():
        here = where if key == "init_args" else f"{where}.{key}" if where else str(key)
        if key == "class_path":
            yield f"{where}.class", value.rpartition(".")[2]
        elif isinstance(value, Mapping) and here.startswith("data.") and here.endswith(".evaluation") and "class_path" in value:
            yield here, _line(value)
        elif isinstance(value, Mapping) and value:
            yield from _flat(value, here)
        elif isinstance(value, list) and any(isinstance(entry, Mapping) and "class_path" in entry for entry in value):
            yield here, _plain(value)
            for index, entry in enumerate(value):
                yield from _flat((entry.get("init_args") or {}).get("recipe", {}), f"{here}[{index}].recipe")
        elif value != {}:
            yield here, _plain(value)


def _plain(value: Any) -> Any:
    """Of lists, and of text, without the folder of data sets; a data module in a list as a line."""
    if isinstance(value, Mapping):
        return _line(value) if "class_path" in value else {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value.replace("${VOS_DATA}/", "") if isinstance(value, str) else value


def _line(part: Mapping[str, Any]) -> str:
    """A data module with its arguments in one line, without its recipe, whose options stand by themselves."""
    kind = part["class_path"].rpartition(".")[2].removesuffix("DataModule")
    arguments = sorted((part.get("init_args") or {}).items())
    return " ".join([kind, *(f"{key}={_plain(value)}" for key, value in arguments if key != "recipe")])


def default(config: Mapping[str, Any], option: str) -> Any:
    """The value of an option that a configuration leaves out.

    Raises:
        AttributeError, KeyError: there is no such option.
    """
    value: Any = config
    kind: Any = None
    base: Any = None
    for name in option.split("."):
        part, _, index = name.partition("[")
        if isinstance(value, Mapping) and "class_path" in value:
            kind, base, value = pkgutil.resolve_name(value["class_path"]), None, value.get("init_args") or {}
        if kind is None:
            value = value[part]  # model, data, trainer
            if part == "trainer":
                return value.get(option.partition(".")[2])
            continue
        if value is None:
            return None
        standard = getattr(base, part) if base is not None else _arguments(kind)[part]
        hint = _hints(kind)[part]
        kind = next((one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)), object)
        given = isinstance(value, Mapping) and part in value
        base = standard if dataclasses.is_dataclass(standard) else None
        value = value[part] if given else {} if base is not None else standard
        value = value[int(index.removesuffix("]"))] if index else value
    return list(value) if isinstance(value, tuple) else value


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind.__init__)


@functools.cache
def _arguments(kind: type) -> dict[str, Any]:
    """Argument -> default."""
    found = {name: one.default for name, one in inspect.signature(kind).parameters.items()}
    for one in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if one.default_factory is not dataclasses.MISSING:
            found[one.name] = one.default_factory()
    return found
