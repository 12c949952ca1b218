"""Products of ±1 with ±1 on CPUs, 64 at a time: the forward convolution of a training step in a tenth of its time.

packed.cc is compiled when the package is installed, if there is a compiler; XLA calls it. Where it is missing, on other
platforms and in other types than float32 the convolution is XLA's own. The numbers are the same: all are whole.
"""

import ctypes
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bireal_jax.binary.conv import Padding, xla_conv
from bireal_jax.errors import check_compiled

CONV, BY_INPUT, BY_KERNEL = "bireal_packed_conv", "bireal_tables_by_input", "bireal_tables_by_kernel"
MOMENTS, SUMS = "bireal_norm_moments", "bireal_norm_gradients"
STEM, STEM_BY_KERNEL = "bireal_stem_conv", "bireal_stem_by_kernel"
POOL, POOL_GRADIENT = "bireal_pool_largest", "bireal_pool_gradient"
TARGETS = CONV, BY_INPUT, BY_KERNEL, MOMENTS, SUMS, STEM, STEM_BY_KERNEL, POOL, POOL_GRADIENT
NEWEST = 2  # the instructions that may be used: 2 for AVX-512, 1 for AVX2, 0 for neither; of those that there are
LARGEST = 1 << 27  # numbers of an image, or of a kernel
WORTH_A_THREAD = 1 << 28  # multiplications, which take one thread 0.5 ms


def _load() -> ctypes.CDLL | None:
    path = Path(__file__).with_name("_packed.so")
    library = ctypes.CDLL(str(path)) if path.exists() else None
    if library:
        check_compiled(library, path, TARGETS)
    for target in TARGETS if library else ():
        jax.ffi.register_ffi_target(target, jax.ffi.pycapsule(getattr(library, target)), platform="cpu")
    return library


_library = _load()


def available() -> bool:
    """Whether packed.cc, tables.cc, norm.cc, stem.cc and pool.cc were compiled."""
    return _library is not None


def fits(*arrays: jax.Array, shape: tuple[int, ...]) -> bool:
    """Whether the compiled code takes these and gives this shape: float32, not empty, each image counted in 32 bits."""
    shapes = [a.shape for a in arrays] + [shape]
    counts = all(min(s) > 0 and np.prod(s[1:], dtype=np.int64) <= LARGEST for s in shapes)
    return available() and counts and all(a.dtype == jnp.float32 for a in arrays)


def threads_for(most: int) -> int:
    """As many as are worth starting, up to the cores of this device."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1  # JAX_PLATFORMS may exclude the CPU
    return max(1, min(cores // devices, most))


def call(target, x, w, arguments, result, output, *, strides, padding, worth_a_thread):
    """Calls the compiled code.

    Args:
      target: one of TARGETS.
      x, w: of the convolution; only their shapes count.
      arguments: arrays that it reads: of x the signs alone, a byte each, which XLA makes of what x is made of, so that
        the ±1 themselves are never written.
      result, output: shapes of what it gives and of the convolution's output.
      strides, padding: of the convolution.
      worth_a_thread: multiplications for which one more thread is started, up to the cores of this device.
    """
    threads = threads_for(np.prod(output) * np.prod(w.shape[:3]) // worth_a_thread)
    numbers = [*x.shape, *output[1:], *w.shape[:2], *strides, padding[0][0], padding[1][0], threads, NEWEST]
    function = jax.ffi.ffi_call(target, jax.ShapeDtypeStruct(result, jnp.float32), vmap_method="sequential")
    return function(np.array(numbers, np.int32), *arguments)


def product(
    x: jax.Array, w: jax.Array, strides: tuple[int, int], padding: Padding, scale: Any = None, bias: Any = None
) -> jax.Array:
    """Convolution of x [n, h, w, cin] with w [kh, kw, cin, cout], both ±1, zero padding, times scale plus bias, [cout].

    No gradient of its own: a product for `conv.conv`. Gives [n, h', w', cout].
    """
    how = {"strides": strides, "padding": padding}
    given = {name: v for name, v in (("scale", scale), ("bias", bias)) if v is not None}
    plain = lambda x, w, *arrays: xla_conv(x, w, **how, **dict(zip(given, arrays, strict=True)))  # noqa: E731
    shape = jax.eval_shape(plain, x, w, *given.values()).shape
    if not fits(x, w, *given.values(), shape=shape):
        return plain(x, w, *given.values())

    def counted(x, w, *arrays):
        known = {"scale": np.ones(shape[3:], np.float32), "bias": np.zeros(shape[3:], np.float32)}
        known |= zip(given, arrays, strict=True)
        return call(CONV, x, w, (x >= 0, w, *known.values()), shape, shape, worth_a_thread=WORTH_A_THREAD, **how)

    return lax.platform_dependent(x, w, *given.values(), cpu=counted, default=plain)
