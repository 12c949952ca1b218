"""The op graph of a network: what it computes in evaluation mode, as a list of some fifteen kinds of operations.

Found by tracing the Flax module, so that a new model needs no code here: the layers' operations carry their names in
the jaxpr (`binary_conv2d`, `sign`, `rprelu`, ...), what depends on the variables alone folds into constants, and
arithmetic with a constant per channel is an affine map. Cost tables and the packed file are made from this list.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bireal_jax.binary import binarize
from bireal_jax.errors import BadInput
from bireal_jax.shipping.constants import Const, fold
from bireal_jax.shipping.operations import OPERATIONS, TAKES_ANY
from bireal_jax.shipping.ops import Difference, Op, Shape, Tensor, notes, tidy

__all__ = ["Op", "Shape", "notes", "trace"]


def trace(module: nn.Module, variables: Any, image_shape: Shape) -> list[Op]:
    """The operations of `module` in evaluation mode, in order; the last gives logits, [1, 1, classes], or a map.

    Args:
      module: from `models.build`. It is traced in float64, whatever its own dtype.
      variables: {"params", "batch_stats"}, arrays or `jax.ShapeDtypeStruct`s.
      image_shape: (h, w, c) of the input, already normalized.

    Raises:
      BadInput: the module does something for which there is no kind of operation.
    """
    with jax.enable_x64(True):
        module = module.clone(dtype=jnp.float64, param_dtype=jnp.float64)
        shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, jnp.float64), variables)
        image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float64)
        closed = jax.make_jaxpr(module.apply)(shapes, image)
        leaves = [
            Const(
                v if isinstance(v, jax.ShapeDtypeStruct) else np.asarray(v, np.float64), parameter=True, made=i,
                latent=getattr(path[-1], "key", "") == "latent",
            )
            for i, (path, v) in enumerate(jax.tree_util.tree_leaves_with_path(variables))
        ]  # fmt: skip
        tracer = _Tracer(type(module).__name__)
        constants = [Const(np.asarray(value)) for value in closed.consts]
        (out,) = tracer.run(closed.jaxpr, constants, [*leaves, Tensor(0)], "")
        assert isinstance(out, Tensor) and out.number == len(tracer.ops), "the logits are the last operation"
    return tidy(tracer.ops)


class _Tracer:
    """Runs a jaxpr on constants and tensors, and collects operations."""

    def __init__(self, root: str):
        self.ops: list[Op] = []
        self.root = root  # the first scope of every name

    def run(self, jaxpr, consts, args, path) -> list[Any]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(atom):
            return Const(np.asarray(atom.val)) if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            inner = _joined(path, str(eqn.source_info.name_stack).removeprefix(self.root))
            outputs = self.equation(eqn, [read(atom) for atom in eqn.invars], inner)
            values |= zip(eqn.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn, args, path):
        name = _name(eqn)
        called = next(iter(_called(eqn)), None)
        constant = all(isinstance(a, Const) for a in args)
        if name in OPERATIONS and not constant:
            if name not in TAKES_ANY and not all(isinstance(a, (Const, Tensor)) for a in args):
                raise BadInput(f"{path}: {name} of {_unfinished(args)} has no operation")
            return [OPERATIONS[name](self, eqn, args, [v.aval.shape for v in eqn.invars], path)]
        if called and eqn.primitive.name in CALLS:
            found = self.run(called.jaxpr, [Const(np.asarray(c)) for c in called.consts], args, path)
            return [dataclasses.replace(v, binary=True) for v in found] if name == "sign" else found
        if constant:
            return fold(eqn, args)
        raise BadInput(f"{path or 'the model'} uses {name!r}, which graph.py has no operation for")

    def add(self, kind, inputs, shape, path, settings=None, arrays=None, binary_weight=False, real="") -> Tensor:
        """Appends an operation, unless it changes nothing."""
        shape = _map_shape(shape)
        if kind == "reshape" and shape == self.shape_of(inputs[0]):
            return inputs[0]
        numbers = tuple(t.number for t in inputs)
        self.ops.append(Op(kind, numbers, shape, path, settings or {}, arrays or {}, binary_weight, real))
        return Tensor(len(self.ops))

    def shape_of(self, tensor):
        return self.ops[tensor.number - 1].shape if tensor.number else None

    def equal(self, a, b) -> bool:
        """Whether two tensors are the same: one, or twice the same operation without arrays, such as a clip."""
        if a == b or not (isinstance(a, Tensor) and isinstance(b, Tensor)) or not (a.number and b.number):
            return a == b
        one, other = (self.ops[t.number - 1] for t in (a, b))
        same = (one.kind, one.inputs, one.settings) == (other.kind, other.inputs, other.settings)
        return same and not one.arrays and not other.arrays


CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "remat")


def _name(eqn):
    """The name under which an equation has an operation. A function called sign that is not ours is looked into."""
    if eqn.primitive.name not in CALLS:
        return "jnp.sign" if eqn.primitive.name == "sign" else eqn.primitive.name
    name = eqn.params.get("name", "")
    return "" if name == "sign" and not _is_ours(eqn) else name


def _is_ours(eqn):
    aval = eqn.invars[0].aval if len(eqn.invars) == 1 else None
    return aval is not None and str(eqn.params.get("jaxpr")) == _text_of_sign(aval.shape, aval.dtype)


@functools.cache
def _text_of_sign(shape, dtype):
    (eqn,) = jax.make_jaxpr(binarize.sign)(jax.ShapeDtypeStruct(shape, dtype)).eqns
    return str(eqn.params["jaxpr"])


def _unfinished(args):
    """What of the arguments is no map, in words."""
    return "two maps" if any(isinstance(a, Difference) for a in args) else "a comparison"


def _called(eqn) -> Iterator[core.ClosedJaxpr]:
    for value in eqn.params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value


def _map_shape(shape) -> Shape:
    """(1, ..., c) of the jaxpr to (h, w, c)."""
    h, w, c = (1,) * (4 - len(shape)) + tuple(shape[1:])
    return h, w, c


def _joined(*parts):
    """Names of scopes, without those of transformations."""
    names = [n for part in parts for n in part.split("/") if n.replace("_", "").isalnum()]
    return "/".join(n for n in names if n != "linear")
