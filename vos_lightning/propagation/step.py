"""The one recurrence: :func:`advance` for a frame, :func:`unroll` for a clip."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.profiler import record_function

from vos_lightning.mask_ops import (
    MAX_LOGIT,
    Aggregation,
    Padding,
    PadMode,
    logits_from_masks,
    masks_from_label_map,
    pad,
    padding_for,
    soft_aggregate,
    unpad,
)
from vos_lightning.propagation.memory import Bank, Memory, MemoryFrame, State
from vos_lightning.propagation.network import VOSNetwork
from vos_lightning.propagation.policies import MemoryPolicy
from vos_lightning.structures import FrameInput, Given, Proposals, map_tensors

Introduction = Literal["overwrite", "join"]
"""How given masks meet predictions in the same frame: replace them (STCN) or enter the soft aggregation (EMVOS)."""


@dataclass(frozen=True)
class Propagation:
    """Everything beside the network that defines a propagation; training and inference may differ in each.

    Attributes:
        policy: which frames the bank keeps.
        aggregation: how objects are merged, see :func:`vos_lightning.mask_ops.soft_aggregate`.
        introduction: what a given mask does to the predictions of other objects in its frame. ``overwrite``: once aggregated,
            they become zero inside given masks, then all is aggregated again. ``join``: the given mask takes part in the
            aggregation as a saturated prediction, and the two roles of the frame differ: its place in the bank (and the carry)
            has the given mask itself, as the reference of its object, and ``Memory.previous`` has what the aggregation left of
            it. Either way the output of the frame shows the given mask.
    """

    policy: MemoryPolicy
    aggregation: Aggregation
    introduction: Introduction = "overwrite"

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("aggregation", self.aggregation, get_args(Aggregation)),
            ("introduction", self.introduction, get_args(Introduction)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, not {value!r}")


@dataclass(frozen=True)
class StepOutput:
    """Result of a frame, at the size of the frame."""

    logits: Float[Tensor, "B N1 H W"]
    """Channel 0 background; their softmax is ``probabilities`` (see :func:`soft_aggregate` for the one exception)."""
    probabilities: Float[Tensor, "B N1 H W"]
    introduced: Bool[Tensor, "B N"]
    """Objects known up to and including this frame; the others have probability 0."""
    aux: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """Features of a frame and how it was padded."""

    features: Any
    padding: Padding


def encode(network: VOSNetwork[Any, Any, Any], frame: FrameInput) -> Encoded:
    """Pad a frame to the network's stride and encode it.

    Raises:
        ValueError: the network needs proposals and the frame has none.
    """
    network.check_proposals(frame.proposals, "the frame")
    rule = network.padding
    height, width = frame.image.shape[-2:]
    padding = padding_for(height, width, network.stride, rule.larger_half_first)
    proposals = frame.proposals
    if proposals is not None:
        shift = proposals.boxes.new_tensor([padding.left, padding.top, padding.left, padding.top])
        proposals = Proposals(proposals.boxes + shift, proposals.masks, proposals.scores)
    with record_function("vos/encode"):
        return Encoded(network.encode(FrameInput(pad(frame.image, padding, rule.mode), proposals)), padding)


def advance(
    network: VOSNetwork[Any, Any, Any],
    propagation: Propagation,
    state: State[Any, Any] | None,
    frame: FrameInput | Encoded,
    given: Given | None = None,
    remembered: Float[Tensor, "B N H W"] | None = None,
) -> tuple[StepOutput, State[Any, Any]]:
    """Process one frame: segment the known objects, take over given masks, remember.

    Args:
        network: any system.
        propagation: policy, aggregation and introduction.
        state: after the frame before; None at the first frame. It is not changed.
        frame: the frame, or what :func:`encode` made of it.
        given: objects annotated in this frame, new or known; None if none is. The first frame needs it.
        remembered: masks that the network remembers instead of its own (a training that remembers the truth); of objects that
            are not introduced, nothing is.

    Returns:
        The output at the frame's size and the next state.

    Raises:
        ValueError: the first frame comes without ``given``, or a frame without the proposals that the network needs.
    """
    encoded = frame if isinstance(frame, Encoded) else encode(network, frame)
    features, padding = encoded.features, encoded.padding
    mask_mode: PadMode = "reflect" if network.padding.mode == "reflect" else "zero"

    foreground: Tensor | None = None
    aux: dict[str, Any] = {}
    if state is not None:
        with record_function("vos/segment"):
            foreground, aux = network.segment(features, state.memory)
        introduced, t = state.introduced, state.t + 1
    elif given is not None:
        introduced, t = torch.zeros_like(given.which), 0
    else:
        raise ValueError("the first frame of a propagation needs given masks")
    if given is not None:
        if foreground is not None and propagation.introduction == "overwrite":
            # What is overwritten are the final probabilities of the frame: they are aggregated twice.
            foreground = logits_from_masks(soft_aggregate(foreground, introduced, propagation.aggregation)[1][:, 1:])
        introduced = introduced | given.which
        given_masks = pad(given.masks, padding, mask_mode)
        foreground = _introduce(foreground, given_masks, given.which, propagation.introduction)
    assert foreground is not None
    logits, probabilities = soft_aggregate(foreground, introduced, propagation.aggregation)

    masks = probabilities[:, 1:]
    if remembered is not None:
        masks = pad(remembered * introduced[:, :, None, None], padding, mask_mode)
    elif network.padding.repad_masks:
        masks = pad(unpad(masks, padding), padding, mask_mode)
    reference = masks
    if given is not None and propagation.introduction == "join":
        # Where another object claims a pixel, the aggregation leaves half of it; the reference of an object is what was given.
        reference = torch.where(given.which[:, :, None, None], given_masks, masks)
        if state is None:  # nothing was predicted that the given masks could have met
            masks = reference
    known = None if state is None else state.memory
    if known is not None and given is not None:
        known = Memory(known.bank, known.previous, network.forget(known.carry, given.which))
    bank: Bank[Any] = Bank(()) if known is None else known.bank
    keep = network.reads_previous or given is not None or propagation.policy.wants(bank, t)
    with record_function("vos/memorize"):
        entry, carry = network.memorize(features, reference, known, introduced, keep)
        latest = entry
        if reference is not masks and network.reads_previous:
            latest, _ = network.memorize(features, masks, known, introduced, keep)
    previous = None
    if keep:
        assert entry is not None, "memorize must return an entry when keep is set"
        kept = MemoryFrame(entry, t, introduced, permanent=False)
        bank = propagation.policy.update(bank, kept, None if given is None else given.which)
        if network.reads_previous:
            previous = Bank((kept if latest is entry else MemoryFrame(latest, t, introduced, permanent=False),))

    output = StepOutput(unpad(logits, padding), unpad(probabilities, padding), introduced, aux)
    if given is not None:
        output = _show_given(output, given)
    return output, State(Memory(bank, previous, carry), introduced, t)


def _introduce(
    foreground: Float[Tensor, "B N H W"] | None,
    masks: Float[Tensor, "B N H W"],
    which: Bool[Tensor, "B N"],
    introduction: Introduction,
) -> Float[Tensor, "B N H W"]:
    """Per-object logits of a frame with annotations, before aggregation."""
    certain = logits_from_masks(masks)
    if foreground is None:
        return certain
    which = which[:, :, None, None]
    if introduction == "overwrite":
        covered = (masks * which).amax(dim=1, keepdim=True) > 0.5
        foreground = foreground.float().masked_fill(covered, -MAX_LOGIT)
    return torch.where(which, certain, foreground.float())


def show_given(probabilities: Float[Tensor, "B N1 H W"], given: Given) -> Float[Tensor, "B N1 H W"]:
    """Probabilities that show the annotation: certain inside given masks, and given objects are nowhere else.

    Other objects and the background keep their shares outside the given masks. A pixel that loses all it had becomes
    background, and a pixel that several given masks claim is divided among them.

    Args:
        probabilities: channel 0 background.
        given: at the size of the probabilities.

    Returns:
        A new tensor.
    """
    shown, hidden = _annotated(given)
    remaining = probabilities.masked_fill(hidden, 0.0)
    total = remaining.sum(dim=1, keepdim=True)
    remaining = remaining / total.clamp_min(torch.finfo(remaining.dtype).tiny)
    certain = shown.to(remaining.dtype)
    certain[:, :1] = (total == 0) & ~shown.any(dim=1, keepdim=True)
    claims = certain.sum(dim=1, keepdim=True)
    return torch.where(claims > 0, certain / claims.clamp_min(1.0), remaining)


def _show_given(output: StepOutput, given: Given) -> StepOutput:
    """Where an object is given in this frame, the output is the annotation, whatever was predicted."""
    shown, hidden = _annotated(given)
    logits = torch.where(hidden, logits_from_masks(shown.to(output.logits.dtype)), output.logits)
    return StepOutput(logits, show_given(output.probabilities, given), output.introduced, output.aux)


def _annotated(given: Given) -> tuple[Bool[Tensor, "B N1 H W"], Bool[Tensor, "B N1 H W"]]:
    """Where a channel is certain, and where it is not what was predicted; channel 0 background."""
    which = given.which[:, :, None, None]
    masks = given.masks * which > 0.5
    covered = masks.any(dim=1, keepdim=True)
    nowhere = torch.zeros_like(covered)
    return torch.cat([nowhere, masks], dim=1), torch.cat([nowhere, which.expand_as(masks)], dim=1) | covered


def introductions(
    label_maps: UInt8[Tensor, "B T H W"], object_valid: Bool[Tensor, "B N"], late_objects: bool
) -> dict[int, Given]:
    """The annotations that a training clip gives to the network: each object's first visible frame.

    Args:
        label_maps: slots.
        object_valid: slots that exist.
        late_objects: whether objects that first appear after frame 0 are given there; otherwise they stay unknown.

    Returns:
        Frame index -> given objects. Frame 0 is always there (its masks may be empty).
    """
    length = label_maps.shape[1]
    num_objects = object_valid.shape[1]
    slots = torch.arange(1, num_objects + 1, device=label_maps.device, dtype=label_maps.dtype)
    visible = torch.stack([(label_maps == slot).flatten(2).any(dim=2) for slot in slots], dim=1)  # (B, N, T)
    first = torch.where(visible.any(dim=2) & object_valid, visible.int().argmax(dim=2), length)
    given: dict[int, Given] = {}
    # One transfer to the host for a whole clip, so that the frame loop never waits for the device.
    for t in sorted({0, *first.flatten().tolist()} if late_objects else {0}):
        if t < length:
            given[t] = Given(masks_from_label_map(label_maps[:, t], num_objects), first == t)
    return given


def unroll(
    network: VOSNetwork[Any, Any, Any],
    propagation: Propagation,
    frames: Float[Tensor, "B T 3 H W"],
    given: dict[int, Given],
    proposals: Proposals | None = None,
    remembered: Float[Tensor, "B T N H W"] | None = None,
) -> list[StepOutput]:
    """Propagate through a clip with gradients; every frame is encoded in one call.

    Args:
        network: any system.
        propagation: policy, aggregation and introduction.
        frames: RGB in [0, 1].
        given: frame index -> annotated objects, see :func:`introductions`.
        proposals: time-major rows; None only for networks that do not need them.
        remembered: see :func:`advance`; None for the network's own masks.

    Returns:
        One output a frame.

    Raises:
        ValueError: the network needs proposals and there are none.
    """
    batch, length = frames.shape[:2]
    network.check_proposals(proposals, "the clip")
    # Time-major, so that the features of a frame are a contiguous slice.
    encoded = encode(network, FrameInput(frames.transpose(0, 1).flatten(0, 1), proposals))
    outputs: list[StepOutput] = []
    state: State[Any, Any] | None = None
    for t, features in enumerate(_split_frames(encoded.features, batch, length)):
        frame = Encoded(features, encoded.padding)
        truth = None if remembered is None else remembered[:, t]
        output, state = advance(network, propagation, state, frame, given.get(t), truth)
        outputs.append(output)
    return outputs


def _split_frames(features: Any, batch: int, length: int) -> Iterator[Any]:
    """Features of one frame after the other. Split once a clip: the backward pass of a slice fills a whole clip with zeros."""
    split: list[tuple[Tensor, ...]] = []

    def collect(tensor: Tensor) -> Tensor:
        split.append(tensor.split(batch))
        return tensor

    map_tensors(collect, features)
    for t in range(length):
        parts = iter(split)
        yield map_tensors(lambda _, parts=parts, t=t: next(parts)[t], features)  # type: ignore[misc]
