"""Pooling, with a maximum whose gradient is no scatter, and its opposite.

The jits name the operations in the jaxpr, where the op graph finds them.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

SIZE, STRIDE, PAD = 3, 2, 1  # of max_pool; its backward pass is written for these


@partial(jax.jit, static_argnames="size")
def avg_pool(x: jax.Array, size: int) -> jax.Array:
    """Average over size x size windows at stride `size`; what fills no window is dropped, as in PyTorch."""
    n, h, w, c = x.shape
    x = x[:, : h // size * size, : w // size * size]
    return jnp.mean(x.reshape(n, h // size, size, w // size, size, c), (2, 4))


def xla_max_pool(x: jax.Array) -> jax.Array:
    """`max_pool` with XLA's own gradient, a scatter: a tenth of a training step of the 18-layer net.

    On GPUs the order of its additions, and so the bits, change from run to run.
    """
    return nn.max_pool(x, (SIZE, SIZE), (STRIDE, STRIDE), ((PAD, PAD), (PAD, PAD)))


@jax.custom_vjp
def unscattered_max_pool(x: jax.Array) -> jax.Array:
    """`max_pool` that remembers, in one byte a window, which element was the largest; the first among equals."""
    return xla_max_pool(x)


def largest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(`max_pool` of x, int8: which element of its window each is, 0 to 8)."""
    y = xla_max_pool(x)
    _, h, w, _ = y.shape
    rows, columns = ((PAD, STRIDE * (o - 1) + SIZE - d - PAD, 0) for o, d in ((h, x.shape[1]), (w, x.shape[2])))
    padded = lax.pad(x, jnp.array(-jnp.inf, x.dtype), ((0, 0, 0), rows, columns, (0, 0, 0)))
    which = jnp.full(y.shape, -1, jnp.int8)
    for k in reversed(range(SIZE * SIZE)):
        i, j = divmod(k, SIZE)
        which = jnp.where(padded[:, i : i + 2 * h - 1 : STRIDE, j : j + 2 * w - 1 : STRIDE] == y, jnp.int8(k), which)
    return y, which


def back(which: jax.Array, g: jax.Array, height: int, width: int) -> jax.Array:
    """What reaches a map of that size: each of g at the element that was the largest, of `largest`.

    By phases: rows and columns of even and of odd index, side by side until the last line.
    """
    which, g = lax.optimization_barrier((which, g))  # or XLA computes anew, for each of nine uses, what g comes from
    n, h, w, c = which.shape
    phases = [[jnp.zeros((n, h + 1, w + 1, c), g.dtype) for _ in range(STRIDE)] for _ in range(STRIDE)]
    for k in reversed(range(SIZE * SIZE)):  # a pixel's windows from the first to the last, as a scatter adds them
        (a, i), (b, j) = divmod(k // SIZE, STRIDE), divmod(k % SIZE, STRIDE)
        part = jnp.where(which == k, g, jnp.zeros_like(g))
        phases[i][j] += jnp.pad(part, ((0, 0), (a, 1 - a), (b, 1 - b), (0, 0)))
    dx = jnp.stack([jnp.stack(row, 3) for row in phases], 2).reshape(n, STRIDE * (h + 1), STRIDE * (w + 1), c)
    return dx[:, PAD : PAD + height, PAD : PAD + width]


def _forward(x):
    y, which = largest(x)
    return y, (which, jnp.zeros((0, *x.shape[1:3]), x.dtype))


def _backward(residuals, g):
    which, size = residuals
    return (back(which, g, *size.shape[1:3]),)


unscattered_max_pool.defvjp(_forward, _backward)


@jax.jit
def global_avg_pool(x: jax.Array) -> jax.Array:
    """Average over the whole map: [n, h, w, c] -> [n, c]."""
    return jnp.mean(x, (1, 2))


@jax.jit
def max_pool(x: jax.Array) -> jax.Array:
    """3x3 maximum at stride 2 with padding 1, the pooling of the ImageNet stem: [n, h, w, c] -> [n, h', w', c].

    The gradient goes to the first of equal maxima, as in PyTorch, and is that of XLA's scatter bit for bit.
    """
    return unscattered_max_pool(x)


@partial(jax.jit, static_argnames="factor")
def upsample(x: jax.Array, factor: int) -> jax.Array:
    """Every pixel becomes a square of factor x factor equal ones: [n, h, w, c] -> [n, factor h, factor w, c]."""
    n, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (n, h, factor, w, factor, c))
    return x.reshape(n, h * factor, w * factor, c)


def nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """Maps at another size, each pixel from where its centre falls: [n, h, w] -> [n, height, width]."""
    for axis, new in ((1, height), (2, width)):
        old = x.shape[axis]
        if old != new:
            x = jnp.take(x, (2 * np.arange(new) + 1) * old // (2 * new), axis)
    return x
