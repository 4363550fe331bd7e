"""The weights that come with the library: what their file says, and that they follow an object."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vos_lightning import load_engine
from vos_lightning.app.experiments import load_experiment
from vos_lightning.checkpoints.portable import LITE_FILE, describe_lite, read_card


def test_the_file_is_small_and_says_what_it_is() -> None:
    assert LITE_FILE.stat().st_size <= 8e6
    card = read_card(LITE_FILE)
    assert card["model"]["class_path"] == "vos_lightning.modules.stcn.STCNModule"
    assert card["step"] == card["training"]["steps"] == 600
    assert {"BSDS500", "DAVIS 2016"} <= set(card["licences"])
    summary, rows = (card["scores"]["test"][key] for key in ("summary", "rows"))
    assert [row["video"] for row in rows] == ["car-shadow", "dance-twirl", "scooter-black"]
    assert summary["J&F"] == pytest.approx(np.mean([(row["J"] + row["F"]) / 2 for row in rows]))
    assert summary["J&F"] > 0.7
    assert describe_lite().startswith("weights: lite (STCN, ")


def test_its_experiment_is_still_the_one_that_trained_it() -> None:
    """Else it could be neither scored by the experiment nor trained again by it."""
    training = read_card(LITE_FILE)["training"]
    assert training["fingerprint"] == load_experiment(training["experiment"]).fingerprint
    (start,) = training["starts"]
    assert start["departures"] == []
    assert start["commit"]["changed"] is False


def test_it_follows_a_cat_over_a_portrait() -> None:
    """The face of one photograph moves and grows over another one; the true mask is known in every frame."""
    data = pytest.importorskip("skimage.data")
    background, cat = (
        torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255 for image in (data.astronaut(), data.chelsea())
    )
    background, face = background[:, 40:360, 0:480], cat[:, 30:210, 130:330]
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 180), torch.linspace(-1, 1, 200), indexing="ij")
    oval = (rows.square() + columns.square() < 1).float()
    frames, masks = [], []
    for t in range(7):
        size = (90 + 4 * t, 100 + 4 * t)
        own, inside = (
            torch.nn.functional.interpolate(x[None], size, mode="bilinear", antialias=True)[0] for x in (face, oval[None])
        )
        frame, mask = background.clone(), torch.zeros(background.shape[1:])
        place = (slice(40 + 10 * t, 40 + 10 * t + size[0]), slice(60 + 25 * t, 60 + 25 * t + size[1]))
        frame[:, *place] = inside * own + (1 - inside) * frame[:, *place]
        mask[place] = inside[0]
        frames.append(frame)
        masks.append(mask > 0.5)
    engine = load_engine("lite", device="cpu", short_side=320)
    engine.step(frames[0], masks[0].to(torch.uint8))
    for frame, mask in zip(frames[1:], masks[1:], strict=True):
        found = engine.step(frame).label_map == 1
        assert float((found & mask).sum() / (found | mask).sum()) > 0.85
    assert float((masks[0] & masks[-1]).sum()) == 0, "the object has left its first place"
