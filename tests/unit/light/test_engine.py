"""The engine of ONNX Runtime against that of PyTorch: whole clips on the network that comes with the library."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vos_lightning import load_engine
from vos_lightning.app.backends import LITE_FOLDER
from vos_lightning.light import engine as light
from vos_lightning.light.engine import LightEngine
from vos_lightning.light.parts import PARTS, RULES, read_rules
from vos_lightning.light.resizing import pad_sides, resize_masks, resize_picture, resize_probabilities
from vos_lightning.mask_ops import padding_for
from vos_lightning.propagation import frame_step
from vos_lightning.propagation.streaming import nearest
from vos_lightning.structures import VideoSample

TOLERANCE = 2e-3
"""Of probabilities: both engines compute in float32, and sum in another order."""


def scene(length: int, height: int, width: int) -> list[torch.Tensor]:
    """A coloured pattern that moves to the left by two pixels a frame."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4 + 1, (width + 2 * length) // 4 + 1, 3), dtype=np.uint8)
    whole = cv2.resize(noise, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    return [torch.from_numpy(whole[:height, 2 * t : 2 * t + width].transpose(2, 0, 1).copy()) for t in range(length)]


def box(object_id: int, size: tuple[int, int], top: float, left: float, side: float = 0.3) -> torch.Tensor:
    mask = torch.zeros(size, dtype=torch.uint8)
    height, width = size
    mask[int(top * height) : int((top + side) * height), int(left * width) : int((left + side) * width)] = object_id
    return mask


def sample(frames: list[torch.Tensor], annotations: dict[int, torch.Tensor], gone: Any = None) -> VideoSample:
    size = (int(frames[0].shape[1]), int(frames[0].shape[2]))
    names = tuple(map(str, range(len(frames))))
    return VideoSample("clip", frames, annotations, {}, (1, 2), size, names, gone=gone or {})


def compare(
    video: VideoSample, short_side: int | None, other: LightEngine | None = None
) -> tuple[list[torch.Tensor], LightEngine]:
    """Both engines on a video; returns the label maps and the engine of ONNX Runtime.

    Labels may differ where two of them are equally probable, up to the tolerance.
    """
    one = load_engine("lite", device="cpu", short_side=short_side)
    other = other or LightEngine(LITE_FOLDER, short_side=short_side)
    label_maps = []
    for expected, found in zip(one.run(video), other.run(video), strict=True):
        for name in ("frame_index", "object_ids", "given_ids", "processed_size"):
            assert getattr(found, name) == getattr(expected, name), name
        torch.testing.assert_close(found.probabilities, expected.probabilities, rtol=0, atol=TOLERANCE)
        background = (1 - expected.probabilities.sum(dim=0, keepdim=True)).clamp(0, 1)
        ranked = torch.cat([background, expected.probabilities, torch.zeros_like(background)]).sort(dim=0, descending=True).values
        decided = ranked[0] - ranked[1] > TOLERANCE
        assert torch.equal(found.label_map[decided], expected.label_map[decided]), expected.frame_index
        assert decided.float().mean() > 0.99
        assert torch.equal(found.frame, expected.frame)
        label_maps.append(found.label_map)
    return label_maps, other


def test_two_objects_one_of_them_late_and_gone_again() -> None:
    size = (70, 99)
    first, late = box(1, size, 0.2, 0.4), box(7, size, 0.5, 0.1)
    label_maps, _ = compare(sample(scene(9, *size), {1: first, 4: late}, {7: (1,)}), None)
    assert [sorted(np.unique(label_map)) for label_map in label_maps] == [[0]] + [[0, 1]] * 3 + [[0, 1, 7]] * 3 + [[0, 7]] * 2
    assert torch.equal((label_maps[4] == 7), late == 7)


def test_a_mask_is_corrected_and_an_object_comes_back() -> None:
    size = (48, 80)
    both = box(1, size, 0.2, 0.2) + box(2, size, 0.6, 0.6)
    given = {0: both, 3: box(1, size, 0.1, 0.3), 6: box(2, size, 0.4, 0.2)}
    compare(sample(scene(8, *size), given, {5: (1, 2)}), None)


@pytest.mark.parametrize(("size", "short_side"), [((40, 56), 64), ((97, 131), 48)])
def test_frames_are_resized(size: tuple[int, int], short_side: int) -> None:
    """A second object of one pixel would be lost in a smaller frame."""
    label_map = box(1, size, 0.2, 0.4)
    label_map[5, 7] = 2
    compare(sample(scene(4, *size), {0: label_map}), short_side)


def test_the_memory_holds_the_first_frame_and_the_latest_two() -> None:
    size = (32, 48)
    video = sample(scene(34, *size), {0: box(1, size, 0.2, 0.4)})
    engine = compare(video, None)[1]
    assert [frame.t for frame in engine._bank.frames] == [0, 25, 30]


def test_a_readout_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (64, 80)
    video = sample(scene(3, *size), {0: box(1, size, 0.2, 0.4)})
    whole = list(LightEngine(LITE_FOLDER, short_side=None).run(video))
    monkeypatch.setattr(light, "MAX_AFFINITIES", 3 * 20)
    for one, other in zip(whole, LightEngine(LITE_FOLDER, short_side=None).run(video), strict=True):
        torch.testing.assert_close(one.probabilities, other.probabilities, rtol=0, atol=1e-5)


def test_an_error_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (32, 48)
    frames = scene(3, *size)
    engine, other = (LightEngine(LITE_FOLDER, short_side=None) for _ in range(2))
    for one in (engine, other):
        one.step(frames[0], box(1, size, 0.2, 0.4))
    with pytest.raises(ValueError, match="frame 1 is 32x48, the ones before are 48x32"):
        engine.step(frames[1].transpose(1, 2))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "_read", lambda key: (_ for _ in ()).throw(RuntimeError("Failed to allocate memory for buffer")))
        with pytest.raises(ValueError, match=r"frame 1 of 48x32 pixels .* does not fit into memory"):
            engine.step(frames[1], box(2, size, 0.5, 0.5))
    with pytest.raises(ValueError, match="object 2 is not tracked"):
        engine.remove_object(2)
    with pytest.raises(ValueError, match="reads no proposals"):
        engine.step(frames[1], proposals=1)
    assert torch.equal(engine.step(frames[1]).probabilities, other.step(frames[1]).probabilities)


