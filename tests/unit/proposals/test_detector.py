import functools

import numpy as np
import pytest
import torch
from lightning import Trainer
from PIL import Image

from data_modules.base import Loading
from data_modules.clips.recipe import ClipRecipe
from data_modules.datasets.synthetic import SyntheticDataModule
from data_modules.proposals import StoredProposals
from tests.tolerances import assert_close
from vos_lightning.app.cli import main
from vos_lightning.modules.proposal_detector import ProposalDetectorModule, targets_of
from vos_lightning.proposals.boxes import paste_masks
from vos_lightning.proposals.detector import ProposalDetector, Selection, _fit_classes, select
from vos_lightning.proposals.precomputing import find_videos, precompute
from vos_lightning.proposals.store import ProposalFile


@functools.cache
def shared(**options) -> ProposalDetector:
    """One that no test changes."""
    return tiny(**options)


def tiny(num_classes: int = 3, **options) -> ProposalDetector:
    """A random detector that looks at few regions."""
    torch.manual_seed(0)
    detector = ProposalDetector("resnet18", num_classes=num_classes, min_size=64, max_size=128, **options)
    for limits in (detector.model.rpn._pre_nms_top_n, detector.model.rpn._post_nms_top_n):
        limits.update(training=12, testing=12)
    detector.model.roi_heads.fg_bg_sampler.batch_size_per_image = 12
    return detector


# Selection ------------------------------------------------------------------------------------------------------------


def test_order_of_suppression_and_cut():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [40, 40, 50, 50]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    assert select(boxes, scores, Selection(top_k=2)).tolist() == [0, 2]
    assert select(boxes, scores, Selection("top_first", top_k=2)).tolist() == [0]
    assert select(boxes, scores, Selection(score_threshold=0.65)).tolist() == [0, 2]
    # Overlaps of up to 0.4 are kept.
    assert select(boxes[:2] * torch.tensor([1, 1, 1, 0.4]), scores[:2], Selection(nms_threshold=0.95)).tolist() == [0, 1]
    assert select(boxes[:0], scores[:0], Selection()).tolist() == []


def test_impossible_selections_are_refused():
    for options in ({"order": "best"}, {"top_k": 0}, {"nms_threshold": 0.0}, {"candidates": 10}):
        with pytest.raises(Exception, match=r"order|top_k"):
            Selection(**options)


# The detector ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "selection", [Selection(), Selection("top_first", tight_boxes=True), Selection("objectness")], ids=lambda s: s.order
)
def test_proposals_are_in_pixels_of_their_frames(selection):
    detector = shared(selection=selection)
    frames = [torch.rand(3, 40, 60), torch.rand(3, 60, 40)]
    together = detector(frames)
    for frame, found in zip(frames, together, strict=True):
        assert 0 < len(found.scores) <= 30
        assert (found.scores.diff() <= 0).all()
        assert found.masks.shape[1:] == (28, 28)
        limit = torch.tensor([frame.shape[2], frame.shape[1]]).repeat(2)
        assert ((found.boxes >= 0) & (found.boxes <= limit + 1e-3)).all()
        assert found.labels.min() >= 1
    assert not any(p.requires_grad for p in detector.parameters())
    assert not detector.training


def test_boxes_and_masks_are_torchvisions():
    detector = shared(selection=Selection(nms_threshold=1.0, top_k=100))
    frame = torch.rand(3, 48, 64)
    with torch.inference_mode():
        (expected,) = detector.model([frame])
    (found,) = detector([frame])
    assert_close(found.boxes, expected["boxes"])
    assert_close(paste_masks(found.masks[None], found.boxes[None], 48, 64)[0], expected["masks"].squeeze(1))


def test_published_architectures():
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in ProposalDetector(name).parameters()) for name in ("resnet50", "resnext101_32x8d")}
    # torchvision counts its frozen batch normalisation as buffers.
    assert round(counts["resnet50"] / 1e6, 1) == 44.4
    assert round(counts["resnext101_32x8d"] / 1e6) in (107, 108)


def test_weights_come_from_a_file_and_name_the_generator(tmp_path):
    source = tiny(num_classes=4)
    path = tmp_path / "weights.pth"
    torch.save({"model": source.model.state_dict()}, path)
    again = tiny(num_classes=4, weights=str(path))
    for key, value in source.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[key], value)
    assert again.identity.startswith("maskrcnn_resnet18_")
    assert again.identity != source.identity
    two = tiny(num_classes=2, weights=str(path)).model.state_dict()
    scores = source.model.state_dict()["roi_heads.box_predictor.cls_score.weight"]
    assert_close(two["roi_heads.box_predictor.cls_score.weight"], torch.stack([scores[0], scores[1:].mean(0)]))
    with pytest.raises(ValueError, match="do not fit"):
        tiny(num_classes=5, weights=str(path))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        tiny(weights="nowhere.pth")
    with pytest.raises(ValueError, match="COCO weights"):
        tiny(pretrained="COCO_V1")


