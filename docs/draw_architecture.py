"""Draw ``architecture.svg`` from the import contracts in ``pyproject.toml``: ``python docs/draw_architecture.py``.

Layers, what stands inside a layer, and what a room may not import are read from the contracts; lines of code are counted. Only
the sentence and the kind of each room are written here, and a room without them is an error.
"""

from __future__ import annotations

import textwrap
import tomllib
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DRAWING = Path(__file__).resolve().parent / "architecture.svg"

KINDS = {
    "command": ("#3d4663", "command line and runs"),
    "lightning": ("#7a4b9a", "PyTorch Lightning"),
    "paper": ("#b4531f", "papers"),
    "time": ("#1f6aa5", "time: the one recurrence"),
    "block": ("#3b7a3f", "mathematics and blocks"),
    "file": ("#0f7480", "files, scores and pictures"),
    "contract": ("#5b5f66", "data contracts"),
    "data": ("#8a6d12", "beside the library"),
}
"""Kind of a room -> colour and what the legend says."""

ROOMS = {
    "__main__": ("command", "python -m vos_lightning, vos"),
    "app": ("command", "Commands, experiments, runs, stages, results: what happens when a user types something"),
    "callbacks": ("lightning", "Prediction files, pictures of the validation, speed, clean stops"),
    "checkpoints": ("file", "Checkpoint to engine; weights that authors have released"),
    "predictions": ("file", "The one writer of predictions: label maps, overlay videos, drift flags, contact sheets"),
    "visualization": ("file", "All that is drawn: overlays, score maps, what each paper shows of its network, curves of J"),
    "modules": ("lightning", "A LightningModule a paper: loss, memory policies, optimisation, evaluation"),
    "networks": ("paper", "A file a paper: encode, segment, memorize"),
    "light": ("time", "The small network in ONNX Runtime, without PyTorch"),
    "propagation": ("time", "advance, unroll and the streaming engine; memory and its policies"),
    "decoders": ("block", "Scores or readouts and features in, logits out"),
    "encoders": ("block", "What the memory keeps: keys, values, features of objects"),
    "attention": ("block", "CBAM, dual, motion-aware, object alignment, dynamic memory"),
    "backbones": ("block", "Image in, feature pyramid out"),
    "matching": ("block", "Pure functions of keys and masks"),
    "losses": ("block", "Segmentation, points, proposals"),
    "proposals": ("block", "Boxes, detector, files of them"),
    "evaluation": ("file", "Folders of PNGs against the truth, baselines, tables of scores"),
    "metrics": ("file", "J, F and G exactly as the benchmarks define them; needs no PyTorch for files"),
    "io": ("file", "The one reader, lister and writer of label maps, images, videos and pretrained weights"),
    "mask_ops": ("contract", "Label maps to masks and back, soft aggregation, padding"),
    "structures": ("contract", "Frozen dataclasses: what travels between the rooms"),
    "labels": ("contract", "What the values of label maps mean"),
    "arrays": ("contract", "Tensors, or arrays where PyTorch is not installed"),
}
"""Room of ``vos_lightning`` -> kind and sentence."""

LEFT, WIDTH, SIDE, SIDE_WIDTH, TOP, GAP = 40, 820, 900, 300, 92, 12
ROW, LINE, CHIP = 58, 36, 26


def contracts() -> list[dict[str, Any]]:
    """The import contracts of the project."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        found: list[dict[str, Any]] = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    return found


def layers_of(package: str) -> list[list[str]]:
    """Layers of a package from high to low; the rooms of a layer do not import each other."""
    for contract in contracts():
        if contract["type"] == "layers" and contract["containers"] == [package]:
            return [[name.strip() for name in layer.split("|")] for layer in contract["layers"]]
    return []


def forbidden_to(package: str) -> list[str]:
    """Rooms of ``vos_lightning`` that a package must not import."""
    return [
        name.removeprefix("vos_lightning.")
        for contract in contracts()
        if contract["type"] == "forbidden" and contract["source_modules"] == [package]
        for name in contract["forbidden_modules"]
    ]


def plain_rooms() -> set[str]:
    """Rooms in which Lightning is forbidden."""
    return {
        name.removeprefix("vos_lightning.")
        for contract in contracts()
        if contract["type"] == "forbidden" and "lightning" in contract["forbidden_modules"]
        for name in contract["source_modules"]
    }


def lines_of(path: Path) -> int:
    """Lines of Python in a module or a package."""
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def text(x: float, y: float, content: str, css: str = "", anchor: str = "start") -> str:
    """A line of text."""
    return f'<text class="{css}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{escape(content)}</text>'


def box(x: float, y: float, width: float, height: float, colour: str, fill: float = 0.1) -> str:
    """A rounded rectangle."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{colour}" fill-opacity="{fill:g}" '
        f'stroke="{colour}" stroke-width="1.4"/>'
    )


def wrapped(x: float, y: float, width: float, sentence: str) -> list[str]:
    """A sentence in lines of small text."""
    return [text(x, y + 15 * k, line, "small") for k, line in enumerate(textwrap.wrap(sentence, int(width / 6.2)))]


