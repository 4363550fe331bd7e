"""How a system is evaluated; one definition for all systems."""

from __future__ import annotations

from dataclasses import dataclass

from vos_lightning.metrics.scores import Protocol


@dataclass(frozen=True)
class Evaluation:
    """How videos are segmented and scored.

    Attributes:
        protocol: how validation and test are scored, see :data:`vos_lightning.metrics.scores.Protocol`.
        short_side: frames are resized to this short side in pixels; None keeps their size.
        min_object_pixels: a video keeps its size if a resized given mask has fewer pixels than this, see
            :class:`InferenceEngine`; 0 turns the rule off.

    Raises:
        ValueError: a size is not positive.
    """

    protocol: Protocol = "davis17"
    short_side: int | None = None
    min_object_pixels: int = 0

    def __post_init__(self) -> None:
        if self.short_side is not None and self.short_side < 16:
            raise ValueError(f"evaluation.short_side must be at least 16 pixels, not {self.short_side}")
        if self.min_object_pixels < 0:
            raise ValueError(f"evaluation.min_object_pixels must not be negative, not {self.min_object_pixels}")
