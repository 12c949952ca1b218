"""Parts of JPEG files: what Pillow gives, bit for bit, in less than half the time.

Most of the work on a training image is decoding what is then cropped away. libjpeg-turbo decodes rows and columns of a
file alone, which Pillow does not ask of it. jpeg.cc does, and resizes each row as it comes. It is compiled when the
package is installed, if a compiler and libjpeg-turbo's headers are there (Debian: apt install g++ libjpeg-dev);
without it Pillow does everything.
"""

import ctypes
import math
from pathlib import Path

import numpy as np
from PIL import Image

from bireal_jax.errors import check_compiled
from bireal_jax.pixels.window import rows_first_if_tall

Box = tuple[int, int, int, int]  # left, top, right, bottom


def _load() -> ctypes.CDLL | None:
    path = Path(__file__).with_name("_jpeg.so")
    try:
        library = ctypes.CDLL(str(path)) if path.exists() else None
    except OSError:  # libjpeg itself is gone since
        return None
    if library:
        check_compiled(library, path, ("bireal_jpeg_size", "bireal_jpeg_crop", "bireal_jpeg_damage"))
    return library


_library = _load()


def available() -> bool:
    """Whether jpeg.cc was compiled."""
    return _library is not None


def size(data: bytes) -> tuple[int, int] | None:
    """(width, height) of a whole JPEG file in colour or grey; None for others, and where `crop` is not available."""
    if not _library or data[-2:] != b"\xff\xd9":  # where a whole file ends
        return None
    found = (ctypes.c_int * 2)()
    if not _library.bireal_jpeg_size(data, ctypes.c_size_t(len(data)), found):
        return None
    width, height = found
    return (width, height) if width * height <= (Image.MAX_IMAGE_PIXELS or math.inf) else None


def crop(data: bytes, whole: tuple[int, int], box: Box, size: int, mirror: bool) -> np.ndarray | None:
    """The box of an image, resized by Pillow's bilinear filter and mirrored: uint8 [size, size, 3].

    Args:
      data: a file of which `size` knows the size.
      whole: that size.
      box: within the image.
      size: side of the result.
      mirror: left and right.

    Returns:
      None for a damaged file, of which Pillow knows better what can be saved.
    """
    if not _library:
        return None
    out = np.empty((size, size, 3), np.uint8)
    done = _library.bireal_jpeg_crop(
        data, ctypes.c_size_t(len(data)), *whole, (ctypes.c_int * 4)(*box), size, int(mirror),
        int(rows_first_if_tall()), out.ctypes.data_as(ctypes.c_void_p),
    )  # fmt: skip
    return out if done else None


def damage(data: bytes) -> str:
    """What libjpeg finds missing in a JPEG file, where Pillow says nothing and gives grey; "" if nothing is.

    Without jpeg.cc nothing is ever found.
    """
    text = ctypes.create_string_buffer(256)
    if not _library or not _library.bireal_jpeg_damage(data, ctypes.c_size_t(len(data)), text):
        return ""
    return text.value.decode("utf-8", "replace")
