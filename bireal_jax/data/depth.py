"""Images with depth maps: a folder of pairs, and NYU Depth v2. A label is a map in metres, 0 where there is no depth.

DIR/train and DIR/val hold NAME.jpg or NAME.png and, beside it, NAME_depth.png (16 bit) or NAME_depth.npy (floats); how
many metres 1 is there, `unit`, is said in the config and nowhere guessed. The whole image is brought to a square, as
big_vision does with NYU Depth v2, whose protocol this is: the crop is taken from image and depth in evaluation, a
prediction is compared at the size of the depth map, and what is not within (low, high) does not count.
"""

import dataclasses
import io
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bireal_jax import places
from bireal_jax.data.source import Source, open_tfds, read_record
from bireal_jax.data.stored import read_npy
from bireal_jax.errors import BadInput, first_line
from bireal_jax.pixels import decode, listing

MAPS = (".png", ".npy")
HOW = (
    "config.data.dir must hold train/ and val/ with NAME.jpg (or .png) and NAME_depth.png (16 bit) or NAME_depth.npy;\n"
    "python -m experiments.depth.render DIR makes such a folder"
)
NYU = (
    "set config.data.dir to a tensorflow-datasets directory that holds nyu_depth_v2 in the array_record format,\n"
    "which tensorflow-datasets prepares where TensorFlow is installed"
)
SAMPLE = 8  # maps of each split that are looked at before anything is computed


@dataclass(frozen=True)
class Rules:
    """How a pair becomes an example: the fields of config.data.depth, and the side of the input.

    Attributes:
      size: of the square input, in pixels.
      unit: metres that 1 in a depth file is: 0.001 for millimetres.
      low, high: in metres; depth that is not between them does not count.
      zoom: of the augmentation, at most; 1 for none (the augmentation is our choice).
      crop: (top, bottom, left, right) of what is evaluated, in pixels, bottom and right excluded; () for everything.
    """

    size: int
    unit: float = 0.001
    low: float = 1e-3
    high: float = 10.0
    zoom: float = 1.5
    crop: tuple[int, ...] = ()

    def read(self, example: dict) -> tuple[Image.Image, np.ndarray]:
        """The image, and its depth in metres, float32 [h, w], 0 where there is none within (low, high).

        Raises:
          BadInput: a file that cannot be read, sizes that differ, or a depth map that must be in another unit.
        """
        name = example["name"]
        image, stored = decode(example["image"], name), _stored(example["depth"], name)
        if stored.shape != (image.height, image.width):
            raise BadInput(
                f"{name}: the image is {image.height}x{image.width}, its depth {stored.shape[0]}x{stored.shape[1]}\n"
                "a depth map needs the size of its image"
            )
        with np.errstate(invalid="ignore"):
            metres = stored.astype(np.float64) * self.unit
            there, within = metres > 0, (metres > self.low) & (metres < self.high)
        if there.any() and not within.any():
            raise self.mismatch(name, np.median(metres[there]))
        return image, np.where(within, metres, 0).astype(np.float32)

    def mismatch(self, name: str, median: float) -> BadInput:
        """The error for depth of which the median cannot be, in metres."""
        return BadInput(
            f"{name}: half of the depth is beyond {median:.4g} m, where config.data.depth allows {self.low:g} to "
            f"{self.high:g} m\nand 1 in the file is config.data.depth.unit={self.unit:g} m: for files in millimetres "
            "that is 0.001, in metres 1.0"
        )


def _stored(depth, name):
    """What a depth file holds, [h, w], from its bytes; an array as it is."""
    if isinstance(depth, np.ndarray):
        return depth
    try:
        if not depth:
            raise BadInput("its depth is a file of 0 bytes")
        if depth[:6] == b"\x93NUMPY":
            stored = read_npy(depth)
            if stored.ndim != 2 or stored.dtype.kind not in "fui":
                raise BadInput(f"its depth is {stored.dtype} {stored.shape}; wanted numbers [h, w]")
            return stored
        with Image.open(io.BytesIO(depth), formats=("PNG",)) as image:
            if not image.mode.startswith("I"):
                raise BadInput(f"its depth is a picture of mode {image.mode}; wanted one grey channel of 16 bits")
            return np.asarray(image)
    except Exception as error:  # files hold anything, and Pillow and numpy raise anything for it
        known = isinstance(error, BadInput)
        raise BadInput(f"{name}: {'' if known else 'its depth cannot be decoded: '}{first_line(error)}") from None


def augment(example: dict, rng: np.random.Generator, *, rules: Rules) -> dict:
    """A random part of the image, brought to the input's size, mirrored or not: the same of image and depth.

    The part is 1 / zoom of each side, zoom from [1, rules.zoom); depth is divided by it, since what is shown larger is
    nearer. The image is interpolated, the depth takes the nearest pixel: a mean across an edge is nowhere in the room.
    """
    image, depth = rules.read(example)
    zoom, x, y = rng.uniform(1, rules.zoom), rng.random(), rng.random()
    width, height = image.width / zoom, image.height / zoom
    left, top = x * (image.width - width), y * (image.height - height)
    box, size = (left, top, left + width, top + height), (rules.size, rules.size)
    pixels = np.asarray(image.resize(size, Image.Resampling.BILINEAR, box))
    label = np.asarray(Image.fromarray(depth).resize(size, Image.Resampling.NEAREST, box)) / np.float32(zoom)
    if rng.random() < 0.5:
        pixels, label = pixels[:, ::-1], label[:, ::-1]
    return {"image": pixels, "label": label}


