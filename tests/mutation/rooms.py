"""What is mutated, the tests that have to notice it, and the workshop of each room, a folder in which mutmut works."""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKSHOPS = ROOT / "runs" / "mutation"


@dataclass(frozen=True)
class Room:
    """Source files as a pattern of ``fnmatch``; files, folders or functions of tests; and functions that are left out of them."""

    sources: str
    tests: tuple[str, ...]
    without: tuple[str, ...] = ()
    """Tests that start processes of their own, which takes long."""
    only: str = ""
    """An expression of ``pytest -k`` about what is left, where the same test is run on every network and every policy."""


def _unit(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/unit/{name}" for name in names)


# The tests of a room are those that compute with it directly. What only surrounds it is left out: a test that survives has to run
# all of them. mutmut records which of them reach a function, and runs no others.
_TABLE = ("test_half_precision.py", "test_tensor_devices.py")
"""Both call the functions of these rooms with the same arguments."""
_ONE_POLICY = "(test_networks and annotated)"
ROOMS = {
    "losses": Room(
        "vos_lightning/losses/*.py",
        _unit(
            "losses",
            "matching/test_points.py",
            "modules/test_modules.py",
            *_TABLE,
        ),
    ),
    "matching": Room(
        "vos_lightning/matching/*.py",
        _unit(
            "matching",
            "attention/test_aoa.py",
            "networks/test_pmvos.py::test_medial_templates_are_the_formulas",
            "networks/test_pmvos.py::test_medial_template_of_an_empty_class",
            "networks/test_pmvos.py::test_template_update_restarts_and_averages",
            *_TABLE,
        ),
    ),
    "attention": Room(
        "vos_lightning/attention/*.py",
        _unit(
            "attention",
            "networks/test_munet.py::test_ablation_rows_have_their_layers",
            "networks/test_munet.py::test_contradictions_are_refused",
            "networks/test_munet.py::test_motion_aware_attention_is_equation_3",
            "networks/test_munet.py::test_motion_layer_is_the_paper",
            "networks/test_munet.py::test_outputs_to_look_at",
            "networks/test_munet.py::test_parameter_counts",
            "networks/test_munet.py::test_reductions_may_differ",
            "networks/test_munet.py::test_switches_have_their_parameters",
            "networks/test_pmvos.py::test_attention_equals_the_whole_matrix_and_starts_as_identity",
        ),
    ),
    "mask_ops": Room("vos_lightning/mask_ops.py", _unit("test_mask_ops.py", *_TABLE)),
    "metrics": Room(
        "vos_lightning/metrics/*.py",
        _unit("metrics", "evaluation"),
        _unit(
            "metrics/test_metrics.py::test_metric_in_two_processes_equals_one",
            "evaluation/test_evaluate.py::test_processes_change_nothing",
            "evaluation/test_evaluate.py::test_the_command_imports_no_pytorch",
        ),
    ),
    # One network is enough for what does not depend on the network, and the policy that uses every part of the memory.
    "propagation": Room(
        "vos_lightning/propagation/*.py",
        (
            *_unit(
                "propagation",
                "networks/test_munet.py::test_frames_that_depend_on_each_other_are_no_batch",
                "networks/test_munet.py::test_queries_of_a_clip_are_one_batch",
                "networks/test_stcn.py::test_stcn_with_a_late_object_equals_the_literal_computation",
            ),
            "tests/invariants/test_networks.py",
        ),
        only=f"not ((dmn_aoa or munet or pmnet or pmvos or stcn or stm) and not test_munet and not test_stcn or {_ONE_POLICY})",
    ),
    "networks": Room(
        "vos_lightning/networks/*.py",
        (
            *_unit(*(f"networks/test_{name}.py" for name in ("dmn_aoa", "emvos", "munet", "options", "pmnet", "pmvos", "stcn"))),
            "tests/invariants/test_networks.py",
        ),
        only=f"not ({_ONE_POLICY})",
    ),
}

# Rules: an expression that begins on such a line is not mutated. Type annotations and docstrings never are, nor are functions
# with a decorator other than ``classmethod`` or ``staticmethod``.
UNCHANGED = {
    r"^\s*raise ": "texts of errors; the condition above them is mutated",
    r"\bwarnings\.warn\(": "texts of warnings",
    r"\brecord_function\(": "names in a profile",
    r"^\s*assert .+ is not None": "says to the type checker what is known",
    r"^\s*assert isinstance\(": "says to the type checker what is known",
}

LINKS = ("vos_lightning", "data_modules", "tests", "experiments", "docs", "benchmarks", "pyproject.toml", "Makefile")
_PYTEST = (
    "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:jaxtyping", "-p", "tests.mutation.typed",
    "-o", "addopts=--strict-markers", "-m", "not slow and not gpu and not realdata", "--tb=no",
)  # fmt: skip


def workshop(name: str) -> Path:
    """The folder of a room, with the configuration of mutmut; everything else but ``mutants/`` is a link into the repository."""
    folder, room = WORKSHOPS / name, ROOMS[name]
    folder.mkdir(parents=True, exist_ok=True)
    for link in LINKS:
        if not (folder / link).exists():
            (folder / link).symlink_to(os.path.relpath(ROOT / link, folder))
    options: dict[str, str | tuple[str, ...]] = {
        "source_paths": ("vos_lightning",),
        "only_mutate": (room.sources,),
        "do_not_mutate_patterns": tuple(UNCHANGED),
        "also_copy": ("data_modules", "experiments", "docs", "benchmarks", "Makefile"),
        "pytest_add_cli_args": (
            *_PYTEST,
            *(f"--deselect={test}" for test in room.without),
            *(("-k", room.only) if room.only else ()),
        ),
        "pytest_add_cli_args_test_selection": room.tests,
        # A test whose mutant does not end is stopped; on a busy machine everything takes many times as long.
        "timeout_constant": "40",
        "timeout_multiplier": "5",
        "track_dependencies": "false",
        "use_git_change_detection": "false",
        "on_dependency_change": "ignore",
    }
    parser = configparser.ConfigParser(interpolation=None)
    parser["mutmut"] = {key: value if isinstance(value, str) else "\n" + "\n".join(value) for key, value in options.items()}
    with (folder / "setup.cfg").open("w") as file:
        parser.write(file)
    return folder
