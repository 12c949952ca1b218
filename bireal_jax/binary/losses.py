"""Losses: one value per example, so that masks and sums stay exact."""

from functools import partial

import jax
import jax.numpy as jnp
import optax

from bireal_jax.binary.pool import nearest
from bireal_jax.errors import kept, lookup


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


def distributional(logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array | None = None) -> jax.Array:
    """ReActNet's distributional loss: sum over classes c of p_t(c) log(p_t(c) / p_s(c)), the KL divergence.

    No temperature and no term of the labels. The released code leaves out p_t log p_t, which has no gradient.

    Args:
      logits: of the student, [n, num_classes], any float dtype; the loss is computed in float32 or wider.
      teacher_logits: [n, num_classes]. They get no gradient.
      labels: do not count.

    Returns:
      [n], in nats.
    """
    log_p, log_q = (
        jax.nn.log_softmax(z.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        for z in (jax.lax.stop_gradient(teacher_logits), logits)
    )
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1)


def distilled(
    logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0,
    temperature: float = 4.0, share: float = 0.5,
) -> jax.Array:  # fmt: skip
    """(1 - a) cross_entropy(z, y) + a T^2 KL(softmax(t / T), softmax(z / T)), a = share (Hinton et al., 2015).

    T^2 keeps the gradient of the second term as large as it is at T = 1.

    Args:
      logits, teacher_logits: z and t, as of `distributional`.
      labels, label_smoothing: y, and the rest, as of `cross_entropy`.
      temperature, share: T, above 0, and a, in [0, 1].

    Returns:
      [n], in nats.
    """
    soft = distributional(logits / temperature, teacher_logits / temperature)
    return (1 - share) * cross_entropy(logits, labels, label_smoothing) + share * temperature**2 * soft


def l1(maps: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean over the pixels of an image of |d - y|.

    Args:
      maps: d, [n, h, w, 1], any float dtype; brought to the size of the labels, each pixel the nearest one.
      labels: y, [n, H, W] in metres; pixels of 0 are without depth and do not count.

    Returns:
      [n], in metres; 0 for an image without any depth, which gives no gradient.
    """
    size, valid = _residuals(maps, labels)
    return _mean(size, valid)


def berhu(maps: jax.Array, labels: jax.Array) -> jax.Array:
    """Reversed Huber: |r| where it is at most c, (r^2 + c^2) / 2c beyond; c is a fifth of the largest |r| of the image.

    Laina et al., 3DV 2016, take the largest of the batch; that of the image keeps one value per example (our choice). c
    is a constant to the gradient. Arguments and result as of `l1`.
    """
    size, valid = _residuals(maps, labels)
    c = jax.lax.stop_gradient(jnp.max(size, (1, 2), keepdims=True) / 5)
    c = jnp.where(c > 0, c, jnp.ones_like(c))
    return _mean(jnp.where(size <= c, size, (size**2 + c**2) / (2 * c)), valid)


def _residuals(maps, labels):
    """(|d - y|, 0 where there is no depth; where there is depth), both [n, H, W]."""
    maps = maps.astype(jnp.promote_types(maps.dtype, jnp.float32))
    valid = labels > 0
    difference = nearest(maps[..., 0], *labels.shape[1:]) - labels.astype(maps.dtype)
    return jnp.abs(jnp.where(valid, difference, jnp.zeros_like(difference))), valid


def _mean(values, valid):
    return jnp.sum(values, (1, 2)) / jnp.maximum(jnp.sum(valid, (1, 2)), 1).astype(values.dtype)


LOSSES = {
    "cross_entropy": cross_entropy, "distributional": distributional, "distilled": distilled, "l1": l1, "berhu": berhu
}  # fmt: skip
OURS = dict(LOSSES)  # before a recipe adds any
DISTILLED = ("distributional", "distilled")  # these take a teacher's logits before the labels
OF_DEPTH = ("l1", "berhu")  # those whose labels are maps
SMOOTHED = ("cross_entropy", "distilled")  # these take label_smoothing


def get(name, label_smoothing=0.0, temperature=4.0, share=0.5):
    """The loss of that name, for training: (outputs, labels) -> [n], or (logits, teacher's logits, labels) -> [n].

    `temperature` and `share` are those of `distilled`. Raises BadInput for an unknown name, or one that a recipe
    has overwritten.
    """
    kept(LOSSES, OURS, name, "config.loss")
    loss = lookup(LOSSES, name, "loss")
    if name == "distilled":
        return partial(loss, label_smoothing=label_smoothing, temperature=temperature, share=share)
    return partial(loss, label_smoothing=label_smoothing) if label_smoothing else loss


def evaluation(name):
    """The loss to evaluate by, (outputs, labels) -> [n]: cross entropy where the one of that name needs a teacher."""
    return get("cross_entropy" if name in DISTILLED else name)
