"""How fast a packed network is here, and how often it is right."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax import kinds, runtime
from bireal_jax.errors import BadInput, first_line, some
from bireal_jax.runtime import photos

BATCH = 64
WARM, RUNS, SECONDS = 5, 200, 5.0  # before it is timed; at most so many runs, and of slow networks as long as that


def latency(net: runtime.Network, image: np.ndarray) -> dict[str, Any]:
    """Milliseconds of one call with one image [h, w, c].

    Returns:
      runs, median_ms, and the quartiles lower_ms and upper_ms, between which half of the runs lie.
    """
    for _ in range(WARM):
        net(image[None])
    seconds: list[float] = []
    while len(seconds) < RUNS and (len(seconds) < 5 or sum(seconds) < SECONDS):
        begin = time.perf_counter()
        net(image[None])
        seconds.append(time.perf_counter() - begin)
    lower, median, upper = (round(float(q) * 1e3, 4) for q in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"runs": len(seconds), "median_ms": median, "lower_ms": lower, "upper_ms": upper}


def accuracy(net: runtime.Network, place: Path, broken: list[str], upright: bool = False) -> dict[str, Any]:
    """The share of labelled images whose class is the likeliest, or among the five likeliest.

    Args:
      net: of classes.
      place: a folder with a folder for each class, DIR/CLASS/*.jpg, or DIR/val/CLASS/*.jpg, named as the classes in
        the packed file; or an .npz file with x_test and y_test, or images and labels: uint8 [n, h, w, c], [n].
      broken: takes the message of each file that cannot be read; these are not counted.
      upright: see `photos.read`.

    Returns:
      images, top1, and top5 where there are more than five classes.

    Raises:
      BadInput: a network of maps, nothing to evaluate there, or classes that the network does not know.
    """
    if len(net.output_shape) > 1:
        raise BadInput("this network gives a map for each image; accuracy is a matter of classes")
    found = scores(net, _folder(net, place, broken, upright) if place.is_dir() else _file(net, place))
    if not found["images"]:
        raise BadInput(f"{place} has no image that can be read")
    return found


def scores(net: runtime.Network, batches: Iterable[tuple[np.ndarray, Any]]) -> dict[str, Any]:
    """What `accuracy` returns, for batches of images uint8 [n, h, w, c] and labels [n]."""
    seen, right, among = 0, 0, 0
    for images, labels in batches:
        order = np.argsort(-net(images), axis=-1, kind="stable")[:, :5] == np.asarray(labels)[:, None]
        seen, right, among = seen + len(images), right + int(order[:, 0].sum()), among + int(order.sum())
    found = {"images": seen, "top1": right / max(1, seen)}
    return found | ({"top5": among / max(1, seen)} if net.num_classes > 5 else {})


def _folder(net, place, broken, upright) -> Iterator[tuple[np.ndarray, list[int]]]:
    pairs = _labelled(net, evaluated(place))
    images, labels = [], []
    for path, label in pairs:
        try:
            images.append(runtime.photo(path, net, upright))
            labels.append(label)
        except BadInput as error:
            broken.append(str(error))
        if len(images) == BATCH:
            yield np.stack(images), labels
            images, labels = [], []
    if images:
        yield np.stack(images), labels


def evaluated(place: Path) -> Path:
    """The folder of a data set whose photos are counted: its val/, where it has one."""
    return place / "val" if (place / "val").is_dir() else place


def _folders(place):
    """The names of the folders in a folder, sorted."""
    return sorted(p.name for p in place.iterdir() if p.is_dir() and not p.name.startswith("."))


def of_classes(place: Path) -> bool:
    """Whether it is a folder of folders of which one has a photo."""
    if not place.is_dir():
        return False
    place = evaluated(place)
    return any(p.suffix.lower() in photos.SUFFIXES for name in _folders(place) for p in (place / name).iterdir())


def _labelled(net, place):
    """(path, label) of every photo in a folder of classes."""
    folders = _folders(place)
    names = list(net.labels if set(folders) <= set(net.labels) else net.ids)
    names = names or (folders if len(folders) == net.num_classes else [])
    if not folders:
        raise BadInput(f"{place} has no folders of classes; it must hold CLASS/*.jpg, named as in the network")
    if strangers := [name for name in folders if name not in names]:
        several = f"folders {some(strangers)}, which are no classes"
        what = several if strangers[1:] else f"a folder {strangers[0]!r}, which is no class"
        raise BadInput(
            f"{place} has {what} of the network; its folders: "
            f"{some(folders)}\nclasses of the network: {some(names) or f'{net.num_classes}, without names'}\n"
            "name the folders so, and leave out those that it does not know"
        )
    return [(path, names.index(name)) for name in folders for path in photos.named(str(place / name))]


def _file(net, place) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    try:
        with np.load(place, allow_pickle=False) as stored:
            pair = next(p for p in (("x_test", "y_test"), ("images", "labels")) if set(p) <= set(stored.files))
            images, labels = (stored[name] for name in pair)
    except StopIteration:
        raise BadInput(f"{place} has neither x_test and y_test nor images and labels") from None
    except Exception as error:  # files hold anything, and zipfile, zlib and numpy raise anything for it
        reason = kinds.no_zip(place) or first_line(error)
        raise BadInput(f"{place} is no folder, and no .npz file that can be read: {reason}") from None
    labels = labels.reshape(-1)
    if images.ndim != 4 or images.dtype != np.uint8 or len(images) != len(labels) or labels.dtype.kind not in "iu":
        raise BadInput(
            f"{place}: {pair[0]} is {images.dtype} {images.shape} and {pair[1]} {labels.dtype} ({len(labels)},)\n"
            "wanted: uint8 [n, h, w, c] and as many whole numbers"
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < net.num_classes:
        raise BadInput(
            f"{place}: {pair[1]} go from {labels.min()} to {labels.max()}; the network has {net.num_classes}"
        )
    for begin in range(0, len(images), BATCH):
        yield images[begin : begin + BATCH], labels[begin : begin + BATCH]
