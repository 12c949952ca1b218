"""What a data set is to the rest of the package."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from bireal_jax import places
from bireal_jax.data.augment import Augment
from bireal_jax.errors import BadInput, first_line, some
from bireal_jax.pixels import listing

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Faulty(BadInput):
    """A data set that can be looked at, and that nobody trains on.

    Args:
      source: it is.
      faults: what is wrong with it, a message each. The first one is that of the error.
    """

    def __init__(self, source: "Source", faults: Sequence[str]):
        first, *rest = faults[0].split("\n")
        more = f"; {len(faults) - 1} more such: --mode=data names them" if faults[1:] else ""
        super().__init__("\n".join([first + more, *rest]))
        self.source, self.faults = source, tuple(faults)


class Examples(Protocol):
    """Random access to so many examples."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Source:
    """A data set: random access to its examples, and how one becomes an input.

    Attributes:
      train, eval: sequences of examples, anything that `augment` and `prepare` understand; `Arrays`, if in memory.
      prepare: example -> {"image": uint8 [h, w, c], "label": int, or float32 [H, W]}, fixed, for evaluation.
      image_shape: (h, w, c) of the inputs.
      num_classes: labels are 0 to num_classes - 1.
      mean, std: per channel, for images scaled to [0, 1].
      label_names: one for each class, or empty.
      augment: (example, numpy Generator) -> as `prepare` but random, for training. `Arrays` have their own.
      label_shape: [H, W] of the maps that evaluation compares with; () where labels are classes.
      depth_range: labels are maps in metres within this range, 0 where there is no depth; None for classes.
      split: what the evaluation examples are called.
      left_out: paths of images that lie there and are none of the examples.
      normalized: a line that says whose mean and std these are, where they are not the data set's own, or "".

    Raises:
      BadInput: mean, deviation or names of another number than channels or classes.
    """

    train: Examples | Sequence[Any]
    eval: Examples | Sequence[Any]
    prepare: Callable[[Any], dict]
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    label_names: tuple[str, ...] = ()
    augment: Callable[[Any, np.random.Generator], dict] | None = None
    label_shape: tuple[int, ...] = ()
    depth_range: tuple[float, float] | None = None
    split: str = "test"
    left_out: tuple[str, ...] = ()
    normalized: str = ""

    def __post_init__(self):
        for name in ("mean", "std"):
            if len(values := getattr(self, name)) != self.image_shape[-1]:
                raise BadInput(
                    f"the {name} of a data set has {len(values)} values, {values}, and its images have "
                    f"{self.image_shape[-1]} channels; give the Source one for each"
                )
        if self.label_names and len(self.label_names) != self.num_classes:
            raise BadInput(f"a data set has {len(self.label_names)} label_names for {self.num_classes} classes")

    @property
    def note(self) -> str:
        """Lines, with their ends: whose normalization it is, what is left out, classes without images; "" for none."""
        lines = [self.normalized] if self.normalized else []
        lines += [listing.note(self.left_out)] if self.left_out else []
        untaught = self.lacking(self.train)
        lines += [self.untaught(untaught)] if untaught else []
        unjudged = [label for label in self.lacking(self.eval) if label not in untaught]
        if unjudged and len(self.train):  # what is evaluated alone may have some classes
            lines.append(self.unjudged(unjudged))
        return "".join(f"{line}\n" for line in lines)

    def lacking(self, examples: Any) -> list[int]:
        """Classes that none of some examples has; [] where that is not known before they are read, or there are none.

        Args:
          examples: `train` or `eval`.
        """
        labels = getattr(examples, "labels", None)
        if labels is None or not len(labels) or self.depth_range:
            return []
        return sorted({*range(self.num_classes)} - {*np.unique(labels).tolist()})

    def untaught(self, labels: Sequence[int]) -> str:
        """A line that says that classes have no image in the training, and where labels that begin late are why."""
        if self.label_names:
            return f"note: no training image is of class {self.classes(labels)}, of {self.num_classes}"
        said = f"note: no training image has label {self.classes(labels)}, of {self.num_classes}"
        first = next(label for label in range(self.num_classes) if label not in labels)
        if not first:
            return f"{said}; numpy.unique(LABELS, return_inverse=True)[1] numbers those that there are"
        return (
            f"{said}: labels begin at {first}; subtract {first} if that is the first class, since classes count from 0"
        )

    def unjudged(self, labels: Sequence[int]) -> str:
        """A line that says that classes have no image in the evaluation."""
        one = ": a class with one photo has none to hold out" if self.split == "held-out" else ""
        return f"note: no {self.split} image is of class {self.classes(labels)}, which the accuracy leaves out{one}"

    def classes(self, labels: Sequence[int]) -> str:
        """The names of some classes, or their numbers, at most six."""
        return some([self.label_names[label] if self.label_names else label for label in labels], 6)


