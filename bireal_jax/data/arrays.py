"""Your own arrays: an .npz file of images, uint8 [n, size, size] or [n, size, size, channels], and labels [n]."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax import kinds, places
from bireal_jax.data.augment import Augment
from bireal_jax.data.source import Arrays, Source, check_labels
from bireal_jax.data.stored import Npz
from bireal_jax.errors import BadInput, first_line

MOST = 600_000 * 3072  # bytes of the images of a split, ten times those of CIFAR-10: they lie in memory
# Names of images and of labels that are read: Keras', MedMNIST's, plain ones. Of either split the first pair counts.
TRAIN = (("x_train", "y_train"), ("train_images", "train_labels"), ("images", "labels"))
TEST = (("x_test", "y_test"), ("test_images", "test_labels"), ("x_val", "y_val"), ("val_images", "val_labels"))
# What makes of arrays of another kind those that are wanted, by the kind of their dtype.
PIXELS = {
    "f": "pixels are whole numbers from 0 to 255; of floats in 0..1: numpy.uint8(numpy.round(255 * IMAGES))",
    "i": "where its pixels go from 0 to 255: numpy.uint8(IMAGES)",
}
PIXELS["u"] = PIXELS["i"]
LABELS = {
    "f": "numpy.int64(LABELS), if they are whole numbers from 0",
    "U": "label_names, labels = numpy.unique(LABELS, return_inverse=True), and store both",
    "one hot": "LABELS.argmax(-1), if each row has one 1",
}
HOW = (
    "write it so: numpy.savez(FILE, images=IMAGES, labels=LABELS), uint8 [n, size, size, channels], integers [n]\n"
    "a part is held out for evaluation, unless there are x_train, y_train, x_test and y_test"
)


def build(directory: str, image_size: int, resize: int) -> Source:
    """The file `directory`. Classes are as many as `label_names` in it, or else as the highest label says.

    Normalization is by mean and deviation of its training images, each channel on its own. Training shifts images by up
    to an eighth of their size: 4 of CIFAR's 32 pixels, 1 of the digits' 8. `resize` is not used.

    Raises:
      BadInput: no such file, or other arrays in it.
    """
    if not Path(directory).is_file():
        raise BadInput(f"no file at {places.missing(directory, suffixes=('.npz',))}\n{HOW}")
    arrays, names = read(directory)
    try:
        labels = [arrays[name] for name in ("y_train", "y_test") if name in arrays]
        highest = max(int(y.max()) for y in labels)
        if names and highest >= len(names):
            first = min(int(y[y >= len(names)].min()) for y in labels if y.max() >= len(names))
            raise BadInput(
                f"label {first} is not in 0..{len(names) - 1}: label_names has {len(names)} names, and labels go up to "
                f"{highest}\ngive each class a name, in the order of the labels, or leave label_names out"
            )
        if not names and highest >= sum(map(len, labels)):
            raise BadInput(f"labels go up to {highest}, and there are {sum(map(len, labels)):,} images; count from 0")
        images = arrays["x_train" if "x_train" in arrays else "x_test"]
        if images.shape[1] != image_size:
            raise BadInput(
                f"its images are {images.shape[1]} pixels wide, and config.data.image_size is {image_size}\n"
                f"set config.data.image_size={images.shape[1]}"
            )
        mean, std = statistics(images)
        return source(arrays, names or highest + 1, mean, std, Augment(pad=image_size // 8))
    except BadInput as error:
        raise BadInput(f"{directory}: {error}") from None


def mirrored(source: Source) -> Source:
    """The same data set, half of whose training images are mirrored left and right.

    Raises:
      BadInput: images in files, whose training mirrors them anyway.
    """
    train = source.train
    if not isinstance(train, Arrays):
        raise BadInput("config.data.mirror is for images in memory; leave it False: those in files are mirrored anyway")
    augment = dataclasses.replace(train.augment or Augment(), mirror=True)
    return dataclasses.replace(source, train=Arrays(train.images, train.labels, augment, train.places))


def source(
    arrays: Mapping[str, np.ndarray], classes: int | tuple[str, ...], mean: tuple[float, ...], std: tuple[float, ...],
    augment: Augment | None,
) -> Source:  # fmt: skip
    """A data set in memory.

    Args:
      arrays: x_train and x_test, uint8 [n, h, w, c], y_train and y_test, integers [n] or [n, 1]; one split may lack.
      classes: how many, or their names.
      mean, std: per channel, for images scaled to [0, 1].
      augment: of `Arrays`, for training.

    Raises:
      BadInput: a label that is no class.
    """
    names = () if isinstance(classes, int) else classes
    count = classes if isinstance(classes, int) else len(classes)
    parts: dict[str, Any] = {"train": (), "test": ()}
    for split in parts:
        if f"x_{split}" in arrays:
            labels = arrays[f"y_{split}"].reshape(-1)
            check_labels(labels, count, f"y_{split}")
            parts[split] = Arrays(arrays[f"x_{split}"], labels, augment if split == "train" else None)
    shape = (parts["train"] or parts["test"]).images.shape[1:]
    return Source(
        train=parts["train"], eval=parts["test"], prepare=dict, image_shape=shape, num_classes=count, mean=mean,
        std=std, label_names=names,
    )  # fmt: skip


def read(
    path: str, wanted: tuple[int, ...] = (), what: str = "a file of images"
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """What a file holds: arrays as `source` takes them, images with channels, and its names of classes, if it has any.

    Args:
      path: of an .npz file.
      wanted: [h, w, c] of the images; (): squares of any size.
      what: it should be, for messages.

    Raises:
      BadInput: a damaged file, no images, or of another kind, shape or size; nothing is read before that is looked at.
    """
    try:
        with Npz(path) as stored:
            found = {split: _pair(known, stored.claims) for split, known in (("train", TRAIN), ("test", TEST))}
            pairs = {split: pair for split, pair in found.items() if pair}
            if not pairs:
                there = ", ".join(sorted(stored.claims)[:6]) or "nothing"
                raise ValueError(f"there is no x_train with y_train, nor images with labels, but {there}")
            for x, y in pairs.values():
                check(x, stored.claims[x], y, stored.claims[y], wanted)
            sides = {stored.claims[x].shape[1:] for x, _ in pairs.values()}
            if len(sides) > 1:
                raise ValueError(f"training and test images are of two shapes, {' and '.join(map(str, sorted(sides)))}")
            arrays = {}
            for split, (x, y) in pairs.items():
                images = stored.read(x)
                arrays |= {
                    f"x_{split}": images[..., None] if images.ndim == 3 else images,
                    f"y_{split}": _from_0(stored.read(y), y),
                }
            names = _names(stored.read("label_names")) if "label_names" in stored.claims else ()
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from None
    except Exception as error:  # files hold anything, and zipfile, zlib and numpy raise anything for it
        reason = kinds.other_bytes(path) or first_line(error)
        raise BadInput(f"{path} is not {what}: {reason}\n{HOW}") from None
    return arrays, names


def _pair(known, there):
    """The first of pairs of names that is there, () for none. Raises BadInput if one of its two names lacks."""
    for pair in known:
        lacking = [name for name in pair if name not in there]
        if len(lacking) == 1:
            has = next(name for name in pair if name in there)
            raise BadInput(f"there is {has} and no {lacking[0]}; store {lacking[0]} beside it, or leave {has} out")
        if not lacking:
            return pair
    return ()


def _from_0(labels, name):
    """Labels as they are. Raises BadInput where one is below 0."""
    if labels.min() < 0:
        raise BadInput(
            f"{name} goes from {labels.min()} to {labels.max()}, and the first class is 0\n"
            f"numpy.unique({name}, return_inverse=True)[1] numbers them from 0; if {labels.min()} stands for no class, "
            "leave those images out"
        )
    return labels


def _names(stored):
    """The names of classes that an array has."""
    names = tuple(stored.astype(str).ravel().tolist())
    if stored.ndim != 1 or len(set(names)) != len(names):
        twice = next((name for name in names if names.count(name) > 1), "")
        wrong = f"is an array {stored.shape}" if stored.ndim != 1 else f"has {twice!r} twice"
        raise BadInput(f"label_names {wrong}; it must be a list with one name for each class")
    return names


def check(x: str, images: Any, y: str, labels: Any, wanted: tuple[int, ...] = ()) -> None:
    """Raises BadInput, which calls them `x` and `y`, for arrays of another kind or shape, or for claims of such.

    `wanted` is as of `read`.
    """
    count = labels.shape[0] if labels.shape else 0
    if images.shape and count != images.shape[0] and images.dtype == np.uint8:
        raise BadInput(f"{x} has {images.shape[0]:,} images and {y} {count:,} labels; each image needs its own")
    shape, number = tuple(images.shape), count or "n"
    fits = (
        shape == (count, *wanted) if wanted else len(shape) in (3, 4) and shape[0] == count and 0 < shape[1] == shape[2]
    )
    if images.dtype != np.uint8 or not fits or not count or 0 in shape:
        sizes = ", ".join(map(str, wanted)) or "size, size, channels"
        pixels = PIXELS.get(images.dtype.kind, "") if images.dtype != np.uint8 else ""
        lines = [f"{x} is {images.dtype} {shape}, wanted uint8 ({number}, {sizes})", pixels, _reshaped(shape, wanted)]
        raise BadInput("\n".join(filter(None, lines)))
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":  # Keras stores (n, 1)
        way_out = LABELS.get(labels.dtype.kind if len(labels.shape) == 1 else "one hot", "")
        raise BadInput(f"{y} is {labels.dtype} {tuple(labels.shape)}, wanted integers ({count},)\n{way_out}".strip())
    if count > (most := MOST // math.prod(shape[1:])):
        raise BadInput(f"{x} has {count:,} images, at most {most:,} are read; store them as a folder")


def padding(height: int, width: int, side: int) -> str:
    """The line that makes squares of `side` pixels of images, with black around them."""
    around = [((side - size) // 2, side - size - (side - size) // 2) for size in (height, width)]
    return f"numpy.pad(IMAGES, [(0, 0), {around[0]}, {around[1]}, (0, 0)][: IMAGES.ndim])"


def _reshaped(shape, wanted):
    """The line that makes of images of another shape those that are wanted; "" where none is known."""
    _, *rest = shape or (0,)
    if len(rest) == 1 and not wanted and rest[0] and math.isqrt(rest[0]) ** 2 == rest[0]:
        return f"where a row is an image: IMAGES.reshape(-1, {math.isqrt(rest[0])}, {math.isqrt(rest[0])})"
    if len(rest) == 3 and 0 < rest[0] <= 4 < min(rest[1:]) and wanted in ((), (*rest[1:], rest[0])):
        return "channels are last: IMAGES.transpose(0, 2, 3, 1)"
    if len(rest) not in (2, 3) or wanted or rest[0] == rest[1] or 0 in rest:
        return ""
    height, width = rest[:2]
    top, left = ((size - min(height, width)) // 2 for size in (height, width))
    cut = f"IMAGES[:, {top}:{top + min(height, width)}, {left}:{left + min(height, width)}]"
    return f"images must be square: pad them, {padding(height, width, max(height, width))}, or crop them, {cut}"


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel of images uint8 [n, h, w, c], scaled to [0, 1]; 1 for a constant one's."""
    values, mean, std = np.arange(256) / 255, [], []
    for channel in np.moveaxis(images, -1, 0):
        share = np.bincount(channel.ravel(), minlength=256) / channel.size
        mean.append(float(share @ values))
        std.append(float(np.sqrt(share @ (values - mean[-1]) ** 2)) or 1.0)
    return tuple(mean), tuple(std)
