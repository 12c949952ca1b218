"""How training images in memory are changed: drawn on the host by numpy, done where the images lie, to the same bits.

A row of whole numbers says of one image of a batch which example it is, and what is done to it. So rows are all that
has to reach a device which holds the examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

# Of a row: the number of the example, -1 for none; pixels that the crop lies below and right of the image; 1 if left
# and right are exchanged; the pixel in the middle of the square that is covered.
ROW = ("index", "top", "left", "mirrored", "middle_row", "middle_column")


@dataclass(frozen=True)
class Augment:
    """Pad with zeros and crop the old size at random, mirror or not, cover a square: each image on its own.

    Attributes:
      pad: so many pixels on every side.
      mirror: left and right are exchanged or not, with even chances.
      cover: a square of so many pixels a side, its centre anywhere in the image, is `fill`; what lies outside is cut
        off (cutout: DeVries and Taylor, 2017, arXiv 1708.04552). 0: none.
      fill: of each channel, 0 to 255.
    """

    pad: int = 0
    mirror: bool = False
    cover: int = 0
    fill: tuple[int, ...] = ()

    def draw(self, count: int, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
        """int [count, len(ROW) - 1]: what is done to so many images of `shape` (h, w, ...)."""
        found = np.zeros((len(ROW) - 1, count), np.int32)
        if self.pad:
            found[:2] = rng.integers(0, 2 * self.pad + 1, (2, count)) - self.pad
        if self.mirror:
            found[2] = rng.random(count) < 0.5
        if self.cover:
            found[3:] = [rng.integers(0, side, count) for side in shape[:2]]
        return found.T

    def change(self, images: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """What rows [n, len(ROW)] say is done to images uint8 [n, h, w, c], in their place, to the bits of `gather`."""
        pad, (h, w) = self.pad, images.shape[1:3]
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        for image, wide, row in zip(images, padded, rows[:, 1:].tolist(), strict=True):
            top, left, mirrored, *middle = row
            crop = wide[top + pad : top + pad + h, left + pad : left + pad + w]
            image[:] = crop[:, ::-1] if mirrored else crop
            if self.cover:
                y, x = (centre - self.cover // 2 for centre in middle)
                image[max(y, 0) : y + self.cover, max(x, 0) : x + self.cover] = self.fill
        return images


def gather(data: Mapping[str, Any], rows: Any, augment: Augment | None) -> dict[str, Any]:
    """A batch of examples that lie on a device, as part of its program.

    Args:
      data: {"image": uint8 [examples, h, w, c], "label": integers [examples]}.
      rows: int32 [n, len(ROW)].
      augment: that drew the rows; None for images as they are.

    Returns:
      image [n, h, w, c], label [n] and mask bool [n]: False, with zeros for the others, where the index is -1.
    """
    import jax.numpy as jnp  # not above: processes that decode have no use for it

    index, top, left, mirrored, *middle = (rows[:, i] for i in range(len(ROW)))
    mask, index = index >= 0, jnp.maximum(index, 0)
    label = data["label"][index]
    images, shown = data["image"], mask[:, None, None, None]
    h, w = images.shape[1:3]
    if augment is None:
        image = images[index]
    else:
        y, x = jnp.arange(h, dtype=np.int32)[None, :], jnp.arange(w, dtype=np.int32)[None, :]
        y, x = y + top[:, None], jnp.where(mirrored[:, None] == 1, w - 1 - x, x) + left[:, None]
        image = images[index[:, None, None], jnp.clip(y, 0, h - 1)[:, :, None], jnp.clip(x, 0, w - 1)[:, None, :]]
        shown = shown & _square((y >= 0) & (y < h), (x >= 0) & (x < w))
    image = jnp.where(shown, image, jnp.zeros_like(image))
    if augment is not None and augment.cover:
        starts = [centre[:, None] - augment.cover // 2 for centre in middle]
        lines = [jnp.arange(side, dtype=np.int32)[None, :] for side in (h, w)]
        hidden = _square(*((i >= s) & (i < s + augment.cover) for i, s in zip(lines, starts, strict=True)))
        image = jnp.where(hidden, jnp.asarray(augment.fill, dtype=image.dtype)[None, None, None, :], image)
    return {"image": image, "label": jnp.where(mask, label, jnp.zeros_like(label)), "mask": mask}


def _square(rows, columns):
    """[n, h, w, 1], of [n, h] and [n, w]."""
    return (rows[:, :, None] & columns[:, None, :])[..., None]
