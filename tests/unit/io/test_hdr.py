"""Video of a high dynamic range comes in the colours of an ordinary one."""

from __future__ import annotations

import math
from pathlib import Path

import av
import numpy as np
import pytest

from vos_lightning.io.hdr import KNEE, PEAK, WHITE, darker, light_of_pq, scene_of_hlg, to_ordinary
from vos_lightning.io.video_files import VideoFile, picture_of
from vos_lightning.io.videos import open_frames

PQ, HLG = 16, 18
BT2020, LIMITED, UNSPECIFIED = 9, 1, 2


def pq_of(light: float) -> float:
    """Code value of light in cd/m2: the inverse curve of the standard."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875
    power = (light / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg_of(scene: float) -> float:
    return math.sqrt(3 * scene) if scene <= 1 / 12 else 0.17883277 * math.log(12 * scene - 0.28466892) + 0.55991073


def expected(light: list[float]) -> list[int]:
    """8-bit codes of light in cd/m2 of BT.2020, pixel by pixel and without tables."""
    rows = [[1.660491, -0.587641, -0.07285], [-0.12455, 1.1329, -0.008349], [-0.018151, -0.100579, 1.11873]]
    relative = [max(sum(w * x for w, x in zip(row, light, strict=True)) / WHITE, 0.0) for row in rows]
    top = max(relative)
    scale = darker(np.array([min(top, PEAK / WHITE)]))[0] / top if top > 0 else 0.0
    return [round(255 * min(x * scale, 1.0) ** (1 / 2.4)) for x in relative]


def codes(values: list[float]) -> np.ndarray:
    return (np.array(values) * 65535).round().astype(np.uint16).reshape(1, 1, 3)


@pytest.mark.parametrize("light", [0.01, 1.0, 58.0, 100.0, 203.0, 1000.0, 4000.0, 10000.0])
def test_pq_is_the_curve_of_the_standard(light: float) -> None:
    assert light_of_pq(np.array(pq_of(light))) == pytest.approx(light, rel=1e-6)


@pytest.mark.parametrize(("code", "scene"), [(0.0, 0.0), (0.5, 1 / 12), (0.75, 0.26496256), (1.0, 1.0)])
def test_hlg_is_the_curve_of_the_standard(code: float, scene: float) -> None:
    """0.75 is the code of a white surface (BT.2408)."""
    assert scene_of_hlg(np.array(code)) == pytest.approx(scene, abs=1e-6)
    assert hlg_of(scene) == pytest.approx(code, abs=1e-6)


def test_the_curve_that_makes_darker() -> None:
    x = np.linspace(0, PEAK / WHITE, 1000)
    y = darker(x)
    assert np.array_equal(y[x <= KNEE], x[x <= KNEE])
    assert (np.diff(y) > 0).all()
    assert np.diff(y, 2).max() < 1e-6, "no kink upwards"
    assert y[-1] == pytest.approx(1.0)
    assert darker(np.array(100.0)) == 1.0


@pytest.mark.parametrize(
    "light",
    [
        [0, 0, 0],
        [0.05, 0.05, 0.05],
        [10, 10, 10],
        [50, 30, 20],
        [203, 203, 203],
        [900, 500, 20],
        [1000, 1000, 1000],
        [4000, 100, 1],
    ],
)
def test_pq_against_the_formula(light: list[float]) -> None:
    found = to_ordinary(codes([pq_of(x) for x in light]), "PQ")[0, 0]
    assert np.abs(found.astype(int) - expected(light)).max() <= 1


@pytest.mark.parametrize("scene", [[0.0, 0.0, 0.0], [0.01, 0.01, 0.01], [0.265, 0.265, 0.265], [0.9, 0.3, 0.02], [1, 1, 1]])
def test_hlg_against_the_formula(scene: list[float]) -> None:
    luminance = 0.2627 * scene[0] + 0.678 * scene[1] + 0.0593 * scene[2]
    light = [PEAK * luminance**0.2 * x if luminance else 0.0 for x in scene]
    found = to_ordinary(codes([hlg_of(x) for x in scene]), "HLG")[0, 0]
    assert np.abs(found.astype(int) - expected(light)).max() <= 1


def test_white_is_the_same_by_both_curves_and_strips_do_not_show() -> None:
    white = [to_ordinary(codes([code] * 3), curve)[0, 0] for code, curve in ((pq_of(203), "PQ"), (0.75, "HLG"))]
    assert np.abs(np.subtract(*white).astype(np.int8)).max() <= 1
    assert white[0].tolist() == [white[0][0]] * 3
    tall = np.random.default_rng(0).integers(0, 65536, (300, 4, 3)).astype(np.uint16)
    assert np.array_equal(to_ordinary(tall, "PQ")[127:130], to_ordinary(tall[127:130], "PQ"))


def frame_of(red: float, green: float, blue: float, curve: int, space: int = BT2020) -> av.VideoFrame:
    """A plain frame as cameras store it: 10 bits, 4:2:0, limited range, matrix of BT.2020."""
    luma = 0.2627 * red + 0.678 * green + 0.0593 * blue
    values = (64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746)
    frame = av.VideoFrame(64, 48, "yuv420p10le")
    for plane, value in zip(frame.planes, values, strict=True):
        plane.update(np.full(plane.buffer_size // 2, round(value), np.uint16).tobytes())
    frame.color_trc, frame.colorspace, frame.color_range = curve, space, LIMITED
    return frame


@pytest.mark.parametrize("space", [BT2020, UNSPECIFIED])
@pytest.mark.parametrize("curve", [PQ, HLG])
def test_frames_as_cameras_store_them(curve: int, space: int) -> None:
    stored = [0.6, 0.4, 0.3]
    picture = picture_of(frame_of(*stored, curve, space), "film.mp4")
    assert picture.shape == (3, 48, 64)
    wanted = to_ordinary(codes(stored), {PQ: "PQ", HLG: "HLG"}[curve])[0, 0].astype(int)
    assert np.abs(np.asarray(picture[:, 20, 20]).astype(int) - wanted).max() <= 3
    ordinary = picture_of(frame_of(*stored, 1), "film.mp4")
    assert np.asarray(ordinary[:, 20, 20]).tolist() == pytest.approx([153, 102, 76], abs=2)


def test_a_whole_file(tmp_path: Path) -> None:
    with av.open(tmp_path / "hlg.mkv", "w") as container:
        stream = container.add_stream("libx265", rate=25, options={"x265-params": "lossless=1:log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.colorspace, context.color_range = HLG, BT2020, LIMITED
        for index in range(3):
            frame = frame_of(0.75, 0.75, 0.75, HLG)
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames = open_frames(tmp_path / "hlg.mkv")
    assert isinstance(frames, VideoFile)
    assert [note for note in frames.notes() if "high dynamic range (HLG)" in note]
    white = to_ordinary(codes([0.75] * 3), "HLG")[0, 0, 0]
    for picture in frames:
        assert np.abs(np.asarray(picture).astype(int) - int(white)).max() <= 1
