"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 images of 32x32, as published, in an .npz file or of tensorflow-datasets."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bireal_jax.data import official
from bireal_jax.data.images import flip, shift
from bireal_jax.data.source import Arrays, Source, check_labels, read_record
from bireal_jax.data.stored import Npz
from bireal_jax.errors import BadInput, first_line

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PARTS = ("x_train", "y_train", "x_test", "y_test")
MOST = 600_000  # images, ten times those of CIFAR-10: they lie in memory
FINE_NAMES = tuple(
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
    man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
    pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
    skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
    tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
    """.split()
)


class Kind(NamedTuple):
    """What differs between the two: a title for messages, and what a Source has of it."""

    title: str
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


KINDS = {
    "cifar10": Kind("CIFAR-10", NAMES, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": Kind("CIFAR-100", FINE_NAMES, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
HOW = (
    "set config.data.dir to the published .tar.gz or its folder, to an .npz file with x_train, y_train, x_test,\n"
    "y_test (uint8, NHWC) or to a tensorflow-datasets directory with array_record; configs/digits.py needs no download"
)


def _augment(images, rng):
    return flip(shift(images, 4, rng), rng)


def build(directory: str, image_size: int, resize: int, name: str = "cifar10") -> Source:
    """CIFAR-10, or "cifar100" with its fine labels, in memory: 180 MB. Training: pad by 4, random crop, random flip.

    `resize` is not used.

    Keep the bytes of the original: a copy that went through JPEG costs trained networks 7 to 11 points.
    """
    title, names, mean, std = KINDS[name]
    if image_size != 32:
        raise BadInput(f"config.data.image_size is {image_size}; {title} images are 32 pixels wide")
    if not directory or not Path(directory).exists():
        raise BadInput(f"no {title} at config.data.dir={directory!r}: {HOW}")
    if place := official.find(directory, name):
        arrays = official.read(place, name)
    else:
        arrays = _from_npz(directory, title) if Path(directory).is_file() else _from_tfds(directory, name)
    for split in ("train", "test"):
        try:
            _check(split, arrays[f"x_{split}"], arrays[f"y_{split}"])
        except BadInput as error:
            raise BadInput(f"{directory}: {error}") from None
        arrays[f"y_{split}"] = arrays[f"y_{split}"].reshape(-1)
        check_labels(arrays[f"y_{split}"], len(names), f"{directory}, y_{split}")
    return Source(
        train=Arrays(arrays["x_train"], arrays["y_train"], _augment), eval=Arrays(arrays["x_test"], arrays["y_test"]),
        prepare=dict, image_shape=(32, 32, 3), num_classes=len(names), mean=mean, std=std,
        label_names=names,
    )  # fmt: skip


def _check(split, images, labels):
    """Of arrays, or of what is claimed of them, before they are read: kind and size."""
    count = labels.shape[0] if labels.shape else 0
    if images.dtype != np.uint8 or images.shape != (count, 32, 32, 3) or not count:
        wanted = f"uint8 ({count or 'n'}, 32, 32, 3)"
        raise BadInput(f"x_{split} is {images.dtype} {images.shape}, wanted {wanted}")
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":  # Keras stores (n, 1)
        raise BadInput(f"y_{split} is {labels.dtype} {labels.shape}, wanted integers ({count},)")
    if count > MOST:
        raise BadInput(f"x_{split} has {count:,} images, at most {MOST:,} are read; store them as a folder")


def _from_npz(path, title):
    try:
        with Npz(path) as stored:
            if missing := [name for name in PARTS if name not in stored.claims]:
                raise ValueError(f"there is no {missing[0]}")
            for split in ("train", "test"):
                _check(split, stored.claims[f"x_{split}"], stored.claims[f"y_{split}"])
            return {name: stored.read(name) for name in PARTS}
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # files hold anything, and zipfile, zlib and numpy raise anything for it
        raise BadInput(f"{path} is not {title}: {first_line(error)}\n{HOW}") from None


def _from_tfds(directory, name):
    import tensorflow_datasets as tfds

    try:
        pair: Any = tfds.data_source(name, split=["train", "test"], data_dir=directory, download=False)
        train, test = pair
    except Exception as error:  # tfds raises many kinds, and what matters is that it is not there
        raise BadInput(f"no prepared {name} in {directory}: {first_line(error)}\n{HOW}") from None
    arrays = {}
    for split, source in (("train", train), ("test", test)):
        examples = [read_record(source, i, f"{name} {split}") for i in range(len(source))]
        arrays[f"x_{split}"] = np.stack([e["image"] for e in examples])
        arrays[f"y_{split}"] = np.asarray([e["label"] for e in examples], np.int64)
    return arrays
