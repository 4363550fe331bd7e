"""Cases: a command on a family of inputs, and what is broken in it. A seed and a number decide a case."""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.fuzz.mutations import ARGUMENTS, MUTATIONS, change_arguments, draw_mutation

EVALUATE = "--truth truth --predictions predictions"
SEGMENT = "--checkpoint last.ckpt --output out --device cpu"
RUN = "p_one --run-dir out"
TRAINER = (
    "--trainer.devices=0", "--trainer.devices=-5", "--trainer.devices=x", "--trainer.devices=[9]", "--trainer.devices=null",
    "--trainer.accelerator=tpu", "--trainer.accelerator=x", "--trainer.accelerator=gpu", "--trainer.precision=99",
    "--trainer.precision=16-true", "--trainer.max_steps=-1", "--trainer.max_steps=x", "--trainer.max_steps=0",
    "--trainer.num_nodes=0", "--trainer.strategy=x", "--trainer.strategy=ddp_spawn_x", "--trainer.val_check_interval=-1",
    "--trainer.val_check_interval=1.5", "--trainer.val_check_interval=7", "--trainer.gradient_clip_val=x",
    "--trainer.gradient_clip_algorithm=x", "--trainer.accumulate_grad_batches=0", "--trainer.limit_val_batches=-1",
    "--trainer.limit_train_batches=-0.5", "--trainer.limit_test_batches=2.5", "--trainer.log_every_n_steps=-1",
    "--trainer.callbacks=5", "--trainer.callbacks=[{}]", "--trainer.logger=x", "--trainer.plugins=x", "--trainer.plugins=[5]",
    "--trainer.profiler=x", "--trainer.max_time=x", "--trainer.max_time=5", "--trainer.max_epochs=-7", "--trainer.min_steps=-3",
    "--trainer.overfit_batches=-1", "--trainer.fast_dev_run=-2", "--trainer.benchmark=x", "--trainer.barebones=true",
    "--trainer.sync_batchnorm=x", "--trainer.num_sanity_val_steps=-4", "--trainer.detect_anomaly=x", "--trainer=5",
    "--trainer.default_root_dir=", "--trainer.enable_checkpointing=false", "--trainer.inference_mode=x", "--seed_everything=-1",
    "--seed_everything=x", "--seed_everything=99999999999999999999", "--model.init_args.optimisation.learning_rate=-1",
    "--model.init_args.optimisation.learning_rate=x", "--model.init_args=5", "--model.class_path=x.Y", "--model.class_path=5",
    "--model.class_path=torch.nn.Linear", "--data.class_path=x", "--data.init_args.loading.batch_size=0",
    "--data.init_args.loading.batch_size=x", "--data.init_args.recipe.num_frames=0", "--data.init_args.recipe.num_frames=99",
    "--data.init_args.recipe.crop=[0,0]", "--data.init_args.loading.seed=-1", "--data.init_args.root=nowhere",
    "--initial_weights=nowhere", "--initial_weights=.", "--last_checkpoint.every_n_train_steps=-1",
    "--best_checkpoint.save_top_k=-5", "--best_checkpoint.mode=x", "--best_checkpoint.monitor=x", "--wandb.mode=x",
    "--pictures.videos=-1", "--scale_batch=x", "--predictions.overlays=x", "--a.b.c=1", "--trainer.max_steps.a=1",
    "--data.init_args.loading.num_workers=-1", "---", "--=1",
)  # fmt: skip
"""Options of experiments that are wrong, or that a trainer refuses."""

RUNS = (f"train {RUN}", *(f"{command} {RUN} --checkpoint last.ckpt" for command in ("test", "predict", "validate")))
DOCTOR = ("doctor data", "doctor data --json --deep", "doctor data --fix", "doctor data --all")
OWN_INPUTS = [f"{video} --mask {masks}" for video in ("frames", "video.mp4") for masks in ("mask.png", "masks")]