class Arrays:
    """A sequence of {"image", "label"} over two arrays that lie in memory, which also gives whole batches at once.

    Args:
      images: uint8 [n, h, w, c].
      labels: integers [n].
      augment: what is done to them, for training.
      places: of each in the arrays that these are a part of.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, augment: Augment | None = None, places: np.ndarray | None = None
    ):
        self.images, self.labels, self.augment, self.places = images, labels, augment, places

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": self.images[index], "label": self.label(index)}

    def label(self, index: int) -> int:
        """Of one example."""
        return int(self.labels[index])

    def place(self, index: int) -> int:
        """Of one example in the arrays that these are a part of."""
        return int(index if self.places is None else self.places[index])

    def batch(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """The examples at `indices`, augmented."""
        return self.gathered(self.rows(indices, rng))

    def rows(self, indices: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """int32 [n, len(augment.ROW)]: which examples, and what `augment` does to them."""
        changes = (self.augment or Augment()).draw(len(indices), self.images.shape[1:], rng)
        return np.concatenate([np.asarray(indices, np.int32)[:, None], changes], 1)

    def gathered(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The batch that rows say."""
        images = self.images[rows[:, 0]]
        return {
            "image": self.augment.change(images, rows) if self.augment else images,
            "label": self.labels[rows[:, 0]],
        }


def read_record(records: Any, index: int, name: str) -> dict[str, Any]:
    """Record `index` of a tensorflow-datasets source. Raises BadInput, which calls the source `name`, if damaged."""
    try:
        return records[index]
    except Exception as error:  # array_record, protobuf and tensorflow-datasets raise many kinds
        raise BadInput(
            f"{name}, record {index}: {first_line(error)}\nits array_record file is damaged; prepare the data set again"
        ) from None


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Raises BadInput if a label is not in [0, num_classes): such a label trains silently, or gives NaN.

    Args:
      labels: integers of any shape.
      num_classes: how many classes there are.
      where: what the labels belong to, for the message.
    """
    bad = labels[(labels < 0) | (labels >= num_classes)]
    if bad.size:
        raise BadInput(
            f"{where}: label {bad[0]} is not in 0..{num_classes - 1}; correct the labels or the number of classes"
        )


def open_tfds(directory: str, name: str, how: str) -> tuple[Any, tuple[Any, str], tuple[Any, str]]:
    """A prepared data set of tensorflow-datasets: its builder, and records and name of each split, images left encoded.

    Args:
      directory: holds NAME in the array_record format.
      name: the data set, with the splits train and validation.
      how: to prepare it; ends the messages.

    Raises:
      BadInput: it is not there, or not readable.
    """
    prepared = [path.parent for path in Path(directory).glob(f"{name}/*/dataset_info.json")] if directory else []
    split = {place: place.name.split(".") for place in prepared}
    found = {place: [int(n) for n in parts] for place, parts in split.items() if all(map(str.isdecimal, parts))}
    if not found:
        raise BadInput(f"no prepared {name} at {places.missing(directory)}\n{how}")
    import tensorflow_datasets as tfds

    version = max(found, key=found.__getitem__)  # 10.0.0 is behind 5.1.0; a copy of one, 5.1.0_old, is none
    try:
        builder: Any = tfds.builder_from_directory(str(version))
        raw = {"image": tfds.decode.SkipDecoding()}
        train, val = (
            (builder.as_data_source(split, decoders=raw), f"{name} {split}") for split in ("train", "validation")
        )
    except (ValueError, NotImplementedError, FileNotFoundError, AssertionError) as error:
        raise BadInput(f"{version} cannot be read: {first_line(error)}\n{how}") from None
    return builder, train, val
