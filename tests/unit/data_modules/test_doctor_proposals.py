"""The doctor passes sound proposals and names every defect of others, in a folder and as an experiment reads them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from data_modules.clips.recipe import ClipRecipe
from tests.layouts import write_davis_layout, write_static_images
from vos_lightning.app.cli import main
from vos_lightning.app.experiments import experiments_folder, load_experiment
from vos_lightning.proposals.store import Found, nothing_found, write_proposals

HEIGHT, WIDTH, FRAMES = 48, 80, [f"{t:05d}" for t in range(6)]
HEADER = {"generator": "g", "num_classes": 3, "top_k": 4, "nms_threshold": 0.4, "frame_size": [HEIGHT, WIDTH]}
PLAIN = ClipRecipe(num_frames=2, short_side=None, crop="none", max_objects=2, swap_probability=0.0)


def some(count: int) -> Found:
    """Nested boxes, the last of which touches the edges of the frame."""
    boxes = torch.tensor([[8.0 - 4 * i, 6 - 3 * i, WIDTH - 8 + 4 * i, HEIGHT - 6 + 3 * i] for i in range(count)])
    scores = torch.tensor([0.9 - 0.1 * i for i in range(count)])
    return Found(boxes.reshape(-1, 4), torch.ones(count, 28, 28), scores, torch.full((count,), 2))


def sound(video: int) -> dict[str, Found]:
    """One, two or three proposals a frame; the first frame of the first video has none."""
    return {name: nothing_found() if video == t == 0 else some(1 + (video + t) % 3) for t, name in enumerate(FRAMES)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Proposals of four videos beside their data set; commands run there."""
    monkeypatch.setenv("VOS_EXPERIMENTS", str(experiments_folder().resolve()))
    monkeypatch.setenv("VOS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write_davis_layout("DAVIS", 4)
    for video in range(4):
        write_proposals(f"proposals/g/DAVIS/video-0{video}.npz", sound(video), HEADER)
    return tmp_path / "proposals" / "g" / "DAVIS"


def write_experiment(name: str, source: dict[str, Any] | None = None, **arguments: Any) -> str:
    config = copy.deepcopy(dict(load_experiment("dmn_aoa_smoke").config))
    davis = {"root": "${VOS_DATA}/DAVIS", "recipe": dataclasses.asdict(PLAIN)}
    roots = ["${VOS_DATA}/proposals/g/DAVIS", "${VOS_DATA}/proposals/g/COCO"]
    config["data"]["init_args"] |= {
        "source": source or {"class_path": "data_modules.datasets.davis.DAVISDataModule", "init_args": davis},
        "proposals": {
            "class_path": "data_modules.proposals.StoredProposals",
            "init_args": {"roots": roots, "generator": "g", "num_proposals": 3} | arguments,
        },
    }
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


def examine(*arguments: str) -> tuple[int, dict[str, list[str]], dict[str, Any]]:
    """Exit code, problems and notes by kind (each the path, and the message), and everything."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        code = main(["doctor", *arguments, "--json", "--workers", "2"])
    content = json.loads(output.getvalue())
    found: dict[str, list[str]] = {}
    for one in content["findings"]:
        found.setdefault(f"{one['level']}: {one['kind']}", []).append(f"{one['path']}: {one['message']}")
    return code, {kind: lines for kind, lines in found.items() if "own-selection" not in kind}, content


# Sound ones -----------------------------------------------------------------------------------------------------------------


def test_a_folder_of_proposals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, content = examine(str(folder))
    assert (code, found, content["splits"]) == (0, {}, [])
    # 24 frames: those of a video have 1, 2, 3, 1, 2, 3 proposals in some order, but for the one that has none.
    assert content["proposals"] == [
        {
            "name": str(folder), "roots": [str(folder)], "generators": ["g"], "wanted": None, "files": 4, "frames": 24,
            "proposals_a_frame": {"min": 0, "median": 2, "max": 3}, "frames_without": 1,
        }
    ]  # fmt: skip
    # They are found below the folder of all data, beside the data sets.
    _, _, content = examine(str(folder.parents[2]))
    assert [split["split"] for split in content["splits"]] == ["train", "val"] * 2
    assert [one["name"] for one in content["proposals"]] == [str(folder)]
    capsys.readouterr()
    assert main(["doctor", "proposals"]) == 0
    printed = capsys.readouterr().out
    assert "0, 2, 3" in printed
    assert "│ 24 │" in " ".join(printed.split())


def test_those_of_an_experiment(folder: Path) -> None:
    shutil.copy(folder / "video-00.npz", folder / "another.npz")  # not read, so not counted
    code, found, content = examine(write_experiment("stored"))
    assert (code, found) == (0, {})
    assert {split["root"] for split in content["splits"]} == {str(folder.parents[2] / "DAVIS")}
    (one,) = content["proposals"]
    assert (one["name"], one["wanted"], one["files"], one["frames"], one["frames_without"]) == ("stored", 4, 4, 24, 1)


def test_every_data_set_of_a_mixture(folder: Path) -> None:
    shutil.copytree("DAVIS", "more/DAVIS")
    one, other = (
        {
            "class_path": "data_modules.datasets.davis.DAVISDataModule",
            "init_args": {"root": f"${{VOS_DATA}}/{root}", "recipe": dataclasses.asdict(PLAIN)},
        }
        for root in ("DAVIS", "more/DAVIS")
    )
    mixture = {"train": [one, other], "repeats": [1, 1], "evaluation": one}
    class_path = "data_modules.datasets.mixed.MixedDataModule"
    code, _, content = examine(write_experiment("mixed", {"class_path": class_path, "init_args": mixture}))
    root = folder.parents[2]
    assert (code, {split["root"] for split in content["splits"]}) == (0, {str(root / "DAVIS"), str(root / "more" / "DAVIS")})


def test_all_stages_and_only_what_is_evaluated(folder: Path) -> None:
    write_experiment("stored")
    for name, more in (("staged", {"stages": ["dmn_aoa_smoke", "emvos_smoke"]}), ("scored", {"checkpoint_of": "dmn_aoa_smoke"})):
        own = yaml.safe_load(Path("stored.yaml").read_text()) if name == "scored" else {}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(own | more))
    assert examine("staged.yaml")[::2] == (0, {"splits": [], "proposals": [], "findings": []})
    for video in ("video-00", "video-01"):  # those that are trained on
        (folder / f"{video}.npz").unlink()
    code, found, content = examine("scored.yaml")
    assert (code, found) == (0, {})
    assert content["proposals"][0]["wanted"] == 2
    assert len(examine("stored.yaml")[1]["problem: missing-proposals"]) == 2


def test_stills(folder: Path) -> None:
    write_static_images("stills", 2)
    for name in ("00000", "00001"):
        write_proposals(f"proposals/g/COCO/{name}.npz", {name: some(3)}, HEADER)
    arguments = {"image_root": "${VOS_DATA}/stills/images", "mask_root": "${VOS_DATA}/stills/masks"}
    recipe = dataclasses.asdict(dataclasses.replace(PLAIN, affine=None))
    class_path = "data_modules.datasets.static_images.StaticImagesDataModule"
    name = write_experiment("stills", {"class_path": class_path, "init_args": {**arguments, "recipe": recipe}})
    code, found, content = examine(name)
    assert (code, found) == (0, {})
    assert [split["layout"] for split in content["splits"]] == ["images"]
    write_proposals("proposals/g/COCO/00000.npz", {"00000": some(3), "1": some(3)}, HEADER)
    Path("proposals/g/COCO/00001.npz").unlink()
    code, found, _ = examine(name)
    assert code == 1
    assert "00000.npz: proposals of 2 frames for an image" in found["problem: wrong-frames"][0]
    assert f"--images {folder.parents[2]}/stills/images --stills" in found["problem: missing-proposals"][0]


# Every defect ---------------------------------------------------------------------------------------------------------------


def changed(path: Path, **header: Any) -> None:
    write_proposals(path, sound(1), {key: value for key, value in (HEADER | header).items() if value is not None})


def with_frame(path: Path, **parts: Any) -> None:
    """The second frame has three proposals with other values."""
    write_proposals(path, sound(1) | {FRAMES[1]: dataclasses.replace(some(3), **parts)}, HEADER)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"00003.npy") + 60] ^= 4
    path.write_bytes(bytes(content))


def lose_frames(path: Path) -> None:
    write_proposals(path, {name: some(3) for name in FRAMES[:4]}, HEADER)


def other_copy(path: Path) -> None:
    write_proposals(path, {name: some(3) for name in [*FRAMES, "00009"]}, HEADER)


def false_counts(path: Path) -> None:
    import numpy as np

    with np.load(path) as archive:
        members = dict(archive)
    header = json.loads(str(members["header"]))
    np.savez_compressed(path, **members | {"header": np.asarray(json.dumps(header | {"counts": [3] * 6}))})


BOXES = some(3).boxes
Defect = tuple[Callable[[Path], None], str, str]


def wrong(message: str, **parts: Any) -> Defect:
    return lambda path: with_frame(path, **parts), "problem: wrong-proposals", message


OUTSIDE = "boxes outside of the frame, in frame '00001': remove the file and compute it anew"
DEFECTS: dict[str, Defect] = {
    "cut off": (cut, "problem: damaged-proposals", "the file is damaged"),
    "a bit": (flip_a_bit, "problem: damaged-proposals", "remove it and compute it anew"),
    "empty": (lambda path: path.write_bytes(b"") and None, "problem: damaged-proposals", "the file is damaged"),
    "counts": (false_counts, "problem: wrong-proposals", "other numbers of proposals than its header records"),
    "no frames": (lambda path: write_proposals(path, {}, HEADER), "problem: damaged-proposals", "it has no frames"),
    "nan": wrong("boxes or scores that are not finite", boxes=BOXES * torch.tensor([1, 1, 1, torch.nan])),
    "infinite": wrong("boxes or scores that are not finite", scores=torch.tensor([torch.inf, 0.5, 0.4])),
    "right": wrong(OUTSIDE, boxes=BOXES + torch.tensor([0, 0, 1.5, 0])),
    "below": wrong(OUTSIDE, boxes=BOXES + torch.tensor([0, 0, 0, 1.5])),
    "left": wrong(OUTSIDE, boxes=BOXES - torch.tensor([1.5, 0, 0, 0])),
    "above": wrong(OUTSIDE, boxes=BOXES - torch.tensor([0, 1.5, 0, 0])),
    "turned": wrong("edge comes first", boxes=BOXES[:, [2, 1, 0, 3]]),
    "scores": wrong("scores outside of [0, 1]", scores=torch.tensor([1.2, 0.5, 0.4])),
    "negative": wrong("scores outside of [0, 1]", scores=torch.tensor([0.9, 0.5, -0.4])),
    "order": wrong("proposals that do not begin with the best ones", scores=torch.tensor([0.5, 0.4, 0.6])),
    "classes": wrong("classes outside of 0 to 3", labels=torch.tensor([1, 2, 3])),
    "top_k": (
        lambda path: changed(path, top_k=2),
        "problem: wrong-proposals",
        "more than 2 proposals (top_k), in frame '00001' and 1 more",
    ),
    "another threshold": (
        lambda path: changed(path, nms_threshold=0.5),
        "problem: other-settings",
        "made with other settings than 3 of 4 files (nms_threshold 0.5, not 0.4)",
    ),
    "killed": (
        lambda path: path.with_name(f".video-01.npz.{'0' * 32}.tmp").touch(),
        "note: temporary-file",
        "a process that was killed has left it",
    ),
    "nothing": (
        lambda path: write_proposals(path, dict.fromkeys(FRAMES, nothing_found()), HEADER),
        "note: nothing-found",
        "the detector has found nothing in any of its frames",
    ),
}
"""What is done to a file, and what is said of it in a folder and in an experiment."""
NEEDED: dict[str, Defect] = {
    "missing": (Path.unlink, "problem: missing-proposals", "there are no proposals of video-01 in"),
    "another detector": (lambda path: changed(path, generator="h"), "problem: other-generator", "made by 'h', not by 'g'"),
    "frames": (lose_frames, "problem: wrong-frames", "no proposals of frame '00004' (2 of 6 frames are missing)"),
    "size": (
        lambda path: changed(path, frame_size=[49, 80]),
        "problem: wrong-size",
        "are of frames of 80x49, the frames are 80x48",
    ),
    "no size": (lambda path: changed(path, frame_size=None), "note: no-size", "does not record frame_size"),
    "more frames": (other_copy, "note: more-frames", "proposals of 1 frames that"),
}
"""The same for what only the experiment can say."""


@pytest.mark.parametrize("defect", [*DEFECTS, *NEEDED])
def test_every_defect_is_named(defect: str, folder: Path) -> None:
    path = folder / "video-01.npz"
    spoil, kind, message = (DEFECTS | NEEDED)[defect]
    spoil(path)
    for target in (write_experiment("stored"), *([str(folder)] if defect in DEFECTS else [])):
        code, found, _ = examine(target)
        assert code == int(kind.startswith("problem"))
        (line,) = found.pop(kind)
        assert line.startswith(f"{folder.parent}/")
        assert "video-01.npz" in line
        assert message in line
        # Only a file of another detector or top_k has other settings too.
        assert set(found) <= {"problem: other-settings"}
        assert bool(found) == (defect in ("another detector", "top_k"))


def test_boxes_may_end_a_pixel_later(folder: Path) -> None:
    with_frame(folder / "video-01.npz", boxes=BOXES + torch.tensor([-0.9, -0.9, 0.9, 0.9]))
    assert examine(str(folder))[:2] == (0, {})


# Of all files ---------------------------------------------------------------------------------------------------------------


def test_none_at_all_is_one_line_with_the_command(folder: Path) -> None:
    shutil.rmtree("proposals")
    root = folder.parents[2]
    generator = "maskrcnn_resnet50_v2_COCO_V1"
    code, found, _ = examine(write_experiment("stored", generator=generator, roots=["${VOS_DATA}/proposals"]))
    assert code == 1
    (line,) = found["problem: missing-proposals"]
    assert "there are no proposals of video-00, or of any other of 4 videos or images, in" in line
    command = f"--images {root}/DAVIS/JPEGImages/480p --output {root}/proposals --pretrained COCO_V1 --architecture resnet50_v2`"
    assert line.endswith(f"`vos precompute-proposals {command}")


def test_a_detector_that_finds_nothing(folder: Path) -> None:
    for path in folder.iterdir():
        write_proposals(path, dict.fromkeys(FRAMES, nothing_found()), HEADER)
    code, found, _ = examine(write_experiment("stored"))
    assert code == 1
    assert "nothing was found in any of 24 frames" in found["problem: nothing-found"][0]


def test_fewer_than_the_experiment_takes(folder: Path) -> None:
    code, found, _ = examine(write_experiment("stored", num_proposals=4))
    assert code == 0
    assert "no frame has more than 3 proposals, of which the experiment takes 4" in found["note: few-proposals"][0]


def test_data_that_are_not_there(folder: Path) -> None:
    shutil.rmtree("DAVIS/JPEGImages")
    code, found, content = examine(write_experiment("stored"))
    assert (code, content["proposals"]) == (1, [])
    assert "stored: its training clips cannot be found" in found["problem: missing-data"][0]


def test_data_sets_of_unknown_layouts_are_spoken_of(folder: Path) -> None:
    shutil.rmtree("DAVIS")
    Path("DAVIS").mkdir()
    assert "the layout is none that the doctor knows" in examine(write_experiment("stored"))[1]["note: unknown-layout"][0]


def test_what_is_moved_away_is_computed_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The originals are kept, and other files stay as they are."""
    name = write_experiment("stored")
    cut(folder / "video-01.npz")
    spoilt = (folder / "video-01.npz").read_bytes()
    with_frame(folder / "video-02.npz", scores=torch.tensor([1.2, 0.5, 0.4]))
    whole = {path.name: path.read_bytes() for path in folder.glob("video-0[03].npz")}
    assert main(["doctor", name, "--fix"]) == 1
    printed = capsys.readouterr().out
    kept = folder.with_name("DAVIS.before-doctor")
    assert f"video-01.npz: moved to {kept}/video-01.npz" in printed.replace("\n", "")
    assert "missing-proposals (2)" in printed
    assert (kept / "video-01.npz").read_bytes() == spoilt
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole


def test_archives_of_others_are_left_alone(folder: Path) -> None:
    import numpy as np

    Path("features").mkdir()
    np.savez("features/video-00.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="no data set in a known layout"):
        examine_raising("features", "--fix")
    assert [one["name"] for one in examine(".")[2]["proposals"]] == ["proposals/g/DAVIS"]
    assert Path("features/video-00.npz").is_file()


def examine_raising(*arguments: str) -> int:
    from vos_lightning.app.doctor import main

    return main(arguments)


def test_mistakes_are_one_line(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name = write_experiment("stored")
    for arguments, message in (
        (["dmn_aoa_nowhere"], "dmn_aoa_nowhere: there is no such folder, and no such experiment"),
        ([str(folder), "--data.init_args.loading.seed=1"], "unknown option --data.init_args.loading.seed=1"),
        ([name, "--trainer.max_steps=3"], "--trainer.max_steps: only the data of stored are read"),
        ([name, "--data.init_args.nonsense=1"], "nonsense"),
        (["nowhere.yaml"], "there is no experiment file nowhere.yaml"),
    ):
        assert main(["doctor", *arguments]) == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert message in lines[0]
    assert examine(name, "--data.init_args.proposals.init_args.generator=h")[0] == 1
