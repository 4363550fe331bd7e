"""Proposals from an instance detector: torchvision's Mask R-CNN with any of its ResNets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor, nn
from torch.profiler import record_function
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    MaskRCNN,
    MaskRCNN_ResNet50_FPN_V2_Weights,
    MaskRCNN_ResNet50_FPN_Weights,
    maskrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import nms

from vos_lightning.io.files import sha256_of
from vos_lightning.io.pretrained import for_epsilon, is_overwritten, published_hash, read_pretrained
from vos_lightning.io.tensors import read_tensors
from vos_lightning.io.weights import require_finite
from vos_lightning.proposals.boxes import masks_in_boxes, paste_masks, tight_boxes
from vos_lightning.proposals.options import Architecture, Order, Pretrained
from vos_lightning.proposals.store import MASK_SIZE, Found

_PUBLISHED: dict[str, WeightsEnum] = {
    "resnet50": MaskRCNN_ResNet50_FPN_Weights.COCO_V1,
    "resnet50_v2": MaskRCNN_ResNet50_FPN_V2_Weights.COCO_V1,
}


@dataclass(frozen=True)
class Selection:
    """Which detections become proposals.

    Attributes:
        order: ``nms_first``: from all detections (at most ``candidates``, after torchvision's suppression within classes at 0.5),
            suppression regardless of class, then the best ``top_k``; ``top_first``: first the best ``top_k``, then suppression
            (DMM-Net); ``objectness``: one detection for each region, scored by one minus its background probability.
        nms_threshold: overlap above which the weaker of two proposals is dropped.
        top_k: number of proposals of a frame.
        score_threshold: lowest score of a proposal.
        candidates: number of detections of a frame before this selection.
        tight_boxes: before suppression, make boxes tight around the mask values above 0.4 (DMM-Net).
    """

    order: Order = "nms_first"
    nms_threshold: float = 0.4
    top_k: int = 30
    score_threshold: float = 0.0
    candidates: int = 100
    tight_boxes: bool = False

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"order must be one of {get_args(Order)}, not {self.order!r}")
        if not 0 < self.nms_threshold <= 1 or self.top_k < 1 or self.candidates < self.top_k:
            raise ValueError(f"nms_threshold must be in (0, 1], and 1 <= top_k <= candidates: {self}")


TIGHT_THRESHOLD = 0.4
DEFAULT_SELECTION = Selection()


class ProposalDetector(nn.Module):
    """A frozen Mask R-CNN that returns soft masks inside boxes, in pixels of the frames that it is given.

    Args:
        architecture: backbone of the detector.
        pretrained: COCO weights of torchvision, for ``resnet50`` and ``resnet50_v2``, see :func:`read_pretrained`.
        weights: file with a state dict of the model (plain, or under ``state_dict`` or ``model``) for ``architecture`` and
            ``num_classes``. Without ``pretrained`` and ``weights`` the detector is random.
        num_classes: number of classes, background included; 91 for COCO, 2 for "object". COCO weights of 91 classes are reduced
            to 2 by the mean over the classes, as a start for fine-tuning.
        selection: which detections become proposals.
        min_size: short side in pixels to which frames are resized.
        max_size: largest long side of resized frames in pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: weights do not fit, or both kinds of weights are given.
    """

    training_arguments: ClassVar[frozenset[str]] = frozenset({"pretrained", "weights"})
    """Arguments that change nothing if the parameters come from a checkpoint."""

    def __init__(
        self,
        architecture: Architecture = "resnet50",
        pretrained: Pretrained | None = None,
        weights: str | None = None,
        num_classes: int = 91,
        selection: Selection = DEFAULT_SELECTION,
        min_size: int = 800,
        max_size: int = 1333,
    ) -> None:
        super().__init__()
        if architecture not in get_args(Architecture):
            raise ValueError(f"architecture must be one of {get_args(Architecture)}, not {architecture!r}")
        if pretrained is not None and weights is not None:
            raise ValueError("pretrained and weights exclude each other")
        self.architecture = architecture
        self.selection = selection
        self.num_classes = num_classes
        self.size = (min_size, max_size)
        self.model = _build(architecture, pretrained, num_classes, selection, min_size, max_size)
        self.starts_random = pretrained is None and weights is None
        self.source = "random"
        if pretrained is not None:
            self.source = pretrained
        elif weights is not None and not is_overwritten():
            self.source = _load(self.model, Path(weights))
        self.requires_grad_(False)
        self.eval()

    @property
    def identity(self) -> str:
        """Name of detector and weights, for folders and headers."""
        return f"maskrcnn_{self.architecture}_{self.source}"

    @property
    def header(self) -> dict[str, Any]:
        """Everything that decides the proposals, as plain values."""
        return {
            "generator": self.identity,
            "num_classes": self.num_classes,
            "size": list(self.size),
            **asdict(self.selection),
        }

    @torch.inference_mode()
    def forward(self, frames: Sequence[Float[Tensor, "3 _h _w"]]) -> list[Found]:
        """Proposals of every frame, best first.

        Args:
            frames: RGB frames in [0, 1]; sizes may differ.
        """
        with record_function("vos/proposals"):
            images, _ = self.model.transform(list(frames))
            features = self.model.backbone(images.tensors)
            regions, _ = self.model.rpn(images, features)
            if self.selection.order == "objectness":
                detections = self._class_agnostic(features, regions, images.image_sizes)
            else:
                detections, _ = self.model.roi_heads(features, regions, images.image_sizes)
            return [
                self._select(found, inner, (int(frame.shape[1]), int(frame.shape[2])))
                for found, inner, frame in zip(detections, images.image_sizes, frames, strict=True)
            ]

    def find(self, frames: Sequence[UInt8[Tensor, "3 _h _w"]]) -> list[Found]:
        """Proposals of frames as they are read: 8-bit RGB on any device; sizes may differ. See :meth:`forward`."""
        device = next(self.parameters()).device
        found: list[Found] = self([frame.to(device).float() / 255 for frame in frames])
        return found

    def _class_agnostic(
        self, features: dict[str, Tensor], regions: list[Tensor], sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """One detection for each region: box and mask of its best class, scored by one minus the background probability."""
        heads = self.model.roi_heads
        logits, offsets = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, regions, sizes)))
        boxes = heads.box_coder.decode(offsets, regions)  # (regions, classes, 4)
        probabilities = logits.softmax(dim=1)
        labels = probabilities[:, 1:].argmax(dim=1) + 1
        counts = [len(region) for region in regions]
        chosen = boxes[torch.arange(len(labels), device=labels.device), labels]
        found = []
        for box, score, label, size in zip(
            chosen.split(counts), (1 - probabilities[:, 0]).split(counts), labels.split(counts), sizes, strict=True
        ):
            limit = box.new_tensor([size[1], size[0]]).repeat(2)
            box = box.clamp_min(0).minimum(limit)
            order = nms(box, score, heads.nms_thresh)[: self.selection.candidates]
            found.append({"boxes": box[order], "scores": score[order], "labels": label[order]})
        masks = heads.mask_predictor(heads.mask_head(heads.mask_roi_pool(features, [f["boxes"] for f in found], sizes)))
        chosen_labels = torch.cat([f["labels"] for f in found])
        planes = masks[torch.arange(len(chosen_labels), device=masks.device), chosen_labels].sigmoid().unsqueeze(1)
        for entry, mask in zip(found, planes.split([len(f["labels"]) for f in found]), strict=True):
            entry["masks"] = mask
        return found

    def _select(self, detection: dict[str, Tensor], inner: tuple[int, int], size: tuple[int, int]) -> Found:
        scale = detection["boxes"].new_tensor([size[1] / inner[1], size[0] / inner[0]]).repeat(2)
        boxes, masks = detection["boxes"] * scale, detection["masks"].squeeze(1)
        if self.selection.tight_boxes:
            boxes, masks, filled = _tighten(boxes, masks, size)
            detection = {name: value[filled] for name, value in detection.items()}
        kept = select(boxes, detection["scores"], self.selection)
        return Found(
            boxes[kept].float(), masks[kept].float(), detection["scores"][kept].float(), detection["labels"][kept].long()
        )


def select(boxes: Float[Tensor, "n 4"], scores: Float[Tensor, " n"], selection: Selection) -> Int64[Tensor, " k"]:
    """Indices of the proposals, best first: overlapping boxes are suppressed regardless of class, then the number is cut.

    Args:
        boxes: corners of the boxes.
        scores: scores of the boxes; larger is better.
        selection: order, thresholds and number of proposals.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > selection.score_threshold]
    if selection.order == "top_first":
        order = order[: selection.top_k]
    kept: Int64[Tensor, " k"] = order[nms(boxes[order], scores[order], selection.nms_threshold)]
    return kept[: selection.top_k]


