"""The op graph of a network: what it computes in evaluation mode, as a list of some fifteen kinds of operations.

Found by tracing the Flax module, so that a new model needs no code here: the layers' operations carry their names in
the jaxpr (`binary_conv2d`, `sign`, `rprelu`, ...), what depends on the variables alone folds into constants, and
arithmetic with a constant per channel is an affine map. Cost tables and the packed file are made from this list.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from bireal_jax.binary import pool
from bireal_jax.errors import BadInput

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Const:
    """A value that does not depend on the image: an array, or only its shape where variables are shapes."""

    value: Any
    binary: bool = False  # ±1, behind a sign


@dataclass(frozen=True)
class Tensor:
    """A value that depends on the image: number 0 is the image, number i the output of operation i - 1."""

    number: int


@dataclass
class Op:
    """One operation on one image.

    Attributes:
      kind: what it does; `bireal_jax/runtime/reference.py` has the definition of each.
      inputs: numbers of the tensors that it reads.
      shape: (h, w, c) of its output.
      path: the module it comes from, "stage1_block1/binary_conv".
      settings: strides, padding and the like.
      arrays: weights, in float64; only their shapes where the variables were shapes.
      binary_weight: `arrays["weight"]` is ±1.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: Shape
    path: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, Any] = field(default_factory=dict)
    binary_weight: bool = False


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
            v if isinstance(v, jax.ShapeDtypeStruct) else np.asarray(v, np.float64) for v in jax.tree.leaves(variables)
        ]
        tracer = _Tracer(type(module).__name__)
        constants = [Const(np.asarray(value)) for value in closed.consts]
        (out,) = tracer.run(closed.jaxpr, constants, [*map(Const, leaves), Tensor(0)], "")
        assert isinstance(out, Tensor) and out.number == len(tracer.ops), "the logits are the last operation"
    return _merge_affine(tracer.ops)


class _Tracer:
    """Runs a jaxpr on constants and tensors, and collects operations."""

    def __init__(self, root: str):
        self.ops: list[Op] = []
        self.root = root  # the first scope of every name

    def run(self, jaxpr, consts, args, path) -> list[Const | Tensor]:
        values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))

        def read(atom):
            return Const(np.asarray(atom.val)) if isinstance(atom, core.Literal) else values[atom]

        for eqn in jaxpr.eqns:
            inner = _joined(path, str(eqn.source_info.name_stack).removeprefix(self.root))
            outputs = self.equation(eqn, [read(atom) for atom in eqn.invars], inner)
            values |= zip(eqn.outvars, outputs, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def equation(self, eqn, args, path):
        name = eqn.params.get("name", "") if eqn.primitive.name in CALLS else eqn.primitive.name
        called = next(iter(_called(eqn)), None)
        constant = all(isinstance(a, Const) for a in args)
        if name in OPERATIONS and not constant:
            return [OPERATIONS[name](self, eqn, args, [v.aval.shape for v in eqn.invars], path)]
        if called and eqn.primitive.name in CALLS:
            found = self.run(called.jaxpr, [Const(np.asarray(c)) for c in called.consts], args, path)
            return [Const(v.value, True) for v in found if isinstance(v, Const)] if name == "sign" else found
        if constant:
            return _fold(eqn, args)
        raise BadInput(f"{path or 'the model'} uses {name!r}, which graph.py has no operation for")

    def add(self, kind, inputs, shape, path, settings=None, arrays=None, binary_weight=False) -> Tensor:
        """Appends an operation, unless it changes nothing."""
        shape = _map_shape(shape)
        if kind == "reshape" and shape == self.shape_of(inputs[0]):
            return inputs[0]
        numbers = tuple(t.number for t in inputs)
        self.ops.append(Op(kind, numbers, shape, path, settings or {}, arrays or {}, binary_weight))
        return Tensor(len(self.ops))

    def shape_of(self, tensor):
        return self.ops[tensor.number - 1].shape if tensor.number else None


CALLS = ("jit", "pjit", "custom_jvp_call", "custom_vjp_call", "closed_call", "remat")
LARGEST = float(np.finfo(np.float32).max)  # in place of infinity, which JSON does not have
SAME_VALUES = ("convert_element_type", "copy", "reshape", "stop_gradient")


def _called(eqn) -> Iterator[core.ClosedJaxpr]:
    for value in eqn.params.values():
        if isinstance(value, core.ClosedJaxpr):
            yield value


def _params(eqn, primitive) -> dict[str, Any]:
    """The parameters of the first equation with that primitive within a call; {} if there is none."""
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple) else [value])]
    for value in values:
        for inner in getattr(getattr(value, "jaxpr", value), "eqns", ()):
            found = inner.params if inner.primitive.name == primitive else _params(inner, primitive)
            if found:
                return found
    return {}


