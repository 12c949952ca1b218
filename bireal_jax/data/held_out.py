"""Examples held out of the training ones, to compare networks on: the evaluation set is left for the end."""

import dataclasses
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
        label = train.label(int(index))
        check_labels(np.asarray(label), source.num_classes, f"training image {index}")
        if counts[label] < per_class:
            counts[label] += 1
            held.append(index)
            if counts.min() == per_class:
                break
    if not held:
        raise BadInput(f"{len(train)} training images are too few to hold some out; set config.data.held_out to 0")
    kept = np.setdiff1d(order, held)
    judged = _part(train, np.sort(held), fixed=True)
    return dataclasses.replace(source, train=_part(train, kept), eval=judged, split="held-out")


def _part(examples, indices, fixed=False):
    """Arrays stay arrays, of which whole batches come at once."""
    if isinstance(examples, Arrays):
        return Arrays(examples.images[indices], examples.labels[indices], None if fixed else examples.augment)
    return Part(examples, indices)
