"""From the pixels of a file to what a network is trained on."""

from typing import Any

import jax
import jax.numpy as jnp

from bireal_jax.data.source import Source


def normalize(images: jax.Array, source: Source, dtype: Any) -> jax.Array:
    """uint8 [..., c] to (x / 255 - mean) / std in `dtype`, computed in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    mean, std = (jnp.asarray(v, wide) for v in (source.mean, source.std))
    return ((images.astype(wide) / 255 - mean) / std).astype(dtype)
