"""Every experiment of a paper does what the paper says, and publishes the numbers that it prints; a sabotaged one is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.facts import faithfulness
from tests.facts.facts import PAPERS, ROOT, differences, read_facts
from tests.networks import NETWORKS
from vos_lightning.app.experiments import experiments_folder


@pytest.mark.parametrize("paper", PAPERS)
def test_experiments_are_what_the_paper_says(paper: str) -> None:
    found = differences(read_facts(paper))
    assert not found, "\n".join(found)


def test_every_paper_has_facts() -> None:
    assert sorted(PAPERS) == sorted(NETWORKS)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_statement_is_about_an_experiment_and_guarded_by_a_test_that_exists(paper: str) -> None:
    facts = read_facts(paper)
    names = [name.removeprefix(f"{paper}_") for name in facts.experiments]
    for statement in facts.statements:
        assert any(statement.holds_for(name) for name in names), f"no experiment is one of {statement.of}: {statement.says}"
        if statement.guard:
            file, _, test = statement.guard.partition("::")
            assert f"def {test}(" in (ROOT / file).read_text(encoding="utf-8"), statement.guard


SABOTAGES = [
    # file, what is there, what is put there, the experiment that is named first
    ("dmn_aoa/_dmn_aoa.yaml", "eval_kept: all", "eval_kept: best", "dmn_aoa_f0: model.network.matching.assignment.eval_kept"),
    ("dmn_aoa/_dmn_aoa.yaml", "{backbone: 0.1}", "{backbone: 1.0}", "dmn_aoa_coco: model.optimisation.rate_factors.backbone"),
    ("dmn_aoa/_dmn_aoa.yaml", "weights: IMAGENET1K_V1", "weights: null", "dmn_aoa_coco: model.network.backbone.weights"),
    ("dmn_aoa/_davis17.yaml", "vertical_flip_probability: 0.0", "", "dmn_aoa_davis17_main: data.source.recipe.vertical_flip"),
    ("dmn_aoa/_coco.yaml", "vertical_flip_probability: 0.0", "", "dmn_aoa_coco: data.source.train[0].recipe.vertical_flip"),
    ("dmn_aoa/_coco.yaml", ", image_interpolation: bicubic", "", "dmn_aoa_coco: data.source.train[0].recipe.affine.image"),
    ("dmn_aoa/_proposals_untuned.yaml", "untuned/DAVIS", "torchvision/DAVIS", "dmn_aoa_d2_davis17_main: data.proposals.roots"),
    ("dmn_aoa/detector_youtube_vos18.yaml", "rate: 1.0e-6", "rate: 1.0e-4", "dmn_aoa_detector_youtube_vos18: model.learning"),
    ("dmn_aoa/tables.yaml", "J&F: 80.1, J: 77.5", "J&F: 50.0, J: 77.5", "dmn_aoa_d2: published metrics"),
    ("emvos/_emvos.yaml", "learning_rate: 1.0e-4", "learning_rate: 1.0e-3", "emvos_coco: model.optimisation.learning_rate"),
    ("emvos/_emvos.yaml", "weights: IMAGENET1K_V1", "weights: null", "emvos_coco: model.network.backbone.weights"),
    ("emvos/_emvos.yaml", "norm: frozen", "norm: batch", "emvos_coco: model.network.backbone.norm"),
    ("emvos/_emvos.yaml", "trainer:", "trainer:\n  gradient_clip_val: 1.0", "emvos_coco: trainer.gradient_clip_val"),
    ("emvos/coco.yaml", "keep_first: true", "keep_first: false", "emvos_coco: data.recipe.affine.keep_first"),
    ("emvos/davis17_main.yaml", "num_frames: 10", "num_frames: 10, crop: released", "emvos_davis17_main: data.recipe.crop"),
    ("emvos/davis17_main.yaml", "frames: 10", "frames: 10, late_objects: true", "emvos_davis17_main: data.recipe.late_objects"),
    ("emvos/tables.yaml", "J&F: 79.0, J: 76.9", "J&F: 50.0, J: 76.9", "emvos_davis17: published metrics"),
    ("emvos/tables.yaml", "[emvos_coco, emvos_davis17_main]", "[emvos_davis17_main]", "emvos_davis17: stages"),
    ("emvos/tables.yaml", "filter.std: 16.0", "filter.std: 8.0", "emvos_sm_kernel_16_32: model.network.reference_filter.std"),
    ("emvos/tables.yaml", "  sm_coco:", "  smm_coco:", "emvos_sm_coco: is no experiment"),
    ("emvos/tables.yaml", "  sm_coco:", "  new:\n    extends: [emvos/coco]\n  sm_coco:", "emvos_new: has no facts"),
    ("pmvos/_stage1.yaml", "factor: 0.975", "factor: 0.95", "pmvos_released_stage1: model.optimisation.schedule.factor"),
    ("pmvos/_clips.yaml", "frame_choice: inside", "frame_choice: repeat_last", "pmvos_released_stage1: data.recipe.frame_choice"),
    ("pmvos/stage1.yaml", "youtube_vos19", "youtube_vos18", "pmvos_released_stage1: data.train"),
    ("_shared/youtube_vos19.yaml", "YouTube-VOS/2019", "YouTube-VOS/2018", "pmvos_row_i_youtube_vos19: data.root"),
    ("munet/_munet.yaml", "weights: IMAGENET1K_V1", "weights: null", "munet_protocol1: model.network.stm.backbone.weights"),
    ("munet/_munet.yaml", "others: null", "others: clamped", "munet_static: model.network.stm.mask_encoder.others"),
    ("munet/_munet.yaml", "sign: -1", "sign: 1", "munet_protocol2: model.network.motion.sign"),
    ("munet/_munet.yaml", "temperature: 1.0", "temperature: 0.02", "munet_protocol2: model.network.motion.temperature"),
    ("munet/_munet.yaml", "out_of_frame: zero", "out_of_frame: mean", "munet_youtube_vos18: model.network.motion.out_of_frame"),
    ("munet/_munet.yaml", "uncertainty: maximum", "uncertainty: null", "munet_protocol1: model.network.motion.uncertainty"),
    ("munet/_munet.yaml", "fusion: attention", "fusion: addition", "munet_protocol1: model.network.fusion"),
    ("munet/_munet.yaml", "loss: bootstrapped+iou", "loss: cross_entropy", "munet_protocol1: model.loss"),
    ("munet/_munet.yaml", "hardest_fraction: 0.4", "hardest_fraction: 0.15", "munet_protocol1: model.hardest_fraction"),
    ("munet/_munet.yaml", "train_memory: reference", "train_memory: truth", "munet_protocol1: model.train_memory"),
    ("munet/_munet.yaml", "learning_rate: 2.0e-5", "learning_rate: 2.0e-4", "munet_static: model.optimisation.learning_rate"),
    ("munet/_munet.yaml", "weight_decay: 0.5", "weight_decay: 0.05", "munet_static: model.optimisation.weight_decay"),
    ("munet/_munet.yaml", "kind: exponential", "kind: constant", "munet_static: model.optimisation.schedule.kind"),
    ("munet/_best_match.yaml", "sign: 1", "sign: -1", "munet_protocol2_match: model.network.motion.sign"),
    ("munet/_best_match.yaml", "temperature: 0.02", "temperature: 0.05", "munet_static_match: model.network.motion.temperature"),
    ("munet/_clips.yaml", "crop_area: [0.3, 0.5]", "crop_area: [0.8, 1.0]", "munet_protocol1: data.recipe.crop_area"),
    ("munet/static.yaml", "1233000", "765000", "munet_static: trainer.max_steps"),
    ("munet/protocol2.yaml", "repeats: [1, 1]", "repeats: [5, 1]", "munet_protocol2: data.repeats"),
    ("munet/protocol2.yaml", "period: 105930", "period: 529650", "munet_ablation_f: model.optimisation.schedule.period"),
    ("munet/protocol2.yaml", "J&F: 81.1, J: 78.3", "J&F: 50.0, J: 78.3", "munet_protocol2: published metrics"),
    ("munet/tables.yaml", "MASK_RCNN_COCO_V1", "IMAGENET1K_V1", "munet_protocol1_v2: model.network.stm.backbone.weights"),
    ("munet/tables.yaml", "[munet_static, munet_protocol2]", "[munet_protocol2]", "munet_protocol3_2: stages"),
    ("munet/tables.yaml", "[munet_static_match, munet_p", "[munet_static, munet_p", "munet_protocol3_1_match: stages"),
    ("munet/tables.yaml", "motion: null, ", "fusion: attention, ", "munet_ablation_a: model.network.motion"),
    ("munet/tables.yaml", "loss: cross_entropy", "loss: bootstrapped+iou", "munet_ablation_a: model.loss"),
    ("munet/tables.yaml", "fusion: addition", "fusion: attention", "munet_ablation_f: model.network.fusion"),
    ("munet/tables.yaml", "frames: 6fps", "frames: all", "munet_youtube_vos18: data.frames"),
    ("munet/tables.yaml", "departs: 'the", "# departs: 'the", "munet_protocol1_match: published departs"),
    ("_shared/munet_clips.yaml", "frame_choice: inside", "frame_choice: shuffled", "munet_protocol1: data.recipe.frame_choice"),
    ("_shared/munet_static_clips.yaml", "crop_area: [0.4, 0.7]", "crop_area: [0.8, 1.0]", "munet_static: data.recipe.crop_area"),
    ("pmnet/tables.yaml", "adaptive.beta: 9.0", "adaptive.beta: 3.0", "pmnet_beta_9: model.network.adaptive.beta"),
    ("pmnet/tables.yaml", "J&F: 86.0, J: 82.7", "J&F: 50.0, J: 82.7", "pmnet_davis17: published metrics"),
    ("pmnet/_pmnet.yaml", "memory_stride: 5", "memory_stride: 5\n    truth: nearest", "pmnet_main: model.truth"),
    ("pmnet/_pmnet.yaml", "memory_stride: 5", "memory_stride: 5\n    alternation: joint", "pmnet_main: model.alternation"),
    ("pmnet/static.yaml", "others: null", "others: sum", "pmnet_static: model.network.stcn.mask_encoder.others"),
    ("pmnet/static.yaml", "source: none", "source: all", "pmnet_static: model.network.sampling.source"),
    ("pmnet/tables.yaml", "sampling.source: all,", "sampling.source: learned,", "pmnet_row_all: model.network.sampling.source"),
    ("pmnet/tables.yaml", "memory_stride: 3", "memory_stride: 5", "pmnet_row_baseline_testdev: model.memory_stride"),
    ("pmnet/_150_epochs.yaml", "max_steps: 141000", "max_steps: 150000", "pmnet_switch_100_main: trainer.max_steps"),
    ("stcn/_stcn.yaml", "top_k: 20", "top_k: 50", "stcn_main: model.network.top_k"),
    ("stcn/tables.yaml", "memory_stride: 3", "memory_stride: 5", "stcn_testdev: model.memory_stride"),
    ("_shared/stcn_main.yaml", "crop_area: [0.36, 1.0]", "crop_area: [0.9, 1.0]", "stcn_main: data.recipe.crop_area"),
    ("_shared/stcn_main.yaml", "repeats: [5, 1]", "repeats: [1, 1]", "stcn_main: data.repeats"),
    ("stm/_stm.yaml", "memory_stride: 5", "memory_stride: 1", "stm_davis16: model.memory_stride"),
    ("stm/static.yaml", "degrees: 20.0", "degrees: 90.0", "stm_static: data.recipe.frame_affine.degrees"),
    ("stm/tables.yaml", "J&F: 43.0", "J&F: 50.0", "stm_davis17_only: published metrics"),
]  # fmt: skip


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(experiments_folder(), tmp_path_factory.mktemp("sabotaged") / "experiments"))


@pytest.mark.parametrize(("file", "before", "after", "named"), SABOTAGES)
def test_a_sabotaged_file_is_named(
    file: str, before: str, after: str, named: str, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VOS_EXPERIMENTS", str(copied))
    facts = read_facts(next(paper for paper in PAPERS if named.startswith(f"{paper}_")))
    path = copied / file
    text = path.read_text(encoding="utf-8")
    assert before in text, "there is nothing to sabotage"
    path.write_text(text.replace(before, after, 1), encoding="utf-8")
    try:
        assert any(difference.startswith(named) for difference in differences(facts))
    finally:
        path.write_text(text, encoding="utf-8")


def test_the_page_is_up_to_date() -> None:
    assert faithfulness.PAGE.read_text(encoding="utf-8") == faithfulness.page(), "run `python -m tests.facts.faithfulness`"