def _fold(eqn, args):
    """The outputs of an equation on constants."""
    binary = args[:1] != [] and args[0].binary and eqn.primitive.name in SAME_VALUES
    if any(isinstance(a.value, jax.ShapeDtypeStruct) for a in args):
        return [Const(jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype), binary) for v in eqn.outvars]
    out = eqn.primitive.bind(*[jnp.asarray(a.value) for a in args], **eqn.params)
    return [Const(np.asarray(v), binary) for v in (out if eqn.primitive.multiple_results else [out])]


def _map_shape(shape) -> Shape:
    """(1, ..., c) of the jaxpr to (h, w, c)."""
    h, w, c = (1,) * (4 - len(shape)) + tuple(shape[1:])
    return h, w, c


def _out(eqn):
    """The shape of what an equation gives."""
    return eqn.outvars[0].aval.shape


def _joined(*parts):
    """Names of scopes, without those of transformations."""
    names = [n for part in parts for n in part.split("/") if n.replace("_", "").isalnum()]
    return "/".join(n for n in names if n != "linear")


def _per_channel(const, channels):
    """A constant that is broadcast against a map, as [c]."""
    value = const.value
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((channels,), value.dtype)
    if value.size not in (1, channels) or (value.size > 1 and value.shape[-1] != channels):
        raise BadInput(f"a constant of shape {value.shape} is no constant per channel")
    return np.broadcast_to(value.reshape(-1), (channels,)).astype(np.float64)


# ------------------------------------------------------------------------------- one function per named operation
# (tracer, equation, arguments, their shapes in the jaxpr, path) -> Tensor


def _conv(tracer, eqn, args, shapes, path):
    x, w, *alpha = args
    inner = _params(eqn, "conv_general_dilated")
    signs = x.number > 0 and tracer.ops[x.number - 1].kind == "sign"  # else real-valued, with weights of 1 bit perhaps
    binary_conv = signs and w.binary
    settings = {
        "strides": list(inner["window_strides"]), "padding": [int(p) for pair in inner["padding"] for p in pair],
        "groups": shapes[0][-1] // shapes[1][2],
    }  # fmt: skip
    if binary_conv:
        settings["pad"] = 0
    out = tracer.add(
        "binary_conv" if binary_conv else "conv", (x,), _out(eqn), path, settings, {"weight": w.value},
        binary_weight=w.binary,
    )  # fmt: skip
    return _affine(tracer, out, _out(eqn), path, scale=alpha[0]) if alpha else out


def _dense(tracer, eqn, args, shapes, path):
    (x, w), (contract, batch) = args, eqn.params["dimension_numbers"]
    if tuple(contract) != ((len(shapes[0]) - 1,), (0,)) or any(batch):
        raise BadInput(f"{path}: only x @ w is known of dot_general")
    abstract = isinstance(w.value, jax.ShapeDtypeStruct)
    kernel = jax.ShapeDtypeStruct((1, 1, *w.value.shape), w.value.dtype) if abstract else w.value[None, None]
    settings = {"strides": [1, 1], "padding": [0, 0, 0, 0], "groups": 1}
    return tracer.add("conv", (x,), _out(eqn), path, settings, {"weight": kernel}, w.binary)


def _affine(tracer, x, shape, path, scale=None, offset=None):
    scale, offset = scale or Const(np.ones(())), offset or Const(np.zeros(()))
    arrays = {"scale": _per_channel(scale, shape[-1]), "offset": _per_channel(offset, shape[-1])}
    return tracer.add("affine", (x,), shape, path, arrays=arrays)


def _arithmetic(tracer, eqn, args, shapes, path):
    kind, shape = eqn.primitive.name, _out(eqn)
    x, y = args if len(args) == 2 else (args[0], Const(np.array(-1.0)))
    if isinstance(x, Tensor) and isinstance(y, Tensor) and kind in ("add", "add_any"):
        return tracer.add("add", (x, y), shape, path)
    one, minus = Const(np.ones(())), Const(np.array(-1.0))
    if isinstance(x, Tensor) and isinstance(y, Const):
        factor = _apply(np.reciprocal, y) if kind == "div" else y if kind in ("mul", "neg") else one
        offset = _apply(np.negative, y) if kind == "sub" else y if kind == "add" else None
        return _affine(tracer, x, shape, path, factor, offset)
    if isinstance(x, Const) and isinstance(y, Tensor) and kind != "div":
        return _affine(tracer, y, shape, path, {"mul": x, "sub": minus}.get(kind, one), None if kind == "mul" else x)
    raise BadInput(f"{path}: {kind} of two maps has no operation")


