"""The gradients of 1-bit convolutions on CPUs by tables of signed sums, past the limit of floats.

One factor of both gradients is ±1, so four products are one of 16 signed sums, which tables.cc makes once and looks up:
one addition in place of four multiply-adds. The same terms are added, in another order than XLA's; the order depends on
the shapes alone, so that the bits are the same for every number of threads and all instruction sets.

Where nothing was compiled, on other platforms, in other types than float32 and where tables would be slower, the
gradients are those of conv.py.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
from jax import lax

from bireal_jax.binary import packed
from bireal_jax.binary.conv import PLAIN, Gradients

WORTH_A_THREAD = 1 << 26  # multiplications, which take one thread 0.5 ms
LEAST_PIXELS = 64, 256  # of g: with fewer, numbering the weights and merging sums takes longer than XLA's products


def by_input(x: jax.Array, w: jax.Array, g: jax.Array, scale: Any = None, **how) -> jax.Array:
    """dL/dx for w [kh, kw, cin, cout], ±1 or 0, and g scale = dL/dy [n, h', w', cout].

    Of x [n, h, w, cin] only the shape counts.
    """
    faster = np.prod(g.shape[:3]) >= LEAST_PIXELS[0]
    ones = np.ones(g.shape[3:], np.float32)
    reads = lambda x, w, g, scale=ones: (w, g, scale)  # noqa: E731
    given = (x, w, g) if scale is None else (x, w, g, scale)
    return _by_tables(packed.BY_INPUT, PLAIN.by_input, faster, x.shape, reads, *given, **how)


def by_kernel(x: jax.Array, w: jax.Array, g: jax.Array, **how) -> jax.Array:
    """dL/dw for x [n, h, w, cin], ±1, and g = dL/dy [n, h', w', cout]; of w [kh, kw, cin, cout] only the shape."""
    n, ho, wo, cout = g.shape
    filled = n / max(1, -(-n // 4) * 4)  # four images share a table
    faster = n * ho * wo * filled >= LEAST_PIXELS[1] and x.shape[-1] * cout >= 8
    return _by_tables(packed.BY_KERNEL, PLAIN.by_kernel, faster, w.shape, lambda x, w, g: (x >= 0, g), x, w, g, **how)


def _by_tables(target, plain, faster, shape, reads, x, w, g, *scale, **how):
    if not faster or not packed.fits(x, w, g, *scale, shape=shape):
        return plain(x, w, g, *scale, **how)

    def looked_up(*arrays):
        return packed.call(target, x, w, reads(*arrays), shape, g.shape, worth_a_thread=WORTH_A_THREAD, **how)

    return lax.platform_dependent(x, w, g, *scale, cpu=looked_up, default=partial(plain, **how))


GRADIENTS = Gradients(by_input, by_kernel)
OF_REAL_INPUTS = Gradients(by_input, PLAIN.by_kernel)  # of weights ±1 or 0 alone
