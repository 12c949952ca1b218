"""The gradients of 1-bit convolutions on CPUs by tables of signed sums, past the limit of floats.

One factor of both gradients is ±1, so four products are one of 16 signed sums, which tables.cc makes once and looks up:
one addition in place of four multiply-adds. The same terms are added, in another order than XLA's; the order depends on
the shapes alone, so that the bits are the same for every number of threads and all instruction sets.

Where nothing was compiled, on other platforms, in other types than float32 and where tables would be slower, the
gradients are those of conv.py.
"""

import jax
from jax import lax

from bireal_jax.binary import packed
from bireal_jax.binary.conv import PLAIN, Gradients

WORTH_A_THREAD = 1 << 26  # multiplications, which take one thread 0.5 ms
WORTH_IT = 0.2  # least share of a table's lanes and signs that are in use; below this XLA is as fast


def by_input(x: jax.Array, w: jax.Array, g: jax.Array, **how) -> jax.Array:
    """dL/dx [n, h, w, cin] for w [kh, kw, cin, cout], ±1 or 0, and g = dL/dy [n, h', w', cout]; of x the shape alone."""
    worth = _used(len(g), 16) * _used(g.shape[-1], 16) * _used(x.shape[-1], 8)
    return _by_tables(packed.BY_INPUT, PLAIN.by_input, worth, x.shape, (1, 2), x, w, g, **how)


def by_kernel(x: jax.Array, w: jax.Array, g: jax.Array, **how) -> jax.Array:
    """dL/dw [kh, kw, cin, cout] for x [n, h, w, cin], ±1, and g = dL/dy [n, h', w', cout]; of w the shape alone."""
    worth = _used(len(g), 4) * _used(g.shape[-1], 16) * _used(x.shape[-1], 8)
    return _by_tables(packed.BY_KERNEL, PLAIN.by_kernel, worth, w.shape, (0, 2), x, w, g, **how)


def _used(count, unit):
    return count / (-(-count // unit) * unit) if count else 0.0


def _by_tables(target, plain, worth, shape, reads, x, w, g, **how):
    if worth < WORTH_IT or not packed.fits(x, w, g, shape=shape):
        return plain(x, w, g, **how)

    def looked_up(*arrays):
        read = [arrays[i] for i in reads]
        return packed.call(target, x, w, read, shape, g.shape, worth_a_thread=WORTH_A_THREAD, **how)

    return lax.platform_dependent(x, w, g, cpu=looked_up, default=lambda x, w, g: plain(x, w, g, **how))


GRADIENTS = Gradients(by_input, by_kernel)
