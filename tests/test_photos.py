"""From a photo to an answer: the pixels of evaluation, classes with probabilities, and the command over many files."""

import csv
import io
import json
import os

import bireal_run
import numpy as np
import packed
import pytest
from PIL import Image

from bireal_jax import pixels, runtime
from bireal_jax.data import images
from bireal_jax.errors import BadInput
from bireal_jax.runtime import __main__ as command
from bireal_jax.runtime import container, measure, photos

NAME = "bireal_tiny"
FAST = {} if runtime.available() else {"kernels": "reference"}
KERNELS = [f"--{name}={value}" for name, value in FAST.items()]


def net(name=NAME):
    return runtime.load(packed.written(name), **FAST)


class Of:
    """What `runtime.photo` asks of a network, in colour."""

    image_shape, output_shape, resize = (32, 32, 3), (10,), 36


def picture(seed=0, width=50, height=40):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8))


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def turned(kind="JPEG", quarter=6):
    exif = Image.Exif()
    exif[pixels.ORIENTATION] = quarter
    return encoded(picture(), kind, exif=exif)


@pytest.fixture
def album(tmp_path):
    """Two photos, one below the other, one that is none, one hidden and one of another kind."""
    place = tmp_path / "album"
    (place / "more").mkdir(parents=True)
    picture(1).save(place / "a.png")
    picture(2).save(place / "more" / "c.JPG")
    (place / "b.jpg").write_bytes(b"no photo")
    (place / ".hidden.jpg").write_bytes(b"no photo")
    (place / "notes.txt").write_text("no photo")
    return place


# ------------------------------------------------------------------------------------------------------- the pixels


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_pixels_of_evaluation_from_every_source(kind, tmp_path):
    data = encoded(picture(), kind)
    path = tmp_path / "photo"
    path.write_bytes(data)
    expected = images.prepare_file({"bytes": data, "label": 0, "name": ""}, size=32, resize=36)["image"]
    opened = Image.open(path)
    for source in (path, str(path), data, bytearray(data), memoryview(data), opened, Image.open(path).convert("RGB")):
        np.testing.assert_array_equal(runtime.photo(source, Of), expected)
    assert opened.mode == "RGB" and opened.size == (50, 40), "it stays as it was"


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "1", "LA", "I;16"])
def test_images_of_every_mode_are_those_of_their_files(mode):
    image = Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50) * 32) if mode == "I;16" else picture()
    image = image if mode == "I;16" else image.convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    np.testing.assert_array_equal(runtime.photo(image, Of), runtime.photo(encoded(image, kind), Of))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation_is_ignored_unless_asked_for(kind):
    data = turned(kind)
    plain = Image.open(io.BytesIO(data)).convert("RGB")
    np.testing.assert_array_equal(runtime.photo(data, Of), pixels.centre_crop(plain, 36, 32))
    for source in (data, Image.open(io.BytesIO(data))):
        upright = runtime.photo(source, Of, upright=True)
        np.testing.assert_array_equal(upright, pixels.centre_crop(plain.transpose(Image.Transpose.ROTATE_270), 36, 32))
    assert pixels.turned(data)
    assert not pixels.turned(turned(kind, 1)) and not pixels.turned(encoded(picture())) and not pixels.turned(b"no")


