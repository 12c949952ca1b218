"""What of a network does not depend on the image: folded into constants, and proven to be ±1 where it is.

Weights behind `binarize.sign` are ±1 by name. Those that another rule computed, such as w + stop_gradient(b - w) or
alpha * sign(w), are looked at: equal in size within an output channel, they are ±1 times a scale. Where the variables
are only shapes, as in a cost table, the rule is tried on numbers drawn in their place.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bireal_jax.errors import BadInput

SAME_VALUES = ("convert_element_type", "copy", "reshape", "stop_gradient")
ROUNDING = 2.0**-24  # of float32, in which files hold real-valued weights: closer than that is equal


@dataclass(frozen=True, eq=False)
class Const:
    """A value that does not depend on the image.

    Attributes:
      value: an array, or only its shape where variables are shapes.
      binary: ±1, behind a sign.
      parameter: a variable as it is, cast or reshaped at most.
      latent: computed from a latent weight, or one itself.
      made: (equation, arguments, which output), or the number of a variable; what a shape stands for.
    """

    value: Any
    binary: bool = False
    parameter: bool = False
    latent: bool = False
    made: Any = 0


def fold(eqn, args: list[Const]) -> list[Const]:
    """The outputs of an equation on constants."""
    same = args[:1] != [] and eqn.primitive.name in SAME_VALUES
    kept = {name: same and getattr(args[0], name) for name in ("binary", "parameter")}
    kept["latent"] = any(a.latent for a in args)
    if any(isinstance(a.value, jax.ShapeDtypeStruct) for a in args):
        shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.outvars]
        return [Const(shape, **kept, made=(eqn, args, i)) for i, shape in enumerate(shapes)]
    return [Const(value, **kept) for value in _outputs(eqn, [a.value for a in args])]


def _outputs(eqn, arrays):
    out = eqn.primitive.bind(*map(jnp.asarray, arrays), **eqn.params)
    return [np.asarray(v) for v in (out if eqn.primitive.multiple_results else [out])]


def _array(const, known):
    """The array of a constant, or the one that it would be with random numbers for the variables."""
    if not isinstance(const.value, jax.ShapeDtypeStruct):
        return const.value
    if id(const) not in known:
        if isinstance(const.made, int):
            known[id(const)] = np.random.default_rng(const.made).normal(size=const.value.shape)
        else:
            eqn, args, index = const.made
            known[id(const)] = _outputs(eqn, [_array(a, known) for a in args])[index]
    return known[id(const)]


def signs(weight: Const) -> tuple[Const, Const | None, str]:
    """A weight [..., cout] as ±1 and a scale [cout], where it is that.

    Weights are ±alpha if the sizes of an output channel are equal to within the rounding of float32, and none is 0. A
    parameter that nothing was computed from is real-valued, whatever its values.

    Returns:
      (weight, scale, why): ±1 and what they are multiplied by, None for 1; or the weight itself, None, and why not.
    """
    if weight.binary or weight.parameter:
        return weight, None, ""
    array = np.asarray(_array(weight, {}), np.float64)
    sizes = np.abs(array).reshape(-1, array.shape[-1])
    low, high = sizes.min(0), sizes.max(0)
    if zeros := int(np.sum(sizes == 0)):
        return weight, None, f"{zeros} of its weights are 0, where jnp.sign gives 0 and binarize.sign +1"
    if not (high - low <= ROUNDING * high).all():
        i = int(np.argmax((high - low) / high))
        return weight, None, f"output channel {i} has weights of sizes from {low[i]:.4g} to {high[i]:.4g}, not of one"
    scale = None if (np.abs(high - 1) <= ROUNDING).all() else Const((low + high) / 2)
    if isinstance(weight.value, jax.ShapeDtypeStruct):
        shape = jax.ShapeDtypeStruct(high.shape, np.float64)
        return Const(weight.value, True, latent=weight.latent), scale and Const(shape), ""
    return Const(np.where(array > 0, 1.0, -1.0), True, latent=weight.latent), scale, ""


def per_channel(const: Const, channels: int) -> Any:
    """A constant that is broadcast against a map, as [c].

    Raises:
      BadInput: it is none for each channel.
    """
    value = const.value
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((channels,), value.dtype)
    if value.size not in (1, channels) or (value.size > 1 and value.shape[-1] != channels):
        raise BadInput(f"a constant of shape {value.shape} is no constant per channel")
    return np.broadcast_to(value.reshape(-1), (channels,)).astype(np.float64)


def apply(function, const: Const) -> Const:
    """A function of a constant that keeps its shape."""
    return const if isinstance(const.value, jax.ShapeDtypeStruct) else Const(function(const.value))
