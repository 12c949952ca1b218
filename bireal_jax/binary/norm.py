"""Normalization by batch statistics, with a backward pass written out.

Autodiff keeps the centred activation for the backward pass beside the activation itself. Written out, the input alone
is kept, in its own dtype, and the gradient takes two sums and one pass.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bireal_jax.binary import packed
from bireal_jax.binary.conv import one_after_the_other
from bireal_jax.binary.pool import back, largest

WORTH_A_THREAD = 1 << 19  # numbers, 2 MB, which one thread reads in 0.1 ms

# What batch statistics are over: None for all images there are; a pmapped axis for those of all devices too; a number
# for groups of so many images, each normalized by its own.
Over = str | int | None


def normalize_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float, over: Over = None, pooled: bool = False
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean) / sqrt(var + epsilon) * scale + bias over all but the last axis.

    Args:
      x: [n, ..., c], any float dtype; computed in the dtype of `scale`.
      scale, bias: [c], float32 or wider.
      epsilon: added to the variance.
      over: whose statistics; a number must divide n.
      pooled: give `pool.max_pool` of the result, x [n, h, w, c]. Since each channel rises or falls with x, x itself is
        pooled, and a quarter is normalized: the same bits, and the map itself is never written. Where a scale is 0 the
        gradient by it is that of a rising channel.

    Returns:
      The result in the dtype of x, and the mean and the unbiased variance [c], averaged over the groups, which have no
      gradient of their own.
    """
    if isinstance(over, int):
        groups = x.reshape(-1, over, *x.shape[1:])
        y, mean, var = jax.vmap(lambda x: normalize_batch(x, scale, bias, epsilon, None, pooled))(groups)
        return y.reshape(-1, *y.shape[2:]), jnp.mean(mean, 0), jnp.mean(var, 0)
    y, mean, var = _normalize(x, scale, bias, epsilon, over, pooled)
    count = x.size // x.shape[-1] * (lax.axis_size(over) if over else 1)
    return y, mean, var * (count / max(count - 1, 1))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _normalize(x, scale, bias, epsilon, axis, pooled):
    """`normalize_batch` of one group, with the biased variance."""
    return _forward(x, scale, bias, epsilon, axis, pooled)[0]