COMMANDS: dict[str, tuple[Sequence[str], float]] = {
    "experiments": (
        (
            *("list", "list p", "list --all", "list --plain", "list p --all"),
            *("show p_one", "show p_staged", "show p_beta", "show p_beta_y", "show experiments/p/one.yaml", "show p_fine"),
            *("results --runs runs --output out",) * 4,
        ),
        30,
    ),
    "experiments-built": (
        (
            *("show p_one --options", "show p_beta_y --options", "train p_one --run-dir out", "train p_other --run-dir out"),
            *("train p_staged --run-dir runs/p_staged", "train p_fine --run-dir out --checkpoint nowhere"),
            *("test p_staged --run-dir runs/p_staged", "validate p_other --run-dir runs/new", "test p_other --run-dir runs/new"),
            *("test p_one --run-dir runs/p_one", "train p_one --run-dir runs/p_one", "predict p_one --run-dir runs/p_one"),
            "benchmark p_one --size 32 32 --objects 1 --frames 1 --warmup 0 --rounds 1 --device cpu --json out.json",
        ),
        5,
    ),
    "evaluation": (
        (
            *(f"evaluate {EVALUATE} --protocol {protocol} --workers 1 --output out" for protocol in ("davis16", "davis17")),
            *(f"evaluate {EVALUATE} --protocol youtube_vos18 --meta meta.json --train-meta train.json --output out",) * 2,
            f"evaluate {EVALUATE} --protocol davis17 --videos videos.txt --workers 1",
            "curves --truth truth --predictions A=predictions B=predictions --output out",
            "curves --truth truth --predictions A=predictions --videos v1 --protocol davis16 --output out",
        ),
        17,
    ),
    "davis": (DOCTOR, 5),
    "davis-run": (RUNS, 2),
    "youtube": (
        (*DOCTOR, "submit --server youtube-vos18 --predictions data/valid/Annotations --data data --output out.zip"),
        6,
    ),
    "youtube-run": ([line for line in RUNS if not line.startswith("test")], 2.5),
    "coco-run": ((f"train {RUN}",), 3),
    "folders": ((*DOCTOR, "doctor own"), 6),
    "folders-run": (
        (*RUNS, f"predict {RUN} --checkpoint last.ckpt --data.init_args.loading.predict_root=own/valid"),
        2,
    ),
    "stills": (
        (
            "doctor data",
            "precompute-proposals --images data/images --stills --output out",
            "precompute-proposals --images data --output out --weights last.ckpt --device x",
        ),
        4,
    ),
    "stills-run": ((f"train {RUN}",), 1),
    "submission": (
        (
            "submit --server mose --predictions predictions --data data --output out.zip",
            "submit --server mose --predictions predictions --output out.zip",
        ),
        6,
    ),
    "own": (
        (
            *(f"segment {SEGMENT} {inputs}" for inputs in OWN_INPUTS),
            "segment frames --checkpoint real.ckpt --device cpu --mask mask.png --proposals proposals.npz --output out",
            f"segment {SEGMENT} {OWN_INPUTS[-1]} --first-number 0 --short-side 24 --memory-frames 1 --precision bf16",
            "visualize --checkpoint last.ckpt --video frames --masks mask.png --frame 1 --output out",
        ),
        9,
    ),
    "released": (
        [f"import-checkpoint weights.pth --paper {paper} --output out.ckpt" for paper in ("stm", "stcn", "emvos", "pmvos")],
        2,
    ),
    "trainer": (
        (
            *(f"train {RUN}",) * 2,
            f"test {RUN} --checkpoint runs/p_one/checkpoints/last.ckpt",
            "show p_one --options",
        ),
        3,
    ),
}
"""Kind of case -> command lines, and how often the kind is drawn. The name of a family is the first part of that of a kind."""
FAMILY_OF = {"trainer": "experiments"}


@dataclass
class Case:
    """A command on broken inputs."""

    seed: int
    number: int
    kind: str
    argv: list[str]
    changes: list[tuple[str, str]] = field(default_factory=list)
    """Name of each mutation and the file that it breaks; the file is empty for a mutation of the arguments."""

    @property
    def family(self) -> str:
        """Folder of the corpus."""
        return FAMILY_OF.get(self.kind, self.kind.partition("-")[0])

    @property
    def covers(self) -> set[str]:
        """What the case stands for in a selection: its command on this kind of input, and its mutations."""
        return {f"{self.kind} {self.argv[0]}", *(name for name, _ in self.changes)}

    def build(self, corpus: Path, folder: Path) -> None:
        """Copy the inputs to a folder, whose name must be ``case``, and break them."""
        shutil.copytree(corpus / self.family, folder)
        for index, (name, file) in enumerate(self.changes):
            path = folder / file
            if file and (path.exists() or path.is_symlink()):
                rng = random.Random(f"{self.seed}/{self.number}/{index}")
                try:
                    MUTATIONS[name](rng, path)
                except Exception:
                    continue  # an earlier mutation has left nothing that this one could change


def draw_case(seed: int, number: int, files: Mapping[str, Sequence[str]]) -> Case:
    """The case with a number.

    Args:
        seed: seed of all cases.
        number: number of the case.
        files: family -> files and folders of the corpus.
    """
    rng = random.Random(f"{seed}/{number}")
    kind = rng.choices(list(COMMANDS), [weight for _, weight in COMMANDS.values()])[0]
    case = Case(seed, number, kind, rng.choice(COMMANDS[kind][0]).split())
    known = list(files[case.family])
    if kind == "trainer":
        case.argv += rng.sample(TRAINER, rng.choice([1, 1, 1, 2]))
        case.changes.append(("option", ""))
        return case
    # Documents and archives hold more that can be wrong than one of many pictures does.
    weights = [1.0 if Path(file).suffix in (".png", ".jpg", "") else 8.0 for file in known]
    for _ in range(rng.choices([0, 1, 2, 3], [2, 60, 28, 10])[0]):
        if rng.random() < 0.2:
            how = rng.choice(ARGUMENTS)
            case.argv = change_arguments(rng, case.argv, how, known)
            case.changes.append((f"arguments-{how}", ""))
        else:
            file = rng.choices(known, weights)[0]
            case.changes.append((draw_mutation(rng, file), file))
    return case


def choose_cases(seed: int, count: int, files: Mapping[str, Sequence[str]], among: int = 10_000) -> list[Case]:
    """A fixed subset in which every command and every mutation occurs; the rest are the first cases of the quick commands."""
    drawn = [draw_case(seed, number, files) for number in range(among)]
    chosen: dict[int, Case] = {}
    covered: set[str] = set()
    for case in drawn:
        if case.covers - covered:
            chosen[case.number] = case
            covered |= case.covers
    for case in drawn:
        if len(chosen) >= count:
            break
        if not case.kind.endswith(("-run", "-built")) and case.kind not in ("trainer", "own", "released"):
            chosen.setdefault(case.number, case)
    return [chosen[number] for number in sorted(chosen)][:count]