# Sizes ----------------------------------------------------------------------------------------------------------------


def test_pixels_are_chosen_as_pytorch_does() -> None:
    for length in range(1, 70):
        row = torch.arange(length, dtype=torch.float32)[None, None]
        for wanted in (*range(1, 70), 480, 854):
            expected = F.interpolate(row, size=wanted, mode="nearest")[0, 0].long()
            assert np.array_equal(nearest(length, wanted), expected.numpy()), (length, wanted)


@pytest.mark.parametrize("size", [(20, 31), (7, 5), (40, 64), (64, 97)])
def test_sizes_are_those_of_pytorch(size: tuple[int, int]) -> None:
    picture = torch.rand(3, 40, 64)
    for resize, mode in ((resize_picture, "bicubic"), (resize_probabilities, "bilinear")):
        expected = F.interpolate(picture[None], size=size, mode=mode, align_corners=False)[0]
        torch.testing.assert_close(torch.from_numpy(resize(picture.numpy(), size)), expected, rtol=0, atol=1e-5)
    masks = torch.rand(50, 40, 64) > 0.999
    expected = frame_step.resize_masks(masks[None].float(), size)[0] > 0
    assert np.array_equal(resize_masks(masks.numpy(), size), expected.numpy())


def test_padding_is_that_of_the_network() -> None:
    for height in range(1, 40):
        padding = padding_for(height, 33, 16, larger_half_first=False)
        assert pad_sides(height, 33, 16) == ((padding.top, padding.bottom), (padding.left, padding.right))


# Files ----------------------------------------------------------------------------------------------------------------


def test_the_rules_are_those_of_the_network() -> None:
    engine, light_engine = load_engine("lite", device="cpu"), LightEngine(LITE_FOLDER)
    assert light_engine.policy == engine.propagation.policy
    for name in ("short_side", "enlarge", "min_object_pixels"):
        assert getattr(light_engine, name) == getattr(engine, name)


def copied(tmp_path: Path) -> Path:
    folder = tmp_path / "lite"
    folder.mkdir()
    for name in (*(f"{part}.onnx" for part in PARTS), RULES, "lite.safetensors"):
        shutil.copyfile(LITE_FOLDER / name, folder / name)
    return folder


def digest(path: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


def test_damaged_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder; make the folder with: vos export"):
        read_rules(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"needs a folder with engine.json"):
        read_rules(tmp_path)
    folder = copied(tmp_path)
    rules = json.loads((folder / RULES).read_text())
    (folder / RULES).write_text(json.dumps({**rules, "memory": {**rules["memory"], "k": "5"}}))
    with pytest.raises(ValueError, match=r"engine.json: memory.k must be a whole number"):
        LightEngine(folder)
    (folder / RULES).write_text(json.dumps(rules))
    content = (folder / "decoder.onnx").read_bytes()
    (folder / "decoder.onnx").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"decoder.onnx: the file is not the one that was exported"):
        LightEngine(folder)
    (folder / RULES).write_text(json.dumps({**rules, "digests": {**rules["digests"], **digest(folder / "decoder.onnx")}}))
    with pytest.raises(ValueError, match=r"decoder.onnx: ONNX Runtime cannot read this graph"):
        LightEngine(folder)
    (folder / RULES).write_text(json.dumps(rules))
    (folder / "decoder.onnx").write_bytes(content)
    with (folder / "lite.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"?")
    with pytest.raises(ValueError, match=r"lite.safetensors: the file is not the one that was exported"):
        LightEngine(folder)
    (folder / "lite.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lite.safetensors: the file is missing beside engine.json"):
        LightEngine(folder)
