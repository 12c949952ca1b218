"""scikit-learn's handwritten digits: 1,797 real 8x8 images that come with a dependency. Nothing to download."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.data.augment import Augment
from bireal_jax.data.source import Arrays, Source
from bireal_jax.errors import BadInput

AUGMENT = Augment(pad=1)


def load() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 8, 8] from 0 to 16, and labels [1797], from the file of scikit-learn, whose import takes a second.

    If it is no longer there, from scikit-learn.
    """
    spec = importlib.util.find_spec("sklearn")
    places = spec.submodule_search_locations if spec else None
    file = Path(places[0] if places else "") / "datasets" / "data" / "digits.csv.gz"
    if file.exists():
        rows = np.loadtxt(file, delimiter=",")
        return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(int)
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    return digits.images, digits.target


def build(directory: str, image_size: int, resize: int) -> Source:
    """The digits, a fixed random fifth of them (359) held out for evaluation. `directory` and `resize` are not used.

    The images of one writer are on both sides of the split, so the accuracy says how well the network fits, not how it
    does on the hand of a stranger.
    """
    if image_size != 8:
        raise BadInput(f"config.data.image_size is {image_size}; the digits are 8 pixels wide")
    pixels, labels = load()
    images = np.round(pixels * (255 / 16)).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    held_out = len(images) // 5
    test, train = order[:held_out], order[held_out:]
    return Source(
        train=Arrays(images[train], labels[train], AUGMENT, train), eval=Arrays(images[test], labels[test], None, test),
        prepare=dict,
        image_shape=(8, 8, 1), num_classes=10, mean=(0.5,), std=(0.5,), label_names=tuple("0123456789"),
    )  # fmt: skip
