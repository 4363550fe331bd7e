import json
import os

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from data_modules.clips import maps as clip_geometry
from tests.tolerances import assert_close
from vos_lightning.proposals import store
from vos_lightning.proposals.boxes import box_features, masks_in_boxes, paste_masks, tight_boxes, transform_proposals
from vos_lightning.proposals.store import ROW, Found, ProposalFile, batch_proposals, nothing_found, write_proposals
from vos_lightning.proposals.truth import EXACT, TruthNoise, proposals_from_truth


def random_boxes(count: int, height: int, width: int) -> torch.Tensor:
    low = torch.rand(count, 2) * torch.tensor([width, height]) * 0.7 - 5
    return torch.cat([low, low + 1 + torch.rand(count, 2) * 40], dim=1)


def iou(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp_min(1))


def ellipse(height: int, width: int, box: tuple[int, int, int, int], object_id: int = 1) -> torch.Tensor:
    x0, y0, x1, y1 = box
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    inside = ((x - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2 + ((y - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2 <= 1
    return inside.to(torch.uint8) * object_id


# Boxes and masks ------------------------------------------------------------------------------------------------------


def test_tight_boxes():
    masks = torch.zeros(1, 3, 8, 10)
    masks[0, 0, 2:5, 3:9] = 0.6
    masks[0, 1, 7, 0] = 1
    masks[0, 2] = 0.4
    boxes, filled = tight_boxes(masks)
    assert boxes[0].tolist() == [[3, 2, 9, 5], [0, 7, 1, 8], [0, 0, 0, 0]]
    assert filled.tolist() == [[True, True, False]]


@pytest.mark.parametrize("size", [28, 14])
def test_pasting_is_torchvisions(size):
    height, width = 48, 64
    masks, boxes = torch.rand(2, 9, size, size), torch.stack([random_boxes(9, height, width) for _ in range(2)])
    boxes[0, 0] = torch.tensor([10.2, 10.2, 10.9, 10.9])
    boxes[0, 1] = torch.tensor([-8.0, -6.0, 20.0, 70.0])
    pasted = paste_masks(masks, boxes, height, width)
    for b in range(2):
        expected = paste_masks_in_image(masks[b].unsqueeze(1), boxes[b], (height, width), padding=1)
        assert_close(pasted[b], expected[:, 0])
    coarse = paste_masks(masks, boxes, height, width, stride=4)
    assert_close(coarse, torch.nn.functional.avg_pool2d(pasted, 4))


def test_masks_survive_pasting_and_reading():
    mask = ellipse(64, 80, (12, 10, 52, 50)).float()[None, None]
    boxes, _ = tight_boxes(mask)
    back = paste_masks(masks_in_boxes(mask, boxes, 28), boxes, 64, 80)
    assert iou(back[0, 0] > 0.5, mask[0, 0] > 0.5) > 0.93


def test_features_in_boxes_are_those_of_their_frame():
    ramp = torch.arange(16.0).expand(1, 1, 12, 16)
    features = torch.cat([ramp, ramp + 100])
    boxes = torch.tensor([[[8.0, 8, 24, 24]], [[8, 8, 24, 24]]])
    read = box_features(features, boxes, 4, 1 / 4)
    # Cell centres at x = 10, 14, 18, 22 pixels are cells 2.5, 3.5 ... of stride 4, whose first centre is at half a cell.
    assert_close(read[0, 0, 0, 0], torch.tensor([2.0, 3.0, 4.0, 5.0]))
    assert_close(read[1] - 100, read[0])


@pytest.mark.parametrize("motion", ["shift", "scale", "mirror", "rotate", "crop"])
def test_moved_proposals_lie_on_the_moved_object(motion):
    height, width = 72, 96
    frame = ellipse(height, width, (20, 16, 60, 56)).numpy()
    maps = clip_geometry.identity(1)
    size = (height, width)
    if motion == "shift":
        maps = clip_geometry.window(maps, (-10, -6, width, height), *size)
    elif motion == "scale":
        size = (36, 60)
        maps = clip_geometry.window(maps, (0, 0, width, height), *size)
    elif motion == "mirror":
        maps = clip_geometry.flip(maps, True, True, height, width)
    elif motion == "rotate":
        angle = np.deg2rad(30)
        matrix = np.array([[[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]])
        maps = clip_geometry.about_centre(maps, matrix, height, width)
    else:
        size = (30, 30)
        maps = clip_geometry.window(maps, (40, 30, 30, 30), *size)
    # Truth: every pixel of the new frame looks up where it came from.
    y, x = np.meshgrid(np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5, indexing="ij")
    inverse = np.linalg.inv(maps[0, :, :2])
    source = np.stack([x, y], -1) - maps[0, :, 2]
    source = np.floor(source @ inverse.T).astype(int)
    valid = (source >= 0).all(-1) & (source[..., 0] < width) & (source[..., 1] < height)
    expected = np.zeros(size, bool)
    expected[valid] = frame[source[valid][:, 1], source[valid][:, 0]] > 0
    mask = torch.from_numpy(frame).float()[None, None]
    boxes, _ = tight_boxes(mask)
    moved = transform_proposals(boxes, masks_in_boxes(mask, boxes, 28), torch.from_numpy(maps).float(), *size)
    found = paste_masks(moved[1], moved[0], *size)[0, 0] > 0.5
    assert moved[2].all()
    # Pasting fades a mask out towards its box, which costs a row where the frame has cut it.
    assert iou(found, torch.from_numpy(expected)) > 0.86


def test_a_proposal_that_leaves_the_frame_is_gone():
    maps = torch.tensor([[[1.0, 0, 500], [0, 1, 0]]])
    boxes, masks, left = transform_proposals(torch.tensor([[[5.0, 5, 20, 20]]]), torch.ones(1, 1, 28, 28), maps, 40, 40)
    assert not left.any()
    assert boxes.eq(0).all()
    assert masks.eq(0).all()


# Ground truth ---------------------------------------------------------------------------------------------------------


def two_objects() -> torch.Tensor:
    return torch.maximum(ellipse(60, 80, (5, 5, 35, 40)), ellipse(60, 80, (45, 20, 75, 55), 4))


def test_exact_proposals_are_the_objects():
    found = proposals_from_truth(two_objects(), EXACT, np.random.default_rng(0))
    assert len(found.scores) == 2
    pasted = paste_masks(found.masks[None], found.boxes[None], 60, 80)[0] > 0.5
    best = [max(iou(plane, two_objects() == i) for plane in pasted) for i in (1, 4)]
    assert min(best) > 0.9


def test_noisy_proposals_have_their_recall_and_distractors():
    rng = np.random.default_rng(0)
    noise = TruthNoise(recall=0.5, num_distractors=6)
    counts, overlaps = [], []
    for _ in range(40):
        found = proposals_from_truth(two_objects(), noise, rng)
        counts.append(len(found.scores) - 6)
        assert (found.scores.diff() <= 0).all()
        assert ((found.boxes[:, 2:] - found.boxes[:, :2]) >= 1).all()
        assert ((found.masks >= 0) & (found.masks <= 1)).all()
        pasted = paste_masks(found.masks[None], found.boxes[None], 60, 80)[0] > 0.5
        overlaps.append(max(iou(plane, two_objects() == 1) for plane in pasted))
    assert 0.6 < np.mean(counts) < 1.4
    assert sum(o > 0.6 for o in overlaps) in range(10, 31)


def test_frames_without_objects_have_only_blobs():
    empty = torch.zeros(40, 40, dtype=torch.uint8)
    assert len(proposals_from_truth(empty, EXACT, np.random.default_rng(0)).scores) == 0
    assert len(proposals_from_truth(empty, TruthNoise(num_distractors=3), np.random.default_rng(0)).scores) == 3


def test_impossible_noise_is_refused():
    with pytest.raises(ValueError, match="recall"):
        TruthNoise(recall=1.5)


# Files ----------------------------------------------------------------------------------------------------------------


def some(count: int) -> Found:
    boxes = random_boxes(count, 50, 50)
    return Found(boxes, torch.rand(count, 28, 28), torch.rand(count), torch.randint(1, 90, (count,)))


def test_files_give_back_single_frames(tmp_path):
    frames = {"00000": some(3), "00005": nothing_found(), "00010": some(1)}
    path = tmp_path / "deep" / "video.npz"
    write_proposals(path, frames, {"generator": "g", "top_k": 30})
    file = ProposalFile(path)
    assert file.frames == list(frames)
    assert file.header["generator"] == "g"
    for name, read in zip(("00010", "00000"), file.read(["00010", "00000"]), strict=True):
        assert_close(read.boxes, frames[name].boxes)
        assert (read.masks - frames[name].masks).abs().max() <= 0.5 / 255 + 1e-6
        assert (read.scores - frames[name].scores).abs().max() < 1e-3
        assert torch.equal(read.labels, frames[name].labels)
    assert len(file.read(["00005"])[0].scores) == 0
    assert not list(path.parent.glob(".*"))


def test_rows_are_cut_and_padded():
    rows = batch_proposals([some(5), nothing_found(), some(2)], 3)
    assert rows.boxes.shape == (3, 3, 4)
    assert (rows.scores > 0).sum(dim=1).tolist() == [3, 0, 2]


def test_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="precompute-proposals"):
        ProposalFile(tmp_path / "nothing.npz")
    path = tmp_path / "video.npz"
    write_proposals(path, {"00000": some(2)}, {})
    with pytest.raises(ValueError, match="00007"):
        ProposalFile(path).read(["00007"])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"video\.npz: the file is damaged"):
        ProposalFile(path)
    old = tmp_path / "old.npz"
    np.savez(old, header=np.asarray(json.dumps({"version": 0, "frames": []})))
    with pytest.raises(ValueError, match="version 0"):
        ProposalFile(old)
    with pytest.raises(ValueError, match="header"):
        write_proposals(path, {"header": some(1)}, {})


def test_files_of_strangers_are_one_line(tmp_path, monkeypatch):
    path = tmp_path / "video.npz"

    def save(header, **arrays):
        np.savez_compressed(path, header=np.asarray(header if isinstance(header, str) else json.dumps(header)), **arrays)

    known = {"version": 1, "frames": ["0"]}
    for header in ("[" * 100_000, "{", "[]", "3", {"version": 1}, {"version": 1, "frames": 3}, {"version": 1, "frames": [3]}):
        save(header)
        with pytest.raises(ValueError, match=r"^\S*video\.npz"):
            ProposalFile(path)
    for rows in (np.zeros(3), np.zeros((2, 2), ROW), np.asarray("x"), np.asarray([{}], dtype=object)):
        save(known, **{"0": rows})
        with pytest.raises(ValueError, match=r"video\.npz: the file is damaged"):
            ProposalFile(path).read(["0"])
    save(known, **{"0": np.zeros(5000, ROW)})
    monkeypatch.setattr(store, "MAX_MEMBER_BYTES", 1_000_000)
    with pytest.raises(ValueError, match=r"video\.npz: the file is damaged \(0\.npy in it has more than 1000000 bytes"):
        ProposalFile(path).read(["0"])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileNotFoundError, match="there is no such file of proposals"):
        ProposalFile(path)
