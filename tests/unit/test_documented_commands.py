"""The commands of the documentation are run, or at least parsed with all of their options by what parses them for users.

Run: every ``vos segment`` and ``make segment`` that names files, on small videos, with the printed lines beside those
in the text; and every block of Python. Parsed: every other ``vos`` command, and what ``make`` would call; the options
of an experiment go through Lightning's parser. Of targets that call no ``vos`` command (tests, lint, benchmarks)
nothing is run: ``make -n`` has to know them.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.dummies import DummyNetwork, make_frames, make_label_map
from vos_lightning.app import torch_backend
from vos_lightning.app.cli import main
from vos_lightning.app.experiments import load_experiment
from vos_lightning.io.label_maps import write_label_map
from vos_lightning.io.videos import VideoWriter
from vos_lightning.predictions.writer import PredictionFiles
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/segment.md", "docs/app.md", "docs/light.md", "docs/lite.md", "experiments/finetune/README.md")
SHORTENED = {
    "vos ...": "the command as such",
    "vos export lite": "a mention of what the library's own graphs are made with",
    "vos evaluate --protocol youtube_vos18 --meta ... --train-meta ...": "the options for G alone",
    "make segment CHECKPOINT=...": "an option alone",
}
"""Commands that are shown in part and cannot be parsed."""
FRAMES = 12


def commands_of(page: str) -> list[str]:
    """Commands in blocks and in the text, without comments; names of commands alone are left to ``test_docs.py``."""
    found = []
    text = (ROOT / page).read_text(encoding="utf-8")
    for block, inline in re.findall(r"```\n(.*?)```|`([^`\n]+(?:\n[^`\n]+)?)`", text, flags=re.DOTALL):
        block = re.sub(r'"[^"]*"', lambda quoted: " ".join(quoted[0].split()), block)  # options may go on in the next line
        for line in block.splitlines() if block else [inline.replace("\n", " ")]:
            command = re.sub(r"\s+#.*$", "", line.strip().removeprefix("$ "))
            command = re.sub(r"^(?:\S*bin/)?vos\b", "vos", command)
            if re.match(r"(vos|make) +\S", command):
                found.append(command)
    return list(dict.fromkeys(found))


EVERY = [(page, command) for page in PAGES for command in commands_of(page)]
WHOLE = [(page, command) for page, command in EVERY if command not in SHORTENED]
CALLS = [
    (page, command)
    for page, command in WHOLE
    if command.startswith("vos ") and len(command.split()) > 2 and not command.startswith("vos segment --")  # an option alone
]
TARGETS = [(page, command) for page, command in WHOLE if command.startswith("make ")]


class ParsedError(BaseException):
    """A command has understood all of its options."""


def parse(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call a command up to the point where it has parsed its options; an experiment's go through Lightning's parser."""
    name, rest = argv[0], argv[1:]
    if name in ("train", "test", "validate", "predict"):
        load_experiment(rest[0])
        options = [text for text in rest[1:] if text.startswith("--") and "=" in text and not text.startswith("--run-dir=")]
        if not load_experiment(rest[0]).fine_tunes and options:
            assert main(["show", rest[0], "--options", *options]) == 0
        return
    parse_args = argparse.ArgumentParser.parse_args

    def parsed(parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
        parse_args(parser, *arguments, **options)
        raise ParsedError

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parsed)
        if name in ("doctor", "show", "slurm", "visualize"):  # these take the options of an experiment too
            known = argparse.ArgumentParser.parse_known_args

            def known_ones(parser: argparse.ArgumentParser, *arguments: Any, **options: Any) -> Any:
                _, rest = known(parser, *arguments, **options)
                assert not rest
                raise ParsedError

            patch.setattr(argparse.ArgumentParser, "parse_known_args", known_ones)
        with pytest.raises(ParsedError):
            main(argv)


def choices(command: str) -> list[list[str]]:
    """The arguments of a command, once for each of its alternatives ``a|b|c``."""
    words = shlex.split(command)[1:]
    longest = max(word.count("|") for word in words) + 1
    return [[word.split("|")[min(i, word.count("|"))] for word in words] for i in range(longest)]


