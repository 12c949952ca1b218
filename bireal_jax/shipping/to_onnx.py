"""A packed network as an ONNX model of standard operations: uint8 NHWC pixels in, logits or a map out.

sign(0) is +1: GreaterOrEqual and Where; ONNX's own Sign gives 0 there. A binary convolution is a Conv with float32
weights, which operations unpack from bits (opset 18); an engine folds them once, when it loads the file. Bi-Real Net 18
at 224 px in onnxruntime 1.32, one thread, least of 15 runs in turns: 4.2 MB and 84 ms, as int8 with DequantizeLinear
13.8 MB and 121 ms, since that is computed in every run, as float32 46.8 MB and 80 ms.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.runtime.container import Program
from bireal_jax.shipping.walk import is_relu, names, needed, pads, walk

OPSET, IR = 18, 10


class Graph:
    """Nodes and constants of a model that is being written. What adds one returns the name of its output."""

    def __init__(self):
        self.onnx = needed("onnx")
        self.nodes: list[Any] = []
        self.constants: dict[tuple, Any] = {}  # equal ones are stored once

    def constant(self, a):
        """An array."""
        a = np.ascontiguousarray(a)
        key = (a.dtype.str, a.shape, a.tobytes())
        if key not in self.constants:
            self.constants[key] = self.onnx.numpy_helper.from_array(a, f"constant{len(self.constants)}")
        return self.constants[key].name

    def channels(self, a):
        """One number for each channel of a map [n, c, h, w]."""
        return self.constant(a.reshape(-1, 1, 1))

    def node(self, kind, *inputs, output=None, **settings):
        """An operation of ONNX."""
        name = output or f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **settings))
        return name

    def where(self, condition):
        """±1."""
        return self.node("Where", condition, self.constant(np.float32(1)), self.constant(np.float32(-1)))

    def signs(self, weight):
        """±1 weights, stored in bits."""
        bits, masks = np.packbits(weight.ravel() > 0, bitorder="little"), 1 << np.arange(8, dtype=np.uint8)
        bits = self.node("BitwiseAnd", self.constant(bits[:, None]), self.constant(masks))
        flat = self.node("Reshape", self.where(self.node("Cast", bits, to=9)), self.constant(np.array([-1])))  # 9: bool
        if weight.size % 8:
            flat = self.node("Slice", flat, self.constant(np.array([0])), self.constant(np.array([weight.size])))
        return self.node("Reshape", flat, self.constant(np.array(weight.shape)))


def operations(graph: Graph) -> dict[str, Callable]:
    """kind -> function that adds its nodes, as `walk` takes it."""
    node, constant, channels = graph.node, graph.constant, graph.channels

    def window(size, strides, before=(0, 0), after=(0, 0)):
        return {"kernel_shape": list(size), "strides": list(strides), "pads": [*before, *after]}

    def conv(op, x, weight, bias):
        settings = window(weight.shape[2:], op["strides"], *pads(op))
        return node("Conv", x, constant(weight), constant(bias), group=op["groups"], **settings)

    def binary_conv(op, x, weight):
        before, after = pads(op)
        if op["pad"]:
            sides = constant(np.array([0, 0, *before, 0, 0, *after]))
            x, before, after = node("Pad", x, sides, constant(np.float32(op["pad"]))), (0, 0), (0, 0)
        settings = window(weight.shape[2:], op["strides"], before, after)
        return node("Conv", x, graph.signs(weight), group=op["groups"], **settings)

    def clip(op, x):
        if is_relu(op):
            return node("Relu", x)
        y = node("Clip", x, *(constant(np.float32(op[k])) for k in ("low", "high")))
        return node("Add", y, node("Mul", node("Sub", x, y), constant(np.float32(op["leak"])))) if op["leak"] else y

    def rprelu(op, x, shift_in, slope, shift_out):
        y = node("PRelu", node("Add", x, channels(shift_in)), channels(slope))
        return node("Add", y, channels(shift_out))

    def reshape(op, x):
        rows = node("Reshape", node("Transpose", x, perm=[0, 2, 3, 1]), constant(np.array([0, *op["shape"]])))
        return node("Transpose", rows, perm=[0, 3, 1, 2])

    def pad_channels(op, x):
        sides = constant(np.array([0, op["before"], 0, 0, 0, op["after"], 0, 0]))
        return node("Pad", x, sides, constant(np.float32(0)))

    def upsample(op, x):
        scales = constant(np.array([1, 1, op["factor"], op["factor"]], np.float32))
        settings = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return node("Resize", x, "", scales, mode="nearest", **settings)

    return {
        "conv": conv, "binary_conv": binary_conv, "clip": clip, "rprelu": rprelu, "reshape": reshape,
        "pad_channels": pad_channels, "upsample": upsample,
        "sign": lambda op, x: graph.where(node("GreaterOrEqual", x, constant(np.float32(0)))),
        "affine": lambda op, x, scale, offset: node("Add", node("Mul", x, channels(scale)), channels(offset)),
        "add": lambda op, x, y: node("Add", x, y),
        "concat": lambda op, *maps: node("Concat", *maps, axis=1),
        "max_pool": lambda op, x: node("MaxPool", x, **window(op["window"], op["strides"], *pads(op))),
        "avg_pool": lambda op, x: node("AveragePool", x, **window([op["window"]] * 2, [op["window"]] * 2)),
        "subsample": lambda op, x: node("MaxPool", x, **window([1, 1], [op["stride"]] * 2)),
        "mean": lambda op, x: node("GlobalAveragePool", x),
    }  # fmt: skip


def model(
    program: Program, batch: str | int = "n", pixels: bool = True, graph: Graph | None = None,
    kinds: dict[str, Callable] | None = None,
) -> Any:  # fmt: skip
    """An ONNX `ModelProto`.

    Args:
      program: the network.
      batch: images at a time, or a name for any number.
      pixels: takes uint8 [n, h, w, c] and normalizes them; else float32 [n, c, h, w], already normalized.
      graph, kinds: of another dialect; what it writes.

    Raises:
      BadInput: the package onnx is missing.
    """
    graph = graph or Graph()
    node, constant, helper, image = graph.node, graph.constant, graph.onnx.helper, program.spec["image"]
    x, (h, w, c), shape = "images", program.shape(0), program.shape(len(program.spec["ops"]))
    if pixels:
        mean, std = (constant(np.array(image[key], np.float32)) for key in ("mean", "std"))
        x = node("Div", node("Cast", x, to=1), constant(np.float32(255)))  # 1: float32
        x = node("Transpose", node("Div", node("Sub", x, mean), std), perm=[0, 3, 1, 2])
    x = walk(program, x, kinds or operations(graph))
    if shape[:2] == (1, 1):
        node("Flatten", x, output="logits")
    else:
        node("Transpose", x, output="logits", perm=[0, 2, 3, 1])
    value = helper.make_tensor_value_info
    images = value("images", 2, [batch, h, w, c]) if pixels else value("images", 1, [batch, c, h, w])  # 2: uint8
    logits = value("logits", 1, [batch, *(shape[2:] if shape[:2] == (1, 1) else shape)])
    made = helper.make_graph(graph.nodes, "network", [images], [logits], list(graph.constants.values()))
    made = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    graph.onnx.helper.set_model_props(made, {"bireal_jax": program.digest} | names(program))
    return made


def write(program: Program, path: Path) -> str:
    """Writes the file; returns what there is to say of it."""
    made = model(program)
    needed("onnx").checker.check_model(made)
    path.write_bytes(made.SerializeToString())
    return "bits that are unpacked when it is loaded"


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """The outputs for uint8 images, by onnxruntime."""
    session = needed("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]
