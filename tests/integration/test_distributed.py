"""Two processes with the same global batch train as one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.integration.runs import quick_run, run, run_on_two
from tests.integration.test_resume import losses, weights
from tests.tolerances import assert_close

OPTIONS = (
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=3",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--panels.videos=[]",
    "--data.init_args.loading.batch_size=4",
    "--data.init_args.num_val_videos=3",
)


@pytest.mark.parametrize(
    ("experiment", "extra"),
    [
        ("emvos_smoke", ()),
        ("munet_smoke", ()),
        # Two groups of parameters: step by step, while the other one rests, and both in every step.
        ("pmnet_smoke", ()),
        ("pmnet_smoke", ("--model.init_args.alternation=joint",)),
    ],
)
def test_two_processes_equal_one(tmp_path: Path, experiment: str, extra: tuple[str, ...]) -> None:
    options = (*OPTIONS, *extra)
    code, output = quick_run("train", experiment, "--run-dir", "one", *options, cwd=tmp_path)
    assert code == 0, output
    code, output = run_on_two("train", experiment, "--run-dir", "two", *options, cwd=tmp_path)
    assert code == 0, output
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in one.items():
        if value.is_floating_point():
            assert_close(two[name], value)
    # The gradients agree: Adam's first moments are sums of them.
    moments = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        for name in ("one", "two")
    ]
    for index, state in moments[0].items():
        assert_close(moments[1][index]["exp_avg"], state["exp_avg"])
    # So does what is logged: it is that of both processes.
    for column in ("train/loss", "train/iou", "train/grad_norm"):
        logged = losses(tmp_path / "one", column)
        assert sorted(logged) == [0, 1, 2]
        assert losses(tmp_path / "two", column) == pytest.approx(logged, rel=1e-6), column
    assert len(losses(tmp_path / "two", "train/frames_per_second")) == 2  # of all steps but the first


def test_a_batch_that_cannot_be_shared(tmp_path: Path) -> None:
    code, output = run_on_two("train", "emvos_smoke", "--data.init_args.loading.batch_size=3", cwd=tmp_path)
    assert code == 2
    assert "error: a batch of 3 clips cannot be shared by 2 devices, as it is not a multiple of 2 processes" in output


@pytest.mark.parametrize("stage", ["validate"])
def test_metrics_do_not_depend_on_the_number_of_processes(tmp_path: Path, stage: str) -> None:
    code, output = quick_run("train", "emvos_smoke", "--run-dir", "one", *OPTIONS, cwd=tmp_path)
    assert code == 0, output
    checkpoint = str(tmp_path / "one" / "checkpoints" / "last.ckpt")
    scores = []
    for number in ("1", "2"):
        directory = tmp_path / f"scores{number}"
        arguments = ("--run-dir", str(directory), "--checkpoint", checkpoint, "--data.init_args.num_val_videos=3")
        distributed = ("--trainer.devices=2", "--trainer.strategy=ddp") if number == "2" else ()
        code, output = run(stage, "emvos_smoke", *arguments, *distributed, cwd=tmp_path)
        assert code == 0, output
        content = json.loads((directory / "scores" / f"{stage}.json").read_text())
        assert content.pop("evaluation")["hardware"].startswith(f"{number} x ")  # the rest is the same
        scores.append(json.dumps(content))
    assert scores[0] == scores[1]


def test_predictions_are_shared_and_resumed(tmp_path: Path) -> None:
    """Two processes write what one writes, each video once; the first of them, which is interrupted, is gone on with by one."""
    options = ("--data.init_args.num_test_videos=3", "--trainer.enable_progress_bar=false", "--predictions.contact_sheet=false")
    code, output = quick_run("train", "emvos_smoke", "--run-dir", "run", *OPTIONS, cwd=tmp_path)
    assert code == 0, output
    predict = ("predict", "emvos_smoke", "--run-dir", "run", *options)
    written = {}
    for folder, start in (("one", quick_run), ("two", run_on_two)):
        code, output = start(*predict, f"--predictions.output_dir={folder}", cwd=tmp_path)
        assert code == 0, output
        files = (tmp_path / folder / "masks").rglob("*.png")
        written[folder] = {str(path.relative_to(tmp_path / folder)): path.read_bytes() for path in files}
    assert written["two"] == written["one"]
    records = [(tmp_path / "two" / name).read_text() for name in ("written.jsonl", "written-1.jsonl")]
    assert [record.count('{"item": "synthetic') for record in records] == [2, 1]
    # As if the second process had been killed before its video was complete.
    lines = records[1].splitlines(keepends=True)
    (tmp_path / "two" / "written-1.jsonl").write_text("".join(line for line in lines if '"item": "synthetic' not in line))
    code, output = quick_run(*predict, "--predictions.output_dir=two", "--predictions.resume=true", cwd=tmp_path)
    assert code == 0, output
    assert "two: 2 videos are done and are kept" in output
    assert {name: (tmp_path / "two" / name).read_bytes() for name in written["one"]} == written["one"]