def test_what_is_no_photo_is_refused(tmp_path):
    whole = encoded(picture(), "JPEG", quality=95)
    for source, message in (
        (np.zeros((32, 32, 3), np.uint8), "call the network with arrays"), (7, "7 is no photo"), (None, "is no photo"),
        ("a\0b", "no photo"), (b"", "decoded: not an image .*; this is an empty file"), (tmp_path, "cannot be read"),
        (whole[:-500], "the image cannot be decoded"), (Image.new("F", (9, 9)), "32-bit numbers"),
        (tmp_path / "none.jpg", "none.jpg cannot be read: No such file"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=message) as caught:
            runtime.photo(source, Of)
        assert len(str(caught.value).splitlines()) <= 3


# ------------------------------------------------------------------------------------------------------- the answers


def test_the_likeliest_classes_and_their_probabilities():
    x = np.random.default_rng(2).integers(0, 256, (3, 8, 8, 1)).astype(np.uint8)
    shares, logits = net().probabilities(x), net()(x).astype(np.float64)
    np.testing.assert_allclose(shares, np.exp(logits) / np.exp(logits).sum(-1, keepdims=True), rtol=1e-12)
    assert shares.shape == (3, 10) and np.abs(shares.sum(-1) - 1).max() < 1e-12
    for image, found in zip(logits, net().top(x, 3), strict=True):
        assert [best.index for best in found] == np.argsort(-image)[:3].tolist()
        assert [best.label for best in found] == [f"name {best.index}" for best in found]
    assert len(net().top(x, 99)[0]) == 10 and sum(best.probability for best in net().top(x, 99)[0]) == pytest.approx(1)
    assert net().top(x[:0]) == [] and net().probabilities(x[:0]).shape == (0, 10)
    for count in (0, -1, 2.5, True, "5"):
        with pytest.raises(BadInput, match="count is .*; use 1 to"):
            net().top(x, count)


def test_logits_that_are_not_finite_are_no_answer(monkeypatch):
    found = net()
    for value in (np.nan, np.inf):
        monkeypatch.setattr(runtime.Network, "__call__", lambda *_, value=value: np.array([[0, value]], np.float32))
        with pytest.raises(BadInput, match="a logit is not finite"):
            found.top(np.zeros((1, 8, 8, 1), np.uint8))


# ------------------------------------------------------------------------------------------------------- the command


def run(capsys, *arguments, status=0):
    return bireal_run.run(capsys, *arguments, *KERNELS, status=status)


def test_folders_patterns_and_files_that_are_broken(album, capsys, monkeypatch):
    out = run(capsys, packed.written(NAME), album, status=1)
    assert [line for line in out.out.splitlines() if line[0] != " "] == [
        str(album / "a.png"), str(album / "more" / "c.JPG"),
    ]  # fmt: skip
    assert out.err.count("error: ") == 1 and "b.jpg cannot be decoded" in out.err
    monkeypatch.chdir(album)
    assert "a.png\n" in run(capsys, packed.written(NAME), "*.png").out
    assert "c.JPG" in run(capsys, packed.written(NAME), "**/*.JPG").out
    out = run(capsys, packed.written(NAME), "*.gif", "none.jpg", "a.png", status=1)
    assert (
        "no photos at *.gif: nothing there ends in .bmp" in out.err
        and "none.jpg cannot be read" in out.err
        and "a.png" in out.out
    )
    out = run(capsys, packed.written(NAME), "*.gif", "b.jpg", "none.jpg", "--format=csv", "--out=none.csv", status=2)
    assert out.err.count("error: ") == 3 and not (album / "none.csv").exists(), "nothing came out"
    (album / "a[1].png").write_bytes((album / "a.png").read_bytes())
    assert "a[1].png" in run(capsys, packed.written(NAME), "a[1].png").out, "a name is no pattern"


def test_lines_for_programs(album, capsys):
    out = run(capsys, packed.written(NAME), album, "--format=csv", "--top=2", status=1).out
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["rank"] for row in rows] == ["1", "2"] * 2 and rows[2]["file"].endswith("c.JPG")
    lines = [
        json.loads(line)
        for line in run(capsys, packed.written(NAME), album, "--format=jsonl", status=1).out.split("\n")[:-1]
    ]
    expected = net().top(runtime.photo(album / "a.png", net())[None])[0]
    assert [best["class"] for best in lines[0]["top"]] == [best.index for best in expected] and len(lines) == 2
    assert rows[0]["label"] == expected[0].label == lines[0]["top"][0]["label"]
    assert float(rows[0]["probability"]) == pytest.approx(expected[0].probability, abs=1e-6)


def test_names_that_are_no_utf8(album, capsysbinary):
    name = os.fsdecode(os.fsencode(album) + b"/\xff.png")
    picture(1).save(name)
    for style in ("text", "csv", "jsonl"):
        command.main([str(packed.written(NAME)), name, f"--format={style}", *KERNELS])
        assert rb"\xff.png" in capsysbinary.readouterr().out.replace(rb"\udcff", rb"\xff")


def test_the_latency_has_quartiles(capsys, monkeypatch):
    monkeypatch.setattr(measure, "RUNS", 7)
    found = json.loads(run(capsys, packed.written(NAME), "--time", "--format=jsonl").out)
    assert 0 < found["lower_ms"] <= found["median_ms"] <= found["upper_ms"] and found["runs"] == 7
    assert "median_ms" in run(capsys, packed.written(NAME), "--time").out


