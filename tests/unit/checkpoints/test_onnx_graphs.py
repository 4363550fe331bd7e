"""The graphs of ``vos export --format onnx``: those that come with the library, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.networks import NETWORKS
from tests.unit.light.test_engine import box, compare, sample, scene
from vos_lightning import load_engine
from vos_lightning.app.backends import LITE_FOLDER
from vos_lightning.app.cli import main
from vos_lightning.checkpoints.onnx_graphs import check_exportable
from vos_lightning.light.engine import LightEngine
from vos_lightning.light.parts import PARTS
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation

ROOT = Path(__file__).parents[3]
STCN = NETWORKS["stcn"]
PLAIN = Propagation(EveryKth(5), "product")


def test_the_librarys_graphs_hold_no_weights_and_no_places_of_a_machine() -> None:
    onnx = pytest.importorskip("onnx")
    for name, (inputs, outputs) in PARTS.items():
        path = LITE_FOLDER / f"{name}.onnx"
        assert path.stat().st_size < 1e5
        model = onnx.load(path, load_external_data=False)
        assert tuple(value.name for value in model.graph.input) == inputs
        assert tuple(value.name for value in model.graph.output) == outputs
        assert sum(len(value.raw_data) for value in model.graph.initializer) < 5e3
        for part in (model, model.graph, *model.graph.node, *model.graph.value_info):
            assert not part.doc_string
            assert not part.metadata_props
        assert b".py" not in path.read_bytes(), "a place of the machine that has exported"
        onnx.checker.check_model(path, full_check=True)


def test_a_network_for_every_other_program(tmp_path: Path) -> None:
    """A graph is an ordinary one: its weights are found by ONNX Runtime without this library."""
    import onnxruntime

    image = torch.rand(1, 3, 48, 32)
    session = onnxruntime.InferenceSession(LITE_FOLDER / "encoder.onnx", providers=["CPUExecutionProvider"])
    network = load_engine("lite", device="cpu").network
    pyramid = network.feature_norm(network.key_encoder(image))
    expected = (pyramid.s4, pyramid.s8, pyramid.s16, *network.projection(pyramid.s16))
    for one, other in zip(session.run(None, {"image": image.numpy()}), expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("network", "propagation", "message"),
    [
        (lambda: NETWORKS["emvos"].small(), PLAIN, "only STCN that reads its whole memory .* not EMVOS"),
        (lambda: STCN.small(), PLAIN, "only STCN .* not STCN with top_k=20"),
        (lambda: STCN.published(None, top_k=None), Propagation(EveryKth(5), "product", "join"), "only STCN's own propagation"),
    ],
)
def test_networks_without_graphs_are_refused(network: Any, propagation: Propagation, message: str) -> None:
    engine = InferenceEngine(network().eval(), propagation)
    with pytest.raises(ValueError, match=f"run.ckpt: {message}"):
        check_exportable(engine, "run.ckpt")


def in_another_process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Python without the type checks of the tests, which would look at sizes that the exporter keeps open."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


def test_all_sizes_are_open(tmp_path: Path) -> None:
    """Code that asks for a number of objects or pixels would fix it in the graph."""
    done = in_another_process("-m", "tests.unit.checkpoints.trace_parts", folder=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_export_and_compute(tmp_path: Path) -> None:
    command = ["-m", "vos_lightning", "export", "lite", "--format", "onnx", "--output", str(tmp_path / "lite")]
    done = in_another_process(*command, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "MB; vos segment VIDEO --checkpoint" in done.stdout
    record = [json.loads(line) for line in (tmp_path / "lite/written.jsonl").read_text().splitlines()]
    assert record[0]["finished"]
    size = (150, 43)
    given = {0: box(1, size, 0.2, 0.4), 3: box(2, size, 0.5, 0.1), 4: box(3, size, 0.6, 0.1)}
    compare(sample(scene(7, *size), given), None, LightEngine(tmp_path / "lite", short_side=None))
    assert main(["export", "lite", "--format", "onnx", "--output", str(tmp_path / "lite")]) == 2
