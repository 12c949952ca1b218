"""Losses: one value per example, so that masks and sums stay exact."""

import jax
import jax.numpy as jnp
import optax

from bireal_jax.errors import lookup


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross entropy against (1 - s) * onehot + s / num_classes.

    Args:
      logits: [n, num_classes], any float dtype; the loss is computed in float32 or wider.
      labels: [n], integers in [0, num_classes).
      label_smoothing: s in [0, 1). The Bi-Real Net recipe uses 0.1.

    Returns:
      [n], in nats.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))


LOSSES = {"cross_entropy": cross_entropy}


def get(name):
    """The loss of that name, (logits, labels, label_smoothing) -> [n]. Raises BadInput for an unknown name."""
    return lookup(LOSSES, name, "loss")
