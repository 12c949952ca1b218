"""A packed network as OpenVINO IR with its 1-bit convolutions: uint8 NHWC pixels in, logits or a map out.

Signs become `fake_quantize` with two levels, 0 and 1: only then does its CPU plugin take the bits as they are (with -1
and 1 it is slow and wrong). Its 1-bit convolution takes in scale, offset and shortcut by itself and, for a pad value of
0, adds nothing beyond the border. It knows no groups, and is wrong where the input's channels are no multiple of 8
(2026.4): those binary convolutions are written as real-valued ones of ±1, which are exact, too.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.runtime.container import Program
from bireal_jax.runtime.fields import LARGEST
from bireal_jax.shipping.walk import is_relu, names, needed, pads, walk

JUST_BELOW_0 = -1e-37  # its thresholds say > where ours say >=


def openvino() -> Any:
    """The package, imported without its telemetry, for which it would fork a process: JAX has threads by then.

    Raises:
      BadInput: it is not installed.
    """
    if "openvino" not in sys.modules:
        modules: dict[str, Any] = sys.modules
        modules.setdefault("openvino_telemetry", None)  # "cannot be imported"
    return needed("openvino")


class Graph:
    """Constants in the forms that its operations take."""

    def __init__(self):
        self.ov = openvino()
        self.op1, self.op8 = self.ov.opset1, self.ov.opset8

    def constant(self, a, *shape):
        """An array of floats, in another shape if need be."""
        return self.op8.constant(np.ascontiguousarray(np.asarray(a, np.float32).reshape(shape or np.shape(a))))

    def integers(self, *values):
        """A vector of int64."""
        return self.op8.constant(np.array(values, np.int64))

    def channels(self, a):
        """One number for each channel of a map [n, c, h, w]."""
        return self.constant(a, 1, -1, 1, 1)

    def quantized(self, x, low, high, levels):
        """Rounded to so many levels."""
        low, high = self.constant(low), self.constant(high)
        return self.op1.fake_quantize(x, low, high, low, high, levels)

    def bits(self, weight):
        """±1 weights as u1, the lowest bit of a byte first."""
        ov, bits = self.ov, np.packbits(weight.ravel() > 0, bitorder="little")
        return ov.op.Constant(ov.Tensor(bits, ov.Shape(weight.shape), ov.Type.u1), shared_memory=False)


def operations(graph: Graph, limits: dict[int, tuple[float, float]] | None = None) -> dict[str, Callable]:
    """kind -> function that makes its node, as `walk` takes it; `limits` as in `model`."""
    op1, op8, constant, integers, channels = graph.op1, graph.op8, graph.constant, graph.integers, graph.channels
    bits = {}  # name of the ±1 map -> the same as 0 and 1

    def conv(op, x, weight, bias):
        kernel = constant(weight)
        if limits is not None:
            low, high = np.reshape(limits[op["inputs"][0]], (2, 1, 1, 1, 1))
            largest = 2 * np.abs(weight).max((1, 2, 3), keepdims=True)  # half of the levels: products saturate
            x, kernel = graph.quantized(x, low, high, 256), graph.quantized(kernel, -largest, largest, 255)
        return op8.add(products(op, x, kernel, weight.shape, *pads(op)), channels(bias))

    def products(op, x, kernel, shape, before, after):
        (cout, cin, kh, kw), groups, geometry = shape, op["groups"], (op["strides"], before, after, [1, 1])
        if groups == 1:
            return op8.convolution(x, kernel, *geometry)
        kernel = op8.reshape(kernel, integers(groups, cout // groups, cin, kh, kw), False)
        return op8.group_convolution(x, kernel, *geometry)

    def sign(op, x):
        thresholds = (constant(value, 1, 1, 1, 1) for value in (JUST_BELOW_0, JUST_BELOW_0, 0, 1))
        y = op8.select(op8.greater_equal(x, constant(0.0)), constant(1.0), constant(-1.0))  # for all other readers
        bits[y.get_name()] = op1.fake_quantize(x, *thresholds, 2)
        return y

    def binary_conv(op, x, weight):
        before, after = pads(op)
        if op["groups"] == 1 and weight.shape[1] % 8 == 0:
            geometry, pad = (op["strides"], before, after, [1, 1]), float(op["pad"])
            return op1.binary_convolution(
                bits[x.get_name()], graph.bits(weight), *geometry, "xnor-popcount", pad, "explicit"
            )
        if op["pad"]:
            sides = integers(0, 0, *before), integers(0, 0, *after)
            x, before, after = op8.pad(x, *sides, "constant", op8.constant(np.float32(op["pad"]))), [0, 0], [0, 0]
        return products(op, x, constant(weight), weight.shape, before, after)

    def clip(op, x):
        if op["leak"]:
            y = op8.clamp(x, op["low"], op["high"])
            return op8.add(y, op8.multiply(constant(op["leak"]), op8.subtract(x, y)))
        return op8.relu(x) if is_relu(op) else op8.clamp(x, op["low"], op["high"])

    def rprelu(op, x, shift_in, slope, shift_out):
        y = op8.prelu(op8.add(x, channels(shift_in)), constant(slope))
        return op8.add(y, channels(shift_out))

    def reshape(op, x):
        rows = op8.reshape(op8.transpose(x, integers(0, 2, 3, 1)), integers(0, *op["shape"]), True)
        return op8.transpose(rows, integers(0, 3, 1, 2))

    def pad_channels(op, x):
        sides = integers(0, op["before"], 0, 0), integers(0, op["after"], 0, 0)
        return op8.pad(x, *sides, "constant", op8.constant(np.float32(0)))

    def upsample(op, x):  # tile, not interpolate: each pixel beside itself, then each row below itself
        (_, c, h, w), f = x.get_output_partial_shape(0), op["factor"]
        c, h, w = (side.get_length() for side in (c, h, w))
        wide = op8.tile(op8.reshape(x, integers(0, c, h, 1, w, 1), True), integers(1, 1, 1, f, 1, f))
        return op8.reshape(wide, integers(0, c, h * f, w * f), True)

    return {
        "conv": conv, "binary_conv": binary_conv, "sign": sign, "clip": clip, "rprelu": rprelu, "reshape": reshape,
        "pad_channels": pad_channels, "upsample": upsample,
        "affine": lambda op, x, scale, offset: op8.add(op8.multiply(x, channels(scale)), channels(offset)),
        "add": lambda op, x, y: op8.add(x, y),
        "concat": lambda op, *maps: op8.concat(list(maps), 1),
        "max_pool": lambda op, x: op1.max_pool(x, op["strides"], *pads(op), op["window"], "floor", "explicit"),
        "avg_pool": lambda op, x: op1.avg_pool(
            x, [op["window"]] * 2, [0, 0], [0, 0], [op["window"]] * 2, True, "floor", "explicit"
        ),
        "subsample": lambda op, x: op1.max_pool(x, [op["stride"]] * 2, [0, 0], [0, 0], [1, 1], "floor", "explicit"),
        "mean": lambda op, x: op8.reduce_mean(x, integers(2, 3), True),
    }  # fmt: skip


def model(
    program: Program, batch: int = 1, pixels: bool = True, limits: dict[int, tuple[float, float]] | None = None
) -> Any:
    """An `openvino.Model`.

    Args:
      program: the network.
      batch: images at a time, a fixed number: 1-bit convolutions take no other. `Model.reshape` changes it.
      pixels: takes uint8 [n, h, w, c] and normalizes them; else float32 [n, c, h, w], already normalized.
      limits: smallest and largest value of each tensor: real-valued convolutions are then in int8, with 7-bit weights.

    Raises:
      BadInput: an operation that OpenVINO does not have, or the package is missing.
    """
    graph, (h, w, c) = Graph(), program.shape(0)
    op8, integers = graph.op8, graph.integers
    if pixels:
        image = x = op8.parameter([batch, h, w, c], np.uint8)
        mean, std = (graph.constant(program.spec["image"][key]) for key in ("mean", "std"))
        x = op8.divide(op8.convert(x, np.float32), graph.constant(255.0))
        x = op8.transpose(op8.divide(op8.subtract(x, mean), std), integers(0, 3, 1, 2))
    else:
        image = x = op8.parameter([batch, c, h, w], np.float32)
    image.set_friendly_name("images")
    x = walk(program, x, operations(graph, limits))
    whole = program.shape(len(program.spec["ops"]))[:2] != (1, 1)
    x = op8.transpose(x, integers(0, 2, 3, 1)) if whole else op8.reshape(x, integers(0, -1), True)
    made = graph.ov.Model([x], [image], "network")
    for name, text in names(program).items():
        made.set_rt_info(text, ["bireal_jax", name])
    _keep_sums(made, graph)
    return made


def _keep_sums(model, graph):
    """A sum of two maps that only a sign reads is fused wrongly (2026.4): between them comes what changes nothing."""
    least = graph.constant(-LARGEST)
    for node in model.get_ordered_ops():
        before = node.input_value(0) if node.get_type_name() == "FakeQuantize" else None
        if before and before.get_node().get_type_name() == "Add" and len(before.get_target_inputs()) == 1:
            if all(value.get_node().get_type_name() != "Constant" for value in before.get_node().input_values()):
                node.input(0).replace_source_output(graph.op8.maximum(before, least).output(0))


def write(program: Program, path: Path) -> str:
    """Writes the file and the one of its weights beside it, .bin; returns what there is to say of it."""
    made = model(program)
    openvino().save_model(made, str(path), compress_to_fp16=False)
    ours = sum(op["op"] == "binary_conv" for op in program.spec["ops"])
    theirs = sum(node.get_type_name() == "BinaryConvolution" for node in made.get_ops())
    return f"{theirs} of {ours} binary convolutions in 1 bit, one image at a time"


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """The outputs for uint8 images, on the CPU in float32."""
    core = openvino().Core()
    model = core.read_model(str(path))
    model.reshape(images.shape)
    return core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(images)[0]
