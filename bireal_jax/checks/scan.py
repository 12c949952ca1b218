"""A data set, looked at whole before a run: broken files, wrong labels, empty classes, test images among training."""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from bireal_jax import build, pixels
from bireal_jax.data import Source, images, jpeg
from bireal_jax.data.source import Arrays, check_labels
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


@dataclass
class Tally:
    """What all of them are together.

    Attributes:
      counts: images of each class that are whole, int [2, classes], of the evaluation and of the training.
      broken, mislabelled: what is wrong with the others.
      twice: training images that are evaluation images, too; both: other images that lie in two classes.
      turned: how many files say that they are to be shown turned.
    """

    counts: np.ndarray
    broken: list[str] = field(default_factory=list)
    mislabelled: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    both: list[str] = field(default_factory=list)
    turned: int = 0


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
    places, count = {(stage.data.name, stage.data.dir): stage for stage in stages}, 0
    for stage in places.values():
        faults: list[str] = []
        source = build.source(stage, faults)
        count += check(source, stage.data.threads, [fault.splitlines()[0] for fault in faults])
    return count


def check(source: Source, threads: int = 4, faults: Sequence[str] = ()) -> int:
    """The same for one data set; `threads` decode. `faults` are what its files tell of classes without images."""
    if not jpeg.available():
        progress.say("JPEG files that are grey in part are not found: jpeg.cc was not compiled with the package")
    found = _tally(source, threads)
    names = source.label_names or tuple(map(str, range(source.num_classes)))
    whole = len(source.train) and not source.depth_range  # what is evaluated alone may lack classes
    untaught, unjudged = (np.flatnonzero(row == 0).tolist() if whole else [] for row in found.counts[::-1])
    in_memory = isinstance(source.train, Arrays)
    if in_memory and untaught:  # a training says so and begins; of folders it is a file that was lost
        progress.say(source.untaught(untaught))
    empty = [*faults] or [names[label] for label in untaught if not in_memory]
    if len(source.eval) and (labels := sorted({*unjudged} - {*untaught})):
        progress.say(source.unjudged(labels))
    total = len(source.train) + len(source.eval)
    checks = (
        ("files", found.broken, f"of {total:,} broken", "replace them, or take them out of the data set"),
        ("labels", found.mislabelled, f"of {total:,} out of range", "correct them, or the number of classes"),
        (
            "classes",
            empty,
            f"of {source.num_classes:,} without a training image",
            "add JPEG or PNG files, or remove the classes",
        ),
        (
            "duplicates",
            found.twice,
            f"of {len(source.train):,} training images are {source.split} images",
            "leave one of each" if source.split == "held-out" else "take them out of one split",
        ),
    )
    if whole and len(names) - len(untaught) == 1:
        alone = [name for label, name in enumerate(names) if label not in untaught]
        way_out = "put images of another class beside it"
        checks += (("one class", alone, "class alone, of which no network learns anything", way_out),)
    if in_memory and untaught:
        checks = tuple(check for check in checks if check[0] != "classes")  # of which the note is
    if found.both:
        checks += (
            ("two classes", found.both, f"of {total:,} images lie in two classes", "leave each in its right one"),
        )
    if source.left_out:
        left_out = [listing.shown(path) for path in source.left_out]
        way_out = "convert them to JPEG or PNG and put them into the folders of their classes, or take them away"
        checks += (("left out", left_out, "images are not read", way_out),)
    if found.turned:
        progress.say(
            f"note: {found.turned:,} of {total:,} files say in EXIF that the photo is to be turned\n"
            "training ignores that, and so do evaluation and bireal-run"
        )
    for what, bad, limit, way_out in checks:
        some = ", ".join(bad[:SHOWN]) + (f" and {len(bad) - SHOWN:,} more" if len(bad) > SHOWN else "")
        progress.verdict(not bad, what, f"{len(bad):,} {limit}" + (f": {some}; {way_out}" if bad else ""))
    return sum(bool(bad) for _, bad, _, _ in checks)


def _tally(source, threads):
    """What all looks together say."""
    found = Tally(np.zeros((2, source.num_classes), np.int64))
    first: dict[bytes, tuple[str, str, int]] = {}  # digest -> split, name and class of the first such image
    for part, split in enumerate(("test", "train")):
        for look in _looks(source, split, threads, found.broken):
            if look.broken or look.mislabelled:
                (found.broken if look.broken else found.mislabelled).append(look.broken or look.mislabelled)
                continue
            found.counts[part, look.label] += 1
            found.turned += look.turned
            before, name, label = first.setdefault(look.digest, (split, look.name, look.label))
            if before != split:
                found.twice.append(f"{look.name} = {name}" + ("" if label == look.label else ", of another class"))
            elif label != look.label:
                found.both.append(f"{look.name} = {name}")
    return found


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
