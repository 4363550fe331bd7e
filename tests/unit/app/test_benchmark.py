"""The network benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.unit.dummies import DummyModule
from vos_lightning.app.benchmark import measure
from vos_lightning.app.benchmark.measure import PeakMemory, run, synthetic_video
from vos_lightning.app.benchmark.options import Options
from vos_lightning.app.cli import main
from vos_lightning.checkpoints.loading import module_of_network
from vos_lightning.modules.emvos import EMVOSModule
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.pmvos import PMVOSModule
from vos_lightning.networks.emvos import EMVOS

CPU = torch.device("cpu")


def test_a_video_has_as_many_objects_as_asked_for() -> None:
    for objects in (1, 2, 3, 7):
        video = synthetic_video((64, 96), 3, objects)
        frames, label_map = list(video.frames), video.annotations[0]
        assert [frame.shape for frame in frames] == [(3, 64, 96)] * 3
        assert label_map.unique().tolist() == list(range(objects + 1))
        assert (label_map == 0).float().mean() > 0.5
    assert not torch.equal(frames[0], frames[1])


def test_numbers_are_those_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        """Every step of the slow network takes 3 s, of the fast one 1 s; the processor is busy for half of it."""

        now = 0.0

        def perf_counter(self) -> float:
            return self.now

        def process_time(self) -> float:
            return self.now / 2

    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)

    def timed(seconds: float) -> DummyModule:
        module = DummyModule()
        encode = module.network.encode
        monkeypatch.setattr(
            module.network, "encode", lambda frame: (setattr(clock, "now", clock.now + seconds), encode(frame))[1]
        )
        return module.eval()

    options = Options(size=(32, 48), objects=(2,), precisions=("32-true",), frames=3, warmup=1, rounds=2)
    slow, fast = run({"slow": timed(3.0), "fast": timed(1.0)}, options)
    assert (slow.median, slow.first_quartile, slow.third_quartile, slow.mean, slow.ratio) == (3, 3, 3, 3, 1)
    assert slow.cpu == 1.5 / torch.get_num_threads()
    assert fast.ratio == pytest.approx(1 / 3)
    assert slow.times == [3.0] * 6
    assert (slow.objects, slow.parameters) == (2, 1)


def test_marked_parts_are_summed() -> None:
    module = EMVOSModule(EMVOS.small(), evaluation=Evaluation()).eval().requires_grad_(False)
    (result,) = run({"emvos": module}, Options(size=(32, 48), objects=(1,), frames=2, rounds=1, warmup=1, sections=True))
    assert set(result.sections) == {"encode", "segment", "match", "decode", "memorize"}
    assert all(seconds > 0 for seconds in result.sections.values())
    assert result.sections["match"] + result.sections["decode"] < result.sections["segment"]


def test_peak_memory_sees_what_is_freed_again() -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux")
    with PeakMemory(CPU) as small:
        torch.ones(2**16).sum()
    with PeakMemory(CPU) as large:
        torch.ones(2**25).sum()  # 128 MiB
    assert small.peak is not None
    assert large.peak is not None
    assert large.peak > 120 * 2**20 > 2 * small.peak


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speed.json"
    size = [
        "--size",
        "32",
        "48",
        "--objects",
        "1",
        "--precision",
        "32-true",
        "bf16",
        "--frames",
        "2",
        "--warmup",
        "0",
        "--rounds",
        "1",
    ]
    threads = torch.get_num_threads()
    assert main(["benchmark", "emvos_smoke", *size, "--threads", str(threads), "--json", str(file)]) == 0
    content = json.loads(file.read_text())
    assert content["environment"]["torch"] == torch.__version__
    assert content["environment"]["convolution_gflops"] > 0
    assert content["options"]["size"] == [32, 48]
    assert [(r["network"], r["objects"], r["precision"]) for r in content["results"]] == [
        ("emvos_smoke", 1, precision) for precision in ("32-true", "bf16")
    ]
    assert all(r["median"] > 0 and len(r["times"]) == 2 for r in content["results"])
    assert "emvos_smoke" in capsys.readouterr().out


def test_a_network_is_measured_with_its_own_module() -> None:
    with torch.device("meta"):
        module = module_of_network("vos_lightning.networks.pmvos.PMVOS")
    assert isinstance(module, PMVOSModule)
    assert module.eval_propagation.aggregation == "minimum"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name experiments"),
        (["emvos_smoke", "--frames", "0"], "--frames must be at least 1"),
        (["emvos_smoke", "--objects", "0"], "--objects at least 1"),
        (["emvos_smoke", "--threads", "0"], "--threads"),
        (["--network", "vos_lightning.networks.emvos.Nothing"], "there is no network"),
        (["--network", "vos_lightning.networks.emvos.EMVOS", "--siz=3"], "unknown option"),
    ],
)
def test_errors_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in error if line.startswith("error:")]) == 1
    assert message in error[-1]
