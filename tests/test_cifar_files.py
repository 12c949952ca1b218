"""The files that CIFAR's authors publish, read without unpickling them; cutout."""

import io
import pickle
import struct
import tarfile

import numpy as np
import pytest
from small import small

from bireal_jax import build, config, data
from bireal_jax.data import batching, official, pickled
from bireal_jax.data.augment import Augment
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput


def text(value):
    return b"U" + bytes([len(value)]) + value


def by_python_2(images, labels, key=b"labels"):
    """A batch as the published files have it, byte by byte: protocol 2 of Python 2.7 and its numpy."""
    count = b"M" + struct.pack("<H", len(labels))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85" + text(b"b") + b"\x87Rq\x07"
        b"(K\x01" + count + b"M\x00\x0c\x86cnumpy\ndtype\nq\x08" + text(b"u1") + b"K\x00K\x01\x87Rq\x09"
        b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", images.size) + images.tobytes() + b"tb"
    )  # fmt: skip
    numbers = b"".join(b"K" + bytes([v]) for v in labels)
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + b"q\x02" + text(b"training batch 1 of 5") + b"q\x03"
        + text(key) + b"]q\x04(" + numbers + b"e" + text(b"data") + array
        + text(b"filenames") + b"]q\x0a(" + text(b"a_s_1.png") + text(b"b_s_2.png") + b"eu."
    )  # fmt: skip


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3072), dtype=np.uint8)


def published(root, name="cifar10", count=4):
    """The folder, with a few images a file; {"x_train", ...} as they should come out."""
    layout, arrays = official.LAYOUTS[name], {"x_train": [], "y_train": [], "x_test": [], "y_test": []}
    (root / layout.folder).mkdir(parents=True)
    for i, file in enumerate((*layout.train, *layout.test)):
        images, labels = pixels(count, i), [(7 * i + k) % (10 if name == "cifar10" else 100) for k in range(count)]
        (root / layout.folder / file).write_bytes(by_python_2(images, labels, layout.labels.encode()))
        split = "test" if file in layout.test else "train"
        for image in images:  # red, green, blue planes
            arrays[f"x_{split}"].append(np.stack([image[k * 1024 :][:1024].reshape(32, 32) for k in range(3)], -1))
        arrays[f"y_{split}"] += labels
    return {key: np.array(values) for key, values in arrays.items()}


def archive(root, name, path):
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root / official.LAYOUTS[name].folder, official.LAYOUTS[name].folder)
    return path


@pytest.mark.parametrize(("name", "classes"), [("cifar10", 10), ("cifar100", 100)])
def test_published_files_are_read_from_folder_and_archive(name, classes, tmp_path):
    arrays = published(tmp_path, name)
    folder = tmp_path / official.LAYOUTS[name].folder
    (tmp_path / "down").mkdir()
    packed = archive(tmp_path, name, tmp_path / "down" / official.LAYOUTS[name].archive)
    for place in (tmp_path, folder, packed, packed.parent):
        source = data.build(name, str(place), 32)
        assert (source.num_classes, len(source.label_names), len(source.eval)) == (classes, classes, 4)
        for split, part in (("train", source.train), ("test", source.eval)):
            np.testing.assert_array_equal(part.images, arrays[f"x_{split}"])
            np.testing.assert_array_equal(part.labels, arrays[f"y_{split}"])
    assert list(packed.parent.iterdir()) == [packed], "nothing is unpacked"
    batch = next(batching.train_batches(source, 2, 0, 0, devices=1))
    assert batch["image"].shape == (1, 2, 32, 32, 3)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_python_3_wrote_is_read(protocol):
    images = pixels(3)
    made = {b"data": images, b"labels": [1, 2, 3], "none": None, "flags": (True, False, -5, 1 << 20, 1.5)}
    if protocol == 5:  # numpy has a form of its own there, which no published file has
        with pytest.raises(ValueError, match="wants 'numpy.*_frombuffer'"):
            pickled.load(pickle.dumps(made, protocol))
        return
    found = pickled.load(pickle.dumps(made, protocol))
    np.testing.assert_array_equal(found.pop("data"), images)
    assert found == {"labels": [1, 2, 3], "none": None, "flags": (True, False, -5, 1 << 20, 1.5)}
    order = np.asfortranarray(images)
    np.testing.assert_array_equal(pickled.load(pickle.dumps({"data": order}, protocol))["data"], images)


