"""Proposals on disk: one file a video, from which single frames are read.

A file is an ``.npz`` archive that ``numpy.load`` can open. It holds ``header``, a JSON text, and for every frame ``<name>`` a
structured array with one row for each proposal (:data:`ROW`). Members are compressed separately, so that a frame can be read
without the others.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Required,  # pydantic reads these from `typing` from Python 3.12 on
)

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field
from torch import Tensor
from typing_extensions import TypedDict

from vos_lightning.io.documents import checked
from vos_lightning.io.files import regular_file, write_atomically
from vos_lightning.io.texts import parse_json
from vos_lightning.structures import Proposals

VERSION = 1
MASK_SIZE = 28
ROW = np.dtype([("box", "<f4", 4), ("score", "<f2"), ("label", "<i2"), ("mask", "u1", (MASK_SIZE, MASK_SIZE))])
"""Box ``x0 y0 x1 y1`` in pixels of the stored frame, score, class of the detector, mask inside the box times 255."""
MAX_MEMBER_BYTES = 256 << 20
"""Most bytes of one frame, or of the header, when they are unpacked: 300 thousand proposals."""
NUM_PROPOSALS = 30
"""Default number of proposals of a frame that networks use; the best ones are taken."""


def precompute_command(
    images: str = "FOLDER_OR_VIDEO", output: str = "FOLDER", stills: bool = False, generator: str | None = None
) -> str:
    """The command line that computes missing proposals, for messages.

    Args:
        images: folder or file of the frames.
        output: folder of the proposals.
        stills: every image has its own proposals.
        generator: origin that the files have to record; None for any.
    """
    more = " --stills" if stills else ""
    published = re.fullmatch(r"maskrcnn_(\w+)_COCO_V1", generator or "maskrcnn_resnet50_COCO_V1")
    detector = f"--pretrained COCO_V1 --architecture {published[1]}" if published else f"and the options of {generator}"
    return f"vos precompute-proposals --images {images}{more} --output {output} {detector}"


class _Header(TypedDict, total=False):
    frames: Required[list[str]]
    counts: list[int] | None
    frame_size: Annotated[list[int], Field(min_length=2, max_length=2)] | None


@dataclass(frozen=True)
class Found:
    """Proposals of one frame, best first."""

    boxes: Float[Tensor, "n 4"]
    """Corners ``x0 y0 x1 y1`` in pixels of the frame."""
    masks: Float[Tensor, "n 28 28"]
    scores: Float[Tensor, " n"]
    labels: Int64[Tensor, " n"]
    """Classes of the detector; 0 if there are none."""


def nothing_found() -> Found:
    """Proposals of a frame in which the detector found nothing."""
    masks = torch.zeros(0, MASK_SIZE, MASK_SIZE)
    return Found(torch.zeros(0, 4), masks, torch.zeros(0), torch.zeros(0, dtype=torch.int64))


def batch_proposals(frames: Sequence[Found], num_proposals: int) -> Proposals:
    """Rows of a batch, cut to the best ``num_proposals`` or padded with score 0.

    Args:
        frames: proposals of every row.
        num_proposals: number ``K`` of proposals in every row.
    """
    size = len(frames)
    boxes, scores = torch.zeros(size, num_proposals, 4), torch.zeros(size, num_proposals)
    masks = torch.zeros(size, num_proposals, MASK_SIZE, MASK_SIZE)
    for row, found in enumerate(frames):
        count = min(len(found.scores), num_proposals)
        boxes[row, :count] = found.boxes[:count]
        masks[row, :count] = found.masks[:count]
        # A score of 0 would mean that there is no proposal.
        scores[row, :count] = found.scores[:count].clamp_min(1e-6)
    return Proposals(boxes, masks, scores)


def write_proposals(path: str | Path, frames: Mapping[str, Found], header: Mapping[str, Any]) -> None:
    """Write the proposals of a video atomically.

    Args:
        path: output file, whose name ends in ``.npz``.
        frames: proposals by frame name, in time order.
        header: origin of the proposals (generator, weights, thresholds) and ``frame_size``, height and width of the frames; plain
            values.
    """
    counts = [len(found.scores) for found in frames.values()]
    about = {**header, "version": VERSION, "frames": list(frames), "counts": counts}
    arrays: dict[str, np.ndarray] = {"header": np.asarray(json.dumps(about))}
    for name, found in frames.items():
        if name == "header":
            raise ValueError(f"{path}: a frame cannot be called 'header'; rename the image")
        arrays[name] = _rows(found)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


class ProposalFile:
    """The proposals of a video.

    Args:
        path: file that was written by :func:`write_proposals`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or has another version of the format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            command = precompute_command(output=str(self.path.parent))
            raise FileNotFoundError(f"{self.path}: there is no such file of proposals; compute it with `{command}`")
        content = parse_json(str(self._read(["header"])["header"]), self.path)
        self.header: dict[str, Any] = checked(content, dict[str, Any], f"{self.path}, header", "compute it anew")
        if self.header.get("version") != VERSION:
            raise ValueError(f"{self.path}: version {self.header.get('version')} of the format, not {VERSION}; compute it anew")
        checked(content, _Header, f"{self.path}, header", "compute it anew")

    @property
    def frames(self) -> list[str]:
        """Names of the frames in time order."""
        names: list[str] = self.header["frames"]
        return names

    @property
    def is_empty(self) -> bool:
        """Whether the detector found nothing in any frame, if the file records it."""
        counts: list[int] | None = self.header.get("counts")
        return counts is not None and not any(counts)

    def check(self, names: Sequence[str], size: tuple[int, int] | None = None) -> None:
        """Check that the proposals belong to a video.

        Args:
            names: names of the frames that must be in the file.
            size: height and width of the frames, if it is known.

        Raises:
            ValueError: the proposals belong to another video, or to frames of another size.
        """
        known = set(self.frames)
        missing = [name for name in names if name not in known]
        if missing:
            raise ValueError(
                f"{self.path}: no proposals of frame {missing[0]!r} ({len(missing)} of {len(names)} frames are missing); compute "
                "them for this video"
            )
        stored = self.header.get("frame_size")
        if size is not None and stored is not None and tuple(stored) != size:
            raise ValueError(
                f"{self.path}: the proposals are of frames of {stored[1]}x{stored[0]}, the frames are {size[1]}x{size[0]}; "
                "compute them for this video"
            )

    def read(self, names: Sequence[str]) -> list[Found]:
        """Proposals of some frames.

        Raises:
            ValueError: a frame is missing, or the file is damaged.
        """
        arrays = self._read(names)
        for name, rows in arrays.items():
            if rows.dtype != ROW or rows.ndim != 1:
                raise ValueError(f"{self.path}: frame {name!r} holds no rows of proposals; remove the file and compute it anew")
        return [_found(arrays[name]) for name in names]

    def _read(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        # The file is opened for every call: workers must not share a file position, and the directory of an archive is short.
        try:
            # The file is opened here, because numpy does not close a file that is not an archive.
            with regular_file(self.path).open("rb") as file, np.load(file, allow_pickle=False) as archive:
                missing = next((name for name in names if name not in archive.files), None)
                if missing is None:
                    large = [info.filename for info in archive.zip.infolist() if info.file_size > MAX_MEMBER_BYTES]
                    if large:
                        raise OverflowError(f"{large[0]} in it has more than {MAX_MEMBER_BYTES} bytes")
                    found = {name: archive[name] for name in names}
                    wrong = [name for name, rows in found.items() if name != "header" and (rows.dtype != ROW or rows.ndim != 1)]
                    if wrong:
                        raise TypeError(f"frame {wrong[0]!r} has no rows of proposals")
                    return found
        except Exception as error:  # a broken archive makes zipfile, zlib and numpy raise almost anything
            raise ValueError(f"{self.path}: the file is damaged ({error}); remove it and compute it anew") from error
        raise ValueError(f"{self.path}: no proposals of frame {missing!r}; compute them for this video")


def as_stored(found: Found) -> Found:
    """Proposals as they are read back from a file: on the host, with 8-bit masks and 16-bit scores."""
    return _found(_rows(found))


def _rows(found: Found) -> np.ndarray:
    rows = np.zeros(len(found.scores), ROW)
    rows["box"], rows["score"], rows["label"] = found.boxes.cpu(), found.scores.cpu(), found.labels.cpu()
    rows["mask"] = (found.masks.cpu() * 255).round().clamp(0, 255).to(torch.uint8)
    return rows


def _found(rows: np.ndarray) -> Found:
    return Found(
        torch.from_numpy(rows["box"].astype(np.float32)),
        torch.from_numpy(rows["mask"].astype(np.float32)) / 255,
        torch.from_numpy(rows["score"].astype(np.float32)),
        torch.from_numpy(rows["label"].astype(np.int64)),
    )
