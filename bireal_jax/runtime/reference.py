"""Every operation of a packed network: its definition, in plain and slow numpy, and what a file may say of it.

The compiled engine has to agree with this file: bit for bit where the inputs are ±1, else to rounding. A map is
[n, h, w, c]; a vector is a map of one pixel. Weights are [kh, kw, cin / groups, cout].
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.runtime.fields import (
    MAX_BINARY_INPUTS,
    MAX_ELEMENTS,
    MAX_WINDOW,
    Shape,
    get,
    integer,
    items,
    real,
    shape,
)


def conv(x, op, weight):
    """Convolution with zero padding."""
    return convolve(x, weight, op["strides"], op["padding"], op["groups"], 0)


def binary_conv(x, op, weight):
    """Convolution of ±1 with ±1; beyond the border the activation is op["pad"]: 0, +1 or -1."""
    return convolve(x, weight, op["strides"], op["padding"], op["groups"], op["pad"])


def convolve(x, weight, strides, padding, groups, pad):
    """The sum over windows as one matrix product per group."""
    (kh, kw, cin, cout), (top, bottom, left, right) = weight.shape, padding
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=pad)
    windows = np.lib.stride_tricks.sliding_window_view(x, (kh, kw), (1, 2))[:, :: strides[0], :: strides[1]]
    n, h, w = windows.shape[:3]
    outputs = []
    for g in range(groups):
        columns = windows[:, :, :, g * cin : (g + 1) * cin].transpose(0, 1, 2, 4, 5, 3).reshape(n * h * w, -1)
        kernel = weight[..., g * cout // groups : (g + 1) * cout // groups]
        outputs.append(columns @ kernel.reshape(kh * kw * cin, -1))
    return np.concatenate(outputs, -1).reshape(n, h, w, cout)


def affine(x, op, scale, offset):
    """One scale and one offset per channel: batch norm with the weights' scale folded in, biases, thresholds."""
    return x * scale + offset


def add(x, y, op):
    """The sum of two maps."""
    return x + y


def sign(x, op):
    """+1 where x >= 0, else -1."""
    return np.where(x >= 0, 1, -1).astype(x.dtype)


def rprelu(x, op, shift_in, slope, shift_out):
    """u >= 0: u + shift_out, else slope u + shift_out; u = x + shift_in."""
    u = x + shift_in
    return np.where(u >= 0, u, slope * u) + shift_out


def clip(x, op):
    """x within [low, high]; beyond them op["leak"] times the distance is added."""
    clipped = np.clip(x, op["low"], op["high"])
    return clipped + x.dtype.type(op["leak"]) * (x - clipped) if op["leak"] else clipped


def max_pool(x, op):
    """The maximum of each window, of what lies within the map."""
    top, bottom, left, right = op["padding"]
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, op["window"], (1, 2))
    return windows[:, :: op["strides"][0], :: op["strides"][1]].max((4, 5))