def prepare(example: dict, *, rules: Rules, shape: tuple[int, int]) -> dict:
    """The crop of the image at the input's size, and that of the depth as it is, [h, w].

    Raises:
      BadInput: as `Rules.read`, or the crop is not of `shape`.
    """
    image, depth = _cropped(example, rules)
    if depth.shape != shape:
        raise BadInput(
            f"{example['name']}: the depth map is {depth.shape[0]}x{depth.shape[1]}, of the first evaluation image "
            f"{shape[0]}x{shape[1]}\nbring them to one size: evaluation compares at the size of the maps"
        )
    size = (rules.size, rules.size)
    return {"image": np.asarray(image.resize(size, Image.Resampling.BILINEAR)), "label": depth}


def _cropped(example, rules):
    image, depth = rules.read(example)
    if rules.crop:
        top, bottom, left, right = rules.crop
        if bottom > image.height or right > image.width:
            raise BadInput(
                f"{example['name']} is {image.height}x{image.width}; config.data.depth.crop={rules.crop} is beyond\n"
                "it is (top, bottom, left, right) in pixels; () evaluates the whole map"
            )
        image, depth = image.crop((left, top, right, bottom)), depth[top:bottom, left:right]
    return image, depth


class Pairs:
    """A sequence of {"image", "depth", "name"} over (image, depth) paths: the bytes of both."""

    def __init__(self, paths: list[tuple[str, str]]):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    @property
    def names(self) -> list[str]:
        """Of all images."""
        return [os.path.basename(image) for image, _ in self.paths]

    def __getitem__(self, index):
        try:
            image, depth = (Path(path).read_bytes() for path in self.paths[index])
        except OSError as error:
            raise BadInput(f"{error.filename} cannot be read: {error.strerror}; the folder has changed") from None
        return {"image": image, "depth": depth, "name": self.paths[index][0]}


def folder(directory: str, image_size: int, **fields: Any) -> Source:
    """The folder as a data set; `fields` are those of `Rules`. Raises BadInput for what cannot work."""
    if not directory:
        raise BadInput(f"config.data.dir is empty: {HOW}")
    (train, train_left), (val, val_left) = (_list(Path(directory) / split) for split in ("train", "val"))
    source = _source(Pairs(train), Pairs(val), Rules(image_size, **fields))
    return dataclasses.replace(source, left_out=(*train_left, *val_left))


def _list(root):
    """(image, depth) of every pair in a folder, sorted, and the paths of images that are left out."""
    if not root.is_dir():
        raise BadInput(f"no folder at {places.missing(root)}: {HOW}")
    images, depths, left = {}, {}, []
    for entry in listing.entries(root):
        stem, suffix = os.path.splitext(entry.name)
        if stem.endswith("_depth") and suffix.lower() in MAPS and not entry.is_dir():
            _add(depths, stem.removesuffix("_depth"), entry, "depth map")
        elif not stem.endswith("_depth") and listing.is_read(entry):
            _add(images, stem, entry, "image")
        else:
            left += listing.images(entry)
    if alone := sorted(images.keys() ^ depths.keys()):
        missing = "image" if alone[0] in depths else "depth map"
        raise BadInput(f"{root}: {len(alone)} files without their other half; {alone[0]} has no {missing}\n{HOW}")
    if not images:
        raise BadInput(f"no image in {root}: {HOW}")
    return [(images[name].path, depths[name].path) for name in sorted(images)], left


def _add(found, name, entry, what):
    if name in found:
        raise BadInput(
            f"{os.path.dirname(entry.path)}: {name} has two {what}s, {found[name].name} and {entry.name}; "
            "take one of them away"
        )
    found[name] = entry


class Records:
    """A sequence of {"image", "depth", "name"} over a tfds data source that leaves images encoded."""

    def __init__(self, records, name):
        self.records, self.name = records, name

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        record = read_record(self.records, index, self.name)
        return {"image": record["image"], "depth": np.asarray(record["depth"]), "name": f"{self.name}, image {index}"}


def nyu(directory: str, image_size: int, **fields: Any) -> Source:
    """NYU Depth v2 below `directory`, a tensorflow-datasets directory with nyu_depth_v2 in the array_record format."""
    _, *splits = open_tfds(directory, "nyu_depth_v2", NYU)
    train, val = (Records(*split) for split in splits)
    return _source(train, val, Rules(image_size, **fields))


def _source(train, val, rules):
    """Looks at a few maps of both splits: where their median cannot be a depth, the unit is wrong."""
    for examples in (train, val):
        chosen = np.linspace(0, len(examples) - 1, min(len(examples), SAMPLE)).astype(int)
        maps = [rules.read(examples[int(i)])[1] for i in chosen]
        there = np.concatenate([depth[depth > 0] for depth in maps])
        if there.size and np.median(there) < rules.high / 1000:
            raise rules.mismatch(examples[int(chosen[0])]["name"], np.median(there))
    shape = _cropped(val[0], rules)[1].shape
    return Source(
        train=train, eval=val, augment=partial(augment, rules=rules),
        prepare=partial(prepare, rules=rules, shape=shape), image_shape=(rules.size, rules.size, 3), num_classes=1,
        label_shape=shape, depth_range=(rules.low, rules.high),
    )  # fmt: skip
