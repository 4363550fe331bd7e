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
    """A semi-supervised VOS system as a plain PyTorch module; it holds parameters and no state.

    The three methods receive frames padded to a multiple of ``stride``. Features, entries and carries are frozen dataclasses of
    tensors whose first dimension is ``B``; fields with object slots in dimension 1 are declared with
    :func:`vos_lightning.structures.per_object`.
    """

    stride: ClassVar[int] = 16
    padding: PaddingRule = PaddingRule()
    reads_previous: ClassVar[bool] = True
    """Whether ``segment`` reads ``memory.previous``; if not, frames that no policy keeps need no entry."""
    needs_proposals: bool = False
    """Whether every frame must come with object proposals; a network sets it from its configuration. Proposals may be empty (if
    the     detector found nothing), but they must not be missing."""
    training_arguments: ClassVar[frozenset[str]] = frozenset()
    """Arguments of the constructor that do not change predictions once the parameters are given: initialisation, and which parts
    are trained. All other arguments of a checkpoint must agree with the experiment that evaluates it."""

    @classmethod
    @abstractmethod
    def small(cls) -> VOSNetwork[FeaturesT, EntryT, CarryT]:
        """A small random instance with every part of the real network, for tests and demonstrations."""

    @abstractmethod
    def encode(self, frame: FrameInput) -> FeaturesT:
        """Features of a frame without masks and objects: computed once a frame and shared by all objects."""

    @abstractmethod
    def segment(self, features: FeaturesT, memory: Memory[EntryT, CarryT]) -> tuple[Float[Tensor, "B N H W"], dict[str, Tensor]]:
        """Foreground logits of every object in the query frame, and auxiliary outputs for losses and visualisation.

        Logits must be finite also for object slots that may read nothing. Two-channel heads return ``foreground - background``.
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

        A frame in which given masks join predictions is memorized twice: with the given masks, for the bank and the carry, and
        with the masks after aggregation, for ``memory.previous`` (the carry of this call is not used).

        Args:
            features: features of this frame.
            masks: soft masks after aggregation, or given ones, in [0, 1]; zero for objects that are not introduced.
            memory: memory before this frame; None at the first frame.
            introduced: objects known up to and including this frame.
            keep: whether the entry will be read. If False, None may be returned instead.
        """

    def carry_of(self, features: FeaturesT) -> CarryT | None:  # noqa: ARG002
        """The carry after a frame, if the features of that frame alone decide it; None if masks or the memory do.

        Then the frames of a training clip that only read what is annotated in its first frame do not depend on each other, and
        are one batch, see :func:`vos_lightning.propagation.step.unroll`. The default is None.
        """
        return None

    def forget(self, carry: CarryT, which: Bool[Tensor, "B N"]) -> CarryT:  # noqa: ARG002
        """The carry without the state of the objects ``which``, which are annotated anew; called before ``memorize``.

        The default keeps everything.
        """
        return carry

    def check_proposals(self, proposals: Proposals | None, where: str) -> None:
        """Refuse a frame without proposals if the network needs them, as the result would be that of another method.

        Args:
            proposals: proposals of the frame or frames.
            where: frame or video that they belong to, for the message.

        Raises:
            ValueError: proposals are missing.
        """
        if self.needs_proposals and proposals is None:
            raise ValueError(
                f"{where} has no proposals, and {type(self).__name__} needs the proposals of every frame (empty ones where the "
                "detector found nothing)"
            )

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device
