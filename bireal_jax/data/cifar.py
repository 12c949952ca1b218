"""CIFAR-10: 50,000 + 10,000 images of 32x32, from an .npz file or as tensorflow-datasets prepared it."""

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.data.images import flip, shift
from bireal_jax.data.source import Arrays, Source, check_labels
from bireal_jax.errors import BadInput, first_line

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARTS = ("x_train", "y_train", "x_test", "y_test")
HOW = (
    "set config.data.dir to an .npz file with x_train, y_train, x_test, y_test (uint8, NHWC) or to a "
    "tensorflow-datasets\ndirectory that holds cifar10 as array_record; configs/digits.py needs no download"
)


def _augment(images, rng):
    return flip(shift(images, 4, rng), rng)


def build(directory: str, image_size: int, resize: int) -> Source:
    """CIFAR-10 in memory, 180 MB. Training: pad by 4, random crop, random flip. `resize` is not used.

    Keep the bytes of the original: a copy that went through JPEG costs trained networks 7 to 11 points.
    """
    if image_size != 32:
        raise BadInput(f"config.data.image_size is {image_size}; CIFAR-10 images are 32 pixels wide")
    if not directory or not Path(directory).exists():
        raise BadInput(f"no CIFAR-10 at config.data.dir={directory!r}: {HOW}")
    arrays = _from_npz(directory) if Path(directory).is_file() else _from_tfds(directory)
    for split in ("train", "test"):
        images, labels = arrays[f"x_{split}"], arrays[f"y_{split}"]
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3) or not len(labels):
            wanted = f"uint8 ({len(labels) or 'n'}, 32, 32, 3)"
            raise BadInput(f"{directory}: x_{split} is {images.dtype} {images.shape}, wanted {wanted}")
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise BadInput(f"{directory}: y_{split} is {labels.dtype} {labels.shape}, wanted integers ({len(images)},)")
        check_labels(labels, 10, f"{directory}, y_{split}")
    return Source(
        train=Arrays(arrays["x_train"], arrays["y_train"], _augment), eval=Arrays(arrays["x_test"], arrays["y_test"]),
        prepare=dict, image_shape=(32, 32, 3), num_classes=10,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010), label_names=NAMES,
    )  # fmt: skip


def _from_npz(path):
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in PARTS}
    except (KeyError, ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BadInput(f"{path} is not CIFAR-10: {first_line(error)}\n{HOW}") from None
    for name in ("y_train", "y_test"):  # Keras stores labels as (n, 1)
        if arrays[name].ndim == 2 and arrays[name].shape[1] == 1:
            arrays[name] = arrays[name][:, 0]
    return arrays


def _from_tfds(directory):
    import tensorflow_datasets as tfds

    try:
        pair: Any = tfds.data_source("cifar10", split=["train", "test"], data_dir=directory, download=False)
        train, test = pair
    except Exception as error:  # tfds raises many kinds, and what matters is that it is not there
        raise BadInput(f"no prepared cifar10 in {directory}: {first_line(error)}\n{HOW}") from None
    arrays = {}
    for split, source in (("train", train), ("test", test)):
        examples = [source[i] for i in range(len(source))]
        arrays[f"x_{split}"] = np.stack([e["image"] for e in examples])
        arrays[f"y_{split}"] = np.asarray([e["label"] for e in examples], np.int64)
    return arrays
