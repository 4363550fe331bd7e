"""Proposals made from ground truth and noise: for tests, demonstrations and trainings without a detector.

Except for the noise, they contain the answer. A score that was reached with them says nothing about a system that has to find
objects by itself, and must be reported as such.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from vos_lightning.mask_ops import object_ids_in
from vos_lightning.proposals.boxes import masks_in_boxes, tight_boxes
from vos_lightning.proposals.store import MASK_SIZE, Found, nothing_found


@dataclass(frozen=True)
class TruthNoise:
    """How far proposals differ from the ground truth.

    Attributes:
        recall: probability that a visible object has its own proposal.
        box_jitter: standard deviation of the position of every side of the box, relative to the size of the object.
        mask_noise: strength of the smooth noise on the mask; 0 leaves the mask unchanged, 1 bends most of its outline.
        num_distractors: number of other proposals, of which one half are parts of objects and the other half blobs at random
            places.
    """

    recall: float = 0.95
    box_jitter: float = 0.05
    mask_noise: float = 0.5
    num_distractors: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.recall <= 1:
            raise ValueError(f"noise.recall must be in [0, 1], not {self.recall}")
        if min(self.box_jitter, self.mask_noise, self.num_distractors) < 0:
            raise ValueError(f"noise must not be negative: {self}")


EXACT = TruthNoise(recall=1.0, box_jitter=0.0, mask_noise=0.0, num_distractors=0)
"""No noise: the proposals are the objects themselves."""


def proposals_from_truth(label_map: UInt8[Tensor, "H W"], noise: TruthNoise, rng: np.random.Generator) -> Found:
    """Proposals of a frame from its true label map.

    Args:
        label_map: label map in ids; 0 is background, 255 is ignored.
        noise: noise of the proposals.
        rng: random generator for all draws.

    Returns:
        Proposals in a random order, except for their scores, which distinguish objects from distractors only loosely.
    """
    height, width = label_map.shape
    ids = object_ids_in(label_map)
    found = [i for i in ids if rng.random() < noise.recall]
    parts = [ids[int(rng.integers(len(ids)))] for _ in range(noise.num_distractors // 2)] if ids else []
    blobs = noise.num_distractors - len(parts)
    proposals = [nothing_found()]
    if found or parts:
        planes = torch.stack([(label_map == i).float() for i in (*found, *parts)]).unsqueeze(0)
        boxes = tight_boxes(planes)[0][0]
        sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        boxes = boxes + torch.from_numpy(rng.standard_normal((len(boxes), 4))).float() * noise.box_jitter * sides
        for row in range(len(found), len(boxes)):
            boxes[row] = _half(boxes[row], int(rng.integers(4)))
        boxes = _inside(boxes, height, width)
        masks = masks_in_boxes(planes, boxes.unsqueeze(0), MASK_SIZE)[0]
        proposals.append(_scored(boxes, _bend(masks, noise.mask_noise, rng), rng, len(found)))
    if blobs:
        centre = torch.from_numpy(rng.uniform(size=(blobs, 2))).float() * torch.tensor([width, height])
        half = torch.from_numpy(rng.uniform(0.05, 0.3, size=(blobs, 2))).float() * torch.tensor([width, height])
        boxes = _inside(torch.cat([centre - half, centre + half], dim=1), height, width)
        axis = torch.linspace(-1, 1, MASK_SIZE)
        ellipse = (axis[:, None].square() + axis.square() <= 1).float().expand(blobs, -1, -1)
        proposals.append(_scored(boxes, _bend(ellipse, noise.mask_noise, rng), rng, 0))
    joined = [torch.cat([getattr(p, name) for p in proposals]) for name in ("boxes", "masks", "scores", "labels")]
    order = joined[2].argsort(descending=True)
    return Found(*(value[order] for value in joined))


def _half(box: Float[Tensor, " 4"], which: int) -> Float[Tensor, " 4"]:
    """Left, top, right or bottom half of a box."""
    half = box.clone()
    half[(which + 2) % 4] = (box[which % 2] + box[which % 2 + 2]) / 2
    return half


def _inside(boxes: Float[Tensor, "n 4"], height: int, width: int) -> Float[Tensor, "n 4"]:
    """Boxes cut to the frame, at least a pixel wide and high."""
    limit = boxes.new_tensor([width, height])
    low = boxes[:, :2].clamp_min(0).minimum(limit - 1)
    return torch.cat([low, boxes[:, 2:].maximum(low + 1).minimum(limit)], dim=1)


def _bend(masks: Float[Tensor, "n m m"], strength: float, rng: np.random.Generator) -> Float[Tensor, "n m m"]:
    """Add smooth noise where a mask is undecided or close to it."""
    if strength == 0:
        return masks
    coarse = torch.from_numpy(rng.standard_normal((len(masks), 1, 7, 7))).float() * strength
    smooth = F.interpolate(coarse, size=masks.shape[-2:], mode="bicubic", align_corners=False).squeeze(1)
    blurred = F.avg_pool2d(masks.unsqueeze(1), 5, 1, 2, count_include_pad=False).squeeze(1)
    return torch.sigmoid(8 * (blurred - 0.5) + 2 * smooth)


def _scored(boxes: Tensor, masks: Tensor, rng: np.random.Generator, num_true: int) -> Found:
    count = len(boxes)
    scores = np.concatenate([rng.uniform(0.5, 1, num_true), rng.uniform(0.05, 0.8, count - num_true)])
    return Found(boxes, masks, torch.from_numpy(scores).float(), torch.zeros(count, dtype=torch.int64))
