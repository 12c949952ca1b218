"""Cropping of images on the host, in uint8: what training does at random. Normalization happens on the device."""

import io
import math

import numpy as np
from PIL import Image

from bireal_jax.data import jpeg
from bireal_jax.data.jpeg import Box
from bireal_jax.errors import BadInput, first_line
from bireal_jax.pixels import centre_crop, decode


def damage(data: bytes) -> str:
    """What is missing in a JPEG or PNG file that decodes nevertheless, in part to grey or noise; "" if nothing is."""
    if data[:2] == b"\xff\xd8":
        return jpeg.damage(data)
    if data[:4] == b"\x89PNG":
        try:
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                image.verify()  # the checksums, which decoding skips
        except Exception as error:
            return first_line(error)
    return ""


def random_box(width: int, height: int, rng: np.random.Generator) -> Box:
    """(left, top, right, bottom) of a random part: 8 to 100 % of the area, 3/4 to 4/3 wide to high.

    torchvision's RandomResizedCrop: ten attempts, then the largest centre crop of these ratios.
    """
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            break
    else:
        w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
        left, top = (width - w) // 2, (height - h) // 2
    return int(left), int(top), int(left) + w, int(top) + h


def crop(image: Image.Image, size: int, box: Box, mirror: bool) -> np.ndarray:
    """The box resized to a square, left and right mirrored or not: uint8 [size, size, 3]."""
    image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image)


def short_side(size: int, resize: int) -> int:
    """`resize`, of a centre crop of `size`; where it is 0, 8/7 of `size`, as the papers' 256 is of their 224."""
    return resize or size * 8 // 7


# The two transformations of data sets whose examples are {"bytes", "label", "name"}.


def _decode(data, name):
    """As `decode`; a data set stops at the first file that is broken, and may have more."""
    try:
        return decode(data, name)
    except BadInput as error:
        raise BadInput(f"{error}; --mode=data names all that are broken") from None


def augment_file(example: dict, rng: np.random.Generator, *, size: int) -> dict:
    """Decode, random resized crop, random flip; of a JPEG file no more is decoded than that needs, if possible."""
    data, name = example["bytes"], example["name"]
    image, whole = None, jpeg.size(data)
    if whole is None:
        image = _decode(data, name)
        whole = image.size
    box, mirror = random_box(*whole, rng), rng.random() < 0.5
    pixels = None if image else jpeg.crop(data, whole, box, size, mirror)
    if pixels is None:
        pixels = crop(image or _decode(data, name), size, box, mirror)
    return {"image": pixels, "label": example["label"]}


def prepare_file(example: dict, *, size: int, resize: int) -> dict:
    """Decode, resize, centre crop."""
    return {"image": centre_crop(_decode(example["bytes"], example["name"]), resize, size), "label": example["label"]}
