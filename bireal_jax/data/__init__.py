"""Data sets by name, from a file to a batch: `build("digits")` gives a `Source`.

Import this for data sets, `batching` for batches, `normalize` for what a network is given. Nothing here knows a config.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from bireal_jax.data import cifar, depth, digits, folder, imagenet
from bireal_jax.data.cutout import covered
from bireal_jax.data.held_out import hold_out
from bireal_jax.data.images import short_side
from bireal_jax.data.source import Source
from bireal_jax.errors import BadInput, lookup

__all__ = ["DATASETS", "Source", "build", "covered", "hold_out", "short_side"]

# name -> build(directory, image_size, resize) -> Source
DATASETS = {"cifar10": cifar.build, "digits": digits.build, "folder": folder.build, "imagenet2012": imagenet.build}
DATASETS |= {"cifar100": partial(cifar.build, name="cifar100")}


# name -> build(directory, image_size, **fields of depth.Rules) -> Source
WITH_DEPTH = {"depth_folder": depth.folder, "nyu_depth_v2": depth.nyu}


def build(
    name: str, directory: str = "", image_size: int = 224, resize: int = 0, rules: Mapping[str, Any] | None = None
) -> Source:
    """The data set of that name.

    Args:
      name: a key of DATASETS or of WITH_DEPTH.
      directory: where it lies; what is expected there is the data set's business.
      image_size: side of the square input, in pixels.
      resize: short side before the centre crop of evaluation, in pixels; 0 for 8/7 of `image_size`.
      rules: fields of `depth.Rules` for a data set with depth; others do not use them.

    Raises:
      BadInput: unknown name, nothing usable in `directory`, or sizes that do not fit.
    """
    make = lookup(DATASETS | WITH_DEPTH, name, "data set")
    if name in WITH_DEPTH:
        return make(directory, image_size, **(rules or {}))
    resize = short_side(image_size, resize)
    if resize < image_size and make in (folder.build, imagenet.build):
        raise BadInput(
            f"config.data.resize is {resize}, smaller than the crop config.data.image_size={image_size}; "
            f"leave it at 0, for {short_side(image_size, 0)}"
        )
    return make(directory, image_size, resize)
