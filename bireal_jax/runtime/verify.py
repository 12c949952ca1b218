"""What must hold for a packed network before any of it is used: the rules of engine/format.cc, in Python."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.runtime import reference

# Limits of a file; beyond them it is refused. The same numbers stand in engine/format.h.
MAX_SIDE, MAX_OPS, MAX_WINDOW, MAX_ELEMENTS = 1 << 16, 1 << 12, 64, 1 << 28
MAX_BINARY_INPUTS, MAX_HEADER = 65535, 4 << 20
LARGEST = float(np.finfo(np.float32).max)

Shape = tuple[int, ...]


def program(spec: Any, tensors: dict[str, np.ndarray]) -> None:
    """Checks a file's spec and arrays: after it `Program.run` finds everything that it needs.

    Raises:
      BadInput: an operation, shape, input, array or setting is not what it must be; the message says which.
    """
    shapes = [_image(_get(spec, "image", dict))]
    rows = _list(_get(spec, "ops"), "ops", 1, MAX_OPS)
    used = {f"{i}.{name}" for i, row in enumerate(rows) for name in _operation(i, rows, shapes, tensors)}
    if unused := sorted(set(tensors) - used):
        raise BadInput(f"tensor {unused[0][:40]!r} belongs to no operation")
    labels = _list(_get(spec, "labels"), "labels", 0, MAX_ELEMENTS)
    if labels and shapes[-1][:2] != (1, 1):  # without labels it may be a map
        raise BadInput(f"the last operation gives {shapes[-1]}, not one number a class")
    if labels and len(labels) != shapes[-1][2]:
        raise BadInput(f"{len(labels)} labels for {shapes[-1][2]} outputs")
    if not all(isinstance(label, str) for label in [*labels, spec.get("model"), spec.get("package")]):
        raise BadInput("a label, the model or the package is not a string")


def _image(image):
    shape = _shape(image)
    for key in ("mean", "std"):
        for value in _list(_get(image, key), key, shape[2], shape[2]):
            _real(value, key)
    if not min(image["std"]) > 1e-6:
        raise BadInput(f"std is {min(image['std'])}, not positive")
    _integer(_get(image, "resize"), "resize", 0, MAX_SIDE)
    return shape


def _operation(index, rows, shapes, tensors):
    """Checks one operation and adds its shape; returns the names of its arrays."""
    row, kind = rows[index], "?"
    try:
        kind = _get(row, "op", str)
        if kind not in SHAPES:
            raise BadInput("not known; a newer version may have it")
        _get(row, "path", str)
        inputs = _list(_get(row, "inputs"), "inputs", *INPUTS.get(kind, (1, 1)))
        for number in inputs:
            _integer(number, "an input", 0, index)
        if kind == "binary_conv" and (inputs[0] == 0 or rows[inputs[0] - 1]["op"] != "sign"):
            raise BadInput("its input is no sign")
        names = reference.KINDS[kind][1]
        arrays = {name: _array(tensors, f"{index}.{name}") for name in names}
        expected = SHAPES[kind](row, [shapes[number] for number in inputs], *arrays.values())
        if _shape(row) != expected:
            raise BadInput(f"gives {expected}; the file says {_shape(row)}")
    except BadInput as error:
        raise BadInput(f"operation {index} ({kind[:40]}): {error}") from None
    shapes.append(expected)
    return names


# ----------------------------------------------------------------------------------------------------------- values


def _get(row, key, kind=object):
    if not isinstance(row, dict) or key not in row:
        raise BadInput(f"there is no {key}")
    if not isinstance(row[key], kind):
        raise BadInput(f"{key} is {_brief(row[key])}, not of type {kind.__name__}")
    return row[key]


def _brief(value):
    return repr(value)[:40]


def _integer(value, what, low, high):
    if type(value) is not int or not low <= value <= high:
        raise BadInput(f"{what} is {_brief(value)}, not an integer from {low} to {high}")
    return value


def _real(value, what):
    if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
        raise BadInput(f"{what} is {_brief(value)}, not a finite number")
    return value


def _list(value, what, least, most):
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise BadInput(f"{what} is {_brief(value)}, not a list of {least} to {most}")
    return value


def _shape(row) -> Shape:
    sides = _list(_get(row, "shape"), "shape", 3, 3)
    for side, most in zip(sides, (MAX_SIDE, MAX_SIDE, MAX_ELEMENTS), strict=True):
        _integer(side, "a side", 1, most)
    if sides[0] * sides[1] * sides[2] > MAX_ELEMENTS:
        raise BadInput(f"a map of {tuple(sides)} has more than 2^28 elements")
    return tuple(sides)


def _array(tensors, name):
    if name not in tensors:
        raise BadInput(f"there is no tensor {name}")
    array = tensors[name]
    if array.dtype not in (np.float32, np.uint8):
        raise BadInput(f"tensor {name} is {array.dtype}; known: float32, uint8")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise BadInput(f"tensor {name} has NaN or infinity")
    return array


# ------------------------------------------------------------------- shapes: (row, shapes of inputs, arrays) -> shape


def _windows(row, key, most=MAX_WINDOW):
    return [_integer(side, key, 1, most) for side in _list(_get(row, key), key, 2, 2)]


def _slid(shape, window, strides, padding=(0, 0, 0, 0)):
    h, w = shape[0] + sum(padding[:2]) - window[0], shape[1] + sum(padding[2:]) - window[1]
    if h < 0 or w < 0:
        raise BadInput(f"a window of {tuple(window)} is larger than the map, {shape}")
    return h // strides[0] + 1, w // strides[1] + 1, shape[2]


def _padding(row, window):
    sides = _list(_get(row, "padding"), "padding", 4, 4)
    return [_integer(side, "padding", 0, window[i // 2] - 1) for i, side in enumerate(sides)]


def _conv(row, shapes, weight):
    binary, channels = weight.dtype == np.uint8, shapes[0][2]
    groups = _integer(_get(row, "groups"), "groups", 1, channels)
    if weight.ndim != 4 or channels % groups:
        raise BadInput(f"{channels} channels, {groups} groups and a weight of {weight.shape} do not fit")
    cin = channels // groups
    (count, *window, depth) = weight.shape if binary else (weight.shape[3], *weight.shape[:3])
    if depth != (-(-cin // 8) if binary else cin) or not count or count % groups or not 0 < min(window):
        raise BadInput(f"a weight of {weight.shape} does not fit {channels} channels in {groups} groups")
    for side in window:
        _integer(side, "the weight's window", 1, MAX_WINDOW)
    if row["op"] == "binary_conv":
        if not binary:
            raise BadInput("its weight is not in bits")
        _integer(_get(row, "pad"), "pad", -1, 1)
        _integer(window[0] * window[1] * cin, "the number of products in a sum", 1, MAX_BINARY_INPUTS)
    return *_slid(shapes[0], window, _windows(row, "strides"), _padding(row, window))[:2], count


def _per_channel(row, shapes, *arrays):
    for array in arrays:
        if array.dtype != np.float32 or array.shape != shapes[0][2:]:
            raise BadInput(
                f"an array of {array.dtype} {array.shape}, not one float32 for each of {shapes[0][2]} channels"
            )
    return shapes[0]


def _add(row, shapes):
    if shapes[0] != shapes[1]:
        raise BadInput(f"adds maps of {shapes[0]} and {shapes[1]}")
    return shapes[0]


def _clip(row, shapes):
    low, high, _ = (_real(_get(row, key), key) for key in ("low", "high", "leak"))
    if low > high:
        raise BadInput(f"low, {low}, is above high, {high}")
    return shapes[0]


def _max_pool(row, shapes):
    window = _windows(row, "window")
    return _slid(shapes[0], window, _windows(row, "strides"), _padding(row, window))


def _avg_pool(row, shapes):
    side = _integer(_get(row, "window"), "window", 1, MAX_WINDOW)
    return _slid(shapes[0], (side, side), (side, side))


def _subsample(row, shapes):
    side = _integer(_get(row, "stride"), "stride", 1, MAX_WINDOW)
    return _slid(shapes[0], (1, 1), (side, side))


def _upsample(row, shapes):
    factor = _integer(_get(row, "factor"), "factor", 1, MAX_WINDOW)
    return shapes[0][0] * factor, shapes[0][1] * factor, shapes[0][2]


def _pad_channels(row, shapes):
    more = [_integer(_get(row, key), key, 0, MAX_ELEMENTS) for key in ("before", "after")]
    return *shapes[0][:2], shapes[0][2] + sum(more)


def _concat(row, shapes):
    if len({shape[:2] for shape in shapes}) > 1:
        raise BadInput(f"maps of different size: {', '.join(map(str, shapes))}"[:200])
    return *shapes[0][:2], sum(shape[2] for shape in shapes)


def _reshape(row, shapes):
    if np.prod(shapes[0]) != np.prod(_shape(row)):
        raise BadInput(f"{shapes[0]} and {_shape(row)} have not the same number of elements")
    return _shape(row)


INPUTS = {"add": (2, 2), "concat": (1, 16)}  # others: 1
SHAPES: dict[str, Callable[..., Shape]] = {
    "conv": _conv, "binary_conv": _conv, "affine": _per_channel, "add": _add, "sign": _per_channel,
    "rprelu": _per_channel, "clip": _clip, "max_pool": _max_pool, "avg_pool": _avg_pool,
    "mean": lambda row, shapes: (1, 1, shapes[0][2]), "subsample": _subsample, "pad_channels": _pad_channels,
    "concat": _concat, "reshape": _reshape, "upsample": _upsample,
}  # fmt: skip
