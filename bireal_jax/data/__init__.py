"""Data sets by name: `build("digits")` gives a `Source`."""

from bireal_jax.data import cifar, digits, folder, imagenet
from bireal_jax.data.source import Source
from bireal_jax.errors import BadInput, lookup

__all__ = ["DATASETS", "Source", "build"]

# name -> build(directory, image_size, resize) -> Source
DATASETS = {"cifar10": cifar.build, "digits": digits.build, "folder": folder.build, "imagenet2012": imagenet.build}


def build(name: str, directory: str = "", image_size: int = 224, resize: int = 256) -> Source:
    """The data set of that name.

    Args:
      name: a key of DATASETS.
      directory: where it lies; what is expected there is the data set's business.
      image_size: side of the square input, in pixels.
      resize: short side before the centre crop of evaluation, in pixels.

    Raises:
      BadInput: unknown name, nothing usable in `directory`, or sizes that do not fit.
    """
    make = lookup(DATASETS, name, "data set")
    if resize < image_size and make in (folder.build, imagenet.build):
        raise BadInput(
            f"config.data.resize is {resize}, smaller than the crop config.data.image_size={image_size}; "
            f"use {image_size * 8 // 7}"
        )
    return make(directory, image_size, resize)
