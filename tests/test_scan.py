"""The data check: what is put into a folder is found there, and nothing else."""

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax import build, data
from bireal_jax.checks import scan
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.training import train


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
    assert (
        f"{val / 'b' / '1.jpg'} cannot be decoded: not an image (JPEG, PNG and the like; this is an empty file)"
        in files
    )
    assert "1 of 3 without a training image: c;" in classes
    assert "1 of 12" not in twice and f"1 of 8 training images are test images: {train / 'b' / '2.jpg'} = " in twice
    assert f"{val / 'c' / '0.jpg'}, of another class; take them" in twice


def test_all_that_is_wrong_is_named_at_once(folder, capsys):
    """Empty folders of classes, which stop a training, stop no look at the rest."""
    (folder / "train" / "d").mkdir()
    (folder / "val" / "e").mkdir()
    (folder / "val" / "e" / "0.jpg").write_bytes((folder / "val" / "a" / "0.jpg").read_bytes())
    (folder / "train" / "b" / "9.jpg").write_bytes((folder / "train" / "a" / "1.jpg").read_bytes())
    (folder / "train" / "a" / "2.jpg").write_bytes(b"")
    config = small(**{"data.name": "folder", "data.dir": str(folder), "data.image_size": 16})
    assert scan.run(config) == 3
    out = capsys.readouterr().out
    assert (
        f"FIX  classes           2 of 5 without a training image: {folder / 'val'} has classes that train lacks: e, "
        in out
    )
    assert f"the class {folder / 'train' / 'd'} has no image that is read; add JPEG" in out
    assert f"1 of 20 broken: {folder / 'train' / 'a' / '2.jpg'}" in out
    assert "2 of 20 images lie in two classes" in out
    assert f"{folder / 'val' / 'e' / '0.jpg'} = {folder / 'val' / 'a' / '0.jpg'}, " in out
    assert f"{folder / 'train' / 'b' / '9.jpg'} = {folder / 'train' / 'a' / '1.jpg'}; leave each in its right" in out
    with pytest.raises(BadInput, match="classes that train lacks: e; 1 more such: --mode=data"):
        build.source(config)


def test_a_class_without_an_image_to_judge_and_one_alone(folder, tmp_path, capsys):
    for path in (folder / "val" / "b").iterdir():
        path.unlink()
    config = small(**{"data.name": "folder", "data.dir": str(folder), "data.image_size": 16})
    assert scan.run(config) == 0
    said = "note: no test image is of class b, which the accuracy leaves out\n"
    assert said in capsys.readouterr().out and build.source(config).note == said
    config.data.dir = str(folder / "val")  # a and c with two each, and b with none
    (folder / "val" / "b").rmdir()
    (folder / "val" / "c" / "1.jpg").unlink()
    assert scan.run(config) == 0
    said = (
        "note: no held-out image is of class c, which the accuracy leaves out: a class with one photo has none to hold"
    )
    assert said in capsys.readouterr().out and said in build.source(config).note
    config.data.val_share = 1.0
    assert scan.run(config) == 0, "what is evaluated alone"
    assert build.source(config).note == ""
    shutil.rmtree(folder / "val" / "c")
    config.data.val_share, config.batch_size = 0.5, 8
    assert scan.run(config) == 1
    assert (
        "FIX  one class         1 class alone, of which no network learns anything: a; put" in capsys.readouterr().out
    )
    with pytest.raises(BadInput, match="training images of folder are of one class, .*\nput images of another.*own$"):
        train.run(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()


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
