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
    """Without what nothing reads; affine maps that follow one another are one, and one before the head is behind it."""
    return _merge_affine(_behind_head(_merge_affine(_read(ops))))


def _read(ops):
    """The operations on which the last one depends."""
    needed = {len(ops)}
    for i in reversed(range(len(ops))):
        needed |= set(ops[i].inputs) if i + 1 in needed else set()
    kept = sorted(needed - {0})
    number = {0: 0} | {old: new for new, old in enumerate(kept, 1)}
    return [dataclasses.replace(ops[old - 1], inputs=tuple(number[j] for j in ops[old - 1].inputs)) for old in kept]


def _readers(ops):
    """How many operations read each tensor."""
    return [sum(op.inputs.count(i) for op in ops) for i in range(len(ops) + 1)]


def _behind_head(ops):
    """The batch norm before a head goes into the weights of the head, and changes places with it.

    (s x + o) W = x (s W) + o W, and what is added merges with the bias. Of a head only, whose input was pooled to one
    pixel or flattened.
    """
    ops, readers = list(ops), _readers(ops)
    for i, head in enumerate(ops):
        norm = ops[head.inputs[0] - 1] if head.inputs[0] else head
        if head.kind != "conv" or head.binary_weight or norm.kind != "affine" or readers[head.inputs[0]] > 1:
            continue
        weight, pooled = head.arrays["weight"], norm.inputs[0] and ops[norm.inputs[0] - 1].kind in ("mean", "reshape")
        if pooled and weight.shape[:2] == norm.shape[:2] == (1, 1) and head.settings["groups"] == 1:
            arrays, rest = {"weight": weight}, {"scale": _shape_only(head), "offset": _shape_only(head)}
            if isinstance(weight, np.ndarray):
                scale, offset = norm.arrays.values()
                arrays = {"weight": scale[:, None] * weight}
                rest = {"scale": np.ones(head.shape[2]), "offset": offset @ weight[0, 0]}
            ops[head.inputs[0] - 1] = dataclasses.replace(head, inputs=norm.inputs, arrays=arrays)
            ops[i] = dataclasses.replace(head, kind="affine", settings={}, arrays=rest, real="")
    return ops


def _merge_affine(ops):
    readers = _readers(ops)
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
