"""What a packed network is compared with: ordinary networks of the same shape, `real_twin`, in float32 and int8.

OpenVINO, which alone has 1-bit convolutions, and onnxruntime run what bireal_jax/shipping writes; here are the twin,
its int8 and PyTorch. All take float32 NCHW images, already normalized, and give float32 [n, classes].

`pip install openvino onnxruntime onnx torch`; each function needs only its own.
"""

import dataclasses
import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.runtime.container import Program
from bireal_jax.shipping.walk import is_relu, pads, walk


def real_twin(program: Program) -> Program:
    """The ordinary network of the same shape: ±1 weights as floats and a ReLU for every sign.

    What reads the map in front of a sign later on reads the ReLU's output instead, as in a ResNet: an engine can then
    fuse convolution, addition and ReLU.
    """
    ops, tensors, now = [], dict(program.tensors), {}  # now: number of a map -> number of its ReLU
    for i, op in enumerate(program.spec["ops"]):
        inputs = [now.get(j, j) for j in op["inputs"]]
        if op["op"] == "sign":
            now[op["inputs"][0]] = i + 1
            op = op | {"op": "clip", "low": 0.0, "high": np.inf, "leak": 0.0}
        elif op["op"] == "binary_conv":
            tensors[f"{i}.weight"] = program.arrays(i)["weight"]
            op = op | {"op": "conv"}
        ops.append(op | {"inputs": inputs})
    return dataclasses.replace(program, spec=program.spec | {"ops": ops}, tensors=tensors)


# --- int8 -------------------------------------------------------------------------------------------------------------


def int8(model: Any, images: np.ndarray) -> Any:
    """An ONNX model in int8 by static quantization, uint8 activations and int8 weights with a scale per channel.

    Weights have 7 bits: with 8, sums of two products saturate on processors without VNNI. The speed is the same.

    Args:
      model: in float32.
      images: float32 [n, c, h, w], normalized, n the batch size of the model; ranges are those on them.
    """
    onnx, quantization = importlib.import_module("onnx"), importlib.import_module("onnxruntime.quantization")
    kinds, rows = quantization.QuantType, iter([{"images": images}])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return next(rows, None)

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "int8.onnx"))
        quantization.quantize_static(
            model, path, Reader(), quant_format=quantization.QuantFormat.QDQ, activation_type=kinds.QUInt8,
            weight_type=kinds.QInt8, per_channel=True, reduce_range=True,
        )  # fmt: skip
        return onnx.load(path)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


def torch_module(program: Program) -> Any:
    """A `torch.fx.GraphModule` of a network without signs, as from `real_twin`."""
    import torch
    import torch.fx
    from torch.nn import functional

    root, graph = torch.nn.Module(), torch.fx.Graph()

    def constant(a, *shape):
        name = f"constant{sum(1 for _ in root.buffers())}"
        root.register_buffer(name, torch.from_numpy(np.array(a, np.float32)).reshape(shape or np.shape(a)))
        return graph.get_attr(name)

    def node(function, *inputs, **settings):
        return graph.call_function(function, inputs, settings)

    def padded(op, x, value):
        """x ready for a window operation, and the padding left for that to do."""
        (top, left), (bottom, right) = pads(op)
        if (top, left) == (bottom, right):
            return x, (top, left)
        return node(functional.pad, x, (left, right, top, bottom), value=value), (0, 0)

    def conv(op, x, weight, bias):
        x, padding = padded(op, x, 0.0)
        settings = {"stride": tuple(op["strides"]), "padding": padding, "groups": op["groups"]}
        return node(functional.conv2d, x, constant(weight), constant(bias), **settings)

    def max_pool(op, x):
        x, padding = padded(op, x, -np.inf)
        return node(functional.max_pool2d, x, tuple(op["window"]), stride=tuple(op["strides"]), padding=padding)

    def clip(op, x):
        if is_relu(op):
            return node(functional.relu, x)
        y = node(torch.clamp, x, op["low"], op["high"])
        return node(torch.add, y, node(torch.sub, x, y), alpha=op["leak"]) if op["leak"] else y

    def affine(op, x, scale, offset):
        return node(torch.add, node(torch.mul, x, constant(scale, 1, -1, 1, 1)), constant(offset, 1, -1, 1, 1))

    def rprelu(op, x, shift_in, slope, shift_out):
        y = node(functional.prelu, node(torch.add, x, constant(shift_in, 1, -1, 1, 1)), constant(slope))
        return node(torch.add, y, constant(shift_out, 1, -1, 1, 1))

    def reshape(op, x):
        rows = node(torch.reshape, node(torch.permute, x, (0, 2, 3, 1)), (-1, *op["shape"]))
        return node(torch.permute, rows, (0, 3, 1, 2))

    kinds = {
        "conv": conv, "max_pool": max_pool, "clip": clip, "affine": affine, "rprelu": rprelu, "reshape": reshape,
        "add": lambda op, x, y: node(torch.add, x, y),
        "concat": lambda op, *maps: node(torch.cat, maps, 1),
        "avg_pool": lambda op, x: node(functional.avg_pool2d, x, op["window"]),
        "subsample": lambda op, x: node(functional.max_pool2d, x, 1, op["stride"]),
        "pad_channels": lambda op, x: node(functional.pad, x, (0, 0, 0, 0, op["before"], op["after"])),
        "mean": lambda op, x: node(torch.mean, x, (2, 3), True),
    }  # fmt: skip
    graph.output(node(torch.flatten, walk(program, graph.placeholder("images"), kinds), 1))
    return torch.fx.GraphModule(root, graph).eval()
