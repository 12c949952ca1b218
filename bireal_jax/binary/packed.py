"""Products of ±1 with ±1 on CPUs, 64 at a time: the forward convolution of a training step in a tenth of its time.

packed.cc is compiled when the package is installed, if there is a compiler; XLA calls it. Where it is missing, on other
platforms and in other types than float32 the convolution is XLA's own. The numbers are the same: all are whole.
"""

import ctypes
import importlib.util
import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bireal_jax.binary.conv import Padding, xla_conv

TARGET = "bireal_packed_conv"
NEWEST = 2  # the instructions that may be used: 2 for AVX-512, 1 for AVX2, 0 for neither; of those that there are
WORTH_A_THREAD = 1 << 28  # multiplications, which take one thread 0.5 ms; to start one takes less than 0.05


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("bireal_jax.binary._packed")
    library = ctypes.CDLL(spec.origin) if spec and spec.origin else None
    if library:
        jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(library.bireal_packed_conv), platform="cpu")
    return library


_library = _load()


def available() -> bool:
    """Whether packed.cc was compiled."""
    return _library is not None


def product(x: jax.Array, w: jax.Array, strides: tuple[int, int], padding: Padding) -> jax.Array:
    """Convolution of x [n, h, w, cin] with w [kh, kw, cin, cout], both ±1, zero padding: [n, h', w', cout].

    No gradient of its own: a product for `conv.conv`.
    """
    how = {"strides": strides, "padding": padding}
    shape = jax.eval_shape(partial(xla_conv, **how), x, w).shape
    if not available() or x.dtype != jnp.float32 or w.dtype != jnp.float32 or not np.prod(shape):
        return xla_conv(x, w, **how)
    return lax.platform_dependent(x, w, cpu=partial(_counted, shape=shape, **how), default=partial(xla_conv, **how))


def _counted(x, w, *, shape, strides, padding):
    """By packed.cc, which divides the images among threads: the cores of this device."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    work = np.prod(shape) * np.prod(w.shape[:3])
    devices = jax.local_device_count() if jax.default_backend() == "cpu" else 1  # JAX_PLATFORMS may exclude the CPU
    threads = max(1, min(cores // devices, work // WORTH_A_THREAD))
    numbers = [*x.shape, *shape[1:], *w.shape[:2], *strides, padding[0][0], padding[1][0], threads, NEWEST]
    call = jax.ffi.ffi_call(TARGET, jax.ShapeDtypeStruct(shape, x.dtype), vmap_method="sequential")
    return call(np.array(numbers, np.int32), x, w)
