"""Losses: one value per example, so that masks and sums stay exact."""

from functools import partial

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


def distributional(logits: jax.Array, teacher_logits: jax.Array) -> jax.Array:
    """ReActNet's distributional loss: sum over classes c of p_t(c) log(p_t(c) / p_s(c)), the KL divergence.

    No temperature and no term of the labels. The released code leaves out p_t log p_t, which has no gradient.

    Args:
      logits: of the student, [n, num_classes], any float dtype; the loss is computed in float32 or wider.
      teacher_logits: [n, num_classes]. They get no gradient.

    Returns:
      [n], in nats.
    """
    log_p, log_q = (
        jax.nn.log_softmax(z.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        for z in (jax.lax.stop_gradient(teacher_logits), logits)
    )
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


LOSSES = {"cross_entropy": cross_entropy, "distributional": distributional}
DISTILLED = ("distributional",)  # these take a teacher's logits where the others take labels


def get(name, label_smoothing=0.0):
    """The loss of that name, for training: (logits, labels) -> [n], or (logits, teacher's logits) -> [n].

    Raises BadInput for an unknown name.
    """
    loss = lookup(LOSSES, name, "loss")
    return loss if name in DISTILLED else partial(loss, label_smoothing=label_smoothing)


def evaluation(name):
    """The loss to evaluate by, (logits, labels) -> [n]: cross entropy where the one of that name needs a teacher."""
    return get("cross_entropy" if name in DISTILLED else name)
