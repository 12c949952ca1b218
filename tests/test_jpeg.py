"""Parts of JPEG files are Pillow's, bit for bit; what is no sound JPEG file is left to Pillow."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from bireal_jax.data import images, jpeg
from bireal_jax.errors import BadInput

compiled = pytest.mark.skipif(
    not jpeg.available(), reason="libjpeg-turbo's headers were not there when the package was installed"
)


def photo(width, height, mode="RGB", seed=0):
    """Smooth shapes and noise, so that colours change at every border of a block."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 9 + 2, width // 7 + 2, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC), int)
    noisy = np.clip(smooth + rng.integers(-20, 21, smooth.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert(mode)


def encoded(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


OPTIONS = [
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2, "quality": 95},
    {"subsampling": 2, "progressive": True},
    {"restart_marker_blocks": 3},
]


@compiled
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_parts_are_those_of_pillow(options, mode):
    rng = np.random.default_rng(1)
    for width, height in ((160, 120), (121, 163), (70, 333), (17, 19), (1, 1), (500, 3), (3, 500)):
        data = encoded(photo(width, height, mode), **options)
        decoded = Image.open(io.BytesIO(data)).convert("RGB")
        assert jpeg.size(data) == (width, height)
        boxes = [(0, 0, width, height), (width - 1, height - 1, width, height), (0, 0, 1, 1)]
        boxes += [images.random_box(width, height, rng) for _ in range(12)]
        for box in boxes:
            for size in (7, 64):
                mirror = bool(rng.integers(2))
                found = jpeg.crop(data, (width, height), box, size, mirror)
                np.testing.assert_array_equal(found, images.crop(decoded, size, box, mirror), str((box, size)))


@compiled
def test_parts_of_photos_are_those_of_pillow(shared):
    rng = np.random.default_rng(2)
    with zipfile.ZipFile(shared / "data" / "imagenet_sample1000_s256.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")]
        for name in names[:: len(names) // 25]:
            data = archive.read(name)
            decoded = Image.open(io.BytesIO(data)).convert("RGB")
            box = images.random_box(*decoded.size, rng)
            found = jpeg.crop(data, decoded.size, box, 224, False)
            np.testing.assert_array_equal(found, images.crop(decoded, 224, box, False), name)


@compiled
def test_training_images_do_not_depend_on_the_decoder(monkeypatch):
    example = {"bytes": encoded(photo(90, 70)), "name": "a.jpg", "label": 3}
    augment = lambda i: images.augment_file(example, np.random.default_rng(i), size=48)["image"]
    fast = [augment(i) for i in range(20)]
    monkeypatch.setattr(jpeg, "_library", None)
    assert not jpeg.available() and jpeg.size(example["bytes"]) is None
    np.testing.assert_array_equal(fast, [augment(i) for i in range(20)])


@compiled
def test_other_files_are_left_to_pillow():
    whole = encoded(photo(40, 30))
    for data in (encoded(photo(40, 30, "CMYK")), encoded(photo(40, 30), "PNG"), whole[:-100], whole + b"more", b""):
        assert jpeg.size(data) is None
    assert jpeg.crop(whole, (41, 30), (0, 0, 8, 8), 8, False) is None
    assert jpeg.crop(whole, (40, 30), (0, 0, 41, 8), 8, False) is None
    cmyk = {"bytes": encoded(photo(40, 30, "CMYK")), "name": "", "label": 0}
    assert images.augment_file(cmyk, np.random.default_rng(0), size=8)["image"].shape == (8, 8, 3)


@compiled
def test_damaged_files_end_as_with_pillow(monkeypatch):
    """Flipped bytes: the same pixels or the same error, whoever decodes; and never a crash."""
    whole, rng, library = encoded(photo(64, 48), restart_marker_blocks=2), np.random.default_rng(0), jpeg._library

    def outcome(data, seed):
        try:
            example = {"bytes": data, "name": "a.jpg", "label": 0}
            return images.augment_file(example, np.random.default_rng(seed), size=16)["image"]
        except BadInput as error:
            return str(error)

    left = 0
    for seed in range(300):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        monkeypatch.setattr(jpeg, "_library", library)
        fast = outcome(bytes(data), seed)
        left += jpeg.size(bytes(data)) is None
        monkeypatch.setattr(jpeg, "_library", None)
        np.testing.assert_array_equal(fast, outcome(bytes(data), seed), f"seed {seed}")
    assert left < 200, "most of them are read"
