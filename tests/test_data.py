import dataclasses
import io
import subprocess
import sys
import time
import types
from functools import partial

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bireal_jax import data, pixels
from bireal_jax.data import batching, images
from bireal_jax.data.augment import Augment
from bireal_jax.data.digits import load
from bireal_jax.data.source import Arrays, Source
from bireal_jax.errors import BadInput


def numbered(count, classes=10):
    """A data set whose image i is filled with i, so that batches show which examples they hold."""
    pixels = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 4, 4, 1))
    arrays = Arrays(pixels, np.arange(count) % classes)
    return Source(arrays, arrays, dict, (4, 4, 1), classes, (0.5,), (0.5,))


def one_by_one(source):
    """The same data set as if it lay in files: an example at a time, through Grain."""
    arrays = source.train
    examples = [arrays[i] for i in range(len(arrays))]

    def augment(example, rng):
        batch = Arrays(example["image"][None], np.array([example["label"]]), arrays.augment).batch(np.array([0]), rng)
        return {name: a[0] for name, a in batch.items()}

    return dataclasses.replace(source, train=examples, augment=augment)


KINDS = pytest.mark.parametrize("kind", [lambda source: source, one_by_one], ids=["memory", "files"])


def ids(batch):
    return batch["image"][..., 0, 0, 0][batch["mask"]].ravel().tolist()


