"""One picture of what a run sees: images of training, as they are augmented, above images of evaluation."""

import unicodedata
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from bireal_jax.data import Source
from bireal_jax.training import pictures

COUNT = 8  # images of each split
SIDE, GAP = 128, 6  # pixels: the least that an image is drawn wide, and what is between
TEXT = 1 / 9  # height of the letters, of the width of an image


def sheet(source: Source, batches: Mapping[str, Mapping[str, np.ndarray]]) -> Image.Image:
    """A row for each batch: its name, images, and below each of them its class in words, or its depth in colours.

    Args:
      source: the data set.
      batches: what stands before a row -> a batch, as `batching` gives them.
    """
    shown = {name: _examples(batch) for name, batch in batches.items()}
    height, width = source.image_shape[:2]
    times = max(1, -(-SIDE // max(height, width)))
    size = round(TEXT * times * width)
    font, line = ImageFont.load_default(size), round(1.5 * size)
    wide, high = times * width, times * height
    under = GAP + high if source.depth_range else line
    row = line + GAP + high + under + line // 2
    page = Image.new("RGB", (COUNT * (wide + GAP) + GAP, len(shown) * row + GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (name, examples) in enumerate(shown.items()):
        draw.text((GAP, i * row + line), name, "black", font, anchor="ld")
        for j, (image, label) in enumerate(examples):
            x, y = GAP + j * (wide + GAP), i * row + line + GAP
            page.paste(
                _picture(image if image.shape[-1] == 3 else np.repeat(image[..., :1], 3, -1), wide, high), (x, y)
            )
            if source.depth_range:
                there = label[label > 0]
                depth = pictures.coloured(label, *((there.min(), there.max()) if there.size else (0.0, 1.0)))
                page.paste(_picture(depth, wide, high), (x, y + high + GAP))
            else:
                draw.text((x, y + high), _fitting(_name(source, int(label)), font, wide), "black", font)
    return page


def _picture(image, wide, high):
    return Image.fromarray(image).resize((wide, high), Image.Resampling.NEAREST)


def _name(source, label):
    """Of a class, in the letters of the font that is always there, which has no others than ASCII."""
    if not source.label_names:
        return str(label)
    plain = unicodedata.normalize("NFKD", source.label_names[label])
    text = "".join(c for c in plain if not unicodedata.combining(c)).encode("ascii", "replace").decode()
    return text if text.strip("?") else f"class {label}"


def _fitting(text, font, width):
    """What fits of a text, so that it does not run into the next one."""
    while font.getlength(text) > width:
        text = text[:-2] + "."
    return text


def _examples(batch):
    """The first images and labels of a batch [devices, n, ...], without its padding."""
    image, label, mask = (np.asarray(batch[name]) for name in ("image", "label", "mask"))
    there = mask.ravel()
    flat = [array.reshape(-1, *array.shape[2:])[there][:COUNT] for array in (image, label)]
    return list(zip(*flat, strict=True))
