"""Data sets by name, from a file to a batch: `build("digits")` gives a `Source`.

Import this for data sets, `batching` for batches, `normalize` for what a network is given. Nothing here knows a config.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from bireal_jax.data import arrays, cifar, depth, digits, folder, imagenet
from bireal_jax.data.arrays import mirrored
from bireal_jax.data.cutout import covered
from bireal_jax.data.held_out import hold_out, split_off
from bireal_jax.data.images import short_side
from bireal_jax.data.numbered import numbered
from bireal_jax.data.source import IMAGENET_MEAN, IMAGENET_STD, Faulty, Source
from bireal_jax.errors import BadInput, kept, lookup

__all__ = [
    "DATASETS", "Dataset", "Source", "build", "covered", "hold_out", "mirrored", "numbered", "short_side", "split_off",
    "stand_in",
]  # fmt: skip


class Dataset(NamedTuple):
    """A row of DATASETS.

    Attributes:
      build: (directory, image_size, resize) -> Source; of a data set with depth (directory, image_size, **fields of
        `depth.Rules`). A Source without evaluation examples is split, one without training examples is evaluated.
      classes, channels: what is counted with where the files are not at hand: of labels, 1 for maps, and of images.
        0 classes: the files alone say it.
      cropped: evaluation takes the middle of a picture that was resized.
      depth: labels are depth maps.
      is_folder: what config.data.dir names is one, never a file.
      labels, mean, std: names of the classes and normalization where these are the same for everybody, or ().
    """

    build: Callable[..., Source]
    classes: int = 0
    channels: int = 3
    cropped: bool = False
    depth: bool = False
    labels: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    is_folder: bool = False


# name -> row. A recipe may add some.
DATASETS = {
    "arrays": Dataset(arrays.build),
    "cifar10": Dataset(cifar.build, 10, 3, False, False, *cifar.KINDS["cifar10"][1:]),
    "cifar100": Dataset(partial(cifar.build, name="cifar100"), 100, 3, False, False, *cifar.KINDS["cifar100"][1:]),
    "digits": Dataset(digits.build, 10, 1),
    "folder": Dataset(folder.build, cropped=True, is_folder=True),
    "imagenet2012": Dataset(
        imagenet.build,
        1000,
        cropped=True,
        labels=imagenet.NAMES,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        is_folder=True,
    ),
    "depth_folder": Dataset(depth.folder, 1, depth=True, is_folder=True),
    "nyu_depth_v2": Dataset(depth.nyu, 1, depth=True, is_folder=True),
}
OURS = dict(DATASETS)  # before a recipe adds any


def build(
    name: str, directory: str = "", image_size: int = 224, resize: int = 0, rules: Mapping[str, Any] | None = None,
    faults: list[str] | None = None,
) -> Source:  # fmt: skip
    """The data set of that name.

    Args:
      name: a key of DATASETS.
      directory: where it lies; what is expected there is the data set's business.
      image_size: side of the square input, in pixels.
      resize: short side before the centre crop of evaluation, in pixels; 0 for 8/7 of `image_size`.
      rules: fields of `depth.Rules` for a data set with depth; others do not use them.
      faults: takes what keeps it from being trained on, a message each, so that it can be looked at; None: an error.

    Raises:
      BadInput: unknown name, nothing usable in `directory`, or sizes that do not fit. A recipe has overwritten a row of
        the package.
    """
    kept(DATASETS, OURS, name, "config.data.name")
    row = lookup(DATASETS, name, "data set")
    if row.is_folder and os.path.isfile(directory):
        npz = directory.endswith(".npz") and not row.depth
        raise BadInput(
            f"config.data.dir={directory} is a file, and config.data.name={name} reads a folder\n"
            + (
                "--config.data.name=arrays reads .npz files"
                if npz
                else "name the folder; an archive is unpacked before"
            )
        )
    if row.depth:
        return row.build(directory, image_size, **(rules or {}))
    resize = short_side(image_size, resize)
    if resize < image_size and row.cropped:
        raise BadInput(
            f"config.data.resize is {resize}, smaller than the crop config.data.image_size={image_size}; "
            f"leave it at 0, for {short_side(image_size, 0)}"
        )
    try:
        return row.build(directory, image_size, resize)
    except Faulty as error:
        if faults is None:
            raise
        faults += error.faults
        return error.source


def stand_in(name: str, image_size: int) -> Source:
    """A data set without examples, of the usual classes, or 1000 without names where that depends on the files.

    Args:
      name: a key of DATASETS.
      image_size: side of the square input, in pixels.

    Raises:
      BadInput: unknown name.
    """
    row = lookup(DATASETS, name, "data set")
    shape, depth_range = (image_size, image_size, row.channels), (1e-3, 10.0) if row.depth else None
    half, classes = (0.5,) * row.channels, row.classes or 1000
    return Source(
        (), (), dict, shape, classes, mean=row.mean or half, std=row.std or half, label_names=row.labels,
        depth_range=depth_range,
    )  # fmt: skip
