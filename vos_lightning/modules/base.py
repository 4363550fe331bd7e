"""The LightningModule that all systems share: steps, engine, metric, optimiser and logging. It has no code of a single paper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from vos_lightning.losses.segmentation import cross_entropy, foreground_iou, trainable_labels
from vos_lightning.metrics.protocols import summarize
from vos_lightning.metrics.scores import ObjectScores
from vos_lightning.metrics.video_metric import VideoMetric
from vos_lightning.modules.evaluation import Evaluation
from vos_lightning.modules.optimisation import Optimisation, trainable
from vos_lightning.modules.processes import StepMeans
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.step import Propagation, StepOutput, introductions, unroll
from vos_lightning.proposals.store import precompute_command
from vos_lightning.structures import ClipBatch, FramePrediction, UnusableVideo, VideoSample

FrameListener = Callable[[VideoSample, FramePrediction], None]
FailureListener = Callable[[str, ValueError | OSError], None]


class VOSModule(LightningModule):
    """Trains a network by unrolling it over clips and evaluates it by streaming it over videos.

    Subclasses pass a network and two propagations, and may override :meth:`clip_loss`.

    Args:
        network: the system.
        train_propagation: propagation of ``training_step``.
        eval_propagation: propagation of validation, test, prediction, and of :meth:`engine`.
        optimisation: optimiser, rates and schedule.
        evaluation: size and scoring of validation and test.
        late_objects: give objects that first appear after frame 0 of a training clip.
        channels_last: keep convolution weights in channels-last memory order (faster on CPUs and tensor cores).
    """

    network: VOSNetwork[Any, Any, Any]
    new_parts: tuple[str, ...] = ()
    """Prefixes of the parameters that this system adds to another one; training may start from a checkpoint of that system."""
    base_part: str = ""
    """Prefix of the parameters of that other system inside this one."""
    training_arguments: ClassVar[frozenset[str]] = frozenset(
        ("train_aggregation", "optimisation", "evaluation.protocol", "late_objects", "channels_last")
    )
    """Arguments of the constructor, dotted inside groups, that do not change predictions, see :class:`VOSNetwork`."""

    def __init__(
        self,
        network: VOSNetwork[Any, Any, Any],
        train_propagation: Propagation,
        eval_propagation: Propagation,
        *,
        optimisation: Optimisation,
        evaluation: Evaluation,
        late_objects: bool,
        channels_last: bool,
    ) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last) if channels_last else network
        self.train_propagation = train_propagation
        self.eval_propagation = eval_propagation
        self.optimisation = optimisation
        self.evaluation = evaluation
        self.late_objects = late_objects
        self.metrics = nn.ModuleDict({stage: VideoMetric(evaluation.protocol) for stage in ("val", "test")})
        self.frame_listeners: list[FrameListener] = []
        """Functions that are called with every predicted frame of validation, test and prediction; callbacks register here."""
        self.failure_listeners: list[FailureListener] = []
        """Functions that are called with the name of a video that prediction passes over, and with its error."""
        self.predicted: frozenset[str] = frozenset()
        """Names of videos that prediction leaves out, as they are done."""
        self.scored_rows: list[ObjectScores] = []
        """Rows of the last validation or test, of all processes."""
        self.step_means = StepMeans()

    def setup(self, stage: str) -> None:  # noqa: ARG002
        """Compare the network's needs with the data before anything is computed.

        Raises:
            ValueError: the network needs proposals and the data have none.
        """
        data = getattr(self.trainer, "datamodule", None)
        has_proposals: bool | None = getattr(data, "has_proposals", None)
        name = type(self.network).__name__
        if self.network.needs_proposals and has_proposals is False:
            how = getattr(data, "proposals_option", "give them to the data module")
            raise ValueError(
                f"{name} matches objects to proposals of a detector, and {type(data).__name__} has none of some or all of its "
                f"videos: compute them with `{precompute_command('FOLDER_OF_VIDEOS')}`, then {how}"
            )
        if has_proposals and not self.network.needs_proposals:
            rank_zero_info(f"{name} does not read proposals; those of the data change nothing.")

    # Training ---------------------------------------------------------------------------------------------------------

    def clip_loss(self, outputs: list[StepOutput], batch: ClipBatch) -> dict[str, Tensor]:
        """Named losses of a clip; ``loss`` is optimised, the others are logged.

        The default is the mean cross-entropy of all predicted frames. A clip in which no object was given (because augmentation
        removed it) does not count.
        """
        per_frame = [
            cross_entropy(output.logits, trainable_labels(batch.label_maps[:, t], output.introduced))
            for t, output in enumerate(outputs)
            if t > 0
        ]
        per_clip = torch.stack(per_frame).mean(dim=0)
        counts = outputs[-1].introduced.any(dim=1).to(per_clip.dtype)
        return {"loss": (per_clip * counts).sum() / counts.sum().clamp_min(1)}

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Unroll a batch of clips. What is logged are means over all batches of the optimiser step and over all processes."""
        given = introductions(batch.label_maps, batch.object_valid, self.late_objects)
        remembered = self.remembered_masks(batch)
        outputs = unroll(self.training_network(), self.train_propagation, batch.frames, given, batch.proposals, remembered)
        losses = self.clip_loss(outputs, batch)
        size = batch.frames.shape[0]
        with torch.no_grad():
            last = outputs[-1]
            iou, visible = foreground_iou(last.probabilities, trainable_labels(batch.label_maps[:, -1], last.introduced))
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        means = self.step_means.add({**losses, "iou": iou}, {"iou": visible}, first)
        self.log_dict({f"train/{name}": value for name, value in means.items()}, batch_size=size, prog_bar=True)
        return losses["loss"]

    def training_network(self) -> VOSNetwork[Any, Any, Any]:
        """The network of a training step; a schedule may return a copy that shares the parameters."""
        return self.network

    def remembered_masks(self, batch: ClipBatch) -> Float[Tensor, "B T N H W"] | None:  # noqa: ARG002
        """Masks that a training clip writes into the memory; None for the predicted masks."""
        return None

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser; by default one group of all trainable parameters."""
        return [{"params": trainable(self.parameters())}]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser over the trainable parameters, with a schedule counted in steps."""
        optimizer = self.optimisation.build(self.network, self.parameter_groups())
        schedule = self.optimisation.schedule
        # A plain function, because LambdaLR would pickle anything else into the checkpoint.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.at(step, self.trainer.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Evaluation -------------------------------------------------------------------------------------------------------

    def engine(self, precision: torch.dtype | None = None) -> InferenceEngine:
        """A fresh streaming engine on this network with the evaluation propagation."""
        return InferenceEngine(
            self.network,
            self.eval_propagation,
            short_side=self.evaluation.short_side,
            min_object_pixels=self.evaluation.min_object_pixels,
            precision=precision,
        )

    def metric(self, stage: str) -> VideoMetric:
        """The metric of ``val`` or ``test``."""
        metric = self.metrics[stage]
        assert isinstance(metric, VideoMetric)
        return metric

    def _stream(self, video: VideoSample) -> dict[int, Tensor]:
        """Label maps of the frames that have a target."""
        label_maps = {}
        for prediction in self.engine().run(video):
            for listener in self.frame_listeners:
                listener(video, prediction)
            if prediction.frame_index in video.targets:
                label_maps[prediction.frame_index] = prediction.label_map
        return label_maps

    def _score(self, video: VideoSample, stage: str) -> None:
        label_maps = self._stream(video)
        if not label_maps:
            raise ValueError(f"video {video.name!r} has no targets: {stage} needs annotations of every frame (use predict)")
        order = sorted(label_maps)
        self.metric(stage).update(
            torch.stack([label_maps[t] for t in order]),
            torch.stack([video.targets[t] for t in order]),
            video.name,
            video.unseen_ids,
        )

    def _log_metric(self, stage: str) -> None:
        metric = self.metric(stage)
        self.scored_rows = metric.rows()
        # Computed from the rows, which are gathered already; compute() would gather them again.
        scores = summarize(self.scored_rows, self.evaluation.protocol)
        metric.reset()
        # Every process computes the same rows (the metric gathers them), so nothing needs synchronisation. `jf` is the name for
        # checkpoint files, because `&` and `/` are not allowed in paths.
        self.log_dict({f"{stage}/{name}": value for name, value in scores.items()}, batch_size=1, rank_zero_only=False)
        self.log(f"{stage}_jf", scores["J&F"], batch_size=1, prog_bar=True)

    def validation_step(self, batch: VideoSample, batch_idx: int) -> None:  # noqa: ARG002
        """Stream a video and score it."""
        self._score(batch, "val")

    def on_validation_epoch_end(self) -> None:
        """Log J, F and J&F (and G, if the protocol has it) over all videos."""
        self._log_metric("val")

    def test_step(self, batch: VideoSample, batch_idx: int) -> None:  # noqa: ARG002
        """Stream a video and score it."""
        self._score(batch, "test")

    def on_test_epoch_end(self) -> None:
        """Log J, F and J&F (and G, if the protocol has it) over all videos."""
        self._log_metric("test")

    def predict_step(self, batch: VideoSample | UnusableVideo, batch_idx: int) -> str:  # noqa: ARG002
        """Stream a video and return its name; frame listeners, such as a prediction writer, receive the frames.

        Videos of :attr:`predicted` are left out. A video that cannot be opened, read or segmented is passed over if there is a
        listener that is told so.
        """
        if batch.name in self.predicted:
            return batch.name
        failed = batch.error if isinstance(batch, UnusableVideo) else self._predict(batch)
        if failed is not None:
            if not self.failure_listeners:
                raise failed
            for listener in self.failure_listeners:
                listener(batch.name, failed)
        return batch.name

    def _predict(self, video: VideoSample) -> ValueError | OSError | None:
        """Hand the frames of a video to the listeners; return why it cannot be segmented. Errors of listeners are raised."""
        predictions = self.engine().run(video)
        while True:
            try:
                prediction = next(predictions, None)
            except (ValueError, OSError) as error:
                return error
            if prediction is None:
                return None
            for listener in self.frame_listeners:
                listener(video, prediction)