def moments(x: jax.Array, dtype: Any, axis: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance [c] of x [n, ..., c] in `dtype`, also over the devices of a pmapped axis.

    The tiny latent initialization leaves variances of 1e-4, for which E[x²] - E[x]² cancels in float32. So CPUs read x
    twice or, compiled, a block at a time (norm.cc); others once, less the mean of two pixels. Devices have as many
    images each, and are joined by Chan's formula.
    """
    on_cpu = _counted_moments if _compiled(x, dtype) else partial(_two_passes, dtype=dtype)
    mean, var = lax.platform_dependent(x, cpu=on_cpu, default=partial(_shifted, dtype=dtype))
    if axis:
        means, variances = lax.all_gather(jnp.stack([mean, var]), axis, axis=1)
        mean = jnp.mean(means, 0)
        var = jnp.mean(variances, 0) + jnp.mean(jnp.square(means - mean), 0)
    return mean, var


def _two_passes(x, dtype):
    rest, wide = tuple(range(x.ndim - 1)), x.astype(dtype)
    mean = jnp.mean(wide, rest)
    return mean, jnp.mean(jnp.square(wide - mean), rest)


def _shifted(x, dtype):
    # Two pixels, not an image, whose mean would be a reduction of its own, and on a GPU a kernel or three.
    middle = [size // 2 for size in x.shape[1:-1]]
    pixel = lambda i: lax.slice(x, [i, *middle, 0], [i + 1, *(m + 1 for m in middle), x.shape[-1]])  # noqa: E731
    near = (pixel(0).astype(dtype) + pixel(len(x) // 2).astype(dtype)) / 2
    off = x.astype(dtype) - near
    off, squares = (total / (x.size // x.shape[-1]) for total in _at_once(off, jnp.square(off)))
    return near.reshape(-1) + off, jnp.maximum(0, squares - jnp.square(off))


def _at_once(a, b):
    """Sums [c] of a and of b, of images, then over them: two by themselves take a GPU a kernel more."""
    zero = jnp.zeros((), a.dtype)
    add = lambda x, y: (x[0] + y[0], x[1] + y[1])  # noqa: E731
    of_images = lax.reduce((a, b), (zero, zero), add, tuple(range(1, a.ndim - 1)))
    return lax.reduce(of_images, (zero, zero), add, (0,))


def _sums(x, g, mean):
    """Sums [c] of g, and of g (x - mean)."""
    on_cpu = _counted_sums if _compiled(x, mean.dtype) else _plain_sums
    return lax.platform_dependent(x, g, mean, cpu=on_cpu, default=lambda *a: _at_once(*_terms(*a)))


def _plain_sums(x, g, mean):
    rest = tuple(range(x.ndim - 1))
    return tuple(jnp.sum(terms, rest) for terms in _terms(x, g, mean))


def _terms(x, g, mean):
    g = g.astype(mean.dtype)
    return g, g * (x.astype(mean.dtype) - mean)


def _compiled(x, dtype):
    return packed.fits(x, shape=x.shape) and dtype == jnp.float32 and x.ndim > 1 and x.size // x.shape[-1] < 1 << 31


def _call(target, results, shape, x, *more):
    numbers = np.array([*shape, packed.threads_for(x.size // WORTH_A_THREAD), packed.NEWEST], np.int32)
    return jax.ffi.ffi_call(target, results, vmap_method="sequential")(numbers, x, *more)


def _sums_by(target, x, *more):
    results = [jax.ShapeDtypeStruct(x.shape[-1:], jnp.float32)] * 2
    return tuple(_call(target, results, (x.size // x.shape[-1], x.shape[-1]), x, *more))


_counted_moments = one_after_the_other(partial(_sums_by, packed.MOMENTS))
_counted_sums = one_after_the_other(partial(_sums_by, packed.SUMS))


@one_after_the_other
def _compiled_largest(x, scale):
    shape = jax.eval_shape(largest, x)
    return tuple(_call(packed.POOL, shape, x.shape, x, jnp.where(scale < 0, -jnp.ones_like(scale), 1)))


def _plain_largest(x, scale):
    falls = scale < 0
    seen, which = largest(jnp.where(falls, -x, x))
    return jnp.where(falls, -seen, seen), which


@one_after_the_other
def _compiled_back(x, which, *arrays):
    return _call(
        packed.POOL_GRADIENT, jax.ShapeDtypeStruct(x.shape, jnp.float32), x.shape, x, arrays[0], which, *arrays[1:]
    )


def _plain_back(x, which, g, *of_channels):
    return _gradient(x, back(which, g, *x.shape[1:3]), *of_channels)


def _gradient(x, g, mean, mean_g, slope, factor):
    return (g.astype(mean.dtype) - mean_g - (x.astype(mean.dtype) - mean) * slope) * factor


def _forward(x, scale, bias, epsilon, axis, pooled):
    mean, var = moments(x, scale.dtype, axis)
    inverse = lax.rsqrt(var + epsilon)
    seen, which = x, None
    if pooled:
        on_cpu = _compiled_largest if _compiled(x, scale.dtype) else _plain_largest
        seen, which = lax.platform_dependent(x, scale, cpu=on_cpu, default=_plain_largest)
    y = (seen.astype(scale.dtype) - mean) * (inverse * scale) + bias
    return (y.astype(x.dtype), mean, var), (x, seen, which, scale, mean, inverse)


def _backward(epsilon, axis, pooled, residuals, cotangents):
    x, seen, which, scale, mean, inverse = residuals
    g = cotangents[0]
    bias_gradient, products = _sums(seen, g, mean)
    scale_gradient = products * inverse
    count = x.size // x.shape[-1]
    shares = (bias_gradient / count, scale_gradient / count)
    mean_g, mean_g_normal = lax.pmean(shares, axis) if axis else shares
    of_channels = mean, mean_g, inverse * mean_g_normal, inverse * scale
    if pooled:
        on_cpu = _compiled_back if _compiled(x, scale.dtype) else _plain_back
        dx = lax.platform_dependent(x, which, g, *of_channels, cpu=on_cpu, default=_plain_back)
    else:
        dx = _gradient(x, g, *of_channels)
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
