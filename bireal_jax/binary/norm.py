"""Normalization by batch statistics, with a backward pass written out.

Autodiff keeps the centred activation for the backward pass beside the activation itself. Written out, the input alone
is kept, in its own dtype, and the gradient takes two sums and one pass.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

# What batch statistics are over: None for all images there are; a pmapped axis for those of all devices too; a number
# for groups of so many images, each normalized by its own.
Over = str | int | None


def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, over: Over = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over all but the last axis.

    Args:
      x: [n, ..., c], any float dtype; computed in the dtype of `scale`.
      scale, bias: [c], float32 or wider.
      epsilon: added to the variance.
      over: whose statistics; a number must divide n.

    Returns:
      The result in the dtype of x, and the mean and the unbiased variance [c], averaged over the groups, which have no
      gradient of their own.
    """
    if isinstance(over, int):
        groups = x.reshape(-1, over, *x.shape[1:])
        y, mean, var = jax.vmap(lambda x: normalize_batch(x, scale, bias, epsilon))(groups)
        return y.reshape(x.shape), jnp.mean(mean, 0), jnp.mean(var, 0)
    y, mean, var = _normalize(x, scale, bias, epsilon, over)
    count = x.size // x.shape[-1] * (lax.axis_size(over) if over else 1)
    return y, mean, var * (count / max(count - 1, 1))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(x, scale, bias, epsilon, axis):
    """`normalize_batch` of one group, with the biased variance.

    The variance is computed in two passes: the tiny latent initialization leaves variances of 1e-4, for which
    E[x²] - E[x]² cancels in float32.
    """
    return _forward(x, scale, bias, epsilon, axis)[0]


def _average(v, axis):
    """Mean over all but the last axis, and over devices."""
    mean = jnp.mean(v, tuple(range(v.ndim - 1)))
    return lax.pmean(mean, axis) if axis else mean


def _forward(x, scale, bias, epsilon, axis):
    wide = x.astype(scale.dtype)
    mean = _average(wide, axis)
    var = _average(jnp.square(wide - mean), axis)
    inverse = lax.rsqrt(var + epsilon)
    y = (wide - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, var), (x, scale, mean, inverse)


def _backward(epsilon, axis, residuals, cotangents):
    x, scale, mean, inverse = residuals
    g = cotangents[0].astype(scale.dtype)
    normal = (x.astype(scale.dtype) - mean) * inverse
    rest = tuple(range(x.ndim - 1))
    bias_gradient, scale_gradient = jnp.sum(g, rest), jnp.sum(g * normal, rest)
    count = x.size // x.shape[-1]
    shares = (bias_gradient / count, scale_gradient / count)
    mean_g, mean_g_normal = lax.pmean(shares, axis) if axis else shares
    dx = (g - mean_g - normal * mean_g_normal) * (inverse * scale)
    return dx.astype(x.dtype), scale_gradient, bias_gradient


_normalize.defvjp(_forward, _backward)


def by_deviation(x: jax.Array) -> jax.Array:
    """x divided by the standard deviation of its sample: x / sqrt(var + 1e-5), over all but the first axis.

    The variance is the unbiased one. ReCU and BiPer bring the input of the sign so to where its derivative is not zero.
    The sign itself does not see it.

    Args:
      x: [n, ..., c], any float dtype; the deviation is computed in float32 or wider.

    Returns:
      The same shape and dtype.
    """
    return _over_deviation(x, lambda inverse: inverse)


def by_constant_deviation(x: jax.Array) -> jax.Array:
    """`by_deviation` through which no gradient reaches the deviation (OvSW)."""
    return _over_deviation(x, lax.stop_gradient)


def _over_deviation(x, seen):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    var = jnp.var(wide, tuple(range(1, x.ndim)), keepdims=True, ddof=1)
    return (wide * seen(lax.rsqrt(var + 1e-5))).astype(x.dtype)
