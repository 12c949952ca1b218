"""Examples held out of the training ones, to compare networks on: the evaluation set is left for the end."""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from bireal_jax.data.source import Arrays, Examples, Source, check_labels
from bireal_jax.errors import BadInput


class Part:
    """The examples at `indices` of a sequence."""

    def __init__(self, examples: Examples, indices: np.ndarray):
        self.examples, self.indices = examples, indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.examples[int(self.indices[index])]

    @property
    def labels(self) -> np.ndarray | None:
        """Of all examples, or None where they are read for it."""
        labels = getattr(self.examples, "labels", None)
        return None if labels is None else labels[self.indices]

    @property
    def names(self) -> list[str] | None:
        """Of all files, or None where the examples have none."""
        names = getattr(self.examples, "names", None)
        return None if names is None else [names[i] for i in self.indices]

    def label(self, index: int) -> int:
        """Of one example."""
        return _label(self.examples, int(self.indices[index]))


def split_off(source: Source, share: float, seed: int) -> Source:
    """The same data set, whose evaluation examples are a random share of each class of its training ones, which lack
    them.

    An example has a place by its name, and what has the first places is taken: so others of its class that come or go
    move few across, and other classes none. A file has its name, an array its index.

    Args:
      source: a data set without evaluation examples. All labels are looked at.
      share: above 0; 1 leaves no training examples, so nothing is held out and the split is called evaluation. Below it
        a class of two or more is on both sides.
      seed: of the choice.
    """
    train: Any = source.train
    labels = getattr(train, "labels", None)
    if source.depth_range or labels is None:
        labels = np.array([0 if source.depth_range else _label(train, i) for i in range(len(train))], int)
    check_labels(labels, source.num_classes, "a training image")
    names = getattr(train, "names", None) or range(len(train))
    place = lambda i: hashlib.blake2b(f"{seed} {names[i]}".encode(errors="surrogateescape")).digest()  # noqa: E731
    held = []
    for indices in np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1]):
        most = len(indices) if share == 1 else len(indices) - 1
        held.append(sorted(indices.tolist(), key=place)[: min(most, max(1, round(share * len(indices))))])
    judged = np.sort(np.concatenate(held)).astype(int)
    if not len(judged):
        raise BadInput(f"{len(train)} images are too few to hold some out; config.data.val_share=1.0 evaluates on all")
    found = _divided(source, judged)
    return dataclasses.replace(found, split="evaluation") if share == 1 else found


def _label(examples, index):
    """Of one example, which is not read for it where the examples know a better way."""
    return examples.label(index) if hasattr(examples, "label") else examples[index]["label"]


def _divided(source, judged):
    """The data set with the training examples at `judged`, ascending, for evaluation."""
    kept = np.setdiff1d(np.arange(len(source.train)), judged)
    held = _part(source.train, judged, fixed=True)
    return dataclasses.replace(source, train=_part(source.train, kept), eval=held, split="held-out")


def hold_out(source: Source, per_class: int) -> Source:
    """The same data set whose evaluation examples are so many of every class of its training ones, which lack them.

    Always the same ones. They are looked for in one half of the training examples, so that a class with fewer gives
    what there is and keeps about as many. Labels are read one by one until every class has its number; on ImageNet
    that is about a tenth of all records.

    Args:
      source: a data set with classes.
      per_class: how many of each; MetaPruning has 50 of ImageNet.

    Raises:
      BadInput: the labels are maps, or one is out of range.
    """
    if source.depth_range:
        raise BadInput("config.data.held_out is for classes; this data set has depth maps: leave it at 0")
    train: Any = source.train
    counts, held = np.zeros(source.num_classes, int), []
    order = np.random.default_rng(0).permutation(len(train))
    for index in order[: len(order) // 2]:
        label = _label(train, int(index))
        check_labels(np.asarray(label), source.num_classes, f"training image {index}")
        if counts[label] < per_class:
            counts[label] += 1
            held.append(index)
            if counts.min() == per_class:
                break
    if not held:
        raise BadInput(f"{len(train)} training images are too few to hold some out; set config.data.held_out to 0")
    return _divided(source, np.sort(held))


def _part(examples, indices, fixed=False):
    """Arrays stay arrays, of which whole batches come at once."""
    if isinstance(examples, Arrays):
        there = np.array([examples.place(i) for i in indices])
        return Arrays(examples.images[indices], examples.labels[indices], None if fixed else examples.augment, there)
    return Part(examples, indices)
