"""Your own images: DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg, JPEG or PNG; or DIR/CLASS/*.jpg, to be split."""

import os
from functools import partial
from pathlib import Path

import numpy as np

from bireal_jax import places
from bireal_jax.data.images import augment_file, prepare_file
from bireal_jax.data.source import Faulty, Source
from bireal_jax.errors import BadInput, some
from bireal_jax.pixels import listing

HOW = (
    "config.data.dir must hold train/CLASS/ and val/CLASS/ with JPEG or PNG files, or CLASS/ alone, of which a part is "
    "held out"
)


class Files:
    """A sequence of {"bytes", "label", "name"} over (path, label) pairs; a file is read when it is asked for."""

    def __init__(self, pairs: list[tuple[str, int]]):
        self.pairs = pairs

    def __len__(self):
        return len(self.pairs)

    @property
    def labels(self) -> np.ndarray:
        """Of all files, which are not read for it."""
        return np.array([label for _, label in self.pairs], int)

    def label(self, index: int) -> int:
        """Of one file, which is not read for it."""
        return self.pairs[index][1]

    @property
    def names(self) -> list[str]:
        """Of all files, each in the folder of its class."""
        return [os.path.basename(path) for path, _ in self.pairs]

    def __getitem__(self, index):
        path, label = self.pairs[index]
        try:
            with open(path, "rb") as file:  # a Path takes twice as long
                return {"bytes": file.read(), "label": label, "name": path}
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}; the folder changed since the run began") from None


def build(directory: str, image_size: int, resize: int) -> Source:
    """The folder as a data set; classes are numbered in order of their names. ImageNet's crops and normalization.

    Without train/ and val/ all images are training images, to be split; with val/ alone there are none of these.

    Raises:
      Faulty: folders of classes without images, or in val/ alone.
      BadInput: nothing there to look at.
    """
    if not directory:
        raise BadInput(f"config.data.dir is empty: {HOW}")
    splits = _splits(Path(directory))
    there = {split: _classes(place) for split, place in splits.items()}
    names = sorted({name for found in there.values() for name in found})
    strangers = [name for name in names if name not in there.get("train", names)]
    faults = [f"{splits['val']} has classes that train lacks: {some(strangers)}"] if strangers else []
    found, left = {}, []
    for split, place in splits.items():
        found[split], left_here = _list(place, names)
        left += left_here
        if not found[split]:
            nothing = f"no image files below {place}: {HOW}" + ("\n" + listing.note(left) if left else "")
            raise BadInput(faults[0] if faults else nothing)
    if "train" in found:
        faults += _empty_classes(splits["train"], there["train"], names, found, left)
    source = Source(
        train=Files(found.get("train", [])), eval=Files(found.get("val", [])),
        augment=partial(augment_file, size=image_size), prepare=partial(prepare_file, size=image_size, resize=resize),
        image_shape=(image_size, image_size, 3), num_classes=len(names), label_names=tuple(names), left_out=tuple(left),
    )  # fmt: skip
    if faults:
        raise Faulty(source, faults)
    return source


def _splits(root):
    """{"train": folder, "val": folder} of folders of classes; one of them may lack."""
    if not root.is_dir():
        raise BadInput(f"no folder at {places.missing(root)}: {HOW}")
    splits = {split: root / split for split in ("train", "val") if (root / split).is_dir()}
    if not splits:
        return {"train": _whole(root)}
    if "val" not in splits:
        raise BadInput(f"no folder {root / 'val'}: config.data.dir={root / 'train'} holds a part of train out instead")
    return splits


def _whole(root):
    """The folder itself, as one of classes, unless it looks like the folder of one class."""
    folders = [entry.name for entry in listing.entries(root) if entry.is_dir()]
    loose = sum(listing.is_read(entry) for entry in listing.entries(root))
    if loose and len(folders) < 2:
        beside = f"one folder, {folders[0]}, beside them" if folders else "no folders of classes with images in them"
        raise BadInput(
            f"config.data.dir={root} has images, and {beside}\n"
            "if it is a class, name the folder above; if it is all there is, make a folder for each class in it"
        )
    if not folders:
        raise BadInput(f"no folder in {root.absolute()}: {HOW}")
    return root


def _classes(root):
    names = [entry.name for entry in listing.entries(root) if entry.is_dir()]
    for name in names:
        if name != listing.shown(name):
            raise BadInput(f"{root}: the class {listing.shown(name)} has a name that is not UTF-8; rename the folder")
    return names


def _list(root, names):
    """(path, label) of every image of a class, sorted, and the paths of images that are left out."""
    labels, pairs, left = {name: label for label, name in enumerate(names)}, [], []
    for entry in listing.entries(root):
        files = listing.entries(entry.path) if entry.is_dir() else [entry]
        for file in files:
            if entry.is_dir() and listing.is_read(file):
                pairs.append((file.path, labels[entry.name]))
            else:
                left += listing.images(file)
    return pairs, left


def _empty_classes(folder, classes, names, found, left):
    """A folder without images would be a class that no image has, and shift the numbers of others: a message each."""
    trained, judged = ({label for _, label in found.get(split, [])} for split in ("train", "val"))
    faults = []
    for name in classes:
        label, place = names.index(name), folder / name
        lost = [path for path in left if place in Path(path).parents]
        if label not in trained and (lost or label not in judged):
            faults.append(
                f"the class {place} has no image that is read\n{listing.note(lost) or 'the folder is empty'}\n"
                "put JPEG or PNG files (.jpg, .jpeg, .png) into it, not into folders below it; or remove the folder"
            )
    return faults
