"""Cutout: a square of a training image is covered (DeVries and Taylor, 2017, arXiv 1708.04552)."""

import dataclasses

import numpy as np

from bireal_jax.data.augment import Augment
from bireal_jax.data.source import Arrays, Source
from bireal_jax.errors import BadInput


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
    fill = tuple(int(v) for v in np.round(255 * np.asarray(source.mean)))
    augment = dataclasses.replace(train.augment or Augment(), cover=size, fill=fill)
    return dataclasses.replace(source, train=Arrays(train.images, train.labels, augment, train.places))
