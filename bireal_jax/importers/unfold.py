"""A packed network as one that a training goes on from.

A file keeps the signs of the weights, and of each batch norm one scale s and offset b. Lost are how far the latent
weights were from 0, and what batch norm had: its statistics of the maps x, with which s x + b is again

    gamma (x - mean) / sqrt(var + epsilon) + beta,   gamma = s sqrt(var + epsilon),   beta = b + s mean.

So the statistics are taken anew, on images of the training that begins, and the latent weights get one size. What comes
out computes nearly what the file does, for running statistics are not those of a batch, and learns as a training does.
"""

from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from bireal_jax.binary.layers import MOMENTUM, BatchNorm

LATENT = 0.01  # about the median of trained ones, at Adam's rates; ±1, as the file has them, is too far from 0 to flip


def unfolded(packed: nn.Module, module: nn.Module, variables: Any, batches: Iterable[jax.Array]) -> dict[str, Any]:
    """Variables to train from.

    Args:
      packed: the network whose function `variables` are, of weight rule "sign".
      module: the same network, with the weight rule of the training.
      variables: as `zoo.unpacked` gives them.
      batches: images, normalized, [n, h, w, c].
    """
    batches = list(batches)
    moments = _moments(packed, variables, batches)
    flat: dict[Any, Any] = traverse_util.flatten_dict(variables["params"])
    params: dict[Any, Any] = {path: LATENT * leaf if path[-1] == "latent" else leaf for path, leaf in flat.items()}
    for owner, (mean, var) in moments.items():
        scale, bias = (*owner, "scale"), (*owner, "bias")
        params[bias] = np.asarray(params[bias] + params[scale] * mean, np.float32)
        params[scale] = np.asarray(params[scale] * np.sqrt(var + BatchNorm.epsilon), np.float32)
    params = traverse_util.unflatten_dict(params)
    return {"params": params, "batch_stats": _statistics(module, params, variables["batch_stats"], batches)}


def _moments(module, variables, batches):
    """path of each batch norm -> mean and variance [c] of what goes into it, while it computes what the file has."""

    @jax.jit
    def seen(images):
        found = {}

        def look(call, arguments, named, context):
            if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
                x = jnp.asarray(arguments[0], jnp.float32)
                rest = tuple(range(x.ndim - 1))
                found["/".join(context.module.path)] = jnp.mean(x, rest), jnp.mean(x * x, rest)
            return call(*arguments, **named)

        with nn.intercept_methods(look):
            module.apply(variables, images)
        return found

    several = [jax.device_get(seen(images)) for images in batches]
    found = {}
    for name in several[0]:
        mean, square = (np.mean([each[name][i] for each in several], 0, np.float64) for i in range(2))
        found[tuple(name.split("/"))] = mean, np.maximum(0, square - mean**2)
    return found


def _statistics(module, params, like, batches):
    """Running statistics of a training that changes nothing: an average of those of the batches."""

    @jax.jit
    def step(statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        return module.apply(variables, images, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    statistics = jax.tree.map(np.zeros_like, like)
    for images in batches:
        statistics = step(statistics, images)
    return jax.tree.map(lambda leaf: np.asarray(leaf) / (1 - MOMENTUM ** len(batches)), statistics)
