"""Convolution that is fast on CPUs, in its weight gradient and where several networks are vmapped.

XLA's CPU backend computes the gradient by the kernel as a convolution with a huge window, 3 to 6 times slower than a
matrix product of unfolded patches (experiments/speed/), and a convolution of single pixels not as the product that it
is. And it computes a vmapped convolution, which is a grouped one, 1.7 to 1.9 times slower than one convolution after
the other; on an H100 eight vmapped networks took 3.63 ms each, one alone 2.68. Forward and input gradient, and all of
it on other platforms, are XLA's own. Where one factor is ±1, packed.py and tables.py bring products and gradients of
their own, and stem.py does for few channels.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

# Patches unfolded at a time: small enough for the last-level cache. 1 to 8 MiB measured alike, all at once 5x slower.
PATCH_BYTES = 4 << 20


def xla_conv(
    x: jax.Array, w: jax.Array, strides: tuple[int, int], padding: Padding, scale: Any = None, bias: Any = None
) -> jax.Array:
    """As `conv`, by XLA, with XLA's gradients."""
    y = lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return affine(y, scale, bias)


def affine(y: jax.Array, scale: Any = None, bias: Any = None) -> jax.Array:
    """scale * y + bias for y [..., c] and scale and bias [c] or None, computed in the wider type: in the dtype of y."""
    wide = y if scale is None else y.astype(scale.dtype) * scale
    return (wide if bias is None else wide + bias.astype(wide.dtype)).astype(y.dtype)


def one_after_the_other(function):
    """The function of arrays, whose vmap is on CPUs and GPUs a loop, unrolled."""
    result = jax.custom_batching.custom_vmap(function)

    @result.def_vmap
    def rule(size, batched, *args):
        def loop(*args):
            rows = ([a[i] if b else a for a, b in zip(args, batched, strict=True)] for i in range(size))
            return jax.tree.map(lambda *results: jnp.stack(results), *(function(*row) for row in rows))

        together = jax.vmap(function, [0 if b else None for b in batched])
        results = lax.platform_dependent(*args, cpu=loop, cuda=loop, rocm=loop, default=together)
        return results, jax.tree.map(lambda _: True, results)

    return result


class Gradients(NamedTuple):
    """The two gradients of a convolution: functions of (x, w, g, *, strides, padding) for g = dL/dy.

    That by the input takes a scale [cout] or None behind g, by which g is multiplied.
    """

    by_input: Callable
    by_kernel: Callable


def input_gradient(x, w, g, scale=None, *, strides, padding):
    """dL/dx, as XLA computes it."""
    return jax.vjp(lambda v: xla_conv(v, w, strides, padding), x)[1](affine(g, scale))[0]


def kernel_gradient(x, w, g, **how):
    """dL/dw, on CPUs unfolded."""
    platforms = {"cpu": partial(weight_gradient_unfolded, **how), "default": partial(weight_gradient, **how)}
    return lax.platform_dependent(x, w, g, **platforms)


PLAIN = Gradients(input_gradient, kernel_gradient)


def pixel_product(x, w, strides, padding, scale=None, bias=None):
    """`xla_conv` with a kernel of one pixel at stride 1, on CPUs a product of matrices.

    XLA's convolution and its gradients take 1.9 to 3.6 times as long, at 64 to 256 channels (experiments/speed/).
    """
    product = lambda x, w: (_pixels(x) @ w[0, 0]).reshape(*x.shape[:-1], w.shape[-1])  # noqa: E731
    plain = partial(xla_conv, strides=strides, padding=padding)
    return affine(lax.platform_dependent(x, w, cpu=product, default=plain), scale, bias)


def _pixel_input_gradient(x, w, g, scale=None, **how):
    product = lambda x, w, g: (_pixels(g) @ w[0, 0].T).reshape(x.shape)  # noqa: E731
    return lax.platform_dependent(x, w, affine(g, scale), cpu=product, default=partial(input_gradient, **how))


def _pixel_kernel_gradient(x, w, g, **how):
    product = lambda x, w, g: (_pixels(x).T @ _pixels(g))[None, None]  # noqa: E731
    return lax.platform_dependent(x, w, g, cpu=product, default=partial(weight_gradient, **how))


def _pixels(a):
    return a.reshape(-1, a.shape[-1])


