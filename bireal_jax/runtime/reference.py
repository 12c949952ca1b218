"""The definition of every operation of a packed network, in numpy: slow, plain, in float32 or float64.

The compiled engine has to agree with this file: bit for bit where the inputs are ±1, else to rounding. A map is
[n, h, w, c]; a vector is a map of one pixel. Weights are [kh, kw, cin / groups, cout].
"""

from collections.abc import Callable

import numpy as np


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


# kind -> (definition, names of its arrays)
KINDS: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "conv": (conv, ("weight",)), "binary_conv": (binary_conv, ("weight",)), "affine": (affine, ("scale", "offset")),
    "add": (add, ()), "sign": (sign, ()), "rprelu": (rprelu, ("shift_in", "slope", "shift_out")), "clip": (clip, ()),
    "max_pool": (max_pool, ()), "avg_pool": (avg_pool, ()), "mean": (mean, ()), "subsample": (subsample, ()),
    "pad_channels": (pad_channels, ()), "concat": (concat, ()), "reshape": (reshape, ()), "upsample": (upsample, ()),
}  # fmt: skip


def apply(op: dict, arrays: dict[str, np.ndarray], inputs: list[np.ndarray]) -> np.ndarray:
    """One operation.

    Args:
      op: a row of the packed file's op list.
      arrays: its weights, unpacked, in the dtype of the inputs.
      inputs: the maps that it reads.
    """
    function, names = KINDS[op["op"]]
    return function(*inputs, op, *(arrays[name] for name in names))
