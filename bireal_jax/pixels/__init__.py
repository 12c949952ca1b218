"""From an image file to the pixels that a network sees: what evaluation and the runtime share.

Pillow is the decoder, and where a faster one stands in (data/jpeg.py) the definition of what comes out. Its bilinear
resize averages over the source pixels when it shrinks, as torchvision's does on Pillow images. EXIF orientation is
ignored, as in the originals, unless it is asked for.
"""

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bireal_jax import kinds
from bireal_jax.errors import BadInput, first_line
from bireal_jax.pixels import window

# Of the others that Pillow knows some start programs (EPS), and none holds photos that networks are trained on.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
BITS, PHOTOMETRIC, ORIENTATION = 258, 262, 274  # tags of TIFF, the last one of EXIF, too
FAR = 16  # a whole of so many times the pixels that are kept is not made


def decode(data: bytes, name: str, upright: bool = False) -> Image.Image:
    """An RGB image from the bytes of a file of FORMATS, whatever the file is called.

    Greyscale, CMYK, palette and 16-bit files become 8-bit RGB; an alpha channel is dropped.

    Args:
      data: the file.
      name: of the file, for the message.
      upright: turned as EXIF says that the camera was held.

    Raises:
      BadInput: the bytes are no complete image, or of pixels whose range the file does not say.
    """
    return _decoded(lambda: Image.open(io.BytesIO(data), formats=FORMATS), name, upright, data)


def rgb(image: Image.Image, name: str, upright: bool = False) -> Image.Image:
    """The same for an image that Pillow has opened, which stays as it is."""
    return _decoded(image.copy, name, upright)


def _decoded(opened, name, upright, data=b""):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of odd metadata and palettes, which do not matter here
            image = opened()
            image.load()
            if image.mode.startswith("I;16"):
                image = _eight_bits(image)
            elif image.mode in ("I", "F"):
                raise BadInput(
                    f"its pixels are 32-bit numbers (mode {image.mode}) of unknown range; store 8 or 16 bits"
                )
            if upright:
                image = ImageOps.exif_transpose(image)
            return image if image.mode == "RGB" else image.convert("RGB")  # which would copy
    except Exception as error:  # files hold anything, and Pillow raises anything for it
        reason = first_line(error)
        if isinstance(error, UnidentifiedImageError):
            # of FORMATS the two that are read everywhere: a folder of classes leaves out what is called .webp
            reason = f"not an image (JPEG, PNG and the like{_instead(kinds.of(data))})"
        raise BadInput(f"{name} cannot be decoded: {reason}\nreplace the file, or leave it out") from None


def _instead(kind):
    """What a file is that is no image, as far as that is known."""
    if kind == kinds.UNKNOWN:
        return ""
    ours = any(f"({name})" in kind.what for name in FORMATS)
    return f"; this begins as {kind.what}" if ours else f"; this is {kind.what}"


def turned(data: bytes) -> bool:
    """Whether an image file says, in EXIF, that it is to be turned or mirrored; not of TIFF, which Pillow turns."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            warnings.simplefilter("ignore")
            return image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) not in (0, 1)
    except Exception:  # of what is no image `decode` tells
        return False


def _eight_bits(image):
    """Of one channel of 16; convert("RGB") would clip everything above 255. Some TIFF files have 12, or 0 for white."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS, (16,))[0]
    grey = (np.asarray(image) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(255 - grey if tags.get(PHOTOMETRIC, 1) == 0 else grey)


def centre_crop(image: Image.Image, resize: int, size: int) -> np.ndarray:
    """Short side to `resize`, then the middle square of `size`: uint8 [size, size, 3]."""
    width, height = image.size
    short = min(width, height)
    new_width, new_height = int(resize * width / short), int(resize * height / short)
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    box = left, top, left + size, top + size
    if new_width * new_height > FAR * size * size and resize >= size:
        return window.resized(image, (new_width, new_height), box)
    return np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR).crop(box))
