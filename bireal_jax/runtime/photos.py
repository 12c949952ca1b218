"""From a photo to the pixels that a network saw in training, and the photos that a command names."""

import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax import places
from bireal_jax.errors import BadInput

SUFFIXES = (".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")  # taken from folders


def read(
    source: Any, shape: tuple[int, int, int], resize: int, whole: bool = False, upright: bool = False
) -> np.ndarray:
    """A photo as a network takes it, uint8 [h, w, c]: resized, the middle cut out, grey where c is 1.

    Args:
      source: path, bytes of a file, or a Pillow image.
      shape: (h, w, c) of the network's images.
      resize: short side in pixels before the middle is cut out; at least h is taken.
      whole: all of it is brought to the square, as in the training of depth.
      upright: turned as EXIF says that the camera was held, which training ignores.

    Raises:
      BadInput: no such file, no image, a network that takes neither grey nor colour, or Pillow is not installed.
    """
    height, width, channels = shape
    if height != width or channels not in (1, 3):
        raise BadInput(f"the network takes images of {height}x{width}x{channels}; call it from Python instead")
    pixels = _pixels()
    image = _opened(source, pixels, upright)
    if whole:
        image = image.resize((width, height), pixels.Image.Resampling.BILINEAR)
    grey_or_colour = image if channels == 3 else image.convert("L")
    return pixels.centre_crop(grey_or_colour, max(resize, height), height).reshape(shape)


def _pixels():
    try:
        from bireal_jax import pixels  # with Pillow, which networks run without
    except ModuleNotFoundError as error:
        if error.name != "PIL":
            raise
        raise BadInput("photos are read with Pillow, which is not installed: pip install pillow") from None
    return pixels


def _opened(source, pixels, upright):
    """An RGB image of Pillow."""
    if isinstance(source, pixels.Image.Image):
        return pixels.rgb(source, "the image", upright)
    if isinstance(source, bytes | bytearray | memoryview):
        return pixels.decode(bytes(source), "the image", upright)
    if isinstance(source, np.ndarray):
        raise BadInput("a photo is a path, the bytes of a file or a Pillow image; call the network with arrays")
    try:
        path = Path(source)
        return pixels.decode(path.read_bytes(), str(path), upright)
    except OSError as error:
        raise BadInput(f"{source} cannot be read: {error.strerror}{places.near(source)}") from None
    except (TypeError, ValueError) as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{source!r:.100} is no photo: give a path, the bytes of a file or a Pillow image") from None


def named(what: str) -> list[Path]:
    """The photos that an argument names: a file, all in a folder and below it, or what a pattern matches, sorted.

    Hidden files and folders are left out, and files in folders whose suffix is none of SUFFIXES.

    Raises:
      BadInput: a folder or a pattern without photos, or a folder that cannot be read.
    """
    path = Path(what)
    try:
        if path.is_dir():
            found = list(_below(path))
        elif glob.has_magic(what) and not os.path.lexists(path):
            found = [p for match in sorted(glob.glob(what, recursive=True)) for p in _matched(Path(match))]
        else:
            return [path]
    except ValueError as error:  # a zero byte
        raise BadInput(f"{what!r:.100} is no path: {error}") from None
    if not found:
        raise BadInput(f"no photos at {what}: nothing there ends in {', '.join(SUFFIXES)}")
    return found


def _matched(path):
    return _below(path) if path.is_dir() else [path]


def _below(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise BadInput(f"{folder} cannot be read: {error.strerror}") from None
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):  # a link could lead round in circles
            yield from _below(Path(entry.path))
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
            yield Path(entry.path)
