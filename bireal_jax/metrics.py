"""Metrics as masked sums. Sums add up exactly over batches, devices and hosts; means of means do not."""

import math

import jax
import jax.numpy as jnp


def sums(logits: jax.Array, labels: jax.Array, losses: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Sums over the examples whose mask is 1.

    Args:
      logits: [n, num_classes].
      labels: [n] integers.
      losses: [n], one loss per example.
      mask: [n] of 0 and 1; 0 marks padding.

    Returns:
      loss, top1 and top5 (examples whose label is among the 1 or 5 largest logits) and seen (examples), all scalars in
      the dtype of `losses`.
    """
    weight = mask.astype(losses.dtype)
    best = jax.lax.top_k(logits, min(5, logits.shape[-1]))[1]  # [n, 5]
    hit = (best == labels[:, None]).astype(losses.dtype)
    return {
        # where, not a product: the loss of a padded row may be anything, NaN included
        "loss": jnp.sum(jnp.where(mask, losses, jnp.zeros_like(losses))),
        "top1": jnp.sum(hit[:, 0] * weight),
        "top5": jnp.sum(jnp.max(hit, axis=1) * weight),
        "seen": jnp.sum(weight),
    }


def means(totals) -> dict[str, float]:
    """Means of the totals that `sums` gave: loss in nats, top1 and top5 in percent."""
    seen = float(totals["seen"])
    scale = {"loss": 1.0, "top1": 100.0, "top5": 100.0}
    return {name: scale[name] * float(totals[name]) / seen for name in scale}


def pack_signs(w: jax.Array) -> jax.Array:
    """The signs of w, eight to a byte: uint8 [ceil(size / 8)], bit 1 where w >= 0."""
    return jnp.packbits(w.ravel() >= 0)


def flipped(before: jax.Array, after: jax.Array) -> jax.Array:
    """How many signs differ between two results of `pack_signs`."""
    return jnp.sum(jax.lax.population_count(before ^ after).astype(jnp.int32))


def log_flip_ratio(before: list[jax.Array], after: list[jax.Array]) -> jax.Array:
    """log(flips / n + e^-9): of n weights in all, how many changed sign. -9 where none did (Bop's paper).

    The paper writes it for one update of the weights.
    """
    flips = sum(jnp.sum((a >= 0) != (b >= 0), dtype=jnp.int32) for a, b in zip(before, after, strict=True))
    return jnp.log(jnp.asarray(flips) / max(1, sum(a.size for a in before)) + math.exp(-9))
