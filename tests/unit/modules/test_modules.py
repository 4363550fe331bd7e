"""The shared LightningModule, its losses and schedules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer

import vos_lightning
from tests.tolerances import assert_close
from vos_lightning.losses.segmentation import cross_entropy, foreground_iou, trainable_labels
from vos_lightning.modules.emvos import EMVOSModule
from vos_lightning.modules.optimisation import Optimisation, Schedule
from vos_lightning.networks.emvos import EMVOS


def test_cross_entropy_is_pytorchs_without_ignored_pixels() -> None:
    logits = torch.randn(2, 3, 4, 5)
    labels = torch.randint(0, 3, (2, 4, 5), dtype=torch.uint8)
    assert_close(cross_entropy(logits, labels).mean(), F.cross_entropy(logits, labels.long()))
    labels[0, :2] = 255
    expected = F.cross_entropy(logits[:1, :, 2:], labels[:1, 2:].long())
    assert_close(cross_entropy(logits, labels)[0], expected)
    labels[0] = 255
    assert cross_entropy(logits, labels)[0] == 0


def test_objects_that_were_never_given_are_ignored() -> None:
    labels = torch.tensor([[[0, 1, 2, 255]], [[0, 1, 2, 255]]], dtype=torch.uint8)
    introduced = torch.tensor([[True, False], [False, True]])
    assert trainable_labels(labels, introduced).tolist() == [[[0, 1, 255, 255]], [[0, 255, 2, 255]]]


def test_foreground_iou() -> None:
    labels = torch.tensor([[[1, 1, 0, 2]]], dtype=torch.uint8)
    predicted = torch.tensor([[[1, 0, 0, 2]]])
    probabilities = F.one_hot(predicted.long(), 3).permute(0, 3, 1, 2).float()
    iou, visible = foreground_iou(probabilities, labels)
    assert_close(iou, torch.tensor(0.75))
    assert visible == 2


def module(**options: object) -> EMVOSModule:
    return EMVOSModule(EMVOS.small(), **options)  # type: ignore[arg-type]


def test_a_clip_without_its_object_does_not_count() -> None:
    from vos_lightning.propagation.step import introductions, unroll
    from vos_lightning.structures import ClipBatch

    one = module()
    frames = torch.rand(2, 2, 3, 32, 32)
    labels = torch.zeros(2, 2, 32, 32, dtype=torch.uint8)
    labels[0, :, 8:24, 8:24] = 1

    def loss(rows: slice) -> torch.Tensor:
        valid = torch.ones(len(frames[rows]), 1, dtype=torch.bool)
        batch = ClipBatch(frames[rows], labels[rows], valid, ("v",) * len(valid), torch.zeros(len(valid), 2, dtype=torch.int64))
        outputs = unroll(one.network, one.train_propagation, batch.frames, introductions(batch.label_maps, valid, False))
        return one.clip_loss(outputs, batch)["loss"]

    assert_close(loss(slice(0, 2)), loss(slice(0, 1)))
    assert loss(slice(1, 2)) == 0


def test_frozen_parameters_are_not_optimised() -> None:
    frozen = EMVOSModule(EMVOS.published(None, **SMALL, train_encoder=False))
    frozen.trainer = Trainer(max_steps=10, accelerator="cpu", logger=False, enable_checkpointing=False)
    optimised = {id(p) for group in frozen.configure_optimizers()["optimizer"].param_groups for p in group["params"]}  # type: ignore[index, call-overload]
    assert all(id(p) not in optimised for p in frozen.network.backbone.parameters())
    assert all(id(p) in optimised for p in frozen.network.decoder.parameters())


SMALL = {
    "key_channels": 8,
    "decoder_channels": 8,
    "growth_rate": 4,
    "block_config": (1, 2, 2),
    "num_init_features": 8,
}


def test_cosine_schedule_with_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduled = module(optimisation=Optimisation(learning_rate=0.01, schedule=Schedule("cosine", warmup_steps=4)))
    monkeypatch.setattr(type(scheduled), "trainer", type("T", (), {"max_steps": 100})())
    at = scheduled.optimisation.schedule.at
    assert at(0, 100) == pytest.approx(0.25, abs=1e-3)
    assert at(50, 100) == pytest.approx(0.5)
    assert at(100, 100) == pytest.approx(0, abs=1e-9)
    assert module().optimisation.schedule.at(12345, 100) == 1
    # The optimiser follows it, counted in steps of the whole training.
    configured: Any = scheduled.configure_optimizers()
    rates = []
    for _ in range(51):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert configured["lr_scheduler"]["interval"] == "step"
    assert rates == pytest.approx([0.01 * at(step, 100) for step in range(51)])


def test_a_copier_start_copies() -> None:
    """Before any training, the from-scratch preset hands the previous mask on."""
    from vos_lightning.propagation.engine import InferenceEngine

    torch.manual_seed(0)
    options = {**SMALL, "decoder_channels": 32, "norm": "instance", "normalize_fusion": True, "equalized_scale": 0.35}
    label_map = torch.zeros(128, 128, dtype=torch.uint8)
    label_map[32:96, 48:112] = 1
    frame = torch.rand(3, 128, 128)

    def iou(copier_start: bool) -> float:
        one = EMVOSModule(EMVOS.published(None, **options, copier_start=copier_start), train_aggregation="minimum").eval()
        engine = InferenceEngine(one.network, one.eval_propagation)
        engine.step(frame, label_map)
        predicted = engine.step(frame).label_map == 1
        return float((predicted & (label_map == 1)).sum() / (predicted | (label_map == 1)).sum())

    assert iou(copier_start=True) > 0.85
    assert iou(copier_start=False) < 0.6


def test_public_names() -> None:
    assert vos_lightning.load_engine is not None
    assert vos_lightning.InferenceEngine is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = vos_lightning.nothing
