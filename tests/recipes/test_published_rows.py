"""Every row that the authors report for their own system is an experiment or an evaluation variant with that number."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

import pytest

from tests.recipes.experiments import NAMES
from vos_lightning.app.experiments import Experiment, experiments_folder, load_experiment, selection, training_identity
from vos_lightning.app.stages import plan

D16, D17, TEST_DEV = "DAVIS 2016 val", "DAVIS 2017 val", "DAVIS 2017 test-dev"
Y18, Y19 = "YouTube-VOS 2018 val", "YouTube-VOS 2019 val"

OWN_ROWS: dict[str, dict[tuple[int | str, str], int]] = {
    # Tables 1 to 4: with and without static images. Table 5: baseline, five kernels, five top K, EM, SM + EM; the kernels again
    # with the other unit.
    "emvos": {
        (1, D16): 2, (2, D17): 2, (3, TEST_DEV): 2, (4, Y18): 2, (5, D17): 13, ("5, standard deviation in pixels", D17): 5,
    },
    # Table 1: versions I to IV on three data sets. Tables 2 and 3: the final model. The logs beside the authors' code.
    "pmvos": {
        (1, D16): 4, (1, D17): 4, (1, Y19): 4, (2, D16): 1, (2, D17): 1, (3, Y19): 1,
        ("2, released code", D16): 1, ("2, released code", D17): 1,
    },
    # Table 2: MUNet and MUNet-v2 in protocol 1, MUNet in 2, 3-1 and 3-2. Table 3: with and without photographs. Table 4: a to g.
    "munet": {(2, D17): 5, (3, Y18): 2, (4, D17): 7},
    # Table 4: eight combinations. Table 5: three settings of three hyperparameters. Table 6: five window sizes, five widths; the
    # default setting stands in several columns of a table and is one row. Table 7: five epochs. Table 8: three similarities; all
    # of them on both data sets. Section 4.2: more points on test-dev.
    "pmnet": {
        (1, D17): 1, (1, TEST_DEV): 1, (2, Y18): 1, (3, Y19): 1, (4, D17): 8, (4, TEST_DEV): 8, (5, D17): 7, (5, TEST_DEV): 7,
        (6, D17): 9, (6, TEST_DEV): 9, (7, D17): 5, (7, TEST_DEV): 5, (8, D17): 3, (8, TEST_DEV): 3, ("4.2, text", TEST_DEV): 1,
    },
    # Table 1: ResNet-50 with and without YouTube-VOS, ResNet-101, which alone has a test-dev score. Table 2: both backbones.
    # Table 3: F0, A1 to A6, B1 to B4, C1, C2, D1, D2. (Table 4 times the parts of F0: `benchmark`.)
    "dmn_aoa": {(1, D17): 3, (1, TEST_DEV): 1, (2, Y18): 2, (3, D17): 15},
}  # fmt: skip
"""Paper -> (table, data set) -> how many rows."""
DEPARTING_ROWS: dict[str, dict[tuple[int | str, str], int]] = {
    # All rows as the authors' code computes them.
    "emvos": {
        ("1, released code", D16): 2, ("2, released code", D17): 2, ("3, released code", TEST_DEV): 2,
        ("4, released code", Y18): 2, ("5, released code", D17): 13,
    },
    # All rows with motion, by the best match.
    "munet": {("2, best match", D17): 5, ("3, best match", Y18): 2, ("4, best match", D17): 5},
}  # fmt: skip
"""The same of the rows that depart from their paper."""

CITED: dict[str, dict[str, set[float]]] = {
    # In EMVOS's Tables 1, 2, 4, MUNet's 2 and 3, PMNet's 1 to 3, DMN-AOA's 1 and 2. PMNet prints 81.7 where the others have 81.8.
    "stm": {D16: {86.5}, D17: {43.0, 71.6, 81.8}, TEST_DEV: {62.1, 72.2}, Y18: {68.2, 79.4}, Y19: {79.4}},
    # In EMVOS's Table 4 and PMNet's Tables 1 to 3.
    "stcn": {D17: {85.4}, TEST_DEV: {76.1}, Y18: {83.0}, Y19: {82.7}},
}
"""Baseline -> data set -> its J&F or G as the five papers cite it."""


@functools.cache
def every_experiment() -> list[Experiment]:
    return [load_experiment(name) for name in NAMES]


def published(paper: str) -> list[dict[str, object]]:
    if not (experiments_folder() / paper).is_dir():
        pytest.skip(f"there are no experiments of {paper} yet")
    blocks = [dict(one.published) for one in every_experiment() if one.published and one.path.parent.name == paper]
    if not blocks:
        pytest.skip(f"the experiments of {paper} have no published rows yet")
    return blocks


@pytest.mark.parametrize("paper", sorted(OWN_ROWS))
def test_every_own_row_is_an_experiment(paper: str) -> None:
    for departs, expected in ((False, OWN_ROWS[paper]), (True, DEPARTING_ROWS.get(paper, {}))):
        own = [block for block in published(paper) if bool(block.get("departs")) == departs]
        rows = Counter((block["table"], block["dataset"], block["row"]) for block in own)
        assert not [row for row, count in rows.items() if count > 1], "a row is there twice"
        assert Counter((table, dataset) for table, dataset, _ in rows) == expected


@pytest.mark.parametrize("paper", sorted(CITED))
def test_every_cited_score_is_an_experiment(paper: str) -> None:
    found: dict[str, set[float]] = {}
    for block in published(paper):
        metrics = block["metrics"]
        assert isinstance(metrics, dict)
        found.setdefault(str(block["dataset"]), set()).update(metrics.get(name, 0.0) for name in ("J&F", "G"))
    missing = {dataset: scores - found.get(dataset, set()) for dataset, scores in CITED[paper].items()}
    assert not any(missing.values()), missing


def test_rows_agree_where_papers_repeat_themselves() -> None:
    """The same system on the same data has one score in all tables of its paper."""
    for ours, theirs in (
        ("emvos_sm_em", "emvos_davis17"),
        ("pmvos_row_iv", "pmvos_davis17"),
        ("pmvos_row_iv_davis16", "pmvos_davis16"),
        ("munet_ablation_e", "munet_protocol2"),
        ("munet_ablation_g", "munet_protocol2"),
        ("munet_ablation_e_match", "munet_protocol2_match"),
        ("munet_ablation_g_match", "munet_protocol2_match"),
        ("dmn_aoa_f0", "dmn_aoa_davis17"),
    ):
        one, other = load_experiment(ours).published, load_experiment(theirs).published
        assert one["metrics"]["J&F"] == other["metrics"]["J&F"]
        assert one["dataset"] == other["dataset"]
        # And it is trained once.
        assert load_experiment(ours).checkpoint_of == (load_experiment(theirs).checkpoint_of or theirs)


def test_nothing_is_trained_twice(tmp_path: Path) -> None:
    """No two experiments that somebody trains compute the same. What is no row and only a part of others is not trained alone."""
    trained = [one for one in every_experiment() if not (one.checkpoint_of or one.fine_tunes)]
    parts = {stage for one in trained for stage in one.stages}
    by_identity: dict[str, list[str]] = {}
    for one in trained:
        identity = plan(one, tmp_path)[-1].identity if one.stages else training_identity(one)
        if one.published or one.name not in parts:
            by_identity.setdefault(identity, []).append(one.name)
    assert not [names for names in by_identity.values() if len(names) > 1]
    assert len(by_identity) > 50


def test_shared_stages_are_trained_once(tmp_path: Path) -> None:
    for stage, users in {
        "pmnet_static": {
            "pmnet_davis17",
            "pmnet_row_adapt",
            "pmnet_row_all_adapt",
            "pmnet_reading_coarse_quarter",
            *(f"pmnet_switch_{epoch}" for epoch in (0, 50, 100, 120, 150)),
        },
        "dmn_aoa_coco": {"dmn_aoa_davis17", "dmn_aoa_davis17_youtube_vos18", "dmn_aoa_youtube_vos18"},
        "emvos_coco": {"emvos_davis17", "emvos_youtube_vos18"},
        "emvos_released_coco": {"emvos_released_davis17", "emvos_released_youtube_vos18"},
        "munet_static": {"munet_protocol3_1", "munet_protocol3_2"},
        "munet_static_match": {"munet_protocol3_1_match", "munet_protocol3_2_match"},
    }.items():
        assert {one.name for one in every_experiment() if stage in one.stages} == users
        runs = {plan(load_experiment(name), tmp_path)[0].run.directory for name in users}
        assert runs == {tmp_path / stage}


def test_rows_are_scored_with_their_last_weights() -> None:
    """No paper says that it chose among checkpoints; choosing on the reported videos would flatter."""
    for experiment in every_experiment():
        assert experiment.hand_over == "last"
        if experiment.published and "departs" not in experiment.published:
            assert selection(experiment) == "last", experiment.name
    for name in ("emvos_released_davis17", "emvos_released_davis16_only", "emvos_released_sm_top_64_16"):
        assert selection(load_experiment(name)) == "best"
    assert selection(load_experiment("emvos_released_youtube_vos18")) == "last"  # which is not validated


SPEEDS: dict[str, dict[str, set[float]]] = {
    # "On all datasets, the inference speed is calculated on the DAVIS 2016 validation set" (section 4.2); Table 4 has its own.
    "emvos": {D16: {49.8}, Y18: {28.6}},
    # Caption of Table 2; the log of the authors' code: 1999 frames of DAVIS 2017 in 48.448 s.
    "pmvos": {D16: {54.0, 54.04}, D17: {41.26}},
    # Table 2.
    "munet": {D17: {6.42}},
    # One column for both sets in Tables 1, 4, 5, 6; its base, STCN, has that speed on DAVIS 2017 val.
    "pmnet": {D17: {8.8, 9.6, 12.2, 12.8, 14.0, 14.1, 14.3, 14.5, 14.7, 14.9, 15.2, 15.4, 20.2}},
    # Caption of Table 1; 0.11, 0.13, 0.14, 0.15, 0.16 and 0.19 seconds a frame.
    "dmn_aoa": {D17: {9.1, 7.7, 7.1, 6.7, 6.3, 5.3}},
    # 0.16 seconds a frame on DAVIS 2016, which others cite beside other sets.
    "stm": {D16: {6.25}},
    "stcn": {D17: {20.2}},
}
"""Paper -> data set that a speed was measured on -> frames per second."""


@pytest.mark.parametrize("paper", sorted(SPEEDS))
def test_speeds_stand_where_they_were_measured(paper: str) -> None:
    found: dict[str, set[float]] = {}
    for block in published(paper):
        if "fps" in block:
            found.setdefault(str(block["dataset"]), set()).add(float(str(block["fps"])))
        assert "fps" in block or "hardware" not in block
    assert found == SPEEDS[paper]
