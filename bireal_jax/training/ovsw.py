"""OvSW: silent weights, whose signs no gradient reaches, are moved; two optax transformations for binary weights.

Both stand before weight decay and momentum and change the gradient g of a latent weight w [kh, kw, cin, cout]:

    g <- g max(1, ratio |w_o| / |g_o|)       for each filter o, by norms: adaptive gradient scaling
    g <- g + decay w  where s < 1e-4         s <- 0.999 s + 0.001 1[the sign of w flipped]: silence-aware decay

The rules and limits of the authors' code, whose ratio is 0.04 and whose decay is 9e-4.

Reference: Xiang et al., "OvSW: Overcoming Silent Weights for Accurate Binary Neural Networks", ECCV 2024.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

MEMORY, SILENT = 0.999, 1e-4  # of the average of flips; below it a weight is silent
MIN_GRADIENT, MIN_WEIGHT = 1e-6, 1e-3  # norms of filters are at least so large


def gradient_floor(ratio: float) -> optax.GradientTransformation:
    """The gradient of a filter is at least `ratio` times as long as the filter."""

    def scaled(g, w):
        long, wide = (
            jnp.maximum(jnp.sqrt(jnp.sum(jnp.square(v), tuple(range(v.ndim - 1)))), least)
            for v, least in ((g, MIN_GRADIENT), (w, MIN_WEIGHT))
        )
        return g * jnp.maximum(1, ratio * wide / long)

    return optax.stateless(lambda updates, params: jax.tree.map(scaled, updates, params))


class SilentState(NamedTuple):
    """What `silent_decay` remembers."""

    plus: Any  # bool, of the shapes of the weights: the sign was +1 at the last update
    flips: Any  # average share of updates that flipped it


def silent_decay(decay: float) -> optax.GradientTransformation:
    """Weight decay for the weights whose sign has hardly flipped of late, at first all of them."""

    def init(params):
        return SilentState(*(jax.tree.map(f, params) for f in (lambda w: w >= 0, jnp.zeros_like)))

    def update(updates, state, params=None):
        plus = jax.tree.map(lambda w: w >= 0, params)
        flips = jax.tree.map(
            lambda s, old, new: (MEMORY * s + (1 - MEMORY) * (old != new)).astype(s.dtype),
            state.flips,
            state.plus,
            plus,
        )
        updates = jax.tree.map(
            lambda g, w, s: g + jnp.where(s < SILENT, decay * w, jnp.zeros_like(w)), updates, params, flips
        )
        return updates, SilentState(plus, flips)

    return optax.GradientTransformation(init, update)
