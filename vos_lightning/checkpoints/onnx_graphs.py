"""A network in parts for ONNX Runtime: graphs that read their weights from a file of safetensors beside them.

The graphs are made of the code that trains and predicts, so that there is no second description of a network. They hold no
weights: each refers to the places of its weights in the file of safetensors, as ONNX allows it for every external file, and
widens them from half precision. One file of weights so serves PyTorch and ONNX Runtime.
"""

from __future__ import annotations

import functools
import json
import math
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from vos_lightning.io.files import sha256_of, write_atomically
from vos_lightning.io.outputs import OutputFolder
from vos_lightning.light.parts import PARTS, RULES, Rules
from vos_lightning.mask_ops import IMAGENET_MEAN, soft_aggregate
from vos_lightning.matching.readout import weigh
from vos_lightning.matching.similarity import memory_logits
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation, introduce, show_given
from vos_lightning.structures import FeaturePyramid, FrameInput, Given

HOW = "pip install 'vos_lightning[onnx]'"
_KINDS = {"F16": "FLOAT16", "F32": "FLOAT"}
"""Types of weights: name in a file of safetensors -> name in ONNX."""


def check_exportable(engine: InferenceEngine, source: object) -> None:
    """Refuse what has no graphs.

    Args:
        engine: engine of the network.
        source: the checkpoint, for the message.

    Raises:
        ValueError: the network is no STCN that reads its whole memory; its propagation is not STCN's; or packages are missing.
    """
    network, propagation = engine.network, engine.propagation
    if type(network) is not STCN or network.top_k is not None:
        kind = type(network).__name__
        what = f"{kind} with top_k={network.top_k}" if isinstance(network, STCN) else kind
        raise ValueError(f"{source}: only STCN that reads its whole memory (top_k: null) is written as ONNX, not {what}")
    if not isinstance(propagation.policy, EveryKth) or propagation.introduction != "overwrite":
        raise ValueError(f"{source}: only STCN's own propagation is written as ONNX, not {propagation}")
    try:
        import onnxscript  # noqa: F401  # with it come onnx and onnx_ir
    except ModuleNotFoundError as error:
        raise ValueError(f"--format onnx needs the package {error.name}: {HOW}") from error


def write_graphs(output: OutputFolder, engine: InferenceEngine, weights: Path) -> None:
    """Write the graphs of :data:`vos_lightning.light.parts.PARTS` and the rules into the folder of the weights.

    Args:
        output: the folder.
        engine: engine on the network with exactly these weights, in evaluation mode on the CPU; see
            :func:`check_exportable`.
        weights: file of safetensors in that folder.

    Raises:
        OSError: a file cannot be written.
    """
    places = _places(weights)
    for name in PARTS:
        content = _graph(name, engine, places, weights.name)
        output.put(f"{name}.onnx", functools.partial(write_atomically, content=content))
    policy = engine.propagation.policy
    assert isinstance(policy, EveryKth)
    rules: Rules = {
        "system": type(engine.network).__name__,
        "weights": weights.name,
        "digests": {name: sha256_of(weights.parent / name) for name in (*(f"{part}.onnx" for part in PARTS), weights.name)},
        "stride": engine.network.stride,
        "colour": list(IMAGENET_MEAN),
        "memory": {
            "k": policy.k,
            "include_previous": policy.include_previous,
            "max_frames": policy.max_frames,
            "count_from": policy.count_from,
        },
        "short_side": engine.short_side,
        "enlarge": engine.enlarge,
        "min_object_pixels": engine.min_object_pixels,
    }
    output.put(RULES, functools.partial(write_atomically, content=(json.dumps(rules, indent=1) + "\n").encode()))


# The parts ------------------------------------------------------------------------------------------------------------


def _encode(network: STCN, image: Tensor) -> tuple[Tensor, ...]:
    found = network.encode(FrameInput(image))
    return found.pyramid.s4, found.pyramid.s8, found.pyramid.s16, found.key, found.query_value


