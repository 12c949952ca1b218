"""Real-valued convolutions of few channels on CPUs, as the first layer of a network is one.

XLA takes one thread for the 7x7 stem of an ImageNet network, and unfolds patches 49 times as large as the images for
its weight gradient. Compiled (stem.cc), both are products of a number and a vector of channels, on all threads.
Elsewhere, and in other types than float32, they are those of conv.py.
"""

from functools import partial
from typing import Any

import jax
from jax import lax

from bireal_jax.binary import packed
from bireal_jax.binary.conv import PLAIN, Gradients, Padding, affine, xla_conv

MOST_CHANNELS = 4  # of the input; with more XLA's products fill vectors, too
WORTH_A_THREAD = 1 << 24  # multiplications, which take one thread 0.5 ms


def product(
    x: jax.Array, w: jax.Array, strides: tuple[int, int], padding: Padding, scale: Any = None, bias: Any = None
) -> jax.Array:
    """Convolution of x [n, h, w, cin] with w [kh, kw, cin, cout], a product for `conv.conv`."""
    how = {"strides": strides, "padding": padding}
    shape = jax.eval_shape(partial(xla_conv, **how), x, w).shape
    return affine(_compiled(packed.STEM, xla_conv, shape, shape, x, w, **how), scale, bias)


def by_kernel(x: jax.Array, w: jax.Array, g: jax.Array, **how) -> jax.Array:
    """dL/dw for g = dL/dy [n, h', w', cout]; of w [kh, kw, cin, cout] only the shape counts."""
    return _compiled(packed.STEM_BY_KERNEL, PLAIN.by_kernel, w.shape, g.shape, x, w, g, **how)


def _compiled(target, plain, shape, output, x, w, *g, **how):
    if x.shape[-1] > MOST_CHANNELS or not packed.fits(x, w, *g, shape=shape):
        return plain(x, w, *g, **how)

    def counted(x, w, *g):
        return packed.call(target, x, w, (x, *(g or (w,))), shape, output, worth_a_thread=WORTH_A_THREAD, **how)

    return lax.platform_dependent(x, w, *g, cpu=counted, default=partial(plain, **how))


GRADIENTS = Gradients(PLAIN.by_input, by_kernel)
