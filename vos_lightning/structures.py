"""Data contracts: what travels between data sets, networks, the propagation engine and the metrics.

Everything here is a frozen dataclass without behaviour beyond ``.to`` and ``.pin_memory``. Dimensions in all files of the
library: ``B`` clips, ``T`` frames, ``N`` object slots (padded), ``M`` bank frames, ``H W`` input pixels, ``h w`` cells at the
network's stride, ``C`` channels, ``CK CV`` key and value channels, ``S = M*h*w`` memory pixels, ``Q = h*w`` query pixels, ``K``
proposals or points.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Bool, Float, Int64, Num, UInt8

from vos_lightning.arrays import Tensor
from vos_lightning.labels import IGNORE_LABEL as IGNORE_LABEL

T_ = TypeVar("T_")
LazyT = TypeVar("LazyT", covariant=True)


def per_object() -> Any:
    """Mark a dataclass field whose tensor has the object slots ``N`` in dimension 1 (so that it can grow with new objects)."""
    return field(metadata={"per_object": True})


def map_tensors(function: Callable[[Tensor], Tensor], value: T_) -> T_:
    """Apply ``function`` to every tensor inside nested dataclasses, tuples, lists and mappings; other values stay unchanged."""
    if isinstance(value, Tensor):
        return function(value)  # type: ignore[return-value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Fields that a constructor does not take (cached values) are computed again, not mapped.
        changed = {f.name: map_tensors(function, getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **changed)  # type: ignore[type-var, return-value]
    if isinstance(value, (tuple, list)):
        return type(value)(map_tensors(function, v) for v in value)  # type: ignore[return-value, call-arg]
    if isinstance(value, Mapping):
        return {k: map_tensors(function, v) for k, v in value.items()}  # type: ignore[return-value]
    return value


class _Transferable:
    """``.to`` and ``.pin_memory``; Lightning and PyTorch skip or refuse frozen dataclasses without them."""

    def to(self: T_, *args: Any, **kwargs: Any) -> T_:
        """Return a copy with every tensor passed through ``Tensor.to``."""
        return map_tensors(lambda tensor: tensor.to(*args, **kwargs), self)

    def pin_memory(self: T_) -> T_:
        """Return a copy in page-locked memory."""
        return map_tensors(lambda tensor: tensor.pin_memory(), self)


@dataclass(frozen=True)
class Proposals(_Transferable):
    """Object proposals of a frame, padded to ``K`` with ``scores = 0``."""

    boxes: Float[Tensor, "B K 4"]
    """Corners ``x0 y0 x1 y1`` in pixels of the frame."""
    masks: Float[Tensor, "B K m m"]
    """Soft masks in box coordinates (28 x 28 from Mask R-CNN), in [0, 1]."""
    scores: Float[Tensor, "B K"]


@dataclass(frozen=True)
class FrameInput(_Transferable):
    """One frame of ``B`` clips, the argument of ``VOSNetwork.encode``."""

    image: Float[Tensor, "B 3 H W"]
    """RGB in [0, 1], not normalised, as each backbone has its own statistics."""
    proposals: Proposals | None = None


@dataclass(frozen=True)
class FeaturePyramid(_Transferable):
    """Backbone features at strides 4, 8 and 16."""

    s4: Float[Tensor, "B C4 H4 W4"]
    s8: Float[Tensor, "B C8 H8 W8"]
    s16: Float[Tensor, "B C16 H16 W16"]


@dataclass(frozen=True)
class Given(_Transferable):
    """Objects that are annotated in a frame."""

    masks: Float[Tensor, "B N H W"]
    """Binary masks; planes of objects that are not given are ignored."""
    which: Bool[Tensor, "B N"]
    """Object slots that are given in this frame."""


@dataclass(frozen=True)
class ClipSample:
    """One training clip on the CPU, before collation."""

    frames: UInt8[Tensor, "T 3 H W"]
    """RGB frames."""
    label_maps: UInt8[Tensor, "T H W"]
    """0 background, 1..N object slots, 255 ignore."""
    object_ids: tuple[int, ...]
    """Original ids of slots 1..N."""
    video_name: str
    frame_indices: tuple[int, ...]
    proposals: Proposals | None = None
    """Proposals with ``B = T``: one row for each frame."""


@dataclass(frozen=True)
class ClipBatch(_Transferable):
    """A training batch."""

    frames: Float[Tensor, "B T 3 H W"]
    """RGB frames in [0, 1]."""
    label_maps: UInt8[Tensor, "B T H W"]
    """0 background, 1..N object slots, 255 ignore."""
    object_valid: Bool[Tensor, "B N"]
    """False for padded slots."""
    video_names: tuple[str, ...]
    frame_indices: Int64[Tensor, "B T"]
    proposals: Proposals | None = None
    """Proposals in ``B*T`` rows, time-major (row ``t*B + b``)."""


@runtime_checkable
class LazySequence(Protocol[LazyT]):
    """A sequence whose items are made when they are accessed; a list is one too.

    It is not a ``Sequence``, because type checks in the tests would then create some of its items.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> LazyT: ...

    def __iter__(self) -> Iterator[LazyT]: ...


@runtime_checkable
class Frames(Protocol):
    """The frames of a video in time order, uint8 ``(3, H, W)`` on the host; every iteration decodes them from the first one on.

    A list is one too. It is not an ``Iterable``, because type checks in the tests would then decode some frames.
    """

    def __iter__(self) -> Iterator[Tensor]: ...