def _read(network: STCN, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    logits = memory_logits(key, query, network.similarity, network.scale)
    return weigh(logits.unsqueeze(1), value).transpose(2, 3)


def _decode(network: STCN, s4: Tensor, s8: Tensor, readout: Tensor, query_value: Tensor) -> Tensor:
    pyramid = FeaturePyramid(s4, s8, query_value)  # the decoder does not read the third one
    return network.decoder(pyramid, readout, query_value)  # type: ignore[no-any-return]


def _encode_masks(network: STCN, image: Tensor, masks: Tensor, s16: Tensor) -> Tensor:
    return network.value_encoder(image, masks, s16)  # type: ignore[no-any-return]


def _parts(propagation: Propagation) -> dict[str, Callable[..., Any]]:
    def aggregate(_: STCN, logits: Tensor, introduced: Tensor) -> Tensor:
        return soft_aggregate(logits, introduced, propagation.aggregation)[1]

    def take_in(_: STCN, logits: Tensor, introduced: Tensor, masks: Tensor, which: Tensor) -> Tensor:
        merged = introduce(logits, introduced, masks, which, propagation)
        return soft_aggregate(merged, introduced | which, propagation.aggregation)[1]

    def show(_: STCN, probabilities: Tensor, masks: Tensor, which: Tensor) -> Tensor:
        return show_given(probabilities, Given(masks, which))

    return {
        "encoder": _encode,
        "memory_read": _read,
        "decoder": _decode,
        "mask_encoder": _encode_masks,
        "aggregation": aggregate,
        "introduction": take_in,
        "annotation": show,
    }


class _Part(nn.Module):
    def __init__(self, network: STCN, call: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, *inputs: Tensor) -> Any:
        return self.call(self.network, *inputs)


def _examples(network: STCN) -> dict[str, tuple[Tensor, dict[int, Any]]]:
    """An example of every input, and which of its sizes vary."""
    h, w, n = Dim("h", max=4096), Dim("w", max=4096), Dim("objects", max=254)
    height, width = 6, 10
    objects, cells = 2, height * width
    stride, (s4, s8, s16) = network.stride, network.key_encoder.channels
    big = (height * stride, width * stride)
    sides, coarse = {2: stride * h, 3: stride * w}, {2: h, 3: w}
    key, value = network.key_channels, network.value_channels
    return {
        "image": (torch.rand(1, 3, *big), sides),
        "s4": (torch.rand(1, s4, 4 * height, 4 * width), {2: 4 * h, 3: 4 * w}),
        "s8": (torch.rand(1, s8, 2 * height, 2 * width), {2: 2 * h, 3: 2 * w}),
        "s16": (torch.rand(1, s16, height, width), coarse),
        "query_value": (torch.rand(1, value, height, width), coarse),
        "query_key": (torch.rand(1, key, cells), {2: Dim("queries")}),
        "memory_key": (torch.rand(1, key, 3 * cells), {2: Dim("cells")}),
        "memory_value": (torch.rand(1, objects, value, 3 * cells), {1: n, 3: Dim("cells")}),
        "readout": (torch.rand(1, objects, value, height, width), {1: n, 3: h, 4: w}),
        "masks": (torch.rand(1, objects, *big), {1: n, **sides}),
        "logits": (torch.rand(1, objects, *big), {1: n, **sides}),
        "introduced": (torch.ones(1, objects, dtype=torch.bool), {1: n}),
        "which": (torch.ones(1, objects, dtype=torch.bool), {1: n}),
        "probabilities": (torch.rand(1, objects + 1, *big), {1: n + 1, **sides}),
    }


def _graph(name: str, engine: InferenceEngine, places: dict[str, Any], weights: str) -> bytes:
    inputs, outputs = PARTS[name]
    program, shapes = trace(name, engine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        exported = torch.onnx.export(
            program,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=shapes,  # for the names of sizes
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    return _without_weights(exported.model, places, weights)  # type: ignore[union-attr]


def trace(name: str, engine: InferenceEngine) -> tuple[torch.export.ExportedProgram, tuple[Any, ...]]:
    """A part with open sizes, and these sizes.

    Args:
        name: a key of :data:`vos_lightning.light.parts.PARTS`.
        engine: see :func:`write_graphs`.

    Raises:
        Exception: the code of the part asks for a size that has to stay open; PyTorch has several kinds of errors for it.
    """
    network: Any = engine.network
    examples = _examples(network)
    part = _Part(network, _parts(engine.propagation)[name]).eval()
    free = {2: Dim("height", max=65536), 3: Dim("width", max=65536)}  # masks are shown at any size
    shapes = []
    for example, sizes in (examples[i] for i in PARTS[name][0]):
        shapes.append({**sizes, **free} if name == "annotation" and example.ndim == 4 else sizes)
    arguments = tuple(examples[i][0] for i in PARTS[name][0])
    # With gradients, convolutions pad their input, which ONNX Runtime does in place, and no code divides its work into parts.
    with torch.enable_grad():
        program = torch.export.export(part, arguments, dynamic_shapes=(tuple(shapes),), strict=False)
    return program, (tuple(shapes),)


# Weights outside ------------------------------------------------------------------------------------------------------


def _places(weights: Path) -> dict[str, Any]:
    """Type, shape and place in bytes of every tensor in a file of safetensors: its header, with offsets from the file's start."""
    with weights.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: {**entry, "start": 8 + length + entry["data_offsets"][0]} for name, entry in header.items()}


def _without_weights(model: Any, places: dict[str, Any], weights: str) -> bytes:
    """The model as a file whose weights lie in another one."""
    import onnx_ir as ir

    graph = model.graph
    casts = []
    for name, value in list(graph.initializers.items()):
        place = places.get(name)
        if place is None or value.const_value.nbytes < 64:
            continue
        kind = ir.DataType[_KINDS[place["dtype"]]]
        outside = ir.ExternalTensor(
            weights,
            place["start"],
            int(math.prod(place["shape"]) * kind.itemsize),
            kind,
            shape=ir.Shape(place["shape"]),
            name=f"{name}.stored",
        )
        stored = ir.Value(name=outside.name, shape=outside.shape, type=ir.TensorType(kind), const_value=outside)
        cast = ir.Node("", "Cast", [stored], [ir.AttrInt64("to", ir.DataType.FLOAT)])
        del graph.initializers[name]
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        cast.outputs[0].name, cast.outputs[0].shape, cast.outputs[0].type = name, value.shape, value.type
        graph.initializers[stored.name] = stored
        casts.append(cast)
    if casts:
        graph.insert_before(graph[0], casts)
    model.metadata_props.clear()  # these hold places on the machine of the export
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
    return ir.to_proto(model).SerializeToString(deterministic=True)  # type: ignore[no-any-return]
