"""The table of the small networks is made of the files of their runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import lite
from vos_lightning.app.experiments import load_experiment


def make_run(folder: Path, seed: int = 3, worse: float = 0.0) -> None:
    (folder / "scores").mkdir(parents=True)
    (folder / "logs" / "start_0").mkdir(parents=True)
    rows = [{"video": "cat", "J": 0.71 - worse, "F": 0.8}, {"video": "dog", "J": 0.5 - worse, "F": 0.625}]
    scores = {"rows": rows, "summary": {"J": 0.605 - worse, "F": 0.7125, "J&F": 0.65875 - worse / 2}}
    (folder / "scores" / "test.json").write_text(json.dumps(scores))
    starts = [{"hardware": "2 threads"}]
    record = {"experiment": folder.name, "seed": [seed, 0], "steps": 600, "batch_size": 4, "starts": starts}
    (folder / "record.json").write_text(json.dumps(record))
    speed = {"results": [{"median": 0.08, "parameters": 1_234_000}]}
    done = {"train_seconds": 301.4 + 100 * worse, "test_seconds": 9.0, "speed": speed}
    (folder / "lite.json").write_text(json.dumps(done))
    log = "step,train/clips_per_second,train/peak_memory_gib\n9,8.0,1.5\n19,16.0,2.5\n20,,\n"
    (folder / "logs" / "start_0" / "metrics.csv").write_text(log)


def test_a_row_is_what_the_files_say_and_nothing_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lite, "vos", lambda *_: pytest.fail("nothing is left to do"))
    make_run(tmp_path / "runs" / "seed_3" / "stcn_lite")
    page = tmp_path / "lite.md"
    begin, end = lite.MARK.format("", "begin"), lite.MARK.format("", "end")
    page.write_text(f"# Before\n{begin}\nold\n{end}\nafter\n")
    assert lite.main(["stcn_lite", "--seeds", "3", "--runs", str(tmp_path / "runs"), "--table", str(page)]) == 0
    text = page.read_text()
    assert text.startswith(f"# Before\n{begin}\n|")
    assert text.endswith(f"|\n{end}\nafter\n")
    head, ruler, cells = (line.strip("| ").split(" | ") for line in text.splitlines()[2:5])
    assert set(ruler) == {"---"}
    assert dict(zip(head, cells, strict=True)) == {
        "experiment": "`stcn_lite`",
        "seeds": "3",
        "cat": "71.0 / 80.0",
        "dog": "50.0 / 62.5",
        "J": "60.5",
        "F": "71.2",
        "J&F": "65.9",
        "steps": "600",
        "training": "301 s, 2 threads",
        "frames a second": "12.5",
        "parameters": "1.23 M",
        "steps a second": "4.0",
        "peak memory": "2.5 GiB",
    }
    assert lite.pace(tmp_path / "runs" / "seed_3" / "stcn_lite", ended_by_clock=True)["steps"] == "21"


def test_a_row_of_several_seeds_has_their_means_and_each_ones_score(tmp_path: Path) -> None:
    folders = [tmp_path / f"seed_{seed}" / "stcn_lite" for seed in range(3)]
    for seed, folder in enumerate(folders):
        make_run(folder, seed, worse=0.1 * seed)
    cells = lite.row("stcn_lite", folders)
    assert (cells["seeds"], cells["cat"], cells["J"], cells["F"]) == ("0, 1, 2", "61.0 / 80.0", "50.5", "71.3")
    assert (cells["J&F"], cells["J&F of each seed"]) == ("60.9", "65.9, 60.9, 55.9")
    assert cells["training"] == "311 s, 2 threads"  # the median


def test_a_row_that_evaluates_other_weights_names_them(tmp_path: Path) -> None:
    name = next(name for name in lite.SWITCHES if load_experiment(name).checkpoint_of)
    trained = load_experiment(name).checkpoint_of
    assert trained is not None
    for folder in (tmp_path / "seed_4" / trained, tmp_path / "seed_4" / name):
        make_run(folder, seed=4)
    (tmp_path / "seed_4" / name / "record.json").unlink()
    cells = lite.row(name, [tmp_path / "seed_4" / name])
    assert (cells["seeds"], cells["training"]) == ("4", f"that of `{trained}`")


@pytest.mark.parametrize(("begun", "expected"), [(False, 12.0), (True, None)])
def test_the_time_of_an_interrupted_training_is_not_known(
    begun: bool, expected: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "seed_1" / "stcn_lite"
    if begun:
        folder.mkdir(parents=True)
    commands: list[tuple[str, ...]] = []

    def command(*arguments: str) -> float:
        commands.append(arguments)
        folder.mkdir(parents=True, exist_ok=True)
        return 12.0

    monkeypatch.setattr(lite, "vos", command)
    lite.run("stcn_lite", 1, tmp_path, (), None)
    assert json.loads((folder / "lite.json").read_text())["train_seconds"] == expected
    assert [words[0] for words in commands] == ["train", "test"]
    assert "--seed_everything=1" in commands[0]


def test_a_command_that_fails_ends_everything(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as caught:
        lite.main(["nothing_lite", "--runs", str(tmp_path)])
    assert caught.value.code == 2
