"""The files of a network for ONNX Runtime: graphs without weights, the weights beside them, and the rules of the propagation."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from typing_extensions import TypedDict

from vos_lightning.io.documents import read_document
from vos_lightning.io.files import sha256_of

PARTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "encoder": (("image",), ("s4", "s8", "s16", "key", "query_value")),
    "memory_read": (("query_key", "memory_key", "memory_value"), ("readout",)),
    "decoder": (("s4", "s8", "readout", "query_value"), ("logits",)),
    "mask_encoder": (("image", "masks", "s16"), ("value",)),
    "aggregation": (("logits", "introduced"), ("probabilities",)),
    "introduction": (("logits", "introduced", "masks", "which"), ("probabilities",)),
    "annotation": (("probabilities", "masks", "which"), ("shown",)),
}
"""Name of a graph, ``<name>.onnx`` -> names of its inputs and outputs.

All arrays have a batch of 1 in front. Sizes that vary: height and width of the image (multiples of the stride), the number of
objects, the cells of the memory and those of the query.

- ``encoder``: RGB in [0, 1] to features at strides 4, 8 and 16, key and query value.
- ``memory_read``: keys ``(1, CK, cells)`` and values ``(1, N, CV, cells)`` to the readout of a part of the query's cells.
- ``decoder``: features and readout ``(1, N, CV, h, w)`` to a logit for every object and pixel.
- ``mask_encoder``: the image and soft masks ``(1, N, H, W)`` to what is remembered of every object.
- ``aggregation``, ``introduction`` and ``annotation``: the rules of :func:`vos_lightning.propagation.step.advance` that merge
  objects, take given masks in, and show them in the output.
"""
RULES = "engine.json"
"""Name of the file of rules."""


class MemoryRules(TypedDict):
    """Arguments of :class:`vos_lightning.propagation.policies.EveryKth`."""

    k: int
    include_previous: bool
    max_frames: int | None
    count_from: Literal["start", "latest"]


class Rules(TypedDict):
    """What the graphs do not say.

    Attributes:
        system: name of the system, for the user.
        weights: name of the file of weights that the graphs read, which has a model card.
        digests: SHA-256 of every graph and of the weights; the graphs fit exactly these weights.
        stride: the sides of the encoder's image are multiples of it.
        colour: RGB in [0, 1] with which the image is padded.
        memory: which frames are remembered.
        short_side: short side in pixels at which frames are processed; None for that of the video.
        enlarge: whether smaller frames are enlarged to it.
        min_object_pixels: see :class:`vos_lightning.propagation.engine.InferenceEngine`.
    """

    system: str
    weights: str
    digests: dict[str, str]
    stride: int
    colour: list[float]
    memory: MemoryRules
    short_side: int | None
    enlarge: bool
    min_object_pixels: int


def read_rules(folder: Path) -> Rules:
    """The rules of a folder that ``vos export --format onnx`` has written.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a file is missing or damaged; the message names it.
    """
    how = "make the folder with: vos export CHECKPOINT --format onnx --output DIR"
    if not folder.exists():
        raise FileNotFoundError(f"{folder}: there is no such folder; {how}")
    if not (folder / RULES).is_file():
        raise ValueError(f"{folder}: ONNX Runtime needs a folder with {RULES} and the graphs of a network; {how}")
    rules: Rules = read_document(folder / RULES, Rules, how)
    for name in (*(f"{part}.onnx" for part in PARTS), rules["weights"]):
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name}: the file is missing beside {RULES}; {how}")
        if sha256_of(folder / name) != rules["digests"].get(name):
            raise ValueError(f"{folder / name}: the file is not the one that was exported with {RULES}; {how}")
    return rules
