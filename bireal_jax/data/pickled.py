"""The pickles of CIFAR-10 and CIFAR-100, read without the pickle module: nothing in a file is ever called.

A pickle is a program. This reads the few operations that build dicts, lists, numbers and strings, as the bytes that
they are, and knows by name the three functions that arrays are pickled with; it makes those arrays itself, of uint8
alone. Whatever else a file wants is an error. numpy's own reconstruction is not used: a forged dtype makes it read
memory that is not the file's.
"""

import pickletools
from typing import Any

import numpy as np

# module and function -> what stands for it here
KNOWN = {
    f"{module} {name}": name
    for module, name in (
        ("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct"), ("numpy", "ndarray"),
        ("numpy", "dtype"), ("_codecs", "encode"),
    )
}  # fmt: skip
VALUES = (
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINSTRING", "BINSTRING", "BINUNICODE",
    "SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8",
)  # fmt: skip
MARK = object()


class _Name(str):
    """A function or class of KNOWN."""


class _Array:
    """An array that is not filled yet, or is."""

    def __init__(self):
        self.values = None


def load(data: bytes) -> Any:
    """The dicts, lists, numbers, strings (str, of Latin-1 characters where they were bytes) and uint8 arrays in it.

    Raises:
      ValueError: it is damaged, or has anything else in it.
    """
    stack, memo = [], {}
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        try:
            if name == "STOP":
                return _plain(stack.pop())
            _step(name, argument, stack, memo)
        except (IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"damaged at {name}: {error!r}") from None
    raise ValueError("it has no end")


def _step(name, argument, stack, memo):
    """One operation on the stack; the names are pickletools'."""
    if name in ("PROTO", "FRAME"):
        return
    if name in VALUES:
        stack.append(argument.decode("latin-1") if isinstance(argument, bytes) else argument)
    elif name in CONSTANTS:
        stack.append(CONSTANTS[name]())
    elif name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
        memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("GLOBAL", "STACK_GLOBAL"):
        wanted = argument if name == "GLOBAL" else " ".join(reversed([stack.pop(), stack.pop()]))
        if wanted not in KNOWN:
            raise ValueError(f"it wants {wanted[:80]!r}, which no file of CIFAR needs")
        stack.append(_Name(KNOWN[wanted]))
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack.append(tuple(stack.pop() for _ in range(count))[::-1])
    elif name == "TUPLE":
        stack.append(tuple(_above_mark(stack)))
    elif name in ("APPEND", "APPENDS"):
        values = [stack.pop()] if name == "APPEND" else _above_mark(stack)
        _of(stack[-1], list).extend(values)
    elif name in ("SETITEM", "SETITEMS"):
        values = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else _above_mark(stack)
        _of(stack[-1], dict).update(zip(map(str, values[::2]), values[1::2], strict=True))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack.append(_call(_of(stack.pop(), _Name), _of(arguments, tuple)))
    elif name == "BUILD":
        state = stack.pop()
        _build(stack[-1], _of(state, tuple))
    else:
        raise ValueError(f"it has the operation {name}, which no file of CIFAR needs")


CONSTANTS = {
    "EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "NONE": lambda: None, "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False, "MARK": lambda: MARK,
}  # fmt: skip


def _of(value, kind):
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _above_mark(stack):
    values = []
    while (value := stack.pop()) is not MARK:
        values.append(value)
    return values[::-1]


def _call(name, arguments):
    """What REDUCE gives: an empty array, the one dtype there is, or the bytes that Python 3 wrote as text."""
    if name == "_reconstruct":
        return _Array()
    if name == "dtype" and arguments[0] == "u1":
        return _Name("u1")
    if name == "encode" and arguments[1] == "latin1":
        return _of(arguments[0], str)
    raise ValueError(f"it calls {name} with {str(arguments)[:80]}; only arrays of uint8 are read")


def _build(target, state):
    """What BUILD does: fills an array with (version, shape, dtype, Fortran order, bytes); a dtype stays as it is."""
    if isinstance(target, _Name) and target == "u1":
        return
    _, shape, dtype, fortran, raw = state
    if dtype != "u1" or not isinstance(dtype, _Name):
        raise ValueError("it has an array that is not of uint8")
    if any(type(n) is not int or n < 0 for n in _of(shape, tuple)):
        raise ValueError(f"it has an array of shape {str(shape)[:80]}")
    flat = np.frombuffer(_of(raw, str).encode("latin-1"), np.uint8)
    _of(target, _Array).values = flat.reshape(shape, order="F" if fortran else "C")


def _plain(value):
    """With arrays in place of what held them; dicts one level deep, as the files are."""
    if isinstance(value, dict):
        return {key: v.values if isinstance(v, _Array) else v for key, v in value.items()}
    return value
