"""The operations of an op graph, and what is tidied in a list of them."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Tensor:
    """A value that depends on the image: number 0 is the image, number i the output of operation i - 1."""

    number: int


@dataclass(frozen=True)
class Difference:
    """x - y of two maps. No operation: it must meet y again, as in y + stop_gradient(x - y), which is x."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class Comparison:
    """x >= 0, or x < 0. No operation: it must choose between 1 and -1, which is a sign."""

    x: Tensor
    less: bool


@dataclass
class Op:
    """One operation on one image.

    Attributes:
      kind: what it does; `bireal_jax/runtime/reference.py` has the definition of each.
      inputs: numbers of the tensors that it reads: 0 is the image, i the output of operation i - 1.
      shape: (h, w, c) of its output.
      path: the module it comes from, "stage1_block1/binary_conv".
      settings: strides, padding and the like.
      arrays: weights, in float64; only their shapes where the variables were shapes.
      binary_weight: `arrays["weight"]` is ±1.
      real: why weights that are computed from latent ones are not; "" where they are, or are not meant to be.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: Shape
    path: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    binary_weight: bool = False
    real: str = ""


def notes(layers: Iterable[tuple[str, str]]) -> list[str]:
    """A line that says which layers with latent weights come out real-valued, and why the first of them does.

    Args:
      layers: (path, `Op.real`) of each; the empty ones are as they are meant.
    """
    found = [(path, why) for path, why in layers if why]
    others = f" and {len(found) - 1} more have" if len(found) > 1 else " has"
    return [f"note: {path}{others} latent weights and comes out real-valued: {why}" for path, why in found[:1]]


def tidy(ops: list[Op]) -> list[Op]:
    """Without what nothing reads; affine maps that follow one another are one."""
    return _merge_affine(_read(ops))


def _read(ops):
    """The operations on which the last one depends."""
    needed = {len(ops)}
    for i in reversed(range(len(ops))):
        needed |= set(ops[i].inputs) if i + 1 in needed else set()
    kept = sorted(needed - {0})
    number = {0: 0} | {old: new for new, old in enumerate(kept, 1)}
    return [dataclasses.replace(ops[old - 1], inputs=tuple(number[j] for j in ops[old - 1].inputs)) for old in kept]


def _merge_affine(ops):
    readers = [sum(op.inputs.count(i) for op in ops) for i in range(len(ops) + 1)]
    merged: list[Op] = []
    number = {0: 0}  # old tensor -> new
    for i, op in enumerate(ops):
        op = dataclasses.replace(op, inputs=tuple(number[j] for j in op.inputs))
        before = merged[op.inputs[0] - 1] if op.inputs[0] else None
        if op.kind == "affine" and before and before.kind == "affine" and readers[ops[i].inputs[0]] == 1:
            if all(isinstance(array, np.ndarray) for array in (*op.arrays.values(), *before.arrays.values())):
                (scale, offset), (first, more) = op.arrays.values(), before.arrays.values()
                before.arrays = {"scale": scale * first, "offset": scale * more + offset}
            else:
                before.arrays = {"scale": _shape_only(before), "offset": _shape_only(before)}
            before.path = op.path
            number[i + 1] = op.inputs[0]
            continue
        merged.append(op)
        number[i + 1] = len(merged)
    return merged


def _shape_only(op):
    return jax.ShapeDtypeStruct(op.shape[-1:], np.float64)
