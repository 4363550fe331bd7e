"""Random clips with objects that have a shape, for tests that need no data module."""

from __future__ import annotations

import torch
from torch import Tensor

from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.structures import FrameInput, Given, Proposals


def random_clip(batch: int, length: int, num_objects: int, size: tuple[int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frames ``(B, T, 3, H, W)`` in [0, 1] and slot label maps ``(B, T, H, W)``: bright blocks that drift over noise."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    frames = torch.rand(batch, length, 3, height, width, generator=generator) * 0.5
    labels = torch.zeros(batch, length, height, width, dtype=torch.uint8)
    for b in range(batch):
        for n in range(num_objects):
            block_h, block_w = max(height // 3, 1), max(width // 3, 1)
            top = int(torch.randint(0, max(height - block_h, 1), (1,), generator=generator))
            left = int(torch.randint(0, max(width - block_w, 1), (1,), generator=generator))
            colour = torch.rand(3, 1, 1, generator=generator)
            for t in range(length):
                x = min(left + 2 * t, max(width - block_w, 0))
                frames[b, t, :, top : top + block_h, x : x + block_w] = 0.5 + 0.5 * colour
                labels[b, t, top : top + block_h, x : x + block_w] = n + 1
    return frames, labels


def given_at(labels: Tensor, t: int, slots: list[int], num_objects: int) -> Given:
    """The objects in ``slots`` (from 1) as annotated in frame ``t``."""
    masks = torch.stack([(labels[:, t] == n).float() for n in range(1, num_objects + 1)], dim=1)
    which = torch.tensor([[n in slots for n in range(1, num_objects + 1)]] * len(labels))
    return Given(masks.to(labels.device), which.to(labels.device))


def proposals_of(network: VOSNetwork, frames: Tensor, count: int = 4) -> Proposals | None:
    """Random proposals of frames ``(R, 3, H, W)``, those of a frame the same in any batch; None where a network needs none."""
    if not network.needs_proposals:
        return None
    height, width = frames.shape[-2:]
    rows = []
    for frame in frames:
        generator = torch.Generator().manual_seed(int(frame[0, 0, 0] * 2**24))
        corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values
        boxes = corners.flatten(1) * torch.tensor([width, height] * 2) + torch.tensor([0.0, 0, 4, 4])
        rows.append((boxes, torch.rand(count, 28, 28, generator=generator), torch.rand(count, generator=generator) + 0.1))
    return Proposals(*(torch.stack(parts).to(frames.device) for parts in zip(*rows, strict=True)))


def frame_input(network: VOSNetwork, frames: Tensor) -> FrameInput:
    """Frames ``(B, 3, H, W)`` with all that a network needs."""
    return FrameInput(frames, proposals_of(network, frames))
