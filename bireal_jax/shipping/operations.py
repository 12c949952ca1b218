"""One function for each operation that a network may do, by its name in the jaxpr.

(tracer, equation, arguments, their shapes in the jaxpr, path) -> Tensor, or what becomes one: Difference, Comparison.
"""

from typing import Any

import jax
import numpy as np

from bireal_jax.binary import pool
from bireal_jax.errors import BadInput
from bireal_jax.shipping.constants import Const, apply, per_channel, signs
from bireal_jax.shipping.ops import Comparison, Difference, Tensor

LARGEST = float(np.finfo(np.float32).max)  # in place of infinity, which JSON does not have


def _params(eqn, primitive) -> dict[str, Any]:
    """The parameters of the first equation with that primitive within a call; {} if there is none."""
    values = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple) else [value])]
    for value in values:
        for inner in getattr(getattr(value, "jaxpr", value), "eqns", ()):
            found = inner.params if inner.primitive.name == primitive else _params(inner, primitive)
            if found:
                return found
    return {}


def _out(eqn):
    """The shape of what an equation gives."""
    return eqn.outvars[0].aval.shape


def _conv(tracer, eqn, args, shapes, path):
    x, w, *alpha = args  # and a bias
    w, scale, why = signs(w)
    inner = _params(eqn, "conv_general_dilated")
    signs_in = x.number > 0 and tracer.ops[x.number - 1].kind == "sign"  # else real-valued, with 1-bit weights perhaps
    binary_conv = signs_in and w.binary
    settings = {
        "strides": list(inner["window_strides"]), "padding": [int(p) for pair in inner["padding"] for p in pair],
        "groups": shapes[0][-1] // shapes[1][2],
    }  # fmt: skip
    if binary_conv:
        settings["pad"] = 0
    out = tracer.add(
        "binary_conv" if binary_conv else "conv", (x,), _out(eqn), path, settings, {"weight": w.value},
        binary_weight=w.binary, real=why if w.latent else "",
    )  # fmt: skip
    for factor in (scale, *alpha[:1]):
        out = _affine(tracer, out, _out(eqn), path, scale=factor) if factor else out
    return _affine(tracer, out, _out(eqn), path, offset=alpha[1]) if alpha[1:] else out


def _dense(tracer, eqn, args, shapes, path):
    (x, w), (contract, batch) = args, eqn.params["dimension_numbers"]
    if tuple(contract) != ((len(shapes[0]) - 1,), (0,)) or any(batch):
        raise BadInput(f"{path}: only x @ w is known of dot_general")
    w, scale, why = signs(w)
    abstract = isinstance(w.value, jax.ShapeDtypeStruct)
    kernel = jax.ShapeDtypeStruct((1, 1, *w.value.shape), w.value.dtype) if abstract else w.value[None, None]
    settings = {"strides": [1, 1], "padding": [0, 0, 0, 0], "groups": 1}
    real = why if w.latent else ""
    out = tracer.add("conv", (x,), _out(eqn), path, settings, {"weight": kernel}, w.binary, real)
    return _affine(tracer, out, _out(eqn), path, scale=scale) if scale else out


def _affine(tracer, x, shape, path, scale=None, offset=None):
    scale, offset = scale or Const(np.ones(())), offset or Const(np.zeros(()))
    arrays = {"scale": per_channel(scale, shape[-1]), "offset": per_channel(offset, shape[-1])}
    return tracer.add("affine", (x,), shape, path, arrays=arrays)


def _arithmetic(tracer, eqn, args, shapes, path):
    kind, shape = eqn.primitive.name, _out(eqn)
    x, y = args if len(args) == 2 else (args[0], Const(np.array(-1.0)))
    if isinstance(x, Tensor) and isinstance(y, Tensor) and kind in ("add", "add_any"):
        return tracer.add("add", (x, y), shape, path)
    if isinstance(x, Tensor) and isinstance(y, Tensor) and kind == "sub":
        return Difference(x, y)
    for one, other in ((x, y), (y, x)):
        if isinstance(other, Difference) and kind in ("add", "add_any") and tracer.equal(one, other.y):
            return other.x
    if isinstance(y, Difference) and kind == "sub" and tracer.equal(x, y.x):
        return y.y
    if isinstance(x, Difference) or isinstance(y, Difference):
        raise BadInput(f"{path}: sub of two maps has no operation")
    one, minus = Const(np.ones(())), Const(np.array(-1.0))
    if isinstance(x, Tensor) and isinstance(y, Const):
        factor = apply(np.reciprocal, y) if kind == "div" else y if kind in ("mul", "neg") else one
        offset = apply(np.negative, y) if kind == "sub" else y if kind == "add" else None
        return _affine(tracer, x, shape, path, factor, offset)
    if isinstance(x, Const) and isinstance(y, Tensor) and kind != "div":
        return _affine(tracer, y, shape, path, {"mul": x, "sub": minus}.get(kind, one), None if kind == "mul" else x)
    raise BadInput(f"{path}: {kind} of two maps has no operation")


