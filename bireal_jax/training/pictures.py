"""Depth maps as pictures: image, truth and prediction side by side."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bireal_jax.running import workdir

# near to far: orange, red, purple, dark blue; where there is no depth it is black
COLOURS = np.array([(255, 220, 120), (245, 120, 70), (190, 50, 110), (90, 40, 150), (25, 30, 90)], np.float64)


def coloured(depth: np.ndarray, low: float, high: float) -> np.ndarray:
    """A map [h, w] in colours, low to high, uint8 [h, w, 3]; black where it is 0."""
    place = np.clip((depth - low) / max(high - low, 1e-9), 0, 1) * (len(COLOURS) - 1)
    steps = np.arange(len(COLOURS))
    channels = [np.interp(place, steps, COLOURS[:, k]) for k in range(3)]
    return np.where(depth[..., None] > 0, np.stack(channels, -1), 0).astype(np.uint8)


def beside(image: np.ndarray, truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Image, truth and prediction in one row, on one scale of colours: that of the truth.

    Args:
      image: uint8 [s, s, 3], of any size.
      truth: [h, w] in metres, 0 where there is no depth.
      predicted: [h', w'] in metres, of any size.

    Returns:
      uint8 [h, 3 w, 3].
    """
    size = truth.shape[::-1]
    there = truth[truth > 0]
    low, high = (there.min(), there.max()) if there.size else (0.0, 1.0)
    resized = np.asarray(Image.fromarray(predicted.astype(np.float32)).resize(size, Image.Resampling.NEAREST))
    shown = np.maximum(resized, 1e-9)
    photo = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    return np.concatenate([photo, coloured(truth, low, high), coloured(shown, low, high)], 1)


def write(folder: Path, rows: Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> int:
    """Writes `beside` of each row as folder/0.png and so on; returns how many. Raises BadInput if it cannot."""
    count = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for count, row in enumerate(rows, 1):
            Image.fromarray(beside(*row)).save(folder / f"{count - 1}.png")
    except OSError as error:
        raise workdir.unwritable(folder, error) from None
    return count
