"""What the page shows of a session: pictures, the timeline, and what to do next, in words."""

from __future__ import annotations

import io
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from vos_lightning.app.browser.session import Session, spans
from vos_lightning.visualization.overlays import BRIGHT, overlay

LONGEST_SIDE = 1280
"""Long side, in pixels, of the pictures that the browser gets."""
QUALITY = 88
"""Quality of these JPEGs."""

FLAGS = {
    "absent": "has no pixel here",
    "returned": "is back after a frame without it; it may be something else",
    "area_jump": "grew or shrank by more than a factor of 2 since the frame before",
    "shrunk": "has become much smaller than the mask that you drew",
    "low_confidence": "is uncertain",
    "scattered": "has fallen to pieces",
    "unlike": "has other colours than where you drew it",
    "off_edge": "no longer follows an edge in the picture",
    "scene_cut": "is in another scene: the picture has changed all at once",
}
LET_GO = "was let go: another scene begins here"
"""Flag -> what it says of an object, see :class:`vos_lightning.predictions.drift.ObjectRow`."""


def colour_of(object_id: int) -> str:
    """Colour of an object, as style sheets write it."""
    red, green, blue = BRIGHT[object_id].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def picture(session: Session, index: int, dim: float = 0.0) -> bytes:
    """A frame with its objects, as exported overlays show them, as a JPEG.

    Args:
        session: the session.
        index: index of the frame.
        dim: how much darker the rest is, from 0 to 1.

    Raises:
        IndexError: the video has fewer frames.
        ValueError: the frame cannot be decoded.
    """
    frame, label_map = session.frame(index), session.shown(index)
    height, width = session.size
    scale = min(1.0, LONGEST_SIDE / max(height, width))
    if scale < 1:  # reduced first, so that the contour keeps its width
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        planes = [cv2.resize(plane, inner, interpolation=cv2.INTER_AREA) for plane in frame.numpy()]
        frame = torch.from_numpy(np.stack(planes))
        label_map = torch.from_numpy(cv2.resize(label_map.numpy(), inner, interpolation=cv2.INTER_NEAREST))
    drawn = overlay(frame, label_map, dim=dim).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(drawn)).save(buffer, format="JPEG", quality=QUALITY)
    return buffer.getvalue()


def timeline(session: Session) -> dict[str, Any]:
    """What the timeline shows: frames that are up to date or not any more, doubtful frames, scene cuts, drawn masks."""
    fresh, waiting = session.fresh(), session.waiting()
    found = [t for t in session.found() if t < session.length and not waiting[t]]
    marks = session.marks
    return {
        "length": session.length,
        "fresh": list(spans([t for t in found if fresh[t]])),
        "old": list(spans([t for t in found if not fresh[t]])),
        "flagged": list(spans(session.flagged())),
        "cuts": session.cuts(),
        "marks": [[t, colour_of(i)] for t, said in sorted(marks.given.items()) for i in said if i in marks.names],
    }


def warnings_of(session: Session, index: int) -> list[str]:
    """What looks wrong in a frame, a sentence for each flag."""
    return [
        f"{session.marks.names[row.object_id]} {LET_GO if row.is_let_go else FLAGS.get(flag, flag.replace('_', ' '))}."
        for row in session.rows_of(index)
        for flag in row.flags.split()
        if flag != "given"
    ]


def next_step(session: Session) -> str:
    """What to do next, in a sentence."""
    marked = session.marks.first_frames()
    if not session.marks.names:
        return "Go to a frame that shows the object, and draw a box around it."
    without = [name for i, name in session.marks.names.items() if i not in marked]
    if not marked:
        return f"Draw a box around {without[0]}, or mark it with strokes."
    asked = session.asked()
    if asked is not None:
        frame, names = asked
        gone = "it is" if len(names) == 1 else "they are"
        who = " and ".join(names)
        return f"Another scene begins in frame {session.name_of(frame)}. Mark {who} there, or say that {gone} gone, and run on."
    if not session.is_done():
        return f"Press “{run_title(session)}”. You can mark more objects first, here or in any other frame."
    first = min(marked.values())
    if first > 0 and not session.findings.both:
        return f"Frames before {session.name_of(first)} are empty: tick “Also backwards” and run on if the object is there."
    if session.flagged():
        return "Jump to the doubtful frames. Where a mask is wrong, correct it and run on; then export."
    return "Look through the video. Where a mask is wrong, correct it and run on; then export."


def run_title(session: Session) -> str:
    """What the button says that follows the objects."""
    valid = session.valid()
    if valid == session.length:
        return "All frames are up to date"
    first = min(session.marks.first_frames().values(), default=0)
    if not session.found() or (valid <= first and not session.findings.both):
        return "Follow the objects"
    if session.findings.both:
        return "Run on"
    return f"Run on from frame {session.name_of(valid)}"
