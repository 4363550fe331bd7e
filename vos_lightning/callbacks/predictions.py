"""Prediction files of a test or prediction run."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from vos_lightning.io.outputs import OutputFolder
from vos_lightning.modules.base import VOSModule
from vos_lightning.predictions.writer import PredictionFiles


class PredictionWriter(Callback):
    """Writes the predictions of ``test`` and ``predict``, see :class:`vos_lightning.predictions.writer.PredictionFiles`.

    The folder holds the files of one run and nothing else: the files of an earlier run are removed first. With several processes,
    each one writes its own videos and its own contact sheet (``contact_sheet_rank1.png``).

    Args:
        output_dir: folder of the files; ``<trainer.default_root_dir>/predictions/<test or predict>`` if None.
        overwrite: replace what an earlier run has written into ``output_dir``; the folder of a run is always replaced.
        overlays: write a video with coloured objects for every video.
        index: write area, confidence and drift flags of every object in every frame.
        contact_sheet: write a picture with some frames of every video.
        all_frames: write a PNG for every frame instead of the required ones.
    """

    def __init__(
        self,
        output_dir: str | None = None,
        overwrite: bool = False,
        overlays: bool = True,
        index: bool = True,
        contact_sheet: bool = True,
        all_frames: bool = False,
    ) -> None:
        super().__init__()
        self.output_dir = output_dir
        self.overwrite = overwrite
        self.overlays = overlays
        self.index = index
        self.contact_sheet = contact_sheet
        self.all_frames = all_frames
        self._files: PredictionFiles | None = None

    def _start(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        assert isinstance(module, VOSModule)
        rank, alone = trainer.global_rank, trainer.world_size == 1
        output = OutputFolder(
            Path(self.output_dir or Path(trainer.default_root_dir) / "predictions" / stage),
            stage,
            overwrite=self.overwrite or self.output_dir is None,
            how="--predictions.overwrite=true",
            part=rank,
        )
        if not alone:
            # Otherwise they are removed when there is a first frame to put in their place.
            if trainer.is_global_zero:
                output.start()
            trainer.strategy.barrier()  # no process writes before the files of an earlier run are removed
        sheet = "contact_sheet.png" if alone else f"contact_sheet_rank{rank}.png"
        self._files = PredictionFiles(output, self.overlays, self.index, self.contact_sheet, self.all_frames, sheet)
        module.frame_listeners.append(self._files.take)

    def _finish(self, module: LightningModule, error: BaseException | None = None) -> None:
        files, self._files = self._files, None
        if files is None:
            return
        assert isinstance(module, VOSModule)
        module.frame_listeners.remove(files.take)
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

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Finish the files and stop listening."""
        self._finish(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Keep what was predicted so far, and stop listening."""
        self._finish(pl_module, exception)