def _apply(function, const):
    return const if isinstance(const.value, jax.ShapeDtypeStruct) else Const(function(const.value))


def _simple(kind, settings=lambda eqn: {}):
    def operation(tracer, eqn, args, shapes, path):
        return tracer.add(kind, (args[0],), _out(eqn), path, settings(eqn))

    return operation


def _rprelu(tracer, eqn, args, shapes, path):
    x, *rest = args
    names = ("shift_in", "slope", "shift_out")
    arrays = {n: _per_channel(a, shapes[0][-1]) for n, a in zip(names, rest, strict=True)}
    return tracer.add("rprelu", (x,), shapes[0], path, arrays=arrays)


def _clip(tracer, eqn, args, shapes, path):
    low, high = (float(a.value) for a in args[1:])
    return tracer.add("clip", (args[0],), shapes[0], path, {"low": low, "high": high, "leak": 0.0})


def _reduce_window_max(tracer, eqn, args, shapes, path):
    p = eqn.params
    settings = {
        "window": list(p["window_dimensions"][1:3]), "strides": list(p["window_strides"][1:3]),
        "padding": [v for pair in p["padding"][1:3] for v in pair],
    }  # fmt: skip
    return tracer.add("max_pool", (args[0],), _out(eqn), path, settings)


def _avg_pool(tracer, eqn, args, shapes, path):
    size = _params(eqn, "reshape")["new_sizes"][2]
    return tracer.add("avg_pool", (args[0],), _out(eqn), path, {"window": size})


def _slice(tracer, eqn, args, shapes, path):
    p, (_, h, w, c) = eqn.params, shapes[0]
    step = (p["strides"] or (1,) * 4)[1]
    thinned = (1, -(-h // step), -(-w // step), c)
    if any(p["start_indices"]) or tuple(p["strides"] or ()) != (1, step, step, 1) or _out(eqn) != thinned:
        raise BadInput(f"{path}: only x[:, ::s, ::s] is known of slices")
    return tracer.add("subsample", (args[0],), _out(eqn), path, {"stride": step})


def _pad(tracer, eqn, args, shapes, path):
    *rest, (low, high, inner) = eqn.params["padding_config"]
    if any(any(p) for p in rest) or inner or min(low, high) < 0 or float(args[1].value) != 0:
        raise BadInput(f"{path}: only channels of zeros can be padded")
    if low == high == 0:
        return args[0]
    return tracer.add("pad_channels", (args[0],), _out(eqn), path, {"before": int(low), "after": int(high)})


def _concatenate(tracer, eqn, args, shapes, path):
    if eqn.params["dimension"] != len(shapes[0]) - 1:
        raise BadInput(f"{path}: only channels can be concatenated")
    return args[0] if len(args) == 1 else tracer.add("concat", tuple(args), _out(eqn), path)


def _same(tracer, eqn, args, shapes, path):
    return args[0]


_bounds = {"relu": (0.0, LARGEST, 0.0), "leaky_clip": (-1.0, 1.0, 0.1)}
OPERATIONS = {
    "conv2d": _conv, "binary_conv2d": _conv, "dot_general": _dense, "sign": _simple("sign"), "rprelu": _rprelu,
    "clip": _clip, "max_pool": _simple("max_pool", lambda eqn: {
        "window": [pool.SIZE] * 2, "strides": [pool.STRIDE] * 2, "padding": [pool.PAD] * 4}),
    "reduce_window_max": _reduce_window_max, "avg_pool": _avg_pool, "global_avg_pool": _simple("mean"),
    "slice": _slice, "pad": _pad, "concatenate": _concatenate, "reshape": _simple("reshape"),
    "squeeze": _simple("reshape"), "broadcast_in_dim": _simple("reshape"), "convert_element_type": _same,
    "stop_gradient": _same, "copy": _same,
    "upsample": _simple("upsample", lambda eqn: {"factor": _out(eqn)[1] // eqn.invars[0].aval.shape[1]}),
    **{name: _arithmetic for name in ("add", "add_any", "sub", "mul", "div", "neg")},
    **{name: _simple("clip", lambda eqn: dict(zip(("low", "high", "leak"), _bounds[eqn.params["name"]], strict=True)))
       for name in _bounds},
}  # fmt: skip


def _merge_affine(ops: list[Op]) -> list[Op]:
    """Affine maps that follow one another become one, those that change nothing go."""
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
