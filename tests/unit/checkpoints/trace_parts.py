"""Traces every part of a small STCN: ``python -m tests.unit.checkpoints.trace_parts``. An error says that a size is not open.

A program of its own, as the type checks of the tests would look at the sizes.
"""

from vos_lightning.checkpoints.onnx_graphs import trace
from vos_lightning.light.parts import PARTS
from vos_lightning.networks.stcn import STCN
from vos_lightning.propagation.engine import InferenceEngine
from vos_lightning.propagation.policies import EveryKth
from vos_lightning.propagation.step import Propagation

if __name__ == "__main__":
    options = {"blocks": (1, 1, 1), "value_blocks": (1, 1, 1), "width": 8, "reduction": 2, "top_k": None}
    sizes = {"key_channels": 8, "value_channels": 8, "decoder_channels": (8, 8, 8)}
    network = STCN.published(None, **options, **sizes).eval()
    engine = InferenceEngine(network, Propagation(EveryKth(5), "product"))
    for name in PARTS:
        trace(name, engine)
