"""The results table shows what was measured for a row, says what was not, and never mixes the two."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from data_modules.doctor.known import KNOWN
from vos_lightning.app.cli import main
from vos_lightning.app.experiments import load_experiment, selection, training_identity
from vos_lightning.app.results.scores import EVALUATIONS, covered
from vos_lightning.metrics.protocols import describe
from vos_lightning.metrics.scores import ObjectScores

DAVIS17 = "DAVIS 2017 semi-supervised: first and last frame skipped, 61 objects in 30 videos"
MODEL: dict[str, Any] = {"model": {"class_path": "a.B"}}


def trained(steps: int, **keys: Any) -> dict[str, Any]:
    """An experiment that differs from others in its number of steps."""
    return {**MODEL, "trainer": {"max_steps": steps}, **keys}


def published(row: str, dataset: str = "DAVIS 2017 val", table: int = 1, **more: object) -> dict[str, Any]:
    return {"paper": "P", "table": table, "row": row, "dataset": dataset, "metrics": {"J&F": 75.0, "J": 73.0}, **more}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    experiments = {
        "one": trained(1, published=published("One", fps=49.8, hardware="a card")),
        "two": trained(2, published=published("Two | best", table=2)),
        "less": trained(3, published=published("Less", departs="trained on less data")),
        "server": {**MODEL, "checkpoint_of": "p_one", "published": published("One", "DAVIS 2017 test-dev", 3)},
        "staged": {"stages": ["p_first", "p_second"], "published": published("Staged", table=4)},
        "first": trained(4),
        "second": trained(5),
        "same": trained(1),
    }
    folder = tmp_path / "experiments" / "p"
    folder.mkdir(parents=True)
    for name, content in experiments.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    monkeypatch.setenv("VOS_EXPERIMENTS", str(tmp_path / "experiments"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def training(name: str, seed: int = 0, **changes: Any) -> dict[str, Any]:
    start = {"date": "2026-01-01", "commit": {"id": "abcdef0123456", "changed": False}, "hardware": "2 x GPU", "departures": []}
    record = {"experiment": name, "fingerprint": load_experiment(name).fingerprint, "seed": [seed, seed], "data": "DAVIS root=d"}
    return {**record, "train_items": [60], "initial": None, "starts": [start], "steps": 900, "finished": "yes", **changes}


def write_score(
    path: Path,
    name: str,
    jf: float,
    record: dict[str, Any] | None,
    protocol: str = DAVIS17,
    checkpoint: str = "runs/x/checkpoints/last.ckpt",
    step: int = 900,
    **more: Any,
) -> None:
    evaluation = {"date": "2026-02-03T00:00:00", "commit": None, "hardware": "1 x GPU", "data": "DAVIS", "departures": []}
    evaluation["trained"] = {"checkpoint": checkpoint, "step": step, "run": record}
    content = {"experiment": name, "fingerprint": load_experiment(name).fingerprint, "protocol": protocol}
    content |= {"summary": {"J&F": jf, "J": jf - 0.02, "F": jf + 0.02}, "evaluation": evaluation | more}
    path.mkdir(parents=True)
    (path / "test.json").write_text(json.dumps(content))


def page(runs: Path) -> list[str]:
    assert main(["results"]) == 0
    assert "<h1>Results</h1>" in (runs / "results.html").read_text()
    return (runs / "results.md").read_text().splitlines()


def cells(lines: list[str], row: str) -> list[str]:
    line = next(line for line in lines if line.startswith(f"| {row} |"))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_rows_without_a_run_say_so(runs: Path) -> None:
    lines = page(runs)
    assert cells(lines, "One")[3:9] == ["J&F", "75.0", "not run", "", "49.8, a card", ""]
    assert sum("not run" in line for line in lines) == 2 * 5
    assert "### Table 4" in lines
    assert cells(lines, "Less (departs from the paper: trained on less data)")[5] == "not run"
    assert "Two \\| best" in "\n".join(lines)
    assert (runs / "results.html").read_text().count("not run") == 10


def test_texts_are_escaped_in_html(runs: Path) -> None:
    path = runs.parent / "experiments" / "p" / "one.yaml"
    path.write_text(yaml.safe_dump(trained(1, published={**published("<b>One</b>"), "paper": "P & <i>Q</i>"})))
    write_score(runs / "x" / "scores", "p_first", 0.6, training("p_first"), protocol="<script>")
    assert main(["results"]) == 0
    text = (runs / "results.html").read_text()
    assert "<td>&lt;b&gt;One&lt;/b&gt;</td>" in text
    assert "<h2>P &amp; &lt;i&gt;Q&lt;/i&gt;</h2>" in text
    assert "<td>&lt;script&gt;</td>" in text
    assert not any(tag in text for tag in ("<b>", "<i>", "<script>"))


def test_mean_and_deviation_over_seeds(runs: Path) -> None:
    for seed, score in ((0, 0.74), (1, 0.75), (2, 0.76)):
        write_score(runs / f"one_{seed}" / "scores", "p_one", score, training("p_one", seed))
    later = {"date": "2026-02-04T00:00:00"}
    write_score(runs / "one_2_again" / "scores", "p_one", 0.77, training("p_one", 2), **later)  # replaces the older one
    found = cells(page(runs), "One")
    assert found[5] == "75.3 ± 1.5 (3 seeds)"
    assert found[6] == "+0.3"
    assert found[7:] == [
        "49.8, a card",
        "last",
        "900",
        "DAVIS root=d (60 items)",
        "2 x GPU",
        "2026-02-03; 2026-02-04",
        "abcdef0123",
    ]


def test_a_staged_row_names_every_stage(runs: Path) -> None:
    first = training("p_first", steps=100, data="COCO")
    second = training("p_second", steps=200, initial={"checkpoint": "last.ckpt", "step": 100, "run": first})
    write_score(runs / "staged" / "scores", "p_staged", 0.8, second)
    found = cells(page(runs), "Staged")
    assert found[5] == "80.0"
    assert found[7:10] == ["", "last", "100 → 200"]
    assert found[10] == "COCO (60 items) → DAVIS root=d (60 items)"


def altered(record: dict[str, Any], option: str) -> dict[str, Any]:
    record = copy.deepcopy(record)
    record["starts"][0]["departures"] = [option]
    return record


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("p_one", {"protocol": DAVIS17.replace("30 videos", "3 videos").replace("61", "5")}, "measured on other data"),
        ("p_one", {"protocol": "DAVIS 2016: first and last frame skipped, 61 objects in 30 videos"}, "measured on other data"),
        ("p_one", {"departures": ["trainer.limit_test_batches"]}, "evaluated with trainer.limit_test_batches changed"),
        ("p_one", {"record": None}, "no record of the training"),
        ("p_one", {"record": {"finished": None}}, "not finished"),
        ("p_one", {"record": {"fingerprint": "old"}}, "has changed since"),
        ("p_one", {"record": {"experiment": "p_two"}}, "was trained by p_two, not p_one"),
        ("p_one", {"record": "trainer.max_steps"}, "trained with trainer.max_steps changed"),
        ("p_staged", {"record": {"experiment": "p_second"}}, "trained by p_second, not p_second after p_first"),
        ("p_less", {"record": {"experiment": "p_less"}}, "departs from the paper: trained on less data"),
        ("p_server", {}, "is scored by its server"),
        ("p_first", {"record": {"experiment": "p_first"}}, "no published row"),
        (
            "p_one",
            {"checkpoint": "best-step=000300-jf=0.6000.ckpt", "step": 300},
            "other weights than the last of its training: best",
        ),
        ("p_one", {"checkpoint": "renamed.ckpt", "step": 300}, "other weights than the last of its training: step 300"),
    ],
)
def test_other_numbers_are_not_ours(runs: Path, name: str, change: dict[str, Any], reason: str) -> None:
    change = dict(change)
    record: Any = training("p_one")
    altering = change.pop("record", {})
    if altering is None:
        record = None
    elif isinstance(altering, str):
        record = altered(record, altering)
    else:
        other = altering.get("experiment")
        record = {**(training(other) if other else record), **altering}
    write_score(runs / "x" / "scores", name, 0.6, record, **change)
    lines = page(runs)
    assert sum("not run" in line for line in lines) == 10
    other = next(line for line in lines if line.startswith(f"| {name} | J&F 60.0"))
    assert reason in other
    assert "runs/x/scores/test.json" in other


def test_the_best_weights_count_where_the_experiment_says_so(runs: Path) -> None:
    content = trained(1, select="best", published=published("One"))
    (runs.parent / "experiments" / "p" / "one.yaml").write_text(yaml.safe_dump(content))
    write_score(runs / "x" / "scores", "p_one", 0.6, training("p_one"), checkpoint="best-step=000300-jf=0.6000.ckpt", step=300)
    assert cells(page(runs), "One")[8] == "best"
    assert load_experiment("p_server").select is None
    assert selection(load_experiment("p_server")) == "best"  # as that of the experiment whose checkpoint it evaluates


def test_stages_hand_over_what_the_experiment_says(runs: Path) -> None:
    best = {"checkpoint": "best-step=000100-jf=0.5000.ckpt", "step": 100, "run": training("p_first")}
    write_score(runs / "x" / "scores", "p_staged", 0.8, training("p_second", initial=best))
    assert "p_second started from other weights than the last of the stage before" in "\n".join(page(runs))


def test_the_same_training_under_another_name_counts(runs: Path) -> None:
    write_score(runs / "x" / "scores", "p_one", 0.6, training("p_same"))
    assert cells(page(runs), "One")[5] == "60.0"


def test_a_copy_of_the_last_checkpoint_counts(runs: Path) -> None:
    write_score(runs / "x" / "scores", "p_one", 0.6, training("p_one"), checkpoint="copied.ckpt")
    assert cells(page(runs), "One")[8] == "step 900"


def test_scores_of_a_server(runs: Path) -> None:
    checkpoints = runs / "p_one" / "checkpoints"
    checkpoints.mkdir(parents=True)
    import torch

    torch.save({"state_dict": {}, "global_step": 900}, checkpoints / "last.ckpt")
    (runs / "p_one" / "record.json").write_text(json.dumps(training("p_one")))
    score = {"experiment": "p_server", "dataset": "DAVIS 2017 test-dev", "metrics": {"J&F": 64.2}, "date": "2026-03-01"}
    (runs / "p_server" / "scores").mkdir(parents=True)
    path = runs / "p_server" / "scores" / "server.json"
    path.write_text(json.dumps({**score, "checkpoint": str(checkpoints / "last.ckpt")}))
    lines = page(runs)
    server = next(line for line in lines if line.startswith("| One | DAVIS 2017 test-dev"))
    assert " | 64.2 | -10.8 | " in server
    path.write_text(json.dumps(score))
    assert main(["results"]) == 2
    path.write_text("{")
    assert main(["results"]) == 2


def test_evaluations_are_recognised_by_what_the_metrics_say() -> None:
    for dataset, protocol in (("DAVIS 2016 val", "davis16"), ("DAVIS 2017 val", "davis17")):
        title, videos, objects = EVALUATIONS[dataset]
        rows = [ObjectScores(f"video-{i % videos}", i, *[0.5] * 6) for i in range(objects)]
        assert covered(describe(protocol, rows)) == (title, videos, objects)  # type: ignore[arg-type]
        release, _, split = dataset.rpartition(" ")
        known = next(figures for figures in KNOWN if (figures.release, figures.split) == (release, split))
        assert (known.videos, known.objects) == (videos, objects)
    assert covered("something else") is None


def test_fingerprints_ignore_where_a_run_runs(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "experiments" / "p" / "first.yaml"

    def fingerprint(**content: Any) -> str:
        path.write_text(yaml.safe_dump({**MODEL, **content}))
        return load_experiment("p_first").fingerprint

    before = fingerprint(
        data={"init_args": {"root": "${VOS_DATA}/DAVIS", "loading": {"batch_size": 2, "num_workers": 1}}},
        trainer={"max_steps": 5},
    )
    monkeypatch.setenv("VOS_DATA", "/elsewhere")
    assert before == fingerprint(
        data={"init_args": {"root": "${VOS_DATA}/DAVIS", "loading": {"batch_size": 2, "num_workers": 8, "seed": 3}}},
        trainer={"max_steps": 5, "devices": 8},
        published=published("x"),
    )
    data = {"init_args": {"root": "${VOS_DATA}/DAVIS", "loading": {"batch_size": 2}}}
    assert before == fingerprint(data=data, trainer={"max_steps": 5})
    assert before != fingerprint(data=data, trainer={"max_steps": 6})
    assert before != fingerprint(
        data={"init_args": {"root": "${VOS_DATA}/DAVIS", "loading": {"batch_size": 3}}}, trainer={"max_steps": 5}
    )


def test_what_a_training_computes_depends_on_its_seeds(runs: Path, tmp_path: Path) -> None:
    """Unlike the fingerprint, which groups the runs of all seeds; wherever the seed is said."""
    path = tmp_path / "experiments" / "p" / "first.yaml"

    def identity(loading: dict[str, Any], *overrides: str) -> str:
        path.write_text(yaml.safe_dump({**MODEL, "data": {"init_args": {"loading": loading}}}))
        return training_identity(load_experiment("p_first"), overrides)

    plain = identity({"batch_size": 2})
    assert identity({"batch_size": 2, "seed": 0, "num_workers": 5}) == plain
    other = identity({"batch_size": 2, "seed": 1})
    assert other != plain
    assert identity({"batch_size": 2}, "--data.init_args.loading.seed=1") == other
    assert identity({"batch_size": 2}, "--seed_everything=1") not in (plain, other)