def _tighten(
    boxes: Float[Tensor, "n 4"], masks: Float[Tensor, "n m m"], size: tuple[int, int]
) -> tuple[Float[Tensor, "k 4"], Float[Tensor, "k m m"], Bool[Tensor, " n"]]:
    pasted = paste_masks(masks[None], boxes[None], *size)
    tight, filled = tight_boxes(pasted, TIGHT_THRESHOLD)
    tight, filled = tight[:, filled[0]], filled[0]
    return tight[0], masks_in_boxes(pasted[:, filled], tight, MASK_SIZE)[0], filled


def _build(
    architecture: Architecture,
    pretrained: Pretrained | None,
    num_classes: int,
    selection: Selection,
    min_size: int,
    max_size: int,
) -> MaskRCNN:
    options: dict[str, Any] = {
        "min_size": min_size,
        "max_size": max_size,
        "box_score_thresh": selection.score_threshold,
        "box_detections_per_img": selection.candidates,
    }
    if pretrained is not None and architecture not in _PUBLISHED:
        raise ValueError(f"there are no COCO weights of {architecture}: use resnet50 or resnet50_v2, or a file with weights")
    if architecture == "resnet50_v2":
        model = maskrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=num_classes, **options)
    else:
        model = MaskRCNN(resnet_fpn_backbone(backbone_name=architecture, weights=None), num_classes=num_classes, **options)
    state = None if pretrained is None else read_pretrained(_PUBLISHED[architecture])
    if state is not None:
        _fill(model, state, f"COCO weights of {architecture}")
    return model


