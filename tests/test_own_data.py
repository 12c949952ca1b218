"""Data sets of one's own: folders without a split, arrays of any size, rows that a recipe registers."""

import dataclasses
import json
import re
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax import build, data, main, used
from bireal_jax.checks import scan
from bireal_jax.data import arrays, batching
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.running import known
from bireal_jax.training import train


def images(n, size=12, channels=(), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, *channels), dtype=np.uint8)


@pytest.fixture
def classes(tmp_path):
    """DIR/CLASS/*: ten of a, five of b, one of c."""
    for name, count in (("a", 10), ("b", 5), ("c", 1)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(images(1, 20, (3,), seed=i)[0]).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def photos(place, **fields):
    return small(**{"data.name": "folder", "data.dir": str(place), "data.image_size": 16, **fields})


def names(examples):
    return [examples[i]["name"] for i in range(len(examples))]


def test_a_folder_of_classes_is_split_by_a_seed(classes):
    source = build.source(photos(classes))
    train, judged = names(source.train), names(source.eval)
    assert sorted(train + judged) == sorted(map(str, classes.glob("*/*.png"))) and source.split == "held-out"
    assert [sum(f"/{c}/" in name for name in judged) for c in "abc"] == [2, 1, 0], "a fifth of each class"
    assert names(build.source(photos(classes)).eval) == judged, "always the same"
    assert names(build.source(photos(classes, **{"seed": 5})).eval) == judged, "whatever the training's seed"
    assert names(build.source(photos(classes, **{"data.val_seed": 1})).eval) != judged
    for number in range(4):
        shutil.copy(min(classes.glob("a/*.png")), classes / "a" / f"another{number}.png")
    more = names(build.source(photos(classes)).eval)
    assert [name for name in more if "/a/" not in name] == [name for name in judged if "/a/" not in name], (
        "others' stay"
    )
    for number in range(4):
        (classes / "a" / f"another{number}.png").unlink()
    half = build.source(photos(classes, **{"data.val_share": 0.5}))
    assert [sum(f"/{c}/" in name for name in names(half.eval)) for c in "abc"] == [5, 2, 0]
    held = build.source(photos(classes, **{"data.held_out": 1}))
    assert len(held.eval) <= 3, "config.data.held_out says it otherwise"
    batch = next(batching.eval_batches(source, 4, devices=1))
    assert batch["image"].shape == (1, 4, 16, 16, 3) and batch["mask"].sum() == 3


def test_a_folder_of_one_class_is_told_to_be_none(classes):
    with pytest.raises(
        BadInput, match=f"config.data.dir={classes / 'a'} has images, .*\nif it is a class, name the fo"
    ):
        build.source(photos(classes / "a"))


def test_what_is_set_apart_is_never_split(classes):
    (classes / "train").mkdir()
    with pytest.raises(BadInput, match=r"no folder .*/val: config.data.dir=.*/train holds a part of train out"):
        build.source(photos(classes))
    (classes / "train").rmdir()
    (classes / "d").mkdir()
    with pytest.raises(BadInput, match=r"photos/d has no image that is read"):
        build.source(photos(classes))


def test_val_alone_is_enough_to_evaluate(classes, tmp_path):
    (tmp_path / "alone").mkdir()
    (classes).rename(tmp_path / "alone" / "val")
    for place, fields in ((tmp_path / "alone", {}), (tmp_path / "alone" / "val", {"data.val_share": 1.0})):
        source = build.source(photos(place, **fields))
        assert (len(source.train), len(source.eval), source.label_names) == (0, 16, ("a", "b", "c"))
        config = photos(place, **fields)
        with pytest.raises(BadInput, match="has no training images, only images to evaluate on\n--mode=eval takes"):
            main.main(["main", f"--config={recipe(tmp_path, config)}", f"--workdir={tmp_path / 'w'}"])


def recipe(place, config):
    """A file that gives this config."""
    text = json.dumps(config.to_dict())
    file = place / "given.py"
    file.write_text(
        "import json\nfrom bireal_jax import config\nfrom bireal_jax.running import settings\n\n\n"
        f"def get_config():\n    return settings.filled(json.loads({text!r}), 'given')\n"
    )
    return file


@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_arrays_of_any_size_and_number_of_classes(channels, tmp_path):
    x, y = images(30, 12, channels), np.arange(30) % 7
    np.savez(tmp_path / "mine.npz", images=x, labels=y)
    config = small(**{"data.name": "arrays", "data.dir": str(tmp_path / "mine.npz"), "data.image_size": 12})
    source = build.source(config)
    shape = (12, 12, *(channels or (1,)))
    assert (source.image_shape, source.num_classes, source.split) == (shape, 7, "held-out")
    assert len(source.train) == 23 and len(source.eval) == 7, "one of each class"
    scaled = (x.reshape(-1, shape[-1]) / 255).astype(np.float64)
    np.testing.assert_allclose(source.mean, scaled.mean(0), rtol=1e-12)
    np.testing.assert_allclose(source.std, scaled.std(0), rtol=1e-12)
    found = {i.tobytes(): int(label) for i, label in zip(x, y, strict=True)}
    for part in (source.train, source.eval):
        assert all(found.pop(image.tobytes()) == label for image, label in zip(part.images, part.labels, strict=True))
    assert not found
    model, _ = build.model(config, source)
    assert model.num_classes == 7


def test_labels_that_begin_at_1_are_said(tmp_path, capsys):
    """By a training and by a look at the data alike: neither stops there."""
    for first in (0, 1):
        np.savez(tmp_path / "own.npz", images=images(40), labels=np.arange(40) % 3 + first)
        note = data.build("arrays", str(tmp_path / "own.npz"), 12).note
        why = "labels begin at 1; subtract 1 if that is the first class, since classes count from 0"
        assert note == first * f"note: no training image has label 0, of 4: {why}\n"
        fields = {"data.name": "arrays", "data.dir": str(tmp_path / "own.npz"), "data.image_size": 12}
        assert scan.run(small(**fields)) == 0
        out = capsys.readouterr().out
        assert (why in out) == first and ("OK   classes" in out) != first and "FIX" not in out
        assert "JPEG or PNG files" not in out
    labels = np.arange(40) % 2 * 2
    np.savez(tmp_path / "own.npz", images=images(40), labels=labels)
    assert "has label 1, of 3; numpy.unique(" in data.build("arrays", str(tmp_path / "own.npz"), 12).note


def test_arrays_set_apart_with_names_and_mirrored(tmp_path):
    x, y = images(9, 8), np.arange(9)[:, None] % 3
    file = tmp_path / "medmnist.npz"
    np.savez(
        file, train_images=x, train_labels=y, test_images=x[:3], test_labels=y[:3], val_images=x[3:6],
        val_labels=y[3:6], label_names=np.array(["cat", "dog", "ü"]),
    )  # fmt: skip
    fields = {"data.name": "arrays", "data.dir": str(file)}
    source = build.source(small(**fields))
    assert source.label_names == ("cat", "dog", "ü") and (len(source.train), len(source.eval)) == (9, 3)
    np.testing.assert_array_equal(source.eval.images[..., 0], x[:3])
    one = dataclasses.replace(source, train=Arrays(x[..., None], y[:, 0]))
    seen = data.mirrored(one).train.batch(np.zeros(200, int), np.random.default_rng(0))["image"][..., 0]
    mirrored = (seen == x[0][:, ::-1]).all((1, 2))
    assert ((seen == x[0]).all((1, 2)) | mirrored).all() and 70 < mirrored.sum() < 130
    assert build.source(small(**fields, **{"data.mirror": True})).train.augment is not source.train.augment
    with pytest.raises(BadInput, match="config.data.mirror is for images in memory"):
        data.mirrored(data.Source([], [], dict, (8, 8, 3), 2))


WRONG = {
    "none": ({}, "is not a file of images: there is no x_train with y_train, nor .*, but nothing\nwrite"),
    "other names": ({"a": 1}, "nor images with labels, but a\nwrite"),
    "floats": (
        {"images": images(4) / 255, "labels": range(4)},
        r"images is float64 \(4, 12, 12\), wanted uint8 .*\npixels are whole numbers from 0 to 255; .*round.255 ",
    ),
    "wide": ({"images": images(4).astype(int), "labels": range(4)}, r"wanted uint8 .*\nwhere its pixels go from"),
    "counts": ({"images": images(4), "labels": range(3)}, "images has 4 images and labels 3 labels; each"),
    "texts": ({"images": images(4), "labels": list("abcd")}, r"wanted integers \(4,\)\nlabel_names, labels = numpy"),
    "name twice": ({"images": images(4), "labels": range(4), "label_names": list("abca")}, "label_names has 'a' twice"),
    "one name": ({"images": images(4), "labels": range(4), "label_names": "a"}, r"label_names is an array \(\); it"),
    "channels first": ({"images": images(4)[:, None], "labels": range(4)}, r"\(4, 1, 12, 12\), .*\nchannels are last"),
    "oblong": ({"images": images(4)[:, :8], "labels": range(4)}, r"\(4, size, size, channels\)\nimages must be"),
    "rows": ({"images": images(4).reshape(4, -1), "labels": range(4)}, r"\nwhere a row .*: IMAGES.reshape\(-1, 12, "),
    "floats, channels first": (
        {"images": images(4)[:, None] / 255, "labels": range(4)}, r"\npixels are whole .*\nchannels are last: IMAGES.tr"
    ),
    "one hot": (
        {"images": images(4), "labels": np.eye(4)}, r"labels is float64 \(4, 4\), wanted integers \(4,\)\nLABELS.argmax"
    ),
    "negative": ({"images": images(4), "labels": [0, 1, -1, 2]}, "a.npz: labels goes from -1 to 2, .* 0\nnumpy.unique"),
    "ids": ({"images": images(4), "labels": [0, 1, 2, 900]}, "labels go up to 900, .* 4 images; count from 0"),
    "names": (
        {"images": images(4), "labels": [0, 1, 2, 3], "label_names": ["a", "b"]},
        "label 2 is not in 0..1: label_names has 2 names, and labels go up to 3\ngive each class a name",
    ),
    "size": ({"images": images(4, 14), "labels": [0] * 4}, "14 pixels wide, .* is 12\nset config.data.image_size=14"),
    "objects": ({"images": np.array([{}], object), "labels": [0]}, "images: it holds Python objects, which are never"),
    "object labels": (
        {"images": images(2), "labels": np.array([0, "a"], object)}, "labels: it holds Python .*numpy.stack.ARRAY.\n"
    ),
    "two sizes": (
        {"x_train": images(4), "y_train": [0] * 4, "x_test": images(4, 10), "y_test": [0] * 4}, "are of two shapes"
    ),
}  # fmt: skip


def test_the_lines_that_messages_give_do_what_they_say(tmp_path):
    """Of arrays that cannot be, in numpy: what is behind the colon runs, and its result is taken."""
    for wrong in (images(4)[:, None], images(4)[:, :8], images(4, channels=(3,))[:, :, 1:6], images(4).reshape(4, -1)):
        np.savez(tmp_path / "a.npz", images=wrong, labels=range(4))
        with pytest.raises(BadInput) as caught:
            data.build("arrays", str(tmp_path / "a.npz"), 12)
        last = str(caught.value).splitlines()[-1]
        for line in re.findall(r"(?:numpy\.pad\(.*?ndim\]\)|IMAGES(?:\[:, |\.)[^\]\)]*[\]\)])", last):
            mended = eval(line, {"numpy": np, "IMAGES": wrong})
            np.savez(tmp_path / "b.npz", images=mended, labels=range(4))
            assert len(data.build("arrays", str(tmp_path / "b.npz"), mended.shape[1]).train) == 4
    np.savez(tmp_path / "a.npz", images=images(8, 27), labels=np.arange(8) % 2)
    config = small(**{"data.name": "arrays", "data.dir": str(tmp_path / "a.npz"), "data.image_size": 27})
    with pytest.raises(BadInput) as caught:
        build.model(config, build.source(config))
    line, size = re.search(r"\npad them: (.*), and set config.data.image_size=(\d+)$", str(caught.value)).groups()
    mended = eval(line, {"numpy": np, "IMAGES": images(8, 27)})
    assert mended.shape == (8, int(size), int(size))


def test_a_file_of_arrays_that_is_none_is_told_what_it_is(tmp_path):
    file, whole = tmp_path / "a.npz", tmp_path / "whole.npz"
    np.savez(whole, images=images(40), labels=range(40))
    data_ = whole.read_bytes()
    flipped = bytes([*data_[:3000], data_[3000] ^ 1, *data_[3001:]])
    np.save(tmp_path / "one.npy", images(4))
    for content, says in (
        (data_[:-100], "it is cut off, or damaged: "), (flipped, "it is damaged: images.npy in it"),
        ((tmp_path / "one.npy").read_bytes(), "it is an .npy file of one array"), (b"a,b", "it is a text file"),
    ):  # fmt: skip
        file.write_bytes(content)
        with pytest.raises(BadInput, match=f"a.npz is not a file of images: {says}.*\nwrite it so: "):
            data.build("arrays", str(file), 12)


def test_a_close_name_is_one_of_what_can_be_meant(tmp_path):
    (tmp_path / "mising").mkdir()
    for name in ("missing.pt", "in.npz"):
        (tmp_path / name).touch()
    with pytest.raises(BadInput) as caught:
        data.build("arrays", str(tmp_path / "missing.npz"), 12)
    assert "did you mean" not in str(caught.value)
    (tmp_path / "mising.npz").touch()
    with pytest.raises(BadInput, match=r"did you mean .*mising.npz\?"):
        data.build("arrays", str(tmp_path / "missing.npz"), 12)
    with pytest.raises(BadInput, match=r"did you mean .*mising\?"):
        data.build("folder", str(tmp_path / "missing"), 12)


@pytest.mark.parametrize("pair", (*arrays.TRAIN, *arrays.TEST))
@pytest.mark.parametrize("lacking", (0, 1))
def test_half_a_split_is_named(pair, lacking, tmp_path):
    """The other split is whole: half of this one is not taken for none."""
    other = ("x_test", "y_test") if pair in arrays.TRAIN else ("images", "labels")
    there = {other[0]: images(4), other[1]: range(4), **dict(zip(pair, (images(4), range(4)), strict=True))}
    del there[pair[lacking]]
    np.savez(tmp_path / "a.npz", **there)
    says = f"there is {pair[1 - lacking]} and no {pair[lacking]}; store {pair[lacking]} beside it"
    with pytest.raises(BadInput, match=f"a.npz: {says}"):
        data.build("arrays", str(tmp_path / "a.npz"), 12)


@pytest.mark.parametrize("what", WRONG)
def test_arrays_that_cannot_be_are_named(what, tmp_path):
    arrays, message = WRONG[what]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(BadInput, match=message) as caught:
        data.build("arrays", str(tmp_path / "a.npz"), 12)
    assert str(caught.value).startswith(str(tmp_path)) and len(str(caught.value).splitlines()) <= 3
    with pytest.raises(BadInput, match="no file at config.data.dir=''\nwrite it so: numpy.savez"):
        data.build("arrays", "", 12)


def test_a_source_says_what_does_not_fit():
    with pytest.raises(BadInput, match=r"the mean of a data set has 3 values, .* its images have 1 channels"):
        data.Source([], [], dict, (8, 8, 1), 2)
    with pytest.raises(BadInput, match=r"the std of a data set has 3 values"):
        data.Source([], [], dict, (8, 8, 1), 2, mean=(0.5,))
    with pytest.raises(BadInput, match="2 label_names for 3 classes"):
        data.Source([], [], dict, (8, 8, 3), 3, label_names=("a", "b"))


MINE = """
import numpy as np

from bireal_jax import data
from bireal_jax.data.source import Arrays
from configs import digits


def stripes(directory, image_size, resize):  # class k: stripes k + 1 pixels wide
    labels = np.arange(96) % 3
    lines = np.arange(image_size)[None] // (labels[:, None] + 1) % 2 * 200
    images = np.broadcast_to(lines[:, :, None, None], (96, image_size, image_size, 1)).astype(np.uint8)
    noise = np.random.default_rng(0).integers(0, 56, images.shape, dtype=np.uint8)
    return data.Source(
        train=Arrays(images + noise, labels), eval=(), prepare=dict, image_shape=(image_size, image_size, 1),
        num_classes=3, mean=(0.5,), std=(0.5,), label_names=("one", "two", "three"),
    )


data.DATASETS["stripes"] = data.Dataset(stripes)


def get_config():
    c = digits.get_config()
    c.data.name = "stripes"
    c.batch_size, c.total_steps, c.eval_steps = 16, 2, 2
    return c
"""


@pytest.mark.slow
def test_an_evaluation_says_that_the_photos_are_no_longer_those_of_the_training(classes, tmp_path, capsys, monkeypatch):
    c, run = photos(classes, batch_size=8, total_steps=1), tmp_path / "w"
    with monkeypatch.context() as patched:
        patched.setattr(train, "chance", lambda top1, source: f"note: {top1} of {len(source.eval)}")
        result = train.run(c, run)
    assert f"\nnote: {result['best_top1']} of 3\n" in capsys.readouterr().out
    train.run_eval(c, run)
    assert "held out here" not in capsys.readouterr().out
    shutil.copy(min(classes.glob("a/*.png")), classes / "a" / "more.png")
    train.run_eval(c, run)
    said = capsys.readouterr().out
    assert " to train on and 3 held out, here are " in said and "trained on some of those" in said


@pytest.mark.slow
def test_a_data_set_that_a_recipe_registers_works_in_every_mode(tmp_path, capsys, monkeypatch):
    (tmp_path / "mine.py").write_text(MINE)
    run = tmp_path / "run"
    common = ["main", f"--config={tmp_path / 'mine.py'}", f"--workdir={run}"]
    for name in list(data.DATASETS):
        monkeypatch.setitem(data.DATASETS, name, data.DATASETS[name])  # the row goes with the test
    main.main([*common, "--mode=cost"])
    assert "1x1x3" in capsys.readouterr().out, "its own number of classes"
    for mode in ("doctor", "data"):
        with pytest.raises(SystemExit) as ended:
            main.main([*common, f"--mode={mode}"])
        out = capsys.readouterr().out
        assert not ended.value.code and "FIX" not in out, out
    main.main(common)
    assert "held-out top-1" in capsys.readouterr().out
    for mode in ("eval", "verify", "export"):
        main.main([*common, f"--mode={mode}"])
    assert json.loads((run / "registered.json").read_text()) == {"data.name": str(tmp_path / "mine.py")}
    build.trained(run)
    del data.DATASETS["stripes"]
    build.trained(run)  # needs no data set
    with pytest.raises(BadInput, match=rf"config.data.name='stripes', .* by {tmp_path / 'mine.py'}\nrun that first"):
        used.weights(small(), run, given=())
    runpy.run_path(str(tmp_path / "mine.py"))
    assert known.read(run).source.label_names == ("one", "two", "three") and used.weights(small(), run, given=()).there
