"""Prediction files of a test or prediction run."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from vos_lightning.io.files import list_everything, one_line
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.modules.base import VOSModule
from vos_lightning.predictions.renderings import Renderings
from vos_lightning.predictions.writer import PredictionFiles


class PredictionWriter(Callback):
    """Writes the predictions of ``test`` and ``predict``, see :class:`vos_lightning.predictions.writer.PredictionFiles`.

    The folder holds the files of one run and nothing else: the files of an earlier run are removed first. With several processes,
    each one writes its own videos and its own contact sheet (``contact_sheet_rank1.png``).

    Args:
        output_dir: folder of the files; ``<trainer.default_root_dir>/predictions/<test or predict>`` if None.
        overwrite: replace what an earlier run has written into ``output_dir``; the folder of a run is always replaced.
        resume: keep the videos that an interrupted ``predict`` has completed, and go on with the others; those that it has
            passed over are tried again.
        overlays: write a video with coloured objects for every video.
        index: write area, confidence and drift flags of every object in every frame.
        contact_sheet: write a picture with some frames of every video.
        all_frames: write a PNG for every frame instead of the required ones.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        overwrite: bool = False,
        resume: bool = False,
        overlays: bool = True,
        index: bool = True,
        contact_sheet: bool = True,
        all_frames: bool = False,
    ) -> None:
        super().__init__()
        self.output_dir = output_dir
        self.overwrite = overwrite
        self.resume = resume
        self.source: str | None = None
        """What decides the predictions beside the videos; a prediction resumes only one with the same."""
        self.missing: dict[str, str] = {}
        """Name and error of every video that the last prediction has passed over, of all processes; in the first process only."""
        self.overlays = overlays
        self.index = index
        self.contact_sheet = contact_sheet
        self.all_frames = all_frames
        self._files: PredictionFiles | None = None

    def _start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        assert isinstance(module, VOSModule)
        rank, alone = trainer.global_rank, trainer.world_size == 1
        if self.resume and stage != "predict":
            raise ValueError(f"--predictions.resume goes with predict, not with {stage}, whose score needs all videos")
        output = OutputFolder(
            Path(self.output_dir or Path(trainer.default_root_dir) / "predictions" / stage),
            stage,
            overwrite=self.overwrite or self.output_dir is None,
            how="--predictions.overwrite=true",
            part=rank,
            resume=self.resume,
            source=self.source,
            alone=True,
        )
        if not alone and trainer.is_global_zero:
            output.start()  # a process alone removes an earlier run when there is a first frame to put in its place
        # No process goes on before that.
        module.predicted = trainer.strategy.broadcast(frozenset(output.done))
        if module.predicted:
            rank_zero_info(f"{output.folder}: {len(module.predicted)} videos are done and are kept")
        sheet = "contact_sheet" if alone else f"contact_sheet_rank{rank}"
        there = list_everything(output.folder) if self.resume and output.folder.is_dir() else []
        earlier = [path for path in there if path.name.startswith((f"{sheet}.", f"{sheet}_start"))]
        sheet += f"_start{len(earlier) + 1}" if earlier else ""  # a sheet that is kept shows the videos of an earlier start
        renderings = Renderings(("overlay",) if self.overlays else ())
        self._files = PredictionFiles(output, renderings, self.index, self.contact_sheet, self.all_frames, f"{sheet}.png")
        module.frame_listeners.append(self._files.take)
        if stage == "predict":
            module.failure_listeners.append(self._pass_over)

    def _pass_over(self, name: str, error: ValueError | OSError) -> None:
        assert self._files is not None
        reason = one_line(error)
        self._files.pass_over(name, reason)
        sys.stderr.write(f"\n{name} is passed over: {reason}\n")

    def _finish(self, module: LightningModule, error: BaseException | None = None) -> None:
        files, self._files = self._files, None
        if files is None:
            return
        assert isinstance(module, VOSModule)
        module.frame_listeners.remove(files.take)
        module.failure_listeners.clear()
        module.predicted = frozenset()
        with files.output:
            files.finish(error)

    # Lightning hooks --------------------------------------------------------------------------------------------------

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start listening to predicted frames."""
        self._start(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start listening to predicted frames."""
        self._start(trainer, pl_module, "predict")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Finish the files and stop listening."""
        self._finish(pl_module)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the files, stop listening, and collect the videos that are missing."""
        output = None if self._files is None else self._files.output
        self._finish(pl_module)
        trainer.strategy.barrier()  # all records are complete
        if output is not None and trainer.is_global_zero:
            self.missing = output.failures()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Keep what was predicted so far, and stop listening."""
        self._finish(pl_module, exception)
