"""The interface that every VOS system implements: encode, segment, memorize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vos_lightning.mask_ops import PaddingRule
from vos_lightning.propagation.memory import CarryT, EntryT, FeaturesT, Memory
from vos_lightning.structures import FrameInput, Proposals


class VOSNetwork(nn.Module, ABC, Generic[FeaturesT, EntryT, CarryT]):
    """A semi-supervised VOS system as plain PyTorch; it holds parameters and never state.

    The three methods see frames padded to a multiple of ``stride``. Features, entries and carries are frozen dataclasses of
    tensors whose first dimension is ``B``; fields that have object slots in dimension 1 are declared with
    :func:`vos_lightning.structures.per_object`.
    """

    stride: ClassVar[int] = 16
    padding: PaddingRule = PaddingRule()
    reads_previous: ClassVar[bool] = True
    """Whether ``segment`` reads ``memory.previous``; if not, frames that no policy keeps need no entry."""
    needs_proposals: bool = False
    """Whether every frame must come with object proposals; a network sets it from its configuration. Proposals may be empty (the
    detector found nothing), but they may not be missing."""
    training_arguments: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the constructor that change no prediction of a network with given parameters: how it starts, what is trained.
    In all others a checkpoint has to agree with the experiment that evaluates it."""

    @classmethod
    @abstractmethod
    def small(cls) -> VOSNetwork[FeaturesT, EntryT, CarryT]:
        """A small random instance with every part of the real one: for tests and demonstrations."""

    @abstractmethod
    def encode(self, frame: FrameInput) -> FeaturesT:
        """What a frame looks like, without masks and objects: computed once a frame, shared by all objects."""

    @abstractmethod
    def segment(self, features: FeaturesT, memory: Memory[EntryT, CarryT]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Foreground logits of every object in the query frame, and auxiliary outputs for losses and visualisation.

        Must be finite for slots that may read nothing. Two-channel heads return ``foreground - background``.
        """

    @abstractmethod
    def memorize(
        self,
        features: FeaturesT,
        masks: Float[Tensor, "B N H W"],
        memory: Memory[EntryT, CarryT] | None,
        introduced: Bool[Tensor, "B N"],
        keep: bool,
    ) -> tuple[EntryT | None, CarryT]:
        """Turn a segmented frame into a memory entry and fold it into the carry.

        A frame in which given masks join predictions is memorized twice: with the masks as given, for the bank and the carry,
        and as they were aggregated, for ``memory.previous`` (the carry of this call is not used).

        Args:
            features: of this frame.
            masks: soft masks after aggregation, or given ones, in [0, 1]; zero for objects that are not introduced.
            memory: before this frame; None at the first.
            introduced: objects known up to and including this frame.
            keep: whether the entry will be read by anyone. If False, None may be returned in its place.
        """

    def forget(self, carry: CarryT, which: Bool[Tensor, "B N"]) -> CarryT:  # noqa: ARG002
        """The carry without what was folded of the objects ``which``: they are annotated anew, before ``memorize`` sees them.

        The default keeps everything.
        """
        return carry

    def check_proposals(self, proposals: Proposals | None, where: str) -> None:
        """Refuse a frame without proposals where the network needs them: without them it would be another method.

        Args:
            proposals: of the frame or frames.
            where: what they belong to, for the message.

        Raises:
            ValueError: they are missing.
        """
        if self.needs_proposals and proposals is None:
            raise ValueError(
                f"{where} has no proposals, and {type(self).__name__} needs the proposals of every frame (empty ones where the "
                "detector found nothing)"
            )

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device
