"""Values of a file that is not trusted: each function returns what it was asked for, or raises BadInput."""

import numpy as np

from bireal_jax.errors import BadInput

# Limits of a file; beyond them it is refused. The same numbers stand in engine/format.h.
MAX_SIDE, MAX_OPS, MAX_WINDOW, MAX_ELEMENTS = 1 << 16, 1 << 12, 64, 1 << 28
MAX_BINARY_INPUTS, MAX_HEADER = 65535, 4 << 20
LARGEST = float(np.finfo(np.float32).max)

Shape = tuple[int, ...]


def get(row, key, kind=object):
    """row[key], of a type."""
    if not isinstance(row, dict) or key not in row:
        raise BadInput(f"there is no {key}")
    if not isinstance(row[key], kind):
        raise BadInput(f"{key} is {_brief(row[key])}, not of type {kind.__name__}")
    return row[key]


def _brief(value):
    return repr(value)[:40]


def integer(value, what, low, high):
    """An integer within limits; no boolean."""
    if type(value) is not int or not low <= value <= high:
        raise BadInput(f"{what} is {_brief(value)}, not an integer from {low} to {high}")
    return value


def real(value, what):
    """A finite number."""
    if type(value) not in (int, float) or not -LARGEST <= value <= LARGEST:
        raise BadInput(f"{what} is {_brief(value)}, not a finite number")
    return value


def items(value, what, least, most):
    """A list of so many values."""
    if not isinstance(value, list) or not least <= len(value) <= most:
        raise BadInput(f"{what} is {_brief(value)}, not a list of {least} to {most}")
    return value


def shape(row) -> Shape:
    """row["shape"], of a map."""
    sides = items(get(row, "shape"), "shape", 3, 3)
    for side, most in zip(sides, (MAX_SIDE, MAX_SIDE, MAX_ELEMENTS), strict=True):
        integer(side, "a side", 1, most)
    if sides[0] * sides[1] * sides[2] > MAX_ELEMENTS:
        raise BadInput(f"a map of {tuple(sides)} has more than 2^28 elements")
    return tuple(sides)


def array(tensors, name):
    """tensors[name], finite float32 or bits."""
    if name not in tensors:
        raise BadInput(f"there is no tensor {name}")
    array = tensors[name]
    if array.dtype not in (np.float32, np.uint8):
        raise BadInput(f"tensor {name} is {array.dtype}; known: float32, uint8")
    if array.dtype == np.float32 and not np.isfinite(array).all():
        raise BadInput(f"tensor {name} has NaN or infinity")
    return array
