"""Cutout: a square of a training image is covered (DeVries and Taylor, 2017, arXiv 1708.04552)."""

import dataclasses

import numpy as np

from bireal_jax.data.source import Arrays, Source
from bireal_jax.errors import BadInput


def cover(images: np.ndarray, size: int, fill: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A square of so many pixels a side, its centre anywhere in the image, is `fill`; what lies outside is cut off.

    Args:
      images: uint8 [n, h, w, c].
      size: of the square.
      fill: uint8 [c].
      rng: draws a centre for each image.
    """
    rows, columns = (_hidden(n, rng.integers(0, n, len(images)), size) for n in images.shape[1:3])
    return np.where((rows[:, :, None] & columns[:, None, :])[..., None], fill, images)


def _hidden(length, centres, size):
    """[n, length]: whether a line lies in the square."""
    start = centres[:, None] - size // 2
    return (np.arange(length) >= start) & (np.arange(length) < start + size)


def covered(source: Source, size: int) -> Source:
    """The same data set whose training images are covered behind all other augmentation, with the mean of the data set.

    Args:
      source: with its mean, and with its images in memory.
      size: of the square, in pixels.

    Raises:
      BadInput: images in files, or larger squares than images.
    """
    train = source.train
    if not isinstance(train, Arrays):
        raise BadInput("config.data.cutout is for images in memory (CIFAR, digits); leave it at 0 for this data set")
    if size > min(source.image_shape[:2]):
        raise BadInput(f"config.data.cutout is {size}; the images are {source.image_shape[0]} pixels wide")
    fill, augment = np.round(255 * np.asarray(source.mean)).astype(np.uint8), train.augment

    def both(images, rng):
        return cover(augment(images, rng) if augment else images, size, fill, rng)

    return dataclasses.replace(source, train=Arrays(train.images, train.labels, both))
