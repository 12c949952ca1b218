"""A training step on a batch of random images that is already in memory, for the scripts of this folder."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bireal_jax import models
from bireal_jax.binary import losses
from bireal_jax.data import Source
from bireal_jax.running import parallel
from bireal_jax.training import optim
from bireal_jax.training.step import make_state, make_train_step


class Parts(NamedTuple):
    """A model, its loss, its mapped step, the state before the first one, and a batch on the host."""

    model: nn.Module
    loss: Callable
    step: Any  # pmapped functions have more than a Callable
    state: Any
    data: dict[str, np.ndarray]


def parts(name: str, size: int, batch: int, dtype: str = "float32", classes: int = 1000, over=None, **how) -> Parts:
    """Of a network of the package, with Adam and smoothed labels.

    Args:
      name: of the network.
      size, batch: pixels of an image's side, and images of a step over all devices.
      dtype: of the computation.
      classes: outputs.
      over: what batch statistics are over, as of `norm.normalize_batch`.
      **how: more arguments of `make_train_step`.
    """
    shape, devices = (size, size, 3), jax.local_device_count()
    source = Source(train=(), eval=(), augment=lambda *_: {}, prepare=dict, image_shape=shape, num_classes=classes)
    model = models.build(name, classes, jnp.dtype(dtype), bn_over=over)
    quick = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    variables = jax.jit(model.init, compiler_options=quick)(jax.random.key(0), jnp.zeros((1, *shape)))
    tx = optim.make("adam", lambda _: 1e-3, variables["params"])
    loss = partial(losses.cross_entropy, label_smoothing=0.1)
    step = parallel.pmap(make_train_step(model, loss, tx, source, **how), donate=True)
    state = parallel.replicate(make_state(variables, tx, 0, False, jnp.float32))
    rng = np.random.default_rng(0)
    each = (devices, batch // devices)
    data = {
        "image": rng.integers(0, 256, (*each, *shape), dtype=np.uint8),
        "label": rng.integers(0, classes, each, dtype=np.int32), "mask": np.ones(each, bool),
    }  # fmt: skip
    return Parts(model, loss, step, state, data)


def runner(parts: Parts, batches: Any = None, steps: int = 1) -> Callable[[], None]:
    """A function that runs so many steps to their end: on `batches`, an iterator, or else on the one of `parts`."""
    state, (data,) = parts.state, parallel.prefetch([parts.data])

    def run():
        nonlocal state
        for _ in range(steps):
            state, _ = parts.step(state, data if batches is None else next(batches))
        jax.block_until_ready(state)

    return run
