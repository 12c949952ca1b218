"""Convolution with a weight gradient that is fast on CPUs.

XLA's CPU backend computes the gradient by the kernel as a convolution with a huge window, 3 to 6 times slower than a
matrix product of unfolded patches (experiments/speed/). Forward and input gradient, and all of it on other platforms,
are XLA's own.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

# Patches unfolded at a time: small enough for the last-level cache. 1 to 8 MiB measured alike, all at once 5x slower.
PATCH_BYTES = 4 << 20


def _conv(x, w, strides, padding):
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, w: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Convolution of x [n, h, w, cin] with w [kh, kw, cin, cout], zero padding: [n, h', w', cout]."""
    return _conv(x, w, strides, padding)


def _forward(x, w, strides, padding):
    return _conv(x, w, strides, padding), (x, w)


def _backward(strides, padding, residuals, g):
    x, w = residuals
    (dx,) = jax.vjp(lambda v: _conv(v, w, strides, padding), x)[1](g)
    how = {"strides": strides, "padding": padding}
    dw = lax.platform_dependent(
        x, w, g, cpu=partial(weight_gradient_unfolded, **how), default=partial(weight_gradient, **how)
    )
    return dx, dw


conv.defvjp(_forward, _backward)


def weight_gradient(x, w, g, *, strides, padding):
    """dL/dw for g = dL/dy, as XLA computes it."""
    return jax.vjp(lambda v: _conv(x, v, strides, padding), w)[1](g)[0]


def weight_gradient_unfolded(x, w, g, *, strides, padding):
    """The same as a sum over chunks of images of patches @ g.

    The input is laid out once as [chunk, phase_h, phase_w, c, image, h, w], a phase being a remainder by the stride, so
    that what each kernel tap reads is a slice of unit stride and both operands of the product are row-major.
    """
    (kh, kw, cin, cout), (sh, sw), (n, ho, wo, _) = w.shape, strides, g.shape
    wide = jnp.promote_types(x.dtype, jnp.float32)
    most = PATCH_BYTES // (kh * kw * cin * ho * wo * x.dtype.itemsize)
    images = max(b for b in range(1, n + 1) if n % b == 0 and (b <= most or b == 1))
    # Pad, or crop, to what the taps read: a multiple of the stride.
    need = [s * (o + (k - 1) // s) for s, o, k in ((sh, ho, kh), (sw, wo, kw))]
    pads = [(low, size - old - low, 0) for (low, _), size, old in zip(padding, need, x.shape[1:3], strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *pads, (0, 0, 0)))
    x = lax.optimization_barrier(x)  # a pad fused into the transpose is slow
    x = x.reshape(n // images, images, need[0] // sh, sh, need[1] // sw, sw, cin).transpose(0, 3, 5, 6, 1, 2, 4)

    def add(total, chunk):
        x, g = chunk
        taps = [
            x[i % sh, j % sw, :, :, i // sh : i // sh + ho, j // sw : j // sw + wo]
            for i in range(kh)
            for j in range(kw)
        ]
        patches = jnp.concatenate(taps).reshape(kh * kw * cin, -1)
        return total + jnp.matmul(patches, g, preferred_element_type=wide), None

    start = jnp.zeros((kh * kw * cin, cout), wide)
    total, _ = lax.scan(add, start, (x, g.reshape(n // images, -1, cout)))
    return total.reshape(w.shape).astype(w.dtype)
