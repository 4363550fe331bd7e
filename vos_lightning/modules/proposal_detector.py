"""Fine-tuning of the proposal detector on the clips of any data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from vos_lightning.modules.processes import StepMeans
from vos_lightning.proposals.boxes import paste_masks, tight_boxes
from vos_lightning.proposals.detector import ProposalDetector, Selection, read_weights
from vos_lightning.proposals.options import Pretrained
from vos_lightning.structures import IGNORE_LABEL, ClipBatch, VideoSample

FINE_TUNING = 1e-4
"""Learning rates below this one change trained weights a little; random weights would stay random."""
SMALLEST = 4.0
"""Side of the smallest true box that is used in training, in pixels."""


class ProposalDetectorModule(LightningModule):
    """Trains a :class:`ProposalDetector` to find the annotated objects of frames, whatever their class.

    Every frame of a clip is a separate image; clips of one frame and a batch of 8 give the paper's batch of 8. The losses are
    those of Mask R-CNN, and batch normalisation stays frozen. Validation logs the recall: the share of the true objects that a
    proposal overlaps by more than one half (``val/recall``; ``val_jf`` is the same number, under the name by which checkpoints
    are chosen). ``precompute-proposals --weights`` and ``predict --detector`` read the checkpoint.

    Args:
        network: the detector, with ``num_classes=2``; with another number, class 1 stands for "object".
        learning_rate: learning rate of Adam; the paper has 1e-6, starting from trained weights.
        every_nth_frame: validation uses every n-th frame of a video.

    Raises:
        ValueError: ``every_nth_frame`` is out of range, or, when a training starts, random weights would be fine-tuned.

    Reference: DMN-AOA (Liang et al., ICCV 2021), section 4.1; DMM-Net (Zeng et al., ICCV 2019).
    """

    training_arguments: ClassVar[frozenset[str]] = frozenset({"learning_rate", "every_nth_frame"})

    def __init__(self, network: ProposalDetector, learning_rate: float = 1e-6, every_nth_frame: int = 10) -> None:
        super().__init__()
        if every_nth_frame < 1:
            raise ValueError(f"every_nth_frame must be at least 1, not {every_nth_frame}")
        self.network = network
        network.requires_grad_(True)
        self.train()
        self.learning_rate = learning_rate
        self.every_nth_frame = every_nth_frame
        self.found = self.true = 0
        self.step_means = StepMeans()
        self.save_hyperparameters()

    def train(self, mode: bool = True) -> ProposalDetectorModule:
        """Set training mode; batch normalisation stays in evaluation mode."""
        super().train(mode)
        for layer in self.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()
        return self

    def setup(self, stage: str) -> None:
        """Refuse to fine-tune random weights before any data are read."""
        if stage == "fit" and self.network.starts_random and self.learning_rate < FINE_TUNING:
            raise ValueError(
                f"a random {self.network.architecture} learns nothing at learning_rate {self.learning_rate}: name trained "
                "weights (--model.init_args.network.init_args.weights=FILE), or architecture resnet50 with pretrained COCO_V1, "
                "or raise learning_rate"
            )

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        """Losses of region proposals, boxes, classes and masks."""
        frames, labels = batch.frames.flatten(0, 1), batch.label_maps.flatten(0, 1)
        losses: dict[str, Tensor] = self.network.model(list(frames), [targets_of(label_map) for label_map in labels])
        loss = torch.stack(list(losses.values())).sum()
        first = batch_idx % self.trainer.accumulate_grad_batches == 0
        means = self.step_means.add({**losses, "loss": loss}, {}, first)
        self.log_dict({f"train/{name}": value for name, value in means.items()}, batch_size=len(frames), prog_bar=True)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Adam with a constant rate."""
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=self.learning_rate)

    def validation_step(self, batch: VideoSample, batch_idx: int) -> None:  # noqa: ARG002
        """Count the objects that were found."""
        looked_at = set(sorted(batch.targets)[:: self.every_nth_frame])
        for index, frame in enumerate(batch.frames):
            if index not in looked_at:
                continue
            (proposals,) = self.network.find([frame])
            true = targets_of(batch.targets[index].to(self.device))["masks"].flatten(1).float()
            self.true += len(true)
            if len(true) and len(proposals.scores):
                height, width = frame.shape[-2:]
                pasted = paste_masks(proposals.masks[None], proposals.boxes[None], height, width)[0]
                masks = (pasted > 0.5).flatten(1).float()
                both = true @ masks.t()
                either = true.sum(dim=1, keepdim=True) + masks.sum(dim=1) - both
                self.found += int((both / either.clamp_min(1)).amax(dim=1).gt(0.5).sum())

    def on_validation_epoch_end(self) -> None:
        """Log the recall of all processes."""
        counts = torch.tensor([self.found, self.true], dtype=torch.float32, device=self.device)
        gathered = self.all_gather(counts)
        assert isinstance(gathered, Tensor)
        found, true = gathered.view(-1, 2).sum(dim=0)
        self.found = self.true = 0
        recall = found / true.clamp_min(1)
        self.log("val/recall", recall, batch_size=1)
        self.log("val_jf", recall, batch_size=1, prog_bar=True)


def load_detector(source: str) -> ProposalDetector:
    """The detector of a checkpoint, or torchvision's, with the default settings of ``precompute-proposals``.

    Args:
        source: ``COCO_V1``, or the checkpoint of a run of :class:`ProposalDetectorModule`, which describes its detector.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or does not describe a detector.
    """
    if source in get_args(Pretrained):
        return ProposalDetector(pretrained=source)  # type: ignore[arg-type]
    path = Path(source)
    content = read_weights(path)
    try:
        network = content["hyper_parameters"]["network"]
        options = dict(network.get("init_args", {}))
        if network["class_path"] != f"{ProposalDetector.__module__}.{ProposalDetector.__qualname__}":
            raise KeyError(network["class_path"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: the file does not describe a detector, as the checkpoint of `train dmn_aoa_detector_davis17` does; "
            "with plain weights, run `vos precompute-proposals --weights FILE --architecture ...` and pass "
            "--proposals"
        ) from error
    selection = options.pop("selection", None) or {}
    try:
        return ProposalDetector(**{**options, "pretrained": None, "weights": str(path)}, selection=Selection(**selection))
    except TypeError as error:
        raise ValueError(f"{path}: the checkpoint does not fit this version of the detector: {error}") from error


def targets_of(label_map: Tensor) -> dict[str, Any]:
    """The objects of a label map in Mask R-CNN's form: boxes, masks, and the label 1 for each."""
    ids = [i for i in torch.unique(label_map).tolist() if 0 < i < IGNORE_LABEL]
    planes = torch.stack([label_map == i for i in ids]) if ids else label_map.new_zeros(0, *label_map.shape).bool()
    boxes = tight_boxes(planes[None].float())[0][0]
    large = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= SMALLEST
    boxes, planes = boxes[large], planes[large]
    return {
        "boxes": boxes,
        "labels": torch.ones(len(boxes), dtype=torch.int64, device=boxes.device),
        "masks": planes.to(torch.uint8),
    }