def test_other_heads_are_left_as_they_are():
    content = {"roi_heads.box_predictor.bbox_pred.bias": torch.arange(12.0), "other": torch.ones(3)}
    wanted = {"roi_heads.box_predictor.bbox_pred.bias": torch.zeros(8), "other": torch.zeros(3)}
    fitted = _fit_classes(content, wanted)
    assert fitted["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert _fit_classes(content, content).keys() == content.keys()


# Files ----------------------------------------------------------------------------------------------------------------


def write_images(folder, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:05d}.png")


def test_precomputing_goes_on_where_it_stopped(tmp_path):
    for name in ("a", "b"):
        write_images(tmp_path / "images" / name, 3)
    detector, output = shared(selection=Selection()), tmp_path / "proposals"
    videos = find_videos(tmp_path / "images", stills=False)
    assert [name for name, _ in videos] == ["a", "b"]
    steps = precompute(detector, videos, output, batch_size=2)
    assert next(steps) == ("a", True, False)
    before = (output / "a.npz").read_bytes()
    assert list(precompute(detector, videos, output)) == [("a", False, False), ("b", True, False)]
    assert (output / "a.npz").read_bytes() == before
    file = ProposalFile(output / "b.npz")
    assert file.frames == ["00000", "00001", "00002"]
    assert file.header["generator"] == detector.identity
    other = tiny(selection=Selection(top_k=5))
    with pytest.raises(ValueError, match=r"a\.npz was made with other settings \(top_k\)"):
        list(precompute(other, videos, output))
    with pytest.raises(ValueError, match="made by"):
        StoredProposals([str(output)], generator="another").file("a")


def test_what_has_proposals_of_its_own(tmp_path):
    write_images(tmp_path / "flat", 2)
    assert [name for name, _ in find_videos(tmp_path / "flat", stills=False)] == ["flat"]
    assert [name for name, _ in find_videos(tmp_path, stills=True)] == ["flat/00000", "flat/00001"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_videos(tmp_path / "nowhere", stills=False)


def test_the_command_says_what_is_missing(tmp_path, capfd):
    write_images(tmp_path / "video", 1)
    arguments = ["precompute-proposals", "--images", str(tmp_path / "video"), "--output", str(tmp_path / "out")]
    for more, message in (
        ([], "--pretrained COCO_V1"),
        (["--weights", "nowhere.pth"], "nowhere.pth"),
        (["--pretrained", "COCO_V1", "--architecture", "resnet101"], "COCO weights"),
        (["--weights", "w", "--top-k", "0"], "top_k"),
    ):
        assert main([*arguments, *more]) == 2
        errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
        assert len(errors) == 1
        assert message in errors[0]


# Fine-tuning ----------------------------------------------------------------------------------------------------------


def test_targets_of_a_label_map():
    label_map = torch.zeros(20, 30, dtype=torch.uint8)
    label_map[2:10, 3:12] = 7
    label_map[15:17, 20:22] = 9  # too small
    label_map[0, :] = 255
    targets = targets_of(label_map)
    assert targets["boxes"].tolist() == [[3, 2, 12, 10]]
    assert targets["labels"].tolist() == [1]
    assert torch.equal(targets["masks"][0], (label_map == 7).to(torch.uint8))
    assert targets_of(torch.zeros(8, 8, dtype=torch.uint8))["boxes"].shape == (0, 4)


def test_fine_tuning_trains_and_its_checkpoint_is_read(tmp_path):
    recipe = ClipRecipe(num_frames=1, short_side=None, crop="none", max_objects=3, swap_probability=0.0)
    data = SyntheticDataModule(num_train_videos=4, num_val_videos=1, recipe=recipe, loading=Loading(batch_size=2, num_workers=0))
    module = ProposalDetectorModule(tiny(num_classes=2), learning_rate=1e-3, every_nth_frame=100)
    before = {key: value.clone() for key, value in module.network.model.state_dict().items()}
    trainer = Trainer(
        max_steps=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, val_check_interval=1, default_root_dir=tmp_path,
        use_distributed_sampler=False, check_val_every_n_epoch=None,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    assert "val/recall" in trainer.callback_metrics
    after = module.network.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("roi_heads.mask_predictor") for key in changed)
    assert not any("running" in key for key in changed)
    torch.save({"state_dict": module.state_dict()}, tmp_path / "tuned.ckpt")
    tuned = tiny(num_classes=2, weights=str(tmp_path / "tuned.ckpt"))
    assert torch.equal(tuned.model.state_dict()["rpn.head.cls_logits.bias"], after["rpn.head.cls_logits.bias"])


def test_random_weights_are_not_fine_tuned():
    module = ProposalDetectorModule(tiny(num_classes=2))
    with pytest.raises(ValueError, match=r"a random resnet18 learns nothing at learning_rate 1e-06: name trained weights"):
        module.setup("fit")
    module.setup("validate")
    ProposalDetectorModule(tiny(num_classes=2), learning_rate=1e-3).setup("fit")


def test_stored_proposals_of_a_missing_video_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bear\.npz"):
        StoredProposals([str(tmp_path / "one"), str(tmp_path)]).file("bear")
