"""One picture of what a run sees: images of training, as they are augmented, above images of evaluation."""

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw

from bireal_jax.data import Source

COUNT = 8  # images of each split
SIDE, LINE, GAP = 128, 16, 4  # pixels: the least that an image is drawn wide, a line of text, and what is between


def sheet(source: Source, batches: Mapping[str, Mapping[str, np.ndarray]]) -> Image.Image:
    """A row for each batch, its name and the class of every image in words.

    Args:
      source: the data set.
      batches: what stands before a row -> a batch, as `batching` gives them.
    """
    shown = {name: _examples(batch) for name, batch in batches.items()}
    height, width = source.image_shape[:2]
    times = max(1, -(-SIDE // max(height, width)))
    step, row = times * width + GAP, times * height + 2 * LINE + GAP
    page = Image.new("RGB", (COUNT * step + GAP, len(shown) * row + GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (name, examples) in enumerate(shown.items()):
        draw.text((GAP, i * row), name, "black")
        for j, (image, label) in enumerate(examples):
            picture = Image.fromarray(image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, -1))
            corner = j * step + GAP, i * row + LINE
            page.paste(picture.resize((times * width, times * height), Image.Resampling.NEAREST), corner)
            if not source.depth_range:
                text = source.label_names[int(label)] if source.label_names else str(int(label))
                plain = text.encode("ascii", "replace").decode()  # the font that is always there has no other letters
                draw.text((corner[0], corner[1] + times * height), plain[: times * width // 6], "black")
    return page


def _examples(batch):
    """The first images and labels of a batch [devices, n, ...], without its padding."""
    image, label, mask = (np.asarray(batch[name]) for name in ("image", "label", "mask"))
    there = mask.ravel()
    flat = [array.reshape(-1, *array.shape[2:])[there][:COUNT] for array in (image, label)]
    return list(zip(*flat, strict=True))