def read_weights(path: Path) -> Any:
    """The content of a file of detector weights.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of detector weights")
    return read_tensors(path, "this is no file of detector weights, or it is damaged or truncated")


def _load(model: nn.Module, path: Path) -> str:
    """Load a file and return the first digits of its hash."""
    content = read_weights(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and key in content:
            content = content[key]
    try:
        content = {name.removeprefix("network.").removeprefix("model."): value for name, value in content.items()}
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path}: the weights do not fit this detector: they are no mapping of names to tensors") from error
    require_finite(content, path)
    digest = sha256_of(path)
    if digest.startswith(published_hash(MaskRCNN_ResNet50_FPN_Weights.COCO_V1)):
        content = for_epsilon(content)
    _fill(model, content, str(path))
    return digest[:12]


def _fill(model: nn.Module, content: dict[str, Tensor], source: str) -> None:
    try:
        model.load_state_dict(_fit_classes(content, model.state_dict()))
    except (RuntimeError, AttributeError, TypeError) as error:
        raise ValueError(f"{source}: the weights do not fit this detector: {' '.join(str(error).split())[:300]}") from error


def _fit_classes(content: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    """Reduce heads of many classes to background and object: the background, and the mean of all other classes.

    Every class has one row of scores, four of box offsets and one of masks. Other tensors and other numbers of classes stay
    unchanged.
    """
    fitted = dict(content)
    for name, rows in (("box_predictor.cls_score", 1), ("box_predictor.bbox_pred", 4), ("mask_predictor.mask_fcn_logits", 1)):
        for kind in ("weight", "bias"):
            key = f"roi_heads.{name}.{kind}"
            if key in content and key in wanted and len(wanted[key]) == 2 * rows < len(content[key]):
                classes = content[key].unflatten(0, (-1, rows))
                fitted[key] = torch.cat([classes[0], classes[1:].mean(dim=0)])
    return fitted