def test_accuracy_of_a_folder_and_of_arrays(tmp_path, capsys):
    x = np.random.default_rng(3).integers(0, 256, (70, 8, 8, 1)).astype(np.uint8)
    best = net()(x).argmax(-1)
    wrong = (best + (np.arange(70) % 7 == 0)) % 10  # 10 of 70
    np.savez(tmp_path / "set.npz", x_test=x, y_test=wrong[:, None])
    found = json.loads(run(capsys, packed.written(NAME), "--evaluate", tmp_path / "set.npz", "--format=jsonl").out)
    assert found["images"] == 70 and found["top1"] == 60 / 70 and 60 / 70 <= found["top5"] <= 1
    assert "top-1 85.71 %" in run(capsys, packed.written(NAME), "--evaluate", tmp_path / "set.npz").out
    for i, (image, label) in enumerate(zip(x, wrong, strict=True)):
        place = tmp_path / "val" / f"name {label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(place / f"{i}.png")
    (place / "zz.png").write_bytes(b"no photo")
    out = run(capsys, packed.written(NAME), "--evaluate", tmp_path, "--format=jsonl", status=1)
    again = json.loads(out.out)
    assert again["images"] == 70 and again["top1"] == found["top1"] and "zz.png cannot be decoded" in out.err
    assert "note: all photos" not in out.err, "val/ is what no training has seen"
    out = run(capsys, packed.written(NAME), "--evaluate", tmp_path / "val", "--format=jsonl", status=1)
    assert json.loads(out.out) == again | {"net": again["net"]} and "val count, also those tra" in out.err


def test_classes_of_two_names(tmp_path, capsys):
    """Answers have the one for people, folders of photos either; the other one is there for programs."""
    program = container.read(packed.written(NAME))
    program.spec["ids"] = [f"n{i}" for i in range(10)]
    path, x = tmp_path / "net.safetensors", np.random.default_rng(3).integers(0, 256, (8, 8, 8, 1)).astype(np.uint8)
    path.write_bytes(container.dump(program))
    found = runtime.load(path)
    assert (found.labels[3], found.ids[3], net().ids[3]) == ("name 3", "n3", "name 3")
    for i, index in enumerate(found(x).argmax(-1)):
        for names in ("ids", "labels"):
            place = tmp_path / names / getattr(found, names)[index]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(x[i, ..., 0]).save(place / f"{i}.png")
    for names in ("ids", "labels"):
        out = run(capsys, path, "--evaluate", tmp_path / names, "--format=jsonl").out
        assert json.loads(out)["top1"] == 1
    line = json.loads(run(capsys, path, tmp_path / "ids", "--format=jsonl").out.splitlines()[0])
    best = line["top"][0]
    assert (best["id"], best["label"]) == (found.ids[best["class"]], found.labels[best["class"]])
    for wrong in (["n0"], [*program.spec["ids"][:9], 9], "n" * 10):
        program.spec["ids"] = wrong
        with pytest.raises(BadInput, match="ids is|an id"):
            runtime.Network(container.dump(program))


def test_what_cannot_be_evaluated(tmp_path, capsys):
    image, file = np.zeros((2, 8, 8, 1), np.uint8), tmp_path / "set.npz"
    for arrays, message in (
        ({"x": image}, "neither x_test and y_test nor images and labels"),
        ({"images": image, "labels": [0, 10]}, "labels go from 0 to 10; the network has 10"),
        ({"images": image, "labels": [-1, 0]}, "labels go from -1 to 0"),
        ({"images": image, "labels": [0.0, 1.0]}, "whole numbers"), ({"images": image, "labels": [0]}, "whole numbers"),
        ({"images": image.astype(float), "labels": [0, 1]}, "wanted: uint8"),
        ({"images": image[:, :7], "labels": [0, 1]}, "this network takes"),
        ({"images": np.array([{}, 1]), "labels": [0, 1]}, "no .npz file"),
        ({"images": image[:0], "labels": np.zeros(0, int)}, "no image"),
    ):  # fmt: skip
        np.savez(file, **arrays)
        assert message in run(capsys, packed.written(NAME), "--evaluate", file, status=2).err
    file.write_bytes(b"nothing")
    assert "no .npz file" in run(capsys, packed.written(NAME), "--evaluate", file, status=2).err
    (tmp_path / "empty").mkdir()
    assert "no folders of classes" in run(capsys, packed.written(NAME), "--evaluate", tmp_path / "empty", status=2).err
    (tmp_path / "empty" / "stranger").mkdir()
    assert "a folder 'stranger'" in run(capsys, packed.written(NAME), "--evaluate", tmp_path / "empty", status=2).err


def test_the_version(capsys):
    assert run(capsys, "--version").out.startswith("bireal_jax 0")


def test_without_pillow_a_message_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "bireal_jax.pixels")
    import bireal_jax

    monkeypatch.delattr(bireal_jax, "pixels")
    with pytest.raises(BadInput, match="Pillow, which is not installed: pip install pillow"):
        photos.read("a.jpg", (8, 8, 3), 0)
