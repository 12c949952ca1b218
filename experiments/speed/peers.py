"""A packed network as a network of OpenVINO, onnxruntime or PyTorch, by walking its operations.

The 1-bit network itself: OpenVINO alone has 1-bit convolutions. Ordinary networks of the same shape, `real_twin`, in
float32 and int8. All take float32 NCHW images, already normalized, and give float32 [n, classes].

`pip install openvino onnxruntime onnx torch`; each function needs only its own.
"""

import collections
import dataclasses
import importlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.errors import BadInput, lookup
from bireal_jax.runtime.container import Program

JUST_BELOW_0 = -1e-37  # the thresholds of others say > where ours says >=


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


def walk(program: Program, image: Any, kinds: dict[str, Callable]) -> Any:
    """What `kinds` make of the operations, one after the other; returns the last.

    An affine map behind a real-valued convolution is folded into it: every "conv" has a weight and a bias.

    Args:
      program: the network.
      image: stands for tensor 0.
      kinds: kind -> function (op, *inputs, **arrays); weights come as [cout, cin / groups, kh, kw], others as [c].
    """
    ops = program.spec["ops"]
    readers = collections.Counter(j for op in ops for j in op["inputs"])
    made, folded = [image], set()
    for i, op in enumerate(ops):
        inputs = [made[j] for j in op["inputs"]]
        if i in folded:
            made.append(inputs[0])
            continue
        arrays = {name: a if name == "weight" else a.ravel() for name, a in program.arrays(i).items()}
        if op["op"] == "conv":
            arrays["bias"] = np.zeros(op["shape"][-1], np.float32)
            after = next((k for k, o in enumerate(ops) if o["op"] == "affine" and o["inputs"] == [i + 1]), None)
            if after is not None and readers[i + 1] == 1:
                norm = program.arrays(after)
                arrays = {
                    "weight": arrays["weight"] * norm["scale"].ravel(),
                    "bias": arrays["bias"] + norm["offset"].ravel(),
                }
                folded.add(after)
        if "weight" in arrays:
            arrays["weight"] = np.ascontiguousarray(arrays["weight"].transpose(3, 2, 0, 1))
        made.append(lookup(kinds, op["op"], "operation")(op, *inputs, **arrays))
    return made[-1]


def pads(op):
    """Padding as (top, left), (bottom, right)."""
    top, bottom, left, right = op["padding"]
    return [top, left], [bottom, right]


# --- OpenVINO ---------------------------------------------------------------------------------------------------------


