"""The recurrence that all systems share: :func:`advance` for a frame, :func:`unroll` for a clip."""

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
    by_rows,
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
"""How given masks and predictions of one frame are combined: given masks replace them (STCN) or join the aggregation (EMVOS)."""


@dataclass(frozen=True)
class Propagation:
    """Everything besides the network that defines a propagation; training and inference may differ in every part.

    Attributes:
        policy: which frames the bank keeps.
        aggregation: how objects are merged, see :func:`vos_lightning.mask_ops.soft_aggregate`.
        introduction: what a given mask does to the predictions of other objects in its frame. ``overwrite``: the predictions are
            aggregated, set to zero inside given masks, and aggregated again. ``join``: the given mask joins the aggregation as a
            saturated prediction, and the frame has two roles. The bank (and the carry) hold the given mask itself, as the
            reference of its object; ``Memory.previous`` holds the mask after the aggregation. In both cases the output of the
            frame shows the given mask.
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
    """Logits with the background in channel 0; their softmax is ``probabilities`` (see :func:`soft_aggregate` for one
    exception)."""
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
    """Process one frame: segment the known objects, introduce given masks, and remember the frame.

    Args:
        network: the network of any system.
        propagation: policy, aggregation and introduction.
        state: state after the previous frame; None at the first frame. It is not changed.
        frame: the frame, or the result of :func:`encode`.
        given: objects annotated in this frame, new or known; None if there are none. The first frame needs it.
        remembered: masks that the network remembers instead of its own (in a training that remembers the truth); objects that are
            not introduced are left out.

    Returns:
        The output at the frame's size and the next state.

    Raises:
        ValueError: the first frame has no ``given``, or a frame has no proposals although the network needs them.
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
        given_masks = pad(given.masks, padding, mask_mode)
        foreground = introduce(foreground, introduced, given_masks, given.which, propagation)
        introduced = introduced | given.which
    assert foreground is not None
    logits, probabilities = soft_aggregate(foreground, introduced, propagation.aggregation)

    masks = probabilities[:, 1:]
    if remembered is not None:
        masks = pad(remembered * introduced[:, :, None, None], padding, mask_mode)
    elif network.padding.repad_masks:
        masks = pad(unpad(masks, padding), padding, mask_mode)
    reference = masks
    if given is not None and propagation.introduction == "join":
        # Where another object claims a pixel, the aggregation leaves only half of it; the reference of an object is its given
        # mask.
        reference = torch.where(given.which[:, :, None, None], given_masks, masks)
        if state is None:  # there are no predictions yet
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


def introduce(
    foreground: Float[Tensor, "B N H W"] | None,
    introduced: Bool[Tensor, "B N"],
    masks: Float[Tensor, "B N H W"],
    which: Bool[Tensor, "B N"],
    propagation: Propagation,
) -> Float[Tensor, "B N H W"]:
    """Logits of every object in a frame with annotations, before the last aggregation.

    Args:
        foreground: predicted logits; None in the first frame.
        introduced: objects that were known before the frame.
        masks: given masks.
        which: objects that are given.
        propagation: its aggregation and introduction.
    """
    if foreground is None:
        return logits_from_masks(masks)
    which = which[:, :, None, None]
    overwrite = propagation.introduction == "overwrite"
    if overwrite:
        # The final probabilities of the frame are overwritten, so the frame is aggregated twice.
        foreground = logits_from_masks(soft_aggregate(foreground, introduced, propagation.aggregation)[1][:, 1:])

    def put(predicted: Tensor, given: Tensor) -> Tensor:
        if overwrite:
            covered = (given * which).amax(dim=1, keepdim=True) > 0.5
            predicted = predicted.float().masked_fill(covered, -MAX_LOGIT)
        return torch.where(which, logits_from_masks(given), predicted.float())

    with_given: Tensor = by_rows(put, 24.0 * masks[..., 0, :].numel(), foreground, masks)
    return with_given