def avg_pool(x, op):
    """The average over square windows side by side; what fills no window is dropped."""
    s, (n, h, w, c) = op["window"], x.shape
    return x[:, : h // s * s, : w // s * s].reshape(n, h // s, s, w // s, s, c).mean((2, 4))


def mean(x, op):
    """The average over the whole map."""
    return x.mean((1, 2), keepdims=True)


def subsample(x, op):
    """Every so manieth pixel, from the first on."""
    return x[:, :: op["stride"], :: op["stride"]]


def upsample(x, op):
    """Every pixel as a square of so many equal ones on a side."""
    return x.repeat(op["factor"], 1).repeat(op["factor"], 2)


def pad_channels(x, op):
    """Channels of zeros before and after."""
    return np.pad(x, ((0, 0), (0, 0), (0, 0), (op["before"], op["after"])))


def concat(*maps_and_op):
    """Channels of several maps, side by side."""
    return np.concatenate(maps_and_op[:-1], -1)


def reshape(x, op):
    """The same numbers in the same order in another shape."""
    return x.reshape(len(x), *op["shape"])


# What a file may say: (row, shapes of the inputs, arrays) -> shape of the output.


def _windows(row, key, most=MAX_WINDOW):
    return [integer(side, key, 1, most) for side in items(get(row, key), key, 2, 2)]


def _slid(shape, window, strides, padding=(0, 0, 0, 0)):
    h, w = shape[0] + sum(padding[:2]) - window[0], shape[1] + sum(padding[2:]) - window[1]
    if h < 0 or w < 0:
        raise BadInput(f"a window of {tuple(window)} is larger than the map, {shape}")
    return h // strides[0] + 1, w // strides[1] + 1, shape[2]


def _padding(row, window):
    sides = items(get(row, "padding"), "padding", 4, 4)
    return [integer(side, "padding", 0, window[i // 2] - 1) for i, side in enumerate(sides)]


def _shape_of_conv(row, shapes, weight):
    binary, channels = weight.dtype == np.uint8, shapes[0][2]
    groups = integer(get(row, "groups"), "groups", 1, channels)
    if weight.ndim != 4 or channels % groups:
        raise BadInput(f"{channels} channels, {groups} groups and a weight of {weight.shape} do not fit")
    cin = channels // groups
    (count, *window, depth) = weight.shape if binary else (weight.shape[3], *weight.shape[:3])
    if depth != (-(-cin // 8) if binary else cin) or not count or count % groups or not 0 < min(window):
        raise BadInput(f"a weight of {weight.shape} does not fit {channels} channels in {groups} groups")
    for side in window:
        integer(side, "the weight's window", 1, MAX_WINDOW)
    if row["op"] == "binary_conv":
        if not binary:
            raise BadInput("its weight is not in bits")
        integer(get(row, "pad"), "pad", -1, 1)
        integer(window[0] * window[1] * cin, "the number of products in a sum", 1, MAX_BINARY_INPUTS)
    return *_slid(shapes[0], window, _windows(row, "strides"), _padding(row, window))[:2], count


def _shape_of_per_channel(row, shapes, *arrays):
    for array in arrays:
        if array.dtype != np.float32 or array.shape != shapes[0][2:]:
            raise BadInput(
                f"an array of {array.dtype} {array.shape}, not one float32 for each of {shapes[0][2]} channels"
            )
    return shapes[0]


def _shape_of_add(row, shapes):
    if shapes[0] != shapes[1]:
        raise BadInput(f"adds maps of {shapes[0]} and {shapes[1]}")
    return shapes[0]


def _shape_of_clip(row, shapes):
    low, high, _ = (real(get(row, key), key) for key in ("low", "high", "leak"))
    if low > high:
        raise BadInput(f"low, {low}, is above high, {high}")
    return shapes[0]


def _shape_of_max_pool(row, shapes):
    window = _windows(row, "window")
    return _slid(shapes[0], window, _windows(row, "strides"), _padding(row, window))


def _shape_of_avg_pool(row, shapes):
    side = integer(get(row, "window"), "window", 1, MAX_WINDOW)
    return _slid(shapes[0], (side, side), (side, side))


def _shape_of_subsample(row, shapes):
    side = integer(get(row, "stride"), "stride", 1, MAX_WINDOW)
    return _slid(shapes[0], (1, 1), (side, side))


def _shape_of_upsample(row, shapes):
    factor = integer(get(row, "factor"), "factor", 1, MAX_WINDOW)
    return shapes[0][0] * factor, shapes[0][1] * factor, shapes[0][2]


def _shape_of_pad_channels(row, shapes):
    more = [integer(get(row, key), key, 0, MAX_ELEMENTS) for key in ("before", "after")]
    return *shapes[0][:2], shapes[0][2] + sum(more)


def _shape_of_concat(row, shapes):
    if len({shape[:2] for shape in shapes}) > 1:
        raise BadInput(f"maps of different size: {', '.join(map(str, shapes))}"[:200])
    return *shapes[0][:2], sum(shape[2] for shape in shapes)


def _shape_of_reshape(row, shapes):
    if np.prod(shapes[0]) != np.prod(shape(row)):
        raise BadInput(f"{shapes[0]} and {shape(row)} have not the same number of elements")
    return shape(row)


class Kind(NamedTuple):
    """A kind of operation.

    Attributes:
      apply: its definition: (inputs..., row of the file, arrays...) -> output.
      arrays: the names of its arrays.
      shape: what a file may say of it: (row, shapes of the inputs, arrays...) -> shape of the output, or BadInput.
      inputs: at least and at most how many.
    """

    apply: Callable
    arrays: tuple[str, ...]
    shape: Callable[..., Shape]
    inputs: tuple[int, int] = (1, 1)


KINDS: dict[str, Kind] = {
    "conv": Kind(conv, ("weight",), _shape_of_conv),
    "binary_conv": Kind(binary_conv, ("weight",), _shape_of_conv),
    "affine": Kind(affine, ("scale", "offset"), _shape_of_per_channel),
    "add": Kind(add, (), _shape_of_add, (2, 2)),
    "sign": Kind(sign, (), _shape_of_per_channel),
    "rprelu": Kind(rprelu, ("shift_in", "slope", "shift_out"), _shape_of_per_channel),
    "clip": Kind(clip, (), _shape_of_clip),
    "max_pool": Kind(max_pool, (), _shape_of_max_pool),
    "avg_pool": Kind(avg_pool, (), _shape_of_avg_pool),
    "mean": Kind(mean, (), lambda row, shapes: (1, 1, shapes[0][2])),
    "subsample": Kind(subsample, (), _shape_of_subsample),
    "pad_channels": Kind(pad_channels, (), _shape_of_pad_channels),
    "concat": Kind(concat, (), _shape_of_concat, (1, 16)),
    "reshape": Kind(reshape, (), _shape_of_reshape),
    "upsample": Kind(upsample, (), _shape_of_upsample),
}


def apply(op: dict, arrays: dict[str, np.ndarray], inputs: list[np.ndarray]) -> np.ndarray:
    """One operation.

    Args:
      op: a row of the packed file's op list.
      arrays: its weights, unpacked, in the dtype of the inputs.
      inputs: the maps that it reads.
    """
    kind = KINDS[op["op"]]
    return kind.apply(*inputs, op, *(arrays[name] for name in kind.arrays))
