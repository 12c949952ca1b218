"""From the operations of a packed network to those of another engine: what the writers of all formats share."""

import collections
import importlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np

from bireal_jax.errors import BadInput
from bireal_jax.runtime import fields
from bireal_jax.runtime.container import Program


def walk(program: Program, image: Any, kinds: dict[str, Callable]) -> Any:
    """What `kinds` make of the operations, one after the other; returns the last.

    An affine map behind a real-valued convolution is folded into it: every "conv" has a weight and a bias.

    Args:
      program: the network.
      image: stands for tensor 0.
      kinds: kind -> function (op, *inputs, **arrays); weights come as [cout, cin / groups, kh, kw], others as [c].

    Raises:
      BadInput: an operation that is no row of `kinds`.
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
                arrays = {"weight": arrays["weight"] * norm["scale"].ravel(), "bias": norm["offset"].ravel()}
                folded.add(after)
        if "weight" in arrays:
            arrays["weight"] = np.ascontiguousarray(arrays["weight"].transpose(3, 2, 0, 1))
        if op["op"] not in kinds:
            raise unknown(op)
        made.append(kinds[op["op"]](op, *inputs, **arrays))
    return made[-1]


def unknown(op: dict) -> BadInput:
    """The error that a format cannot express an operation."""
    return BadInput(
        f"layer {op['path']!r} has the operation {op['op']}, which this format does not have\n"
        "the packed file has every one: --format=packed"
    )


def pads(op: dict) -> tuple[list[int], list[int]]:
    """Padding as (top, left), (bottom, right)."""
    top, bottom, left, right = op["padding"]
    return [top, left], [bottom, right]


def is_relu(op: dict) -> bool:
    """Whether a clip is a ReLU."""
    return op["low"] == 0 and op["high"] >= fields.LARGEST and not op["leak"]


def needed(name: str) -> Any:
    """A module that a format is written or checked with.

    Raises:
      BadInput: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.split(".")[0]
        raise BadInput(f"{package} is missing; pip install -e '.[formats]' where the package is") from None


def names(program: Program) -> dict[str, str]:
    """What files of other engines have beside the graph: classes, and ids where these are others, as lists in JSON.

    In ASCII: a name can hold what neither XML nor protobuf take.
    """
    labels, ids = program.spec["labels"], program.spec.get("ids", program.spec["labels"])
    found = {"classes": json.dumps(labels)} if labels else {}
    return found | ({"ids": json.dumps(ids)} if ids != labels else {})
