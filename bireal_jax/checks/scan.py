"""A data set, looked at whole before a run: broken files, wrong labels, empty classes, test images among training."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bireal_jax import build, pixels
from bireal_jax.data import Source, images, jpeg
from bireal_jax.data.source import check_labels
from bireal_jax.errors import BadInput, first_line
from bireal_jax.pixels import listing
from bireal_jax.running import progress

SHOWN = 5  # findings of one kind that are named; the others are counted
BLOCK = 256  # examples that are read before the next are asked for


class Look(NamedTuple):
    """What one example is.

    Attributes:
      name: of its file, or its split and number.
      digest: of the bytes of its file, or of the pixels of an array.
      label: its class; 0 for a depth map.
      broken, mislabelled: what is wrong with it, or "".
      turned: its file says that it is to be shown turned.
    """

    name: str
    digest: bytes = b""
    label: int = 0
    broken: str = ""
    mislabelled: str = ""
    turned: bool = False


def run(config: ConfigDict) -> int:
    """Reads every example of the data sets of all stages, and says OK or FIX, with what mends it.

    Args:
      config: the recipe. No device is used.

    Returns:
      How many things are to be mended.

    Raises:
      BadInput: there is no data set.
    """
    stages = build.stages(config)
    places = {(stage.data.name, stage.data.dir): stage for stage in stages}
    return sum(check(build.source(stage), stage.data.threads) for stage in places.values())


def check(source: Source, threads: int = 4) -> int:
    """The same for one data set; `threads` decode."""
    broken, mislabelled, twice = [], [], []
    if not jpeg.available():
        progress.say("JPEG files that are grey in part are not found: jpeg.cc was not compiled with the package")
    turned = 0
    counts = np.zeros((2, source.num_classes), np.int64)
    test: dict[bytes, str] = {}
    for part, split in enumerate(("test", "train")):
        for look in _looks(source, split, threads, broken):
            if look.broken or look.mislabelled:
                (broken if look.broken else mislabelled).append(look.broken or look.mislabelled)
                continue
            counts[part, look.label] += 1
            turned += look.turned
            if split == "test":
                test[look.digest] = look.name
            elif look.digest in test:
                twice.append(f"{look.name} = {test[look.digest]}")
    names = source.label_names or tuple(map(str, range(source.num_classes)))
    empty = [] if source.depth_range else [names[label] for label in np.flatnonzero(counts[1] == 0)]
    total = len(source.train) + len(source.eval)
    checks = (
        ("files", broken, f"of {total:,} broken", "replace them, or take them out of the data set"),
        ("labels", mislabelled, f"of {total:,} out of range", "correct them, or the number of classes"),
        ("classes", empty, f"of {source.num_classes:,} without a training image", "add images, or remove the classes"),
        (
            "duplicates",
            twice,
            f"of {len(source.train):,} training images are {source.split} images",
            "take them out of one split",
        ),
    )
    if source.left_out:
        left_out = [listing.shown(path) for path in source.left_out]
        way_out = "convert them to JPEG or PNG and put them into the folders of their classes, or take them away"
        checks += (("left out", left_out, "images are not read", way_out),)
    if turned:
        progress.say(
            f"note: {turned:,} of {total:,} files say in EXIF that the photo is to be turned\n"
            "training ignores that, and so do evaluation and bireal-run"
        )
    for what, found, limit, way_out in checks:
        some = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN:,} more" if len(found) > SHOWN else "")
        progress.verdict(not found, what, f"{len(found):,} {limit}" + (f": {some}; {way_out}" if found else ""))
    return sum(bool(found) for _, found, _, _ in checks)


def _looks(source, split, threads, broken) -> Iterator[Look]:
    """A look at every example in order, with progress for the user."""
    examples: Any = source.train if split == "train" else source.eval
    count, clock = len(examples), progress.Clock(1)
    with progress.Bar(split, 0, count) as bar, ThreadPoolExecutor(threads) as pool:
        for begin in range(0, count, BLOCK):
            end = min(begin + BLOCK, count)
            yield from pool.map(partial(_look, source, examples, split), range(begin, end))
            bar.advance(end)
            clock.steps += end - begin
            if end == count or end * 10 // count > begin * 10 // count:
                bar.line(end, split, {"broken": len(broken)}, clock.read())


def _look(source, examples, split, index):
    name = f"{split} image {index}"
    try:
        example = examples[index]
        name = example.get("name", name)
        stored = example["bytes"] if "bytes" in example else example["image"]
        digest = hashlib.blake2b(memoryview(stored), digest_size=16).digest()
        label = source.prepare(example)["label"]
        if isinstance(stored, bytes) and (lost := images.damage(stored)):
            return Look(name, broken=f"{name} is damaged: {lost}")
    except Exception as error:  # files hold anything, and libraries raise anything for it
        return Look(name, broken=first_line(error) if isinstance(error, BadInput) else f"{name}: {first_line(error)}")
    sideways = isinstance(stored, bytes) and pixels.turned(stored)
    if source.depth_range:
        return Look(name, digest, turned=sideways)
    try:
        check_labels(np.asarray(label), source.num_classes, name)
    except BadInput as error:
        return Look(name, mislabelled=first_line(error).split(";")[0])
    return Look(name, digest, int(label), turned=sideways)