@pytest.mark.parametrize(("page", "command"), CALLS)
def test_commands_can_be_parsed(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for argv in choices(command):
        parse(argv, monkeypatch)


def calls_of(command: str) -> list[list[str]]:
    """Arguments of the ``vos`` commands that ``make`` would call."""
    dry = ["make", "--dry-run", "--assume-old", ".venv/.installed", *shlex.split(command)[1:]]
    shown = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    calls = re.findall(r"^\s*\S*python -m vos_lightning (.*)$", shown, flags=re.MULTILINE)
    return [shlex.split(call) for call in calls if "$(" not in call]


@pytest.mark.parametrize(("page", "command"), TARGETS)
def test_what_make_calls_can_be_parsed(page: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for argv in calls_of(command):
        parse(argv, monkeypatch)


def test_there_is_something_to_test() -> None:
    assert {command for _, command in EVERY} > set(SHORTENED)
    assert {page for page, _ in EVERY} == set(PAGES)
    assert sum(command.startswith("vos segment") for _, command in CALLS) >= 5


# Segmenting -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network that comes with the library, which would enlarge the small frames of the tests."""
    open_engine = torch_backend.open_engine

    def opened(arguments: argparse.Namespace) -> InferenceEngine:
        arguments.device = "cpu"
        engine = open_engine(arguments)
        engine.short_side = None
        return engine

    monkeypatch.setattr(torch_backend, "open_engine", opened)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with everything that the text names."""
    monkeypatch.chdir(tmp_path)
    mask = torch.zeros(64, 96, dtype=torch.uint8)
    mask[16:48, 24:64] = 1
    frame = torch.tensor([30, 60, 110], dtype=torch.uint8).view(3, 1, 1).expand(3, 64, 96).clone()
    frame[:, mask == 1] = torch.tensor([[230], [200], [40]], dtype=torch.uint8)
    frames = [frame] * FRAMES
    for name in ("holiday.mp4", "cut.mkv", "vfr.mp4", "phone.mp4", "dog.mp4"):
        with VideoWriter(Path(name if name != "cut.mkv" else "cut.mp4"), 10) as writer:
            for frame in frames:
                writer.write(frame)
    Path("cut.mkv").write_bytes(Path("cut.mp4").read_bytes()[:-300])
    Path("cut.mp4").unlink()
    for name in ("first_frame", "holiday", "dog", "masks/vfr", "masks/phone", "masks/cut"):
        write_label_map(Path(f"{name}.png"), mask)
    return tmp_path


def shape_of(line: str) -> str:
    """A printed line without its numbers."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"\s+<-.*$", "", line.rstrip()))


def transcripts() -> list[list[tuple[str, list[str]]]]:
    """Blocks of ``docs/segment.md`` with commands and what they print."""
    text = (ROOT / "docs" / "segment.md").read_text(encoding="utf-8")
    found = []
    for block in re.findall(r"```\n(\$ .*?)```", text, flags=re.DOTALL):
        runs = [part.splitlines() for part in block.split("$ ")[1:]]
        found.append([(lines[0], lines[1:]) for lines in runs])
    return found


@pytest.mark.parametrize("runs", transcripts(), ids=lambda runs: str(len(runs)))
def test_commands_print_what_the_text_shows(
    runs: list[tuple[str, list[str]]], desk: Path, small: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    take = PredictionFiles.take
    for command, lines in runs:
        stops = any(line.startswith("stopped;") for line in lines)

        def taken(files: PredictionFiles, video: Any, prediction: Any, stored: bool = False, stops: bool = stops) -> None:
            take(files, video, prediction, stored)
            if stops and prediction.frame_index == FRAMES // 2:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(PredictionFiles, "take", taken)
        code = main(shlex.split(command)[1:])
        printed = capsys.readouterr()
        assert code == (75 if stops else 1 if "passed over" in printed.err else 0)
        wanted = [shape_of(line) for line in lines]
        found = [shape_of(line) for line in printed.out.splitlines()]
        aside = [shape_of(line) for line in printed.err.splitlines()]
        if "..." not in wanted:
            assert found == [line for line in wanted if line not in aside]
        assert [line for line in wanted if line not in found + aside + ["..."]] == []


@pytest.mark.parametrize(
    "command",
    [
        command
        for _, command in EVERY
        if re.match(r"vos segment \S+\.\w+ |make +segment +VIDEO", command) and "--resume" not in command
    ],
)
def test_commands_segment_small_videos(command: str, desk: Path, small: None) -> None:
    argv = calls_of(command)[0] if command.startswith("make") else shlex.split(command)[1:]
    assert main(argv) == (1 if "cut.mkv" in command else 0)


def test_blocks_of_python_run(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def load_engine(*arguments: Any, **options: Any) -> InferenceEngine:
        return InferenceEngine(DummyNetwork().eval(), Propagation(EveryKth(5, max_frames=4), "product"))

    monkeypatch.setattr("vos_lightning.load_engine", load_engine)
    with VideoWriter(Path("holiday.mp4"), 25) as writer:
        for frame in make_frames(2, height=32, width=48) * 62:
            writer.write(frame)
    mask = make_label_map((1, 2), height=32, width=48)
    names: dict[str, Any] = {
        "first_mask": mask,
        "another_mask": mask,
        "label_map": mask,
        "better_mask": mask == 2,
        "mask": mask == 0,
    }
    names["first_frame"], names["next_frame"] = make_frames(2, height=32, width=48)
    blocks = [
        block
        for page in PAGES
        for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    ]
    assert len(blocks) >= 2
    for block in blocks:
        exec(block, names)
    assert len(capsys.readouterr().out.splitlines()) == 124
    assert torch.is_tensor(names["prediction"].label_map)
