"""From the pixels of a file to what a network is trained on."""

from typing import Any

import jax
import jax.numpy as jnp

from bireal_jax.data.source import Source
from bireal_jax.errors import BadInput


def normalize(images: jax.Array, source: Source, dtype: Any) -> jax.Array:
    """uint8 [..., c] to (x / 255 - mean) / std in `dtype`, computed in float32 or wider."""
    wide = jnp.promote_types(dtype, jnp.float32)
    mean, std = (jnp.asarray(v, wide) for v in (source.mean, source.std))
    return ((images.astype(wide) / 255 - mean) / std).astype(dtype)


def prepared(images: Any, source: Source, dtype: Any) -> jax.Array:
    """`normalize` for images from anywhere: floats would be taken for 0 to 255, whatever they are.

    Raises:
      BadInput: they are not uint8, or of another size than in training.
    """
    if images.dtype != jnp.uint8 or tuple(images.shape[-3:]) != source.image_shape:
        wanted = ", ".join(map(str, source.image_shape))
        raise BadInput(
            f"prepare takes images uint8 [n, {wanted}], values 0 to 255; these are {images.dtype} {images.shape}\n"
            "for floats in [0, 1]: (255 * images).round().astype('uint8')"
        )
    return normalize(images, source, dtype)
