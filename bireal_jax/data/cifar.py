"""CIFAR-10 and CIFAR-100: 50,000 + 10,000 images of 32x32, as published, in an .npz file or of tensorflow-datasets."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bireal_jax import places
from bireal_jax.data import arrays, official
from bireal_jax.data.augment import Augment
from bireal_jax.data.source import Source, read_record
from bireal_jax.errors import BadInput, first_line

NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SHAPE = (32, 32, 3)
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


def build(directory: str, image_size: int, resize: int, name: str = "cifar10") -> Source:
    """CIFAR-10, or "cifar100" with its fine labels, in memory: 180 MB. Training: pad by 4, random crop, random flip.

    `resize` is not used.

    Keep the bytes of the original: a copy that went through JPEG costs trained networks 7 to 11 points.
    """
    title, names, mean, std = KINDS[name]
    if image_size != 32:
        raise BadInput(f"config.data.image_size is {image_size}; {title} images are 32 pixels wide")
    if not directory or not Path(directory).exists():
        raise BadInput(f"no {title} at {places.missing(directory, suffixes=('', '.npz', '.gz'))}: {HOW}")
    if place := official.find(directory, name):
        found = official.read(place, name)
    elif Path(directory).is_file():
        found = arrays.read(directory, SHAPE, title)[0]
    else:
        found = _from_tfds(directory, name)
    try:
        for split in ("train", "test"):
            if f"x_{split}" not in found:
                raise BadInput(f"{title} needs both splits, and there is no x_{split}\n{HOW}")
            arrays.check(f"x_{split}", found[f"x_{split}"], f"y_{split}", found[f"y_{split}"], SHAPE)
        return arrays.source(found, names, mean, std, Augment(pad=4, mirror=True))
    except BadInput as error:
        raise BadInput(f"{directory}: {error}") from None


def _from_tfds(directory, name):
    if not any(Path(directory).glob(f"{name}/*/dataset_info.json")):
        raise BadInput(f"no {KINDS[name].title} in {directory}: {HOW}")
    import tensorflow_datasets as tfds

    try:
        pair: Any = tfds.data_source(name, split=["train", "test"], data_dir=directory, download=False)
        train, test = pair
    except Exception as error:  # tfds raises many kinds, and what matters is that it is not there
        raise BadInput(f"no prepared {name} in {directory}: {first_line(error)}\n{HOW}") from None
    found = {}
    for split, source in (("train", train), ("test", test)):
        examples = [read_record(source, i, f"{name} {split}") for i in range(len(source))]
        found[f"x_{split}"] = np.stack([e["image"] for e in examples])
        found[f"y_{split}"] = np.asarray([e["label"] for e in examples], np.int64)
    return found