def show_given(probabilities: Float[Tensor, "B N1 H W"], given: Given) -> Float[Tensor, "B N1 H W"]:
    """Probabilities that show the annotation: given masks are certain, and given objects are absent outside them.

    Other objects and the background keep their shares outside the given masks. A pixel that loses all its probability becomes
    background, and a pixel in several given masks is divided among them.

    Args:
        probabilities: probabilities with the background in channel 0.
        given: given masks at the size of the probabilities.

    Returns:
        A new tensor.
    """

    def show(probabilities: Tensor, masks: Tensor) -> Tensor:
        shown, hidden = _annotated(Given(masks, given.which))
        remaining = probabilities.masked_fill(hidden, 0.0)
        total = remaining.sum(dim=1, keepdim=True)
        remaining = remaining / total.clamp_min(torch.finfo(remaining.dtype).tiny)
        certain = shown.to(remaining.dtype)
        certain[:, :1] = (total == 0) & ~shown.any(dim=1, keepdim=True)
        claims = certain.sum(dim=1, keepdim=True)
        return torch.where(claims > 0, certain / claims.clamp_min(1.0), remaining)

    result: Tensor = by_rows(show, 24.0 * probabilities[..., 0, :].numel(), probabilities, given.masks)
    return result


def _show_given(output: StepOutput, given: Given) -> StepOutput:
    """Make the output show the annotation of objects that are given in this frame, whatever was predicted."""

    def show(logits: Tensor, masks: Tensor) -> Tensor:
        shown, hidden = _annotated(Given(masks, given.which))
        return torch.where(hidden, logits_from_masks(shown.to(logits.dtype)), logits)

    logits: Tensor = by_rows(show, 24.0 * output.logits[..., 0, :].numel(), output.logits, given.masks)
    return StepOutput(logits, show_given(output.probabilities, given), output.introduced, output.aux)


def _annotated(given: Given) -> tuple[Bool[Tensor, "B N1 H W"], Bool[Tensor, "B N1 H W"]]:
    """Where a channel is certain, and where its prediction is discarded; channel 0 is the background."""
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
        label_maps: label maps in object slots.
        object_valid: object slots that exist.
        late_objects: whether objects that first appear after frame 0 are given in that frame; otherwise they stay unknown.

    Returns:
        Given objects by frame index. Frame 0 is always included (its masks may be empty).
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

    Frames that do not depend on each other, because each reads only what is annotated in the first one, are one batch too.

    Args:
        network: the network of any system.
        propagation: policy, aggregation and introduction.
        frames: RGB frames in [0, 1].
        given: annotated objects by frame index, see :func:`introductions`.
        proposals: proposals in time-major rows; None only for networks that do not need them.
        remembered: masks that are remembered, see :func:`advance`; None for the network's own masks.

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
        if t == 0 and length > 1 and _rest_is_independent(network, propagation, state, features, given, length):
            return outputs + _rest_at_once(network, propagation, state, encoded, batch, length)
    return outputs


def _rest_is_independent(
    network: VOSNetwork[Any, Any, Any],
    propagation: Propagation,
    first: State[Any, Any],
    features: Any,
    given: dict[int, Given],
    length: int,
) -> bool:
    """Whether no frame after the first one leaves anything that a later one reads, except its features."""
    return (
        not network.reads_previous
        and network.carry_of(features) is not None
        and set(given) == {0}
        and not any(propagation.policy.wants(first.memory.bank, t) for t in range(1, length))
    )


def _rest_at_once(
    network: VOSNetwork[Any, Any, Any],
    propagation: Propagation,
    first: State[Any, Any],
    encoded: Encoded,
    batch: int,
    length: int,
) -> list[StepOutput]:
    """All frames but the first one as one batch, time-major; ``first`` is the state after the first frame."""
    before = map_tensors(lambda tensor: tensor[:-batch], encoded.features)
    frames = map_tensors(lambda tensor: tensor[batch:], encoded.features)

    def repeated(value: Any) -> Any:
        return map_tensors(lambda tensor: tensor.repeat(length - 1, *[1] * (tensor.ndim - 1)), value)

    bank = Bank(tuple(repeated(kept) for kept in first.memory.bank.frames))
    state = State(Memory(bank, None, network.carry_of(before)), repeated(first.introduced), first.t)
    output, _ = advance(network, propagation, state, Encoded(frames, encoded.padding))
    return list(_split_frames(output, batch, length - 1))


def _split_frames(features: Any, batch: int, length: int) -> Iterator[Any]:
    """Yield the features of each frame. They are split once, as the backward pass of a slice fills a clip with zeros."""
    split: list[tuple[Tensor, ...]] = []

    def collect(tensor: Tensor) -> Tensor:
        split.append(tensor.split(batch))
        return tensor

    map_tensors(collect, features)
    for t in range(length):
        parts = iter(split)
        yield map_tensors(lambda _, parts=parts, t=t: next(parts)[t], features)  # type: ignore[misc]