class Calls:
    """Unpickles to a call."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def forged(change):
    """A batch of Python 2 of which one part is another."""
    old, new = change
    whole = by_python_2(pixels(2), [0, 1])
    assert old in whole
    return whole.replace(old, new)


HOSTILE = {
    "a command": pickle.dumps({"data": Calls(__import__("os").system, "touch owned")}, 2),
    "eval": pickle.dumps({"data": Calls(eval, "open('owned', 'w')")}, 4),
    "a getter of names": b"cbuiltins\ngetattr\n(cnumpy\ndtype\nU\x01atR.",
    "an object": b"\x80\x02cnumpy\nndarray\n)\x81}b.",
    "an old instance": b"(inumpy\nndarray\n.",
    "a name as a call": b"\x80\x02cnumpy\nndarray\n)R.",
    "a dtype of objects": forged((b"U\x02u1", b"U\x01O")),
    "a dtype whose flags lie": forged((b"tb\x89", b"tb\x88b\x89")),
    "an array of objects": pickle.dumps({"data": np.array([None, 1], object), "labels": [0, 1]}, 2),
    "an array of floats": pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}, 2),
    "a shape that is not there": forged((b"M\x00\x0c\x86", b"M\x01\x0c\x86")),
    "a shape of nothing and much": forged((b"M\x00\x0c\x86", b"J\xff\xff\xff\xff\x86")),
    "a persistent name": b"Pname\n.",
    "an extension": b"\x82\x01.",
    "a codec": pickle.dumps(Calls(__import__("_codecs").encode, "a" * 99, "zlib_codec"), 2),
    "a string longer than the file": b"\x80\x02T\xff\xff\xff\x7fabc.",
    "a memo far away": b"\x80\x02Nr\xff\xff\xff\x7fj\xff\xff\xff\x00.",
    "nothing on the stack": b"\x80\x02tb.",
    "no mark": b"\x80\x02]]e.",
    "itself": b"\x80\x02]q\x00h\x00a.",
    "text": b"not a pickle at all",
    "nothing": b"",
    "half": by_python_2(pixels(2), [0, 1])[:3000],
    "an odd dict": b"\x80\x02}(K\x01u.",
    "a list in a list's place": b"\x80\x02}q\x00K\x01a.",
    "protocol 0 of a long": b"L1" + b"0" * 5000 + b"L\n.",
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_files_are_refused(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    published(tmp_path)
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(HOSTILE[what])
    with pytest.raises(BadInput, match="cifar-10-batches-py/data_batch_3: .*\ndownload it anew"):
        data.build("cifar10", str(tmp_path), 32)
    assert not (tmp_path / "owned").exists()


def test_a_changed_byte_is_an_error_or_other_data_and_nothing_else():
    whole = by_python_2(pixels(2), [0, 1])
    rng = np.random.default_rng(0)
    heads = [i for i in range(len(whole)) if i < 340 or i > len(whole) - 60]
    for _ in range(600):
        i = int(rng.choice(heads))
        changed = whole[:i] + bytes([rng.integers(256)]) + whole[i + 1 :]
        try:
            official._part(changed, official.LAYOUTS["cifar10"], "f")
        except BadInput as error:
            assert len(str(error).splitlines()) <= 3


def test_wrong_contents_are_named(tmp_path):
    published(tmp_path)
    place = tmp_path / "cifar-10-batches-py" / "test_batch"
    for content, message in (
        (pickle.dumps({"data": pixels(2), "labels": [0, 10]}, 2), "y_test: label 10 is not in 0..9"),
        (pickle.dumps({"data": pixels(2), "labels": [0]}, 2), "test_batch: its labels is no list of 2 integers"),
        (pickle.dumps({"data": pixels(2), "labels": [0, True]}, 2), "its labels is no list of 2 integers"),
        (pickle.dumps({"data": pixels(2), "labels": [0, 1 << 70]}, 2), "its labels has 0 or"),
        (pickle.dumps({"data": pixels(2)[:, :99], "labels": [0, 1]}, 2), r"its data is no array of \(n, 3072\)"),
        (pickle.dumps({"data": pixels(2), "fine_labels": [0, 1]}, 2), "it has no data and labels"),
        (pickle.dumps([1, 2], 2), "it has no data and labels"),
    ):
        place.write_bytes(content)
        with pytest.raises(BadInput, match=message):
            data.build("cifar10", str(tmp_path), 32)


def test_incomplete_and_damaged_archives_are_named(tmp_path):
    published(tmp_path)
    path = archive(tmp_path, "cifar10", tmp_path / "c.tar.gz")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"text", b"", whole[:40] + b"\0" * 40 + whole[80:]):
        path.write_bytes(content)
        with pytest.raises(BadInput, match=r"c.tar.gz|cifar-10-batches-py/"):
            data.build("cifar10", str(path), 32)
    with pytest.raises(BadInput, match="c.tar.gz has no cifar-100-python/train; download it anew"):
        path.write_bytes(whole)
        data.build("cifar100", str(path), 32)
    (tmp_path / "cifar-10-batches-py" / "data_batch_4").unlink()
    with pytest.raises(BadInput, match="is damaged, or no cifar-10-batches-py: .*data_batch_4"):
        data.build("cifar10", str(tmp_path), 32)
    link = io.BytesIO()
    with tarfile.open(fileobj=link, mode="w:gz") as tar:
        for file in (*official.LAYOUTS["cifar10"].train, "test_batch"):
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
    path.write_bytes(link.getvalue())
    with pytest.raises(BadInput, match="has no cifar-10-batches-py/data_batch_1"):
        data.build("cifar10", str(path), 32)


def test_cutout_covers_a_square_cut_at_the_border():
    images = np.full((200, 8, 8, 3), 200, np.uint8)
    fill = np.array([1, 2, 3], np.uint8)
    examples = Arrays(images, np.zeros(200, int), Augment(cover=4, fill=(1, 2, 3)))
    covered = examples.batch(np.arange(200), np.random.default_rng(0))["image"]
    hidden = (covered != 200).all(-1)
    np.testing.assert_array_equal(covered[hidden], np.broadcast_to(fill, (hidden.sum(), 3)))
    sizes = [(m.any(1).sum(), m.any(0).sum()) for m in hidden]
    assert all(m.sum() == h * w for m, (h, w) in zip(hidden, sizes, strict=True)), "a rectangle"
    assert {h for h, _ in sizes} == {2, 3, 4} and max(sizes) == (4, 4)
    centres = {tuple(np.argwhere(m)[0]) for m, size in zip(hidden, sizes, strict=True) if size == (4, 4)}
    assert len(centres) == 25, "everywhere"


def test_cutout_comes_behind_the_rest_and_its_absence_changes_no_stream():
    plain, with_it = (build.source(small(**{"data.cutout": size})) for size in (0, 4))
    assert plain.train.augment is data.build("digits", "", 8).train.augment
    indices = np.arange(64)
    a, b = (s.train.batch(indices, np.random.default_rng(5))["image"] for s in (plain, with_it))
    fill = round(255 * plain.mean[0])
    assert np.all((a == b) | (b == fill)) and np.mean(a != b) > 0.1
    assert with_it.eval is not plain.eval and np.array_equal(with_it.eval.images, plain.eval.images)
    assert with_it.eval.augment is None


def test_cutout_that_cannot_be_is_named(tmp_path):
    with pytest.raises(BadInput, match="config.data.cutout is 9; the images are 8 pixels wide"):
        build.source(small(**{"data.cutout": 9}))
    with pytest.raises(BadInput, match="config.data.cutout is -1; it must be at least 0"):
        config.validate(small(**{"data.cutout": -1}))
    source = data.Source(train=[], eval=[], prepare=dict, image_shape=(64, 64, 3), num_classes=2)
    with pytest.raises(BadInput, match="cutout is for images in memory"):
        data.covered(source, 16)
    assert isinstance(build.source(small(**{"data.cutout": 2, "data.held_out": 3})).train, Arrays)