@runtime_checkable
class FrameProposals(Protocol):
    """Source of the proposals of a video's frames."""

    def of_frame(self, index: int, frame: UInt8[Tensor, "3 H W"]) -> Proposals:
        """Proposals of a frame, in one row, in pixels of the frame; made or read now.

        Args:
            index: index of the frame.
            frame: RGB image on the host.
        """


def frame_name(names: Sequence[str] | None, index: int, first: int = 0, stride: int = 1) -> str:
    """Name of a frame: its file stem, or its number in five digits where frames have no names, as in a video file.

    Args:
        names: names of the frames, or None.
        index: index of the frame among those that are segmented.
        first: number of the first of them in the whole video.
        stride: step between their numbers.
    """
    return f"{first + index * stride:05d}" if names is None else names[index]


FOLDER_FPS = Fraction(24)
"""Frames a second of a folder of images, which has no rate of its own (DAVIS and YouTube-VOS are shown at 24)."""


@dataclass(frozen=True)
class VideoSample:
    """One whole video: of a data set, a folder of images, or a video file. The batch size is always one."""

    name: str
    frames: Frames
    """Frames, decoded one by one as they are asked for; they stay on the host."""
    annotations: Mapping[int, UInt8[Tensor, "H W"]]
    """Label maps in original ids by frame index, which the network is given. Non-zero pixels introduce or re-annotate an
    object."""
    targets: Mapping[int, UInt8[Tensor, "H W"]]
    """Label maps in original ids by frame index, for metrics only; may be empty."""
    object_ids: tuple[int, ...]
    """Original ids of all objects that are annotated in any frame."""
    original_size: tuple[int, int]
    """Height and width of the frames, of annotations and targets, and of the written predictions."""
    frame_names: tuple[str, ...] | None
    """File stems of all frames; predictions are written under the same stems. None where the number of frames is known only at
    the end, as in a video file: frames are then named by their index, see :meth:`name_of`."""
    required_frames: tuple[int, ...] | None = None
    """Frames whose prediction is to be written; None means all frames."""
    proposals: FrameProposals | None = None
    unseen_ids: tuple[int, ...] = ()
    """Ids whose category is not in the training set, if that is known (YouTube-VOS)."""
    fps: Fraction = FOLDER_FPS
    """Frames a second, at which pictures of the video are written."""
    numbering: tuple[int, int] = (0, 1)
    """Number of the first frame where frames have no names, and the step between numbers, see :func:`frame_name`."""
    gone: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Ids of objects that are gone from a frame on, by frame index; an annotation brings them back."""

    @property
    def length(self) -> int | None:
        """Number of frames; None where it is known only at the end."""
        return None if self.frame_names is None else len(self.frame_names)

    def name_of(self, index: int) -> str:
        """Name of a frame, see :func:`frame_name`."""
        return frame_name(self.frame_names, index, *self.numbering)

    def to(self, *args: Any, **kwargs: Any) -> VideoSample:  # noqa: ARG002
        """Return itself: a video stays on the host, and the engine moves one frame at a time. Lightning calls this method."""
        return self


@dataclass(frozen=True)
class UnusableVideo:
    """A video that cannot be opened, in the place of a :class:`VideoSample`."""

    name: str
    error: ValueError | OSError

    def to(self, *args: Any, **kwargs: Any) -> UnusableVideo:  # noqa: ARG002
        """Return itself; Lightning calls this method."""
        return self


@dataclass(frozen=True)
class FramePrediction:
    """Result of the engine for a frame, in original size and ids."""

    frame_index: int
    frame: Num[Tensor, "3 H0 W0"]
    """The frame, as it was given to the engine: RGB, uint8 or float."""
    label_map: UInt8[Tensor, "H0 W0"]
    probabilities: Float[Tensor, "N H0 W0"]
    """One plane for each object, in the order of ``object_ids``."""
    object_ids: tuple[int, ...]
    given_ids: tuple[int, ...] = ()
    """Objects whose mask was given in this frame."""
    processed_size: tuple[int, int] | None = None
    """Height and width at which the network worked, before padding; None if they equal those of the label map."""
    aux: Mapping[str, Any] = field(default_factory=dict)
    """Auxiliary outputs of ``segment``, on the network's grid and device; empty if nothing was predicted."""
    scene_cut: bool = False
    """Whether this is the first frame of another scene, and the engine has let go of the objects that were followed so far."""
    let_go: tuple[int, ...] = ()
    """Those of them that are not annotated in this frame."""


@dataclass(frozen=True)
class VideoRecord:
    """Files of a video on disk, and what is known of it before any file is read."""

    name: str
    frame_names: tuple[str, ...]
    """File stems in time order."""
    frame_paths: tuple[str, ...]
    label_paths: Mapping[int, str]
    """Label-map files by frame index. A frame without an entry is not annotated, which is not the same as an empty mask."""
    first_frame: Mapping[int, int] | None = None
    """Index of the frame that introduces each object, by object id. None: every object of the first frame, found when it is
    read."""
    required_frames: tuple[int, ...] | None = None
    """Frames to predict; None means all frames."""
    exhaustive: bool = True
    """Whether 0 in a label map means background (True) or possibly unlabelled (YouTube-VOS validation)."""
    merge_objects: bool = False
    """Whether any non-zero label is object 1 (DAVIS 2016, saliency sets)."""
    has_void: bool = False
    """Whether 255 marks pixels that are neither trained nor scored (DAVIS 2017, VOST). Otherwise it is the white of a black and
    white mask, see :func:`vos_lightning.mask_ops.as_object_map`."""
    unseen_ids: tuple[int, ...] = ()
    """Ids whose category is not in the training set, if that is known (YouTube-VOS)."""
