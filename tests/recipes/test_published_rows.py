"""Every row that the authors report for their own system is an experiment or an evaluation variant with that number."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.recipes.experiments import NAMES
from vos_lightning.experiments import experiments_folder, load_experiment

D16, D17, TEST_DEV = "DAVIS 2016 val", "DAVIS 2017 val", "DAVIS 2017 test-dev"
Y18, Y19 = "YouTube-VOS 2018 val", "YouTube-VOS 2019 val"

OWN_ROWS: dict[str, dict[tuple[int, str], int]] = {
    # Table 1: with and without static images; likewise 2, 3, 4. Table 5: baseline, five kernels, five top K, EM, SM + EM.
    "emvos": {(1, D16): 2, (2, D17): 2, (3, TEST_DEV): 2, (4, Y18): 2, (5, D17): 13},
    # Table 1: versions I to IV on three data sets. Tables 2 and 3: the final model.
    "pmvos": {(1, D16): 4, (1, D17): 4, (1, Y19): 4, (2, D16): 1, (2, D17): 1, (3, Y19): 1},
    # Table 2: MUNet and MUNet-v2 in protocol 1, MUNet in 2, 3-1 and 3-2. Table 3: with and without photographs. Table 4: a to g.
    "munet": {(2, D17): 5, (3, Y18): 2, (4, D17): 7},
    # Table 4: eight combinations. Table 5: three settings of three hyperparameters. Table 6: five window sizes, five widths.
    # Table 7: five epochs. Table 8: three similarities; all of them on both data sets.
    "pmnet": {
        (1, D17): 1, (1, TEST_DEV): 1, (2, Y18): 1, (3, Y19): 1, (4, D17): 8, (4, TEST_DEV): 8, (5, D17): 9, (5, TEST_DEV): 9,
        (6, D17): 10, (6, TEST_DEV): 10, (7, D17): 5, (7, TEST_DEV): 5, (8, D17): 3, (8, TEST_DEV): 3,
    },
    # Table 1: ResNet-50 with and without YouTube-VOS, ResNet-101, which alone has a test-dev score. Table 2: both backbones.
    # Table 3: F0, A1 to A6, B1 to B4, C1, C2, D1, D2. (Table 4 times the parts of F0: `benchmark`.)
    "dmn_aoa": {(1, D17): 3, (1, TEST_DEV): 1, (2, Y18): 2, (3, D17): 15},
}  # fmt: skip
"""Paper -> (table, data set) -> how many rows."""

CITED: dict[str, dict[str, set[float]]] = {
    # In EMVOS's Tables 1, 2, 4, MUNet's 2 and 3, PMNet's 1 to 3, DMN-AOA's 1 and 2. PMNet prints 81.7 where the others have 81.8.
    "stm": {D16: {86.5}, D17: {43.0, 71.6, 81.8}, TEST_DEV: {62.1, 72.2}, Y18: {68.2, 79.4}, Y19: {79.4}},
    # In EMVOS's Table 4 and PMNet's Tables 1 to 3.
    "stcn": {D17: {85.4}, TEST_DEV: {76.1}, Y18: {83.0}, Y19: {82.7}},
}
"""Baseline -> data set -> its J&F or G as the five papers cite it."""


def published(paper: str) -> list[dict[str, object]]:
    if not (experiments_folder() / paper).is_dir():
        pytest.skip(f"there are no experiments of {paper} yet")
    experiments = [load_experiment(name) for name in NAMES if name.startswith(f"{paper}_")]
    blocks = [dict(one.published) for one in experiments if one.published and one.path.parent.name == paper]
    if not blocks:
        pytest.skip(f"the experiments of {paper} have no published rows yet")
    return blocks


@pytest.mark.parametrize("paper", sorted(OWN_ROWS))
def test_every_own_row_is_an_experiment(paper: str) -> None:
    rows = Counter((block["table"], block["dataset"], block["row"]) for block in published(paper))
    assert not [row for row, count in rows.items() if count > 1], "a row is there twice"
    assert Counter((table, dataset) for table, dataset, _ in rows) == OWN_ROWS[paper]


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
    ):
        one, other = load_experiment(ours).published, load_experiment(theirs).published
        assert one["metrics"]["J&F"] == other["metrics"]["J&F"]
        assert one["dataset"] == other["dataset"]