def room(x: float, y: float, width: float, height: float, name: str, plain: bool) -> list[str]:
    """A room of ``vos_lightning`` with what stands inside it."""
    kind, sentence = ROOMS[name]
    colour = KINDS[kind][0]
    path = ROOT / "vos_lightning" / name
    title = f"{name}/" if path.is_dir() else f"{name}.py"
    parts = [box(x, y, width, height, colour), text(x + 12, y + 21, title, "name")]
    parts.append(text(x + width - (24 if plain else 10), y + 20, f"{lines_of(path)} lines", "lines", "end"))
    if plain:
        parts.append(f'<circle cx="{x + width - 14:g}" cy="{y + 16:g}" r="4" fill="{colour}"/>')
    if height == LINE:
        parts.append(text(x + 150, y + 21, sentence, "small"))
    else:
        parts += wrapped(x + 12, y + 38, width - 20, sentence)
    top = y + 46
    for layer in layers_of(f"vos_lightning.{name}"):
        chip = (width - 24 - 8 * (len(layer) - 1)) / len(layer)
        for k, part in enumerate(layer):
            left = x + 12 + k * (chip + 8)
            parts += [box(left, top, chip, CHIP - 6, colour, 0.16), text(left + chip / 2, top + 14, part, "chip", "middle")]
        top += CHIP
    return parts


def side(y: float, title: str, path: Path, paragraphs: list[str]) -> tuple[list[str], float]:
    """A box beside the layers, and where the next one may begin."""
    colour = KINDS["data"][0]
    parts = [text(SIDE + 12, y + 21, title, "name")]
    if any(path.rglob("*.py")):
        parts.append(text(SIDE + SIDE_WIDTH - 10, y + 20, f"{lines_of(path)} lines", "lines", "end"))
    line = y + 38
    for paragraph in paragraphs:
        drawn = wrapped(SIDE + 12, line, SIDE_WIDTH - 20, paragraph)
        parts += drawn
        line += 15 * len(drawn) + 7
    bottom = line - 10
    return [box(SIDE, y, SIDE_WIDTH, bottom - y, colour), *parts], bottom + GAP


def draw() -> str:
    """The drawing as SVG text.

    Raises:
        ValueError: a room of the contracts has no sentence here.
    """
    layers = layers_of("vos_lightning")
    unknown = {name for layer in layers for name in layer} ^ ROOMS.keys()
    if unknown:
        raise ValueError(f"draw_architecture.ROOMS and the layers in pyproject.toml differ in {', '.join(sorted(unknown))}")
    plain = plain_rooms()
    parts: list[str] = []
    tops: dict[str, float] = {}
    y = float(TOP)
    for layer in layers:
        inner = max(len(layers_of(f"vos_lightning.{name}")) for name in layer)
        height = 52 + inner * CHIP if inner else LINE if len(layer) == 1 else ROW if len(layer) < 4 else ROW + 12
        width = (WIDTH - GAP * (len(layer) - 1)) / len(layer)
        for k, name in enumerate(layer):
            parts += room(LEFT + k * (width + GAP), y, width, height, name, name in plain)
            tops[name] = y
        y += height + GAP
    bottom = y - GAP
    beside = tops["app"]
    for title, paragraphs in (
        (
            "experiments",
            [
                "YAML: a folder a paper, with its tables row by row, and the few files that train.",
                "An experiment names classes by their full path and sets their arguments. No code imports it; app reads it.",
            ],
        ),
        (
            "data_modules",
            [
                "datasets/: a file a data set. clips/: how training clips are sampled and transformed. doctor/: checks. "
                "base, videos, proposals, submission.",
                "It knows the contracts, files and proposals, and must not import "
                + ", ".join(forbidden_to("data_modules"))
                + ".",
                "vos_lightning must not import data_modules: the two meet in an experiment, by name.",
            ],
        ),
        (
            "tests",
            [
                "unit/ mirrors the packages; invariants/ hold for every network; oracles/ are slow plain versions; recipes/ "
                "build every experiment; golden/ has losses; integration/ kills runs and starts several processes.",
            ],
        ),
        ("benchmarks", ["Speed beside plain formulations: python -m benchmarks.stcn"]),
    ):
        drawn, beside = side(beside, f"{title}/", ROOT / title, paragraphs)
        parts += drawn
    # The direction of imports, and what the colours mean.
    parts.append(f'<path d="M20 {TOP + 6} V{bottom - 4:g}" stroke="#777" stroke-width="1.6" marker-end="url(#arrow)"/>')
    legend = bottom + 34
    for k, (colour, meaning) in enumerate(KINDS.values()):
        left, top = LEFT + 290 * (k % 4), legend + 24 * (k // 4)
        parts += [box(left, top, 18, 13, colour, 0.25), text(left + 26, top + 11, meaning, "small")]
    dot = legend + 24 * ((len(KINDS) + 3) // 4)
    parts += [
        f'<circle cx="{LEFT + 9}" cy="{dot + 6:g}" r="4" fill="#444"/>',
        text(LEFT + 26, dot + 10, "plain PyTorch: a contract forbids Lightning and torchmetrics here", "small"),
    ]
    height = dot + 34
    full = SIDE + SIDE_WIDTH + 40
    style = (
        "text{font-family:Helvetica,Arial,sans-serif;fill:#1c1c1c}.title{font-size:22px;font-weight:bold}.name{font-size:14px;"
        "font-weight:bold}.small{font-size:11.5px}.chip{font-size:11px}.lines{font-size:10.5px;fill:#666}"
    )
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{full}" height="{height:g}" viewBox="0 0 {full} {height:g}" '
        'role="img" aria-label="The rooms of vos_lightning in layers">',
        f"<style>{style}</style>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="5" refY="9" markerWidth="9" markerHeight="9">'
        '<path d="M0 0 L10 0 L5 10 z" fill="#777"/></marker></defs>',
        f'<rect width="{full}" height="{height:g}" fill="#ffffff"/>',
        text(LEFT, 42, "vos_lightning", "title"),
        text(LEFT, 66, "A room may import what lies below it, and nothing above or beside it. make lint checks this.", "small"),
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    DRAWING.write_text(draw(), encoding="utf-8")
