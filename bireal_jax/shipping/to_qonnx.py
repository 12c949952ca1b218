"""A packed network as QONNX, for tools of FPGAs that read it (hls4ml): ONNX with `BipolarQuant` for signs and weights.

BipolarQuant(x, scale) is +scale where x >= 0, else -scale: the sign of ours. Weights are float32 ±1 behind one, as
these tools expect them, so the files are large; one image at a time, as they take it. FINN is no target: it has no
binary convolutions padded with zeros and no scales per channel.
"""

from pathlib import Path

import numpy as np

from bireal_jax.runtime.container import Program
from bireal_jax.shipping import to_onnx
from bireal_jax.shipping.walk import needed

DOMAIN = "qonnx.custom_op.general"


class Graph(to_onnx.Graph):
    """That of ONNX with its own signs."""

    def bipolar(self, x):
        """±1."""
        return self.node("BipolarQuant", x, self.constant(np.float32(1)), domain=DOMAIN)

    def signs(self, weight):
        """±1 weights."""
        return self.bipolar(self.constant(weight))


def write(program: Program, path: Path) -> str:
    """Writes the file; returns what there is to say of it."""
    graph = Graph()
    kinds = to_onnx.operations(graph) | {"sign": lambda op, x: graph.bipolar(x)}
    made = to_onnx.model(program, 1, graph=graph, kinds=kinds)
    made.opset_import.append(graph.onnx.helper.make_opsetid(DOMAIN, 1))
    path.write_bytes(made.SerializeToString())
    return "±1 weights as floats behind BipolarQuant"


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """The outputs for uint8 images, by QONNX's own executor, one after the other."""
    wrapper, execute = needed("qonnx.core.modelwrapper").ModelWrapper, needed("qonnx.core.onnx_exec").execute_onnx
    model = wrapper(str(path)).transform(needed("qonnx.transformation.infer_shapes").InferShapes())
    return np.concatenate([execute(model, {"images": image[None]})["logits"] for image in images])