# ------------------------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize(
    ("count", "batch", "devices"), [(10, 4, 1), (9, 8, 2), (9, 8, 8), (17, 16, 4), (5, 64, 8), (12, 4, 4), (7, 1, 1)]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_evaluation_sees_every_example_once(count, batch, devices, processes):
    source, seen, rounds = numbered(count), [], set()
    for process in range(processes):
        batches = list(batching.eval_batches(source, batch, devices=devices, process=process, processes=processes))
        rounds.add(len(batches))
        assert {b["image"].shape[:2] for b in batches} == {(devices, -(-batch // (devices * processes)))}
        seen += [i for b in batches for i in ids(b)]
        later = batching.eval_batches(source, batch, 1, devices=devices, process=process, processes=processes)
        assert [ids(b) for b in later] == [ids(b) for b in batches[1:]], "after a worker has died"
    assert sorted(seen) == list(range(count))
    assert len(rounds) == 1, "all hosts must take part in every collective"


@KINDS
def test_training_epochs_are_permutations_without_a_gap(kind):
    stream = batching.train_batches(kind(numbered(10)), 4, seed=0, start=0, devices=2)
    seen = [i for _, b in zip(range(5), stream, strict=False) for i in ids(b)]
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:] != list(range(10))


@KINDS
@pytest.mark.parametrize("threads", [1, 3])
def test_the_stream_is_a_function_of_seed_and_step(kind, threads):
    source = kind(data.build("digits", image_size=8))  # with random shifts
    take = lambda start, n, **kw: [
        b["image"] for _, b in zip(range(n), batching.train_batches(source, 8, 3, start, devices=1, **kw), strict=False)
    ]
    straight = take(0, 6)
    np.testing.assert_array_equal(straight[4:], take(4, 2, threads=threads))
    assert not np.array_equal(straight[0], next(batching.train_batches(source, 8, 4, 0, devices=1))["image"])


def test_examples_in_memory_belong_to_their_labels_and_are_shifted_anew_every_epoch():
    arrays = data.build("digits", image_size=8).train
    source = dataclasses.replace(numbered(4), train=arrays, image_shape=(8, 8, 1))
    labels = {image.tobytes(): label for image, label in zip(arrays.images, arrays.labels, strict=True)}
    unmoved, count = set(), 0
    for _, batch in zip(
        range(2 * len(arrays) // 64), batching.train_batches(source, 64, 0, 0, devices=1), strict=False
    ):
        for image, label in zip(batch["image"][0], batch["label"][0], strict=True):
            if image.tobytes() in labels:
                unmoved.add(image.tobytes())
                count += 1
                assert labels[image.tobytes()] == label
    assert 1 / 9 - 0.03 < count / (2 * len(arrays)) < 1 / 9 + 0.03 and len(unmoved) > 0.9 * count


@KINDS
@pytest.mark.parametrize("size", [8, 2])
def test_processes_share_the_global_batch_in_its_order(kind, size):
    source = kind(numbered(16))
    whole = next(batching.train_batches(source, size, 0, 3, devices=1))
    parts = [next(batching.train_batches(source, size, 0, 3, devices=1, process=p, processes=2)) for p in (0, 1)]
    assert ids(whole) == ids(parts[0]) + ids(parts[1])


@KINDS
def test_a_batch_may_be_of_one_image(kind):
    source = kind(data.build("digits", image_size=8))
    stream = batching.train_batches(source, 1, 3, 0, devices=1)
    ones = [next(stream) for _ in range(6)]
    assert [tuple(ones[0][name].shape) for name in ("image", "label", "mask")] == [(1, 1, 8, 8, 1), (1, 1), (1, 1)]
    names = ["image", "label"] if kind is one_by_one else ["label"]  # whole batches in memory are augmented together
    whole = next(batching.train_batches(source, 6, 3, 0, devices=1))
    for name in names:
        np.testing.assert_array_equal(whole[name], np.concatenate([b[name] for b in ones], 1))


def test_a_program_that_worker_processes_would_run_again_is_refused(tmp_path, monkeypatch):
    source, program = one_by_one(numbered(4)), types.ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", program)
    (tmp_path / "mine.py").write_text("train.run(config, place)\n")
    for file in (str(tmp_path / "mine.py"), "<stdin>"):
        program.__file__ = file
        for make in (partial(batching.train_batches, source, 2, 0), partial(batching.eval_batches, source, 2)):
            with pytest.raises(BadInput, match=rf"import {file} again.*\nput what it does below `if __name__"):
                next(make(0, devices=1, workers=1))


def test_a_worker_ends_soon_after_its_parent_was_killed():
    worker = """
import time
from bireal_jax.data import batching
batching.end_with_the_parent()
print("ready", flush=True)
time.sleep(60)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.kill()
        assert process.stdout.read() == "" and time.monotonic() - began < 20, "the pipe closes with the worker"


def test_worker_processes_give_the_same_stream():
    source = one_by_one(data.build("digits", image_size=8))
    alone = batching.train_batches(source, 8, 0, 2, devices=1)
    helped = batching.train_batches(source, 8, 0, 2, devices=1, workers=2)
    for _ in range(3):
        np.testing.assert_array_equal(next(alone)["image"], next(helped)["image"])


def test_bad_batches():
    with pytest.raises(BadInput, match="batch_size 100 is not divisible by 8 devices; use 96 or 104"):
        next(batching.train_batches(numbered(4), 100, 0, 0, devices=8))
    with pytest.raises(BadInput, match="batch_size 3 is not divisible by 8 devices; use 8"):
        batching.check_divisible(3, 8)
    with pytest.raises(BadInput, match=r"label [5-9] is not in 0..4; correct the labels"):
        wrong = numbered(10)
        list(batching.eval_batches(dataclasses.replace(wrong, num_classes=5), 4, devices=1))
    with pytest.raises(BadInput, match=r"label -1 is not in 0..9"):
        wrong.eval.labels[:] = -1
        list(batching.eval_batches(wrong, 4, devices=1))
    with pytest.raises(BadInput, match=r"images of shape \(4, 4, 1\), not \(5, 5, 1\)"):
        source = numbered(4)
        list(batching.eval_batches(dataclasses.replace(source, image_shape=(5, 5, 1)), 4, devices=1))


# ------------------------------------------------------------------------------------------------------------- images


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(mode="RGB", size=(40, 30)):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return smooth.convert(mode)


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGB", "JPEG"), ("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG"), ("P", "PNG"), ("P", "GIF")],
)
def test_decodable_files_become_rgb_whatever_they_are_called(mode, kind):
    image = pixels.decode(encoded(picture(mode), kind), "n02105855_2933.JPEG")
    assert (image.mode, image.size) == ("RGB", (40, 30))
    expected = np.asarray(picture(mode).convert("RGB"), float)
    assert np.abs(np.asarray(image, float) - expected).mean() < 6


def test_sixteen_bit_png_is_scaled_not_clipped():
    values = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    image = pixels.decode(encoded(Image.fromarray(values), "PNG"), "deep.png")
    np.testing.assert_array_equal(np.asarray(image)[..., 0], values >> 8)


def test_broken_files_are_named():
    whole = encoded(picture(), "JPEG")
    for broken in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        with pytest.raises(BadInput, match="n01440764_7.JPEG cannot be decoded"):
            pixels.decode(broken, "n01440764_7.JPEG")


def test_random_resized_crop_ranges():
    """Areas from 8 % to all, ratios from 3/4 to 4/3, shown by crops of an image of coordinates."""
    y, x = np.mgrid[0:200, 0:250].astype(np.uint8)
    image = Image.fromarray(np.stack([x, y, 0 * x], -1))
    rng, areas, ratios = np.random.default_rng(0), [], []
    for _ in range(300):
        crop = images.crop(image, 64, images.random_box(*image.size, rng), False).astype(float)
        w, h = np.ptp(crop[..., 0]) * 64 / 63, np.ptp(crop[..., 1]) * 64 / 63
        areas.append(w * h / (250 * 200))
        ratios.append(w / h)
    assert 0.06 < min(areas) < 0.13 and 0.85 < max(areas) < 1.05
    assert 0.70 < min(ratios) < 0.80 and 1.25 < max(ratios) < 1.42
    assert abs(np.mean(areas) - 0.5) < 0.06


@pytest.mark.parametrize("size", [(1, 1), (500, 3), (3, 500)])
def test_odd_sizes_still_give_a_crop(size):
    image = Image.new("RGB", size)
    box = images.random_box(*size, np.random.default_rng(0))
    assert images.crop(image, 32, box, True).shape == (32, 32, 3)
    assert pixels.centre_crop(image, 40, 32).shape == (32, 32, 3)


def test_centre_crop_is_short_side_then_middle():
    image = picture(size=(64, 32))
    whole = np.asarray(image.resize((512, 256), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels.centre_crop(image, 256, 224), whole[16:240, 144:368])


def test_shift_and_flip():
    image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    many = np.stack([image] * 200)
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)))
    crops = {padded[i : i + 4, j : j + 4].tobytes() for i in range(3) for j in range(3)}
    moved, mirrored = (Arrays(many, np.zeros(200, int), augment) for augment in (Augment(pad=1), Augment(mirror=True)))
    seen = moved.batch(np.arange(200), np.random.default_rng(0))["image"]
    assert {image.tobytes() for image in seen} == crops
    first = mirrored.batch(np.arange(200), np.random.default_rng(0))["image"][:, 0, 0, 0].tolist()
    assert set(first) == {0, 3} and 70 < first.count(3) < 130


# ---------------------------------------------------------------------------------------------------------- data sets


def test_digits_hold_out_a_fixed_fifth():
    source = data.build("digits", image_size=8)
    assert (len(source.train), len(source.eval)) == (1438, 359)
    assert source.train[0]["image"].shape == source.image_shape and source.train.images.max() == 255
    digits = load_digits()
    for found, expected in zip(load(), (digits.images, digits.target), strict=True):
        np.testing.assert_array_equal(found, expected)
    everything = np.concatenate([source.train.images, source.eval.images])
    assert len({i.tobytes() for i in everything}) == len(everything), "no image on both sides"


def test_cifar_from_npz(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {f"x_{s}": rng.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8) for s, n in (("train", 6), ("test", 4))}
    arrays |= {"y_train": np.arange(6, dtype=np.uint8), "y_test": np.arange(4, dtype=np.uint8)}
    np.savez(tmp_path / "c.npz", **arrays)
    source = data.build("cifar10", str(tmp_path / "c.npz"), 32)
    assert len(source.train) == 6 and source.eval[3]["label"] == 3
    np.testing.assert_array_equal(source.eval[3]["image"], arrays["x_test"][3])
    for change, message in (
        ({"y_test": np.full(4, 10)}, "label 10 is not in 0..9"),
        ({"x_train": arrays["x_train"][:, :28]}, r"x_train is uint8 \(6, 28, 32, 3\)"),
        ({"y_train": np.eye(10)[:6]}, r"y_train is float64 \(6, 10\), wanted integers"),
        ({"x_test": arrays["x_test"][:0], "y_test": arrays["y_test"][:0]}, r"x_test is uint8 \(0, 32, 32, 3\)"),
    ):
        np.savez(tmp_path / "bad.npz", **arrays | change)
        with pytest.raises(BadInput, match=message):
            data.build("cifar10", str(tmp_path / "bad.npz"), 32)
    np.savez(tmp_path / "keras.npz", **arrays | {"y_train": arrays["y_train"][:, None]})
    assert data.build("cifar10", str(tmp_path / "keras.npz"), 32).train[5]["label"] == 5
    whole = (tmp_path / "c.npz").read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]
    for content in (whole[:-500], flipped, b"", b"text"):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(BadInput, match="is not CIFAR-10"):
            data.build("cifar10", str(tmp_path / "broken.npz"), 32)
    np.savez(tmp_path / "part.npz", x_train=arrays["x_train"])
    with pytest.raises(BadInput, match="there is x_train and no y_train"):
        data.build("cifar10", str(tmp_path / "part.npz"), 32)


def make_folder(root, classes=("cat", "dog"), count=3):
    for split in ("train", "val"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                (root / split / name / f"{i}.{'png' if i else 'JPEG'}").write_bytes(
                    encoded(picture(), "PNG" if i else "JPEG")
                )
    (root / "train" / classes[0] / "notes.txt").write_text("not an image")
    return root


def test_folder(tmp_path):
    source = data.build("folder", str(make_folder(tmp_path)), 24, 32)
    assert (len(source.train), len(source.eval), source.num_classes, source.label_names) == (6, 6, 2, ("cat", "dog"))
    assert source.augment(source.train[5], np.random.default_rng(0))["image"].shape == (24, 24, 3)
    batch = next(batching.train_batches(source, 2, 0, 0, devices=1))
    assert batch["image"].shape == (1, 2, 24, 24, 3) and batch["image"].dtype == np.uint8


def test_a_truncated_file_is_named_from_within_the_pipeline(tmp_path):
    source = data.build("folder", str(make_folder(tmp_path)), 24, 32)
    path = tmp_path / "val" / "dog" / "0.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(BadInput, match=r"val/dog/0.JPEG cannot be decoded"):
        list(batching.eval_batches(source, 4, devices=1))


def test_a_file_that_vanished_is_named(tmp_path):
    source = data.build("folder", str(make_folder(tmp_path)), 24, 32)
    (tmp_path / "val" / "dog" / "1.png").unlink()
    with pytest.raises(BadInput, match=r"val/dog/1.png cannot be read"):
        list(batching.eval_batches(source, 4, devices=1))


def test_missing_data_says_how_to_get_it(tmp_path):
    with pytest.raises(
        BadInput, match=r"(?s)no prepared imagenet2012.*data.prepare imagenet2012.*digits.py needs no download"
    ):
        data.build("imagenet2012", str(tmp_path))
    with pytest.raises(BadInput, match=r"no CIFAR-10 at config.data.dir=''"):
        data.build("cifar10", "", 32)
    with pytest.raises(BadInput, match="config.data.dir is empty"):
        data.build("folder", "", 24, 32)
    with pytest.raises(BadInput, match="no folder"):
        data.build("folder", str(tmp_path), 24, 32)
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 8, 8), np.uint8), labels=[0, 1])
    (tmp_path / "a.jpg").write_bytes(b"")
    for name in ("folder", "imagenet2012"):
        for file, message in (
            ("a.npz", "--config.data.name=arrays reads .npz"),
            ("a.jpg", "name the folder; an archive"),
        ):
            with pytest.raises(BadInput, match=f"a file, and config.data.name={name} reads a folder\n{message}"):
                data.build(name, str(tmp_path / file), 24)
    with pytest.raises(BadInput, match="a file, and config.data.name=depth_folder reads a folder\nname"):
        data.build("depth_folder", str(tmp_path / "a.npz"), 24)
    with pytest.raises(BadInput, match="no folder at config.data.dir='/nowhere': config.data.dir must hold"):
        data.build("folder", "/nowhere", 24)
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    with pytest.raises(BadInput, match="no image files below"):
        data.build("folder", str(tmp_path), 24, 32)
    (tmp_path / "val" / "bird").mkdir()
    with pytest.raises(BadInput, match="classes that train lacks: bird"):
        data.build("folder", str(tmp_path), 24, 32)
    with pytest.raises(BadInput, match="unknown data set 'imagnet'"):
        data.build("imagnet")
    with pytest.raises(BadInput, match="config.data.resize is 200, smaller than the crop"):
        data.build("folder", str(tmp_path), 224, 200)
    with pytest.raises(BadInput, match="the digits are 8 pixels wide"):
        data.build("digits", "", 16)
    with pytest.raises(BadInput, match="CIFAR-10 images are 32 pixels wide"):
        data.build("cifar10", "", 40)
