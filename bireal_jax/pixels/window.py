"""A window of a resized image: the pixels that Pillow gives for the whole, at the cost of those that are kept.

Pillow resizes all of an image or, with a box, at places that are rounded to float32. This is the same arithmetic in
numpy, for images of which hardly anything is kept: a strip of 1 x 30,000 pixels would be made 7,680,000 long.
"""

import functools

import numpy as np
from PIL import Image

PRECISION = 22  # bits behind the point of a weight, as in Pillow


@functools.cache
def rows_first_if_tall() -> bool:
    """Whether this Pillow resizes rows before columns where an image is tall: 13.0 does, 12.0 does not."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 8, 3), np.uint8))
    columns = image.resize((16, 64), Image.Resampling.BILINEAR)
    both = (i.resize((16, 16), Image.Resampling.BILINEAR).tobytes() for i in (image, columns))
    return next(both) != next(both)


def resized(image: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """image.resize(size, BILINEAR).crop(box), bit for bit: uint8 [h, w] or [h, w, c].

    Args:
      image: of a mode with 8 bits a channel.
      size: (width, height) of the whole.
      box: (left, top, right, bottom) within it.
    """
    left, top, right, bottom = box
    (width, height), (new_width, new_height) = image.size, size
    across, down = _taps(width, new_width, left, right), _taps(height, new_height, top, bottom)
    begin, end = (across[0][0], down[0][0]), (_end(across), _end(down))
    pixels = np.asarray(image.crop((*begin, *end)))
    steps = [(1, across, begin[0]), (0, down, begin[1])]
    if height > new_height and height - new_height > 2 * (width - new_width) and rows_first_if_tall():
        steps.reverse()
    for axis, taps, first in steps:
        pixels = _average(pixels.swapaxes(0, axis), taps, first).swapaxes(0, axis)
    return pixels


def _taps(length, new, begin, end):
    """(first old pixel, weights of it and the following) for the pixels [begin, end) of `new` in place of `length`."""
    scale = length / new
    reach = max(scale, 1.0)
    found = []
    for centre in ((i + 0.5) * scale for i in range(begin, end)):
        first, last = max(int(centre - reach + 0.5), 0), min(int(centre + reach + 0.5), length)
        weights = np.maximum(1 - np.abs((np.arange(last - first) + first - centre + 0.5) * (1 / reach)), 0)
        total = np.cumsum(weights)[-1]  # one after the other, as in C; np.sum adds in pairs
        found.append((first, (0.5 + weights / total * (1 << PRECISION)).astype(np.int64)))
    return [first for first, _ in found], [weights for _, weights in found]


def _end(taps):
    return taps[0][-1] + len(taps[1][-1])


def _average(pixels, taps, begin):
    """Along the first axis, of which pixels[0] is number `begin`. The sums are whole numbers that float64 holds."""
    out = np.empty((len(taps[0]), *pixels.shape[1:]), np.uint8)
    for i, (first, weights) in enumerate(zip(*taps, strict=True)):
        some = pixels[first - begin : first - begin + len(weights)].astype(np.float64)
        sums = np.tensordot(weights.astype(np.float64), some, 1).astype(np.int64) + (1 << (PRECISION - 1))
        out[i] = np.clip(sums >> PRECISION, 0, 255)
    return out