def openvino_model(program: Program, batch: int, limits: dict[int, tuple[float, float]] | None = None) -> Any:
    """An `openvino.Model`.

    Signs become `fake_quantize` with two levels, 0 and 1: only then does its CPU plugin take the bits as they are (with
    -1 and 1 it is slow and wrong). Its 1-bit convolution takes in scale, offset and shortcut by itself and, for a pad
    value of 0, adds nothing beyond the border. A sum that only a sign reads it fuses wrongly (2026.4; the last block of
    bireal50 has one): compare the output with `program.run`.

    Args:
      program: 1-bit, or a `real_twin`.
      batch: images at a time.
      limits: smallest and largest value of each tensor: real-valued convolutions are then in int8, with 7-bit weights.
    """
    ov = importlib.import_module("openvino")
    op1, op8 = ov.opset1, ov.opset8

    def constant(a, *shape):
        return op8.constant(np.ascontiguousarray(np.asarray(a, np.float32).reshape(shape or np.shape(a))))

    def integers(*values):
        return op8.constant(np.array(values, np.int64))

    def channels(a):
        return constant(a, 1, -1, 1, 1)

    def quantized(x, low, high, levels):
        low, high = constant(low), constant(high)
        return op1.fake_quantize(x, low, high, low, high, levels)

    def conv(op, x, weight, bias):
        kernel, geometry = constant(weight), (op["strides"], *pads(op), [1, 1])
        if limits is not None:
            low, high = np.reshape(limits[op["inputs"][0]], (2, 1, 1, 1, 1))
            largest = 2 * np.abs(weight).max((1, 2, 3), keepdims=True)  # half of the levels: see `int8`
            x, kernel = quantized(x, low, high, 256), quantized(kernel, -largest, largest, 255)
        if op["groups"] > 1:
            groups, (cout, cin, kh, kw) = op["groups"], weight.shape
            kernel = op8.reshape(kernel, integers(groups, cout // groups, cin, kh, kw), False)
            y = op8.group_convolution(x, kernel, *geometry)
        else:
            y = op8.convolution(x, kernel, *geometry)
        return op8.add(y, channels(bias))

    def binary_conv(op, x, weight):
        if op["groups"] > 1:
            raise BadInput(f"{op['path']}: OpenVINO has no grouped 1-bit convolution")
        bits = np.packbits(weight.ravel() > 0, bitorder="little")
        kernel = ov.op.Constant(ov.Tensor(bits, ov.Shape(weight.shape), ov.Type.u1), shared_memory=False)
        return op1.binary_convolution(
            x, kernel, op["strides"], *pads(op), [1, 1], "xnor-popcount", float(op["pad"]), "explicit"
        )

    def clip(op, x):
        if op["leak"]:
            y = op8.clamp(x, op["low"], op["high"])
            return op8.add(y, op8.multiply(constant(op["leak"]), op8.subtract(x, y)))
        return op8.relu(x) if (op["low"], op["high"]) == (0, np.inf) else op8.clamp(x, op["low"], op["high"])

    def rprelu(op, x, shift_in, slope, shift_out):
        y = op8.prelu(op8.add(x, channels(shift_in)), constant(slope))
        return op8.add(y, channels(shift_out))

    def reshape(op, x):
        h, w, c = op["shape"]
        rows = op8.reshape(op8.transpose(x, integers(0, 2, 3, 1)), integers(batch, h, w, c), False)
        return op8.transpose(rows, integers(0, 3, 1, 2))

    kinds = {
        "conv": conv, "binary_conv": binary_conv, "clip": clip, "rprelu": rprelu, "reshape": reshape,
        "sign": lambda op, x: op1.fake_quantize(x, *(constant(v, 1, 1, 1, 1) for v in (JUST_BELOW_0,) * 2 + (0, 1)), 2),
        "affine": lambda op, x, scale, offset: op8.add(op8.multiply(x, channels(scale)), channels(offset)),
        "add": lambda op, x, y: op8.add(x, y),
        "concat": lambda op, *maps: op8.concat(list(maps), 1),
        "max_pool": lambda op, x: op1.max_pool(x, op["strides"], *pads(op), op["window"], "floor", "explicit"),
        "avg_pool": lambda op, x: op1.avg_pool(
            x, [op["window"]] * 2, [0, 0], [0, 0], [op["window"]] * 2, True, "floor", "explicit"
        ),
        "subsample": lambda op, x: op1.max_pool(x, [op["stride"]] * 2, [0, 0], [0, 0], [1, 1], "floor", "explicit"),
        "pad_channels": lambda op, x: op8.pad(
            x, integers(0, op["before"], 0, 0), integers(0, op["after"], 0, 0), "constant", op8.constant(np.float32(0))
        ),
        "mean": lambda op, x: op8.reduce_mean(x, integers(2, 3), True),
    }  # fmt: skip
    h, w, c = program.shape(0)
    image = op8.parameter([batch, c, h, w], np.float32)
    return ov.Model([op8.reshape(walk(program, image, kinds), integers(batch, -1), False)], [image], "network")


# --- ONNX -------------------------------------------------------------------------------------------------------------


def onnx_model(program: Program, batch: int) -> Any:
    """An ONNX `ModelProto` of a network without signs, as from `real_twin`."""
    onnx = importlib.import_module("onnx")
    nodes, constants = [], []

    def constant(a):
        constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(a), f"constant{len(constants)}"))
        return constants[-1].name

    def channels(a):
        return constant(a.reshape(1, -1, 1, 1))

    def node(kind, *inputs, output=None, **settings):
        name = output or f"{kind.lower()}{len(nodes)}"
        nodes.append(onnx.helper.make_node(kind, inputs, [name], name=name, **settings))
        return name

    def window(size, strides, before=(0, 0), after=(0, 0)):
        return {"kernel_shape": list(size), "strides": list(strides), "pads": [*before, *after]}

    def conv(op, x, weight, bias):
        settings = window(weight.shape[2:], op["strides"], *pads(op))
        return node("Conv", x, constant(weight), constant(bias), group=op["groups"], **settings)

    def clip(op, x):
        if (op["low"], op["high"]) == (0, np.inf):
            return node("Relu", x)
        y = node("Clip", x, *(constant(np.float32(op[k])) for k in ("low", "high")))
        return node("Add", y, node("Mul", node("Sub", x, y), constant(np.float32(op["leak"])))) if op["leak"] else y

    def rprelu(op, x, shift_in, slope, shift_out):
        y = node("PRelu", node("Add", x, channels(shift_in)), constant(slope.reshape(-1, 1, 1)))
        return node("Add", y, channels(shift_out))

    def reshape(op, x):
        rows = node("Reshape", node("Transpose", x, perm=[0, 2, 3, 1]), constant(np.array([batch, *op["shape"]])))
        return node("Transpose", rows, perm=[0, 3, 1, 2])

    kinds = {
        "conv": conv, "clip": clip, "rprelu": rprelu, "reshape": reshape,
        "affine": lambda op, x, scale, offset: node("Add", node("Mul", x, channels(scale)), channels(offset)),
        "add": lambda op, x, y: node("Add", x, y),
        "concat": lambda op, *maps: node("Concat", *maps, axis=1),
        "max_pool": lambda op, x: node("MaxPool", x, **window(op["window"], op["strides"], *pads(op))),
        "avg_pool": lambda op, x: node("AveragePool", x, **window([op["window"]] * 2, [op["window"]] * 2)),
        "subsample": lambda op, x: node("MaxPool", x, **window([1, 1], [op["stride"]] * 2)),
        "pad_channels": lambda op, x: node(
            "Pad", x, constant(np.array([0, op["before"], 0, 0, 0, op["after"], 0, 0])), constant(np.float32(0))
        ),
        "mean": lambda op, x: node("GlobalAveragePool", x),
    }  # fmt: skip
    (h, w, c), classes = program.shape(0), program.shape(len(program.spec["ops"]))[2]
    node("Reshape", walk(program, "images", kinds), constant(np.array([batch, classes])), output="logits")
    value = onnx.helper.make_tensor_value_info
    images, logits = value("images", 1, [batch, c, h, w]), value("logits", 1, [batch, classes])  # 1: float32
    graph = onnx.helper.make_graph(nodes, "network", [images], [logits], constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


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
        if (op["low"], op["high"]) == (0, np.inf):
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
