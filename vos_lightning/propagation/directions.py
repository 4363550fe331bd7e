"""A video backwards, and in both directions: each is made of runs of the engine from the first frame to the last."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vos_lightning.io.reversal import backwards
from vos_lightning.mask_ops import Aggregation, label_map_from_probabilities, object_ids_in, slots_to_ids
from vos_lightning.structures import FramePrediction, FrameProposals, Proposals, VideoSample

Direction = Literal["forward", "backward", "both"]
Run = Callable[[VideoSample], Iterator[FramePrediction]]
"""Segments a video from the first frame to the last, as :meth:`vos_lightning.propagation.engine.InferenceEngine.run` does."""


def run_in_direction(run: Run, video: VideoSample, direction: Direction, aggregation: Aggregation) -> Iterator[FramePrediction]:
    """Segment every frame of a video once, from the annotations before it, from those after it, or from both.

    - ``forward``: from the first frame to the last. Frames before the first annotation are empty.
    - ``backward``: the same on the reversed video, so that the last frame comes first. Frames after the last annotation are
      empty, and come at the end.
    - ``both``: first backwards from the last annotation, then forwards. Frames before the first annotation are reached backwards
      and come as soon as they are, the last of them first. Then the others come in the order of time: up to the last annotation
      they are blended, see :func:`blend`, and after it they are those of the forward run. The probabilities of the backward run
      wait in a temporary file, compressed and rounded to 1/255.

    Args:
        run: see :data:`Run`; one run is over before the next begins.
        video: its annotations say where objects are given.
        direction: see above.
        aggregation: that of the run; with ``none`` the objects do not share the probability of a pixel.

    Raises:
        ValueError: the direction is unknown; the video has to be read backwards, and can only be read once; or what ``run`` says.
        OSError: the temporary file cannot be written.
    """
    if direction not in get_args(Direction):
        raise ValueError(f"direction must be one of {get_args(Direction)}, not {direction!r}")
    if direction == "forward":
        return run(video)
    last = max(t for t, annotation in video.annotations.items() if bool(annotation.any()))
    return _backward(run, video, last) if direction == "backward" else _both(run, video, last, aggregation)


def reversed_video(video: VideoSample, last: int) -> VideoSample:
    """The frames from ``last`` to the first, as a video whose frame ``i`` is frame ``last - i``, with what is given in them.

    An object that is gone from a frame on is not in that frame either where time runs backwards. So it is gone there as soon as
    the annotation is left that comes next in time, and has been given anew before it is seen again.
    """
    given = {t: object_ids_in(annotation) for t, annotation in video.annotations.items() if t <= last}
    gone: dict[int, list[int]] = {}
    for end, ids in video.gone.items():
        for i in ids:
            following = [t for t, others in given.items() if t > end and i in others]
            if following:
                gone.setdefault(last - min(following) + 1, []).append(i)
    return dataclasses.replace(
        video,
        frames=_Backwards(video, last + 1),
        annotations={last - t: video.annotations[t] for t in sorted(given, reverse=True)},
        targets={},
        frame_names=None,
        required_frames=None,
        proposals=None if video.proposals is None else _BackwardsProposals(video.proposals, last),
        gone={t: tuple(ids) for t, ids in gone.items()},
    )


@dataclass(frozen=True)
class _Backwards:
    video: VideoSample
    count: int

    def __iter__(self) -> Iterator[Tensor]:
        return backwards(self.video.frames, self.count)


@dataclass(frozen=True)
class _BackwardsProposals:
    proposals: FrameProposals
    last: int

    def of_frame(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Proposals:
        return self.proposals.of_frame(self.last - index, frame)


def _backward(run: Run, video: VideoSample, last: int) -> Iterator[FramePrediction]:
    for prediction in _backward_to(run, video, last):
        yield prediction
    # Without annotations, a run only says that there is nothing.
    for prediction in run(dataclasses.replace(video, annotations={}, gone={})):
        if prediction.frame_index > last:
            yield prediction


def _backward_to(run: Run, video: VideoSample, last: int) -> Iterator[FramePrediction]:
    for prediction in run(reversed_video(video, last)):
        yield dataclasses.replace(prediction, frame_index=last - prediction.frame_index)


def _both(run: Run, video: VideoSample, last: int, aggregation: Aggregation) -> Iterator[FramePrediction]:
    first = min(t for t, annotation in video.annotations.items() if bool(annotation.any()))
    with _Waiting() as waiting:
        distance = _Distances()
        for prediction in _backward_to(run, video, last):
            if prediction.frame_index < first:
                yield prediction
            elif prediction.frame_index < last:
                waiting.put(prediction, distance.at(prediction))
            else:
                distance.at(prediction)
        distance = _Distances()
        for prediction in run(video):
            index = prediction.frame_index
            if index < first:
                continue
            distances = distance.at(prediction)
            if index < last:
                prediction = blend(prediction, distances, *waiting.take(prediction), aggregation)
            yield prediction


def blend(
    forward: FramePrediction,
    distances: Mapping[int, int],
    backward: FramePrediction,
    their_distances: Mapping[int, int],
    aggregation: Aggregation,
) -> FramePrediction:
    r"""One prediction of a frame from that of the forward and that of the backward run.

    .. math:: p_k = \frac{w_k\,p_k^+ + v_k\,p_k^-}{w_k + v_k}, \qquad w_k = c_k^+ d_k^-, \quad v_k = c_k^- d_k^+

    Here :math:`p_k^\pm` is the probability of object :math:`k` in either run, :math:`d_k^\pm` the distance in frames of its last
    annotation, and :math:`c_k^\pm` the confidence: the mean probability of the pixels where it is above 1/2, 0 if there are none.
    Without the confidence, the weight of a run would fall linearly from 1 at its own annotation to 0 at that of the other. A run
    drifts with the distance, and knows it in part only, so that both count; a run that has lost the object has no say.

    An object that is known in one of the runs alone is taken from it. Where the probabilities of a pixel then sum to more than 1,
    they are divided by their sum.

    Args:
        forward: prediction of the forward run.
        distances: frames since the last annotation in it, by object.
        backward: prediction of the backward run for the same frame.
        their_distances: frames since the last annotation in it, by object.
        aggregation: that of the runs; with ``none`` the objects do not share the probability of a pixel.
    """
    ids = (*forward.object_ids, *(i for i in backward.object_ids if i not in distances))
    own, theirs = (dict(zip(one.object_ids, one.probabilities, strict=True)) for one in (forward, backward))
    planes = []
    for i in ids:
        if i not in own or i not in theirs:
            planes.append(own[i] if i in own else theirs[i])
            continue
        weight = _confidence(own[i]) * their_distances[i]
        their_weight = _confidence(theirs[i]) * distances[i]
        # Both are 0 where the object is given, or is seen in neither: the runs then agree.
        share = weight / (weight + their_weight) if weight + their_weight > 0 else 0.5
        planes.append(torch.lerp(theirs[i], own[i], share))
    probabilities = torch.stack(planes) if planes else forward.probabilities
    if aggregation == "none":
        background = (1 - probabilities).amin(dim=0, keepdim=True) if planes else torch.ones_like(forward.label_map[None]).float()
    else:
        total = probabilities.sum(dim=0, keepdim=True)
        probabilities, background = probabilities / total.clamp_min(1), (1 - total).clamp_min(0)
    label_map = slots_to_ids(label_map_from_probabilities(torch.cat([background, probabilities])), ids)
    return dataclasses.replace(forward, label_map=label_map, probabilities=probabilities, object_ids=ids)


def _confidence(plane: Float[Tensor, "H W"]) -> float:
    inside = plane > 0.5
    return float(plane[inside].mean()) if bool(inside.any()) else 0.0


class _Distances:
    """How far the last annotation of every object is away, in frames."""

    def __init__(self) -> None:
        self._given: dict[int, int] = {}

    def at(self, prediction: FramePrediction) -> dict[int, int]:
        self._given |= dict.fromkeys(prediction.given_ids, prediction.frame_index)
        return {i: abs(prediction.frame_index - self._given[i]) for i in prediction.object_ids}


class _Waiting:
    """Predictions of one run that wait for the other one, in a temporary file without a name, which ends with the process."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="vos_lightning_")  # noqa: SIM115
        self._places: dict[int, tuple[int, int, tuple[int, ...], dict[int, int]]] = {}

    def __enter__(self) -> _Waiting:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, prediction: FramePrediction, distances: dict[int, int]) -> None:
        levels = (prediction.probabilities * 255).round_().to(torch.uint8)
        content = zlib.compress(levels.numpy().tobytes(), level=1)
        try:
            place = self._file.seek(0, os.SEEK_END)
            self._file.write(content)
            self._file.flush()
        except OSError as error:
            where = f"{tempfile.gettempdir()}, the temporary folder (TMPDIR names another)"
            raise OSError(error.errno, f"masks cannot wait for the other direction ({error.strerror})", where) from error
        self._places[prediction.frame_index] = place, len(content), prediction.object_ids, distances

    def take(self, other: FramePrediction) -> tuple[FramePrediction, dict[int, int]]:
        """What waits for the same frame."""
        place, size, ids, distances = self._places.pop(other.frame_index)
        self._file.seek(place)
        levels = np.frombuffer(zlib.decompress(self._file.read(size)), np.uint8).reshape(len(ids), *other.label_map.shape)
        planes = torch.from_numpy(levels.astype(np.float32) / 255)
        # The label map follows from the blend.
        return FramePrediction(other.frame_index, other.frame, other.label_map, planes, ids), distances
