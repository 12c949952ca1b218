"""A data set that has some of the classes of a network, numbered as they are there."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bireal_jax.data.source import Arrays, Source


def numbered(source: Source, names: Sequence[str]) -> Source:
    """The same data set with these classes, of which it has some: a label is the place of its name among them.

    Args:
      source: a data set of classes with names, each one of `names`.
      names: of all classes.
    """
    numbers = np.array([names.index(name) for name in source.label_names])
    train, judged = (_examples(part, numbers) for part in (source.train, source.eval))
    return dataclasses.replace(source, train=train, eval=judged, num_classes=len(names), label_names=tuple(names))


def _examples(examples: Any, numbers):
    if isinstance(examples, Arrays):
        return Arrays(examples.images, numbers[examples.labels], examples.augment, examples.places)
    return _Numbered(examples, numbers) if len(examples) else ()


class _Numbered:
    """A sequence of examples whose label k is numbers[k]."""

    def __init__(self, examples, numbers):
        self.examples, self.numbers = examples, numbers

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        example = self.examples[index]
        return {**example, "label": int(self.numbers[example["label"]])}