def _compare(tracer, eqn, args, shapes, path):
    """x >= c and x < c, either way round."""
    (x, y), kind = args, eqn.primitive.name
    if isinstance(x, Const):
        (x, y), kind = (y, x), {"ge": "le", "le": "ge", "lt": "gt", "gt": "lt"}[kind]
    if not isinstance(x, Tensor) or not isinstance(y, Const):
        raise BadInput(f"{path}: comparing two maps has no operation")
    if kind not in ("ge", "lt"):
        raise BadInput(f"{path}: a sign that gives -1 at 0 has no operation\nwrite x >= 0, or binarize.sign: +1 there")
    if isinstance(y.value, jax.ShapeDtypeStruct) or np.any(y.value):
        x = _affine(tracer, x, shapes[0], path, offset=apply(np.negative, y))
    return Comparison(x, kind == "lt")


def _select(tracer, eqn, args, shapes, path):
    where, *cases = args
    values = [set(np.unique(c.value)) if isinstance(c, Const) and isinstance(c.value, np.ndarray) else 0 for c in cases]
    if not isinstance(where, Comparison) or values != ([{1.0}, {-1.0}] if where.less else [{-1.0}, {1.0}]):
        raise BadInput(f"{path}: only where(x >= 0, 1, -1) is known of where")
    return tracer.add("sign", (where.x,), _out(eqn), path)


def _not_a_bit(tracer, eqn, args, shapes, path):
    raise BadInput(f"{path}: jnp.sign gives 0 at 0, which one bit cannot say\nuse binarize.sign, which gives +1 there")


def _simple(kind, settings=lambda eqn: {}):
    def operation(tracer, eqn, args, shapes, path):
        return tracer.add(kind, (args[0],), _out(eqn), path, settings(eqn))

    return operation


def _rprelu(tracer, eqn, args, shapes, path):
    x, *rest = args
    names = ("shift_in", "slope", "shift_out")
    arrays = {n: per_channel(a, shapes[0][-1]) for n, a in zip(names, rest, strict=True)}
    return tracer.add("rprelu", (x,), shapes[0], path, arrays=arrays)


def _two_slopes(tracer, eqn, args, shapes, path):
    """t prelu(s x): the larger slope is t or -t and the other one, divided by it, that of the PReLU; s = ±1."""
    x, *slopes = args
    channels = shapes[0][-1]
    positive, negative = scale, slope = [per_channel(value, channels) for value in slopes]  # of shapes it is these
    if isinstance(positive, np.ndarray) and isinstance(negative, np.ndarray):
        mirrored = np.abs(positive) < np.abs(negative)
        large, small = np.where(mirrored, (-negative, -positive), (positive, negative))
        scale, slope = large, np.divide(small, large, out=np.zeros_like(small), where=large != 0)
        if mirrored.any():
            x = _affine(tracer, x, shapes[0], path, Const(np.where(mirrored, -1.0, 1.0)))
    zeros = np.zeros(channels)
    arrays = {"shift_in": zeros, "slope": slope, "shift_out": zeros}
    return _affine(tracer, tracer.add("rprelu", (x,), shapes[0], path, arrays=arrays), shapes[0], path, Const(scale))


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


TAKES_ANY = ("add", "add_any", "sub", "select_n", "stop_gradient", "convert_element_type", "copy")
_bounds = {"relu": (0.0, LARGEST, 0.0), "leaky_clip": (-1.0, 1.0, 0.1)}
OPERATIONS = {
    "conv2d": _conv, "binary_conv2d": _conv, "dot_general": _dense, "sign": _simple("sign"), "rprelu": _rprelu,
    "two_slopes": _two_slopes, "clip": _clip, "max_pool": _simple("max_pool", lambda eqn: {
        "window": [pool.SIZE] * 2, "strides": [pool.STRIDE] * 2, "padding": [pool.PAD] * 4}),
    "reduce_window_max": _reduce_window_max, "avg_pool": _avg_pool, "global_avg_pool": _simple("mean"),
    "slice": _slice, "pad": _pad, "concatenate": _concatenate, "reshape": _simple("reshape"),
    "squeeze": _simple("reshape"), "broadcast_in_dim": _simple("reshape"), "convert_element_type": _same,
    "stop_gradient": _same, "copy": _same,
    "upsample": _simple("upsample", lambda eqn: {"factor": _out(eqn)[1] // eqn.invars[0].aval.shape[1]}),
    "select_n": _select, "jnp.sign": _not_a_bit, **{name: _compare for name in ("ge", "gt", "le", "lt")},
    **{name: _arithmetic for name in ("add", "add_any", "sub", "mul", "div", "neg")},
    **{name: _simple("clip", lambda eqn: dict(zip(("low", "high", "leak"), _bounds[eqn.params["name"]], strict=True)))
       for name in _bounds},
}  # fmt: skip