OF_PIXELS = Gradients(_pixel_input_gradient, _pixel_kernel_gradient)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4, 5))
def conv(
    x: jax.Array,
    w: jax.Array,
    strides: tuple[int, int],
    padding: Padding,
    product: Callable = xla_conv,
    gradients: Gradients = PLAIN,
    scale: Any = None,
    bias: Any = None,
) -> jax.Array:
    """Convolution of x [n, h, w, cin] with w [kh, kw, cin, cout], zero padding, times scale plus bias.

    Args:
      x, w, strides, padding: of the convolution.
      product: what the forward pass does; a function like `xla_conv`.
      gradients: what the backward pass does.
      scale, bias: [cout], float32 or wider, or None.

    Returns:
      [n, h', w', cout]. The gradient by the scale is no sum over maps: the convolution is linear in w, so the sum of
      dL/dy conv(x, w) over a channel is that of w times the gradient by w, which is computed anyway.
    """
    return _forward(x, w, strides, padding, product, gradients, scale, bias)[0]


def _forward(x, w, strides, padding, product, gradients, scale, bias):
    given = [v for v in (scale, bias) if v is not None]
    names = [name for name, v in (("scale", scale), ("bias", bias)) if v is not None]

    def one(x, w, *given):
        return product(x, w, strides, padding, **dict(zip(names, given, strict=True)))

    return one_after_the_other(one)(x, w, *given), (x, w, scale, bias)


def _backward(strides, padding, product, gradients, residuals, g):
    x, w, scale, bias = residuals
    how = {"strides": strides, "padding": padding}
    scaled = () if scale is None else (scale,)
    dx = one_after_the_other(partial(gradients.by_input, **how))(x, w, g, *scaled)
    dw = one_after_the_other(partial(gradients.by_kernel, **how))(x, w, g)
    dscale = None if scale is None else jnp.sum(w.astype(scale.dtype) * dw.astype(scale.dtype), (0, 1, 2))
    dbias = None if bias is None else jnp.sum(g.astype(bias.dtype), (0, 1, 2))
    return dx, affine(dw, scale), dscale, dbias


conv.defvjp(_forward, _backward)


def by_depth(x: jax.Array, w: jax.Array, padding: Padding) -> jax.Array:
    """`conv` at stride 2 of few channels, as one at stride 1 of squares of 2 x 2 pixels (space to depth).

    Matrix units take channels by 8 or 16, and stay nearly empty where an image has three. Here each pixel gets a
    fourth, of zeros, and a square has 16. The kernel gets a row and a column of zeros in front, where its squares would
    else not lie as those of the image do. On CPUs it is slower, forward and by the kernel.

    Args:
      x: [n, h, w, cin], no more than 4 channels; of odd size it gets a row or a column of zeros behind.
      w: [kh, kw, cin, cout].
      padding: zeros around x.
    """
    squares: list[tuple[int, int]] = []
    x_pads, w_pads = [(0, 0)], []
    for size, taps, (low, high) in zip(x.shape[1:3], w.shape[:2], padding, strict=True):
        front = low % 2
        half, reach, outputs = -(-size // 2), -(-(taps + front) // 2), (size + low + high - taps) // 2 + 1
        x_pads.append((0, 2 * half - size))
        w_pads.append((front, 2 * reach - taps - front))
        squares.append(((low + front) // 2, outputs + reach - 1 - (low + front) // 2 - half))
    fourth = (0, 4 - x.shape[3])
    x, w = jnp.pad(x, [*x_pads, fourth]), jnp.pad(w, [*w_pads, fourth, (0, 0)])
    (n, h, v, c), (kh, kw, _, cout) = x.shape, w.shape
    x = x.reshape(n, h // 2, 2, v // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(n, h // 2, v // 2, 4 * c)
    w = w.reshape(kh // 2, 2, kw // 2, 2, c, cout).transpose(0, 2, 1, 3, 4, 5).reshape(kh // 2, kw // 2, 4 * c, cout)
    return conv(x, w, (1, 1), (squares[0], squares[1]))


def weight_gradient(x, w, g, *, strides, padding):
    """dL/dw for g = dL/dy, as XLA computes it."""
    return jax.vjp(lambda v: xla_conv(x, v, strides, padding), w)[1](g)[0]


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
