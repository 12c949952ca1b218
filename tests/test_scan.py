"""The data check: what is put into a folder is found there, and nothing else."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax import data
from bireal_jax.checks import scan
from bireal_jax.data.source import Arrays


@pytest.fixture
def folder(tmp_path):
    """Twelve training and six test images of three classes, all different."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for name in "abc":
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                image = Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8))
                image.save(tmp_path / split / name / f"{i}.jpg")
    return tmp_path


def found(folder, capsys):
    """(how many things are to be mended, the lines of those)."""
    count = scan.run(small(**{"data.name": "folder", "data.dir": str(folder), "data.image_size": 16}))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith(("OK ", "FIX ")) for line in lines) == 4
    return count, [line for line in lines if line.startswith("FIX ")]


def test_what_is_broken_is_named_and_counted(folder, capsys):
    assert found(folder, capsys) == (0, [])
    train, val = folder / "train", folder / "val"
    (train / "a" / "0.jpg").write_bytes((train / "a" / "0.jpg").read_bytes()[:-200])
    (val / "b" / "1.jpg").write_bytes(b"")
    (train / "b" / "2.jpg").write_bytes((val / "c" / "0.jpg").read_bytes())
    for path in (train / "c").iterdir():
        path.unlink()
    count, (files, classes, twice) = found(folder, capsys)
    assert count == 3
    assert "2 of 14 broken" in files and f"{train / 'a' / '0.jpg'} cannot be decoded" in files
    assert f"{val / 'b' / '1.jpg'} cannot be decoded" in files
    assert "1 of 3 without a training image: c;" in classes
    assert "1 of 12" not in twice and f"1 of 8 training images are test images: {train / 'b' / '2.jpg'} = " in twice


def test_photos_that_are_to_be_turned_are_counted(folder, capsys):
    for quarter, path in ((6, folder / "train" / "a" / "0.jpg"), (1, folder / "val" / "b" / "0.jpg")):
        exif = Image.Exif()
        exif[274] = quarter
        Image.open(path).save(path, exif=exif)
    assert scan.run(small(**{"data.name": "folder", "data.dir": str(folder), "data.image_size": 16})) == 0
    assert "note: 1 of 18 files say in EXIF that the photo is to be turned\n" in capsys.readouterr().out


def test_labels_of_arrays_and_equal_pixels(capsys):
    digits = data.build("digits", image_size=8)
    labels = digits.train.labels.copy()
    labels[[3, 7]] = -1, 10
    images = digits.train.images.copy()
    images[5] = digits.eval.images[2]
    assert scan.check(dataclasses.replace(digits, train=Arrays(images, labels))) == 2
    out = capsys.readouterr().out
    assert (
        "FIX  labels            2 of 1,797 out of range: train image 3: label -1 is not in 0..9, train image 7" in out
    )
    assert "FIX  duplicates        1 of 1,438 training images are test images: train image 5 = test image 2" in out
