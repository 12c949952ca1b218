"""Files from anywhere: what an image or an array claims to be, what is thrown away of it, and what lies beside it."""

import dataclasses
import io
import os
import subprocess
import sys
import zipfile
import zlib
from functools import partial

import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax import build, data, pixels
from bireal_jax.checks import scan
from bireal_jax.data import images, jpeg, stored
from bireal_jax.data.normalize import prepared
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.pixels import listing, window
from bireal_jax.runtime import photos


def picture(width=64, height=48, mode="RGB"):
    small_one = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small_one).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


# ------------------------------------------------------------------------------------------------------------ formats


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n"
OTHERS = ("AVIF", "DDS", "PPM", "ICO", "JPEG2000", "MSP")


def test_only_the_named_formats_are_opened(tmp_path, monkeypatch):
    mark, script = tmp_path / "mark", tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {mark}\n[ $1 = --version ] && echo 9 && exit 0\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    strangers = [EPS, b"\x0a\x05\x01\x08" + bytes(200), b"BLP2" + bytes(2000), b"qoif" + bytes(99)]
    for kind in OTHERS:
        mode = "1" if kind == "MSP" else "RGB"
        strangers.append(encoded(picture(32, 32, mode), kind))
    for content in strangers:
        with pytest.raises(BadInput, match=r"photo.jpg cannot be decoded: not an image \(JPEG, PNG and the like.*\)\n"):
            pixels.decode(content, "photo.jpg")
        with pytest.raises(BadInput, match="photo: its depth cannot be decoded"):
            depth_rules().read({"image": encoded(picture(), "PNG"), "depth": content, "name": "photo"})
    with pytest.raises(BadInput, match="^photo: its depth is a file of 0 bytes"):
        depth_rules().read({"image": encoded(picture(), "PNG"), "depth": b"", "name": "photo"})
    assert not mark.exists()
    assert pixels.decode(encoded(picture(), "MPO", save_all=True, append_images=[picture()]), "phone").size == (64, 48)


def depth_rules():
    from bireal_jax.data.depth import Rules

    return Rules(32)


KINDS = [
    ("JPEG", "RGB", {}), ("JPEG", "L", {"progressive": True}), ("JPEG", "CMYK", {}), ("PNG", "RGB", {}),
    ("PNG", "P", {}), ("PNG", "LA", {}), ("PNG", "1", {}), ("GIF", "P", {}), ("BMP", "RGB", {}), ("BMP", "1", {}),
    ("WEBP", "RGB", {}), ("WEBP", "RGBA", {"lossless": True}), ("TIFF", "RGB", {}), ("TIFF", "L", {}),
    ("TIFF", "CMYK", {"compression": "tiff_lzw"}), ("TIFF", "RGB", {"compression": "tiff_deflate"}),
    ("TIFF", "1", {"compression": "group4"}), ("TIFF", "YCbCr", {"compression": "jpeg"}),
]  # fmt: skip


def mutated(whole, rng):
    """A file of which some bytes are changed, most of those near its beginning, or cut off, or filled with others."""
    data = bytearray(whole)
    for _ in range(rng.integers(1, 6)):
        place = int(len(data) * rng.random() ** 3)
        how = rng.integers(5)
        if how == 0:
            data[place] ^= 1 << rng.integers(8)
        elif how == 1:
            data[place] = rng.choice([0, 1, 127, 128, 255])
        elif how == 2:
            data[place : place + 4] = rng.bytes(4)
        elif how == 3:
            data[place : place + 2] = b"\xff\xff"
        else:
            del data[place + int(rng.integers(1, 50)) :]
            data += rng.bytes(int(rng.integers(0, 20)))
        data = data or bytearray(b"\0")
    return bytes(data)


def mutate(kind, mode, options, count):
    whole, rng = encoded(picture(mode=mode), kind, **options), np.random.default_rng(0)
    decoded = 0
    for _ in range(count):
        example = {"bytes": mutated(whole, rng), "name": "odd.jpg", "label": 0}
        for take in (
            partial(images.prepare_file, size=16, resize=18),
            partial(images.augment_file, rng=np.random.default_rng(0), size=16),
        ):
            try:
                assert take(example)["image"].shape == (16, 16, 3)
                decoded += 1
            except BadInput as error:
                assert str(error).startswith("odd.jpg cannot be decoded: ") and len(str(error).splitlines()) <= 3
        assert isinstance(images.damage(example["bytes"]), str)
    return decoded


@pytest.mark.parametrize(("kind", "mode", "options"), KINDS, ids=str)
def test_mutated_files_are_decoded_or_named(kind, mode, options):
    mutate(kind, mode, options, 60)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "mode", "options"), KINDS, ids=str)
def test_many_mutated_files_are_decoded_or_named(kind, mode, options):
    mutate(kind, mode, options, 1000)


@pytest.mark.parametrize("error", [MemoryError, OverflowError("big"), IndexError("x"), zipfile.BadZipFile("y")])
def test_whatever_pillow_raises_names_the_file(error, monkeypatch):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(BadInput, match="a.png cannot be decoded: "):
        pixels.decode(b"", "a.png")


# -------------------------------------------------------------------------------------------------------------- modes


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_modes_of_tiff(mode):
    expected = np.asarray(picture(mode=mode).convert("RGB"))
    np.testing.assert_array_equal(pixels.decode(encoded(picture(mode=mode), "TIFF"), "a.tif"), expected)


def test_a_palette_with_transparency_keeps_its_colours():
    image = picture(mode="P")
    np.testing.assert_array_equal(
        pixels.decode(encoded(image, "PNG", transparency=bytes(range(256))), "a.png"), image.convert("RGB")
    )


def test_pixels_of_unknown_range_are_refused_not_black():
    grey = np.asarray(picture(mode="L"))
    for array in (grey.astype(np.float32) / 255, grey.astype(np.float32), grey.astype(np.int32) << 16):
        with pytest.raises(BadInput, match=r"a.tif cannot be decoded: its pixels are 32-bit numbers \(mode [IF]\)"):
            pixels.decode(encoded(Image.fromarray(array), "TIFF"), "a.tif")


@pytest.mark.parametrize("kind", ["TIFF", "PNG"])
def test_sixteen_bits_become_eight(kind):
    grey = np.asarray(picture(mode="L"))
    sixteen = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(np.asarray(pixels.decode(encoded(sixteen, kind), "a"))[..., 1], grey)


def test_tiff_of_white_zero_and_of_twelve_bits():
    grey = np.asarray(picture(mode="L"))
    white_is_zero = encoded(Image.fromarray(grey.astype(np.uint16) * 257), "TIFF", tiffinfo={262: 0})
    shown = np.asarray(pixels.decode(white_is_zero, "a.tif"))[..., 0]
    np.testing.assert_array_equal(shown, 255 - grey)
    whole = bytearray(encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "TIFF"))
    tag = whole.index(b"\x02\x01\x03\x00\x01\x00\x00\x00\x10\x00")  # 258, one short, 16
    whole[tag + 8] = 12
    values = [0, 4095, 2048, 16] * 16
    packed = b"".join(
        bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in zip(values[::2], values[1::2], strict=True)
    )
    place = int.from_bytes(whole[whole.index(b"\x11\x01") + 8 :][:4], "little")  # of the first strip
    assert whole[:2] == b"II"
    whole[place : place + len(packed)] = packed
    shown = np.asarray(pixels.decode(bytes(whole), "a.tif"))[..., 0].ravel()
    assert shown[:4].tolist() == [0, 255, 128, 1]


# ----------------------------------------------------------------------------------------------------- sizes and work


def whole_then_crop(image, resize, size):
    """The definition: all of the image resized by Pillow, and the middle of that."""
    short = min(image.size)
    image = image.resize((int(resize * image.width / short), int(resize * image.height / short)), 2)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return np.asarray(image.crop((left, top, left + size, top + size)))


def test_crops_of_all_sizes_and_ratios_are_those_of_pillow():
    rng, parts = np.random.default_rng(0), 0
    sides = [(1, 300), (300, 1), (2, 999), (999, 2), (7, 211), (211, 7), (900, 20), (20, 900), (1, 1)]
    sides += [tuple(rng.integers(1, 300, 2)) for _ in range(6)]
    for width, height in sides:
        values = rng.integers(0, 256, (height, width, 3), np.uint8)
        for mode in ("RGB", "L"):
            image = Image.fromarray(values).convert(mode)
            for resize, size in ((18, 16), (73, 64), (16, 16), (100, 21), (120, 8)):
                expected = whole_then_crop(image, resize, size)
                found = pixels.centre_crop(image, resize, size)
                np.testing.assert_array_equal(found, expected, f"{width}x{height} {mode} {resize} {size}")
                area = (resize / min(image.size)) ** 2 * width * height
                parts += area > pixels.FAR * size * size
    assert parts > 40, "the other path was taken, too"


def test_windows_of_resized_images_are_those_of_pillow():
    rng = np.random.default_rng(1)
    for _ in range(80):
        width, height, new_width, new_height = (int(v) for v in np.exp(rng.uniform(0, np.log(400), 4)))
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
        left, top = int(rng.integers(new_width)), int(rng.integers(new_height))
        box = left, top, int(rng.integers(left, new_width)) + 1, int(rng.integers(top, new_height)) + 1
        expected = np.asarray(image.resize((new_width, new_height), Image.Resampling.BILINEAR).crop(box))
        np.testing.assert_array_equal(window.resized(image, (new_width, new_height), box), expected)


def test_work_grows_with_what_is_kept(tmp_path):
    """Strips, tall and wide, of three formats, in evaluation and training and at the runtime, below 200 MB more."""
    rng = np.random.default_rng(0)
    for shape in ((1, 30000, 3), (30000, 1, 3)):
        for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")):
            values = rng.integers(0, 256, shape if kind != "WEBP" else tuple(min(s, 16000) for s in shape), np.uint8)
            Image.fromarray(values).save(tmp_path / f"{shape[0]}.{suffix}", kind)
    code = """
import resource, sys, numpy as np
from pathlib import Path
from bireal_jax.data import images
from bireal_jax.runtime import photos
images.prepare_file({"bytes": Path(sys.argv[1]).read_bytes(), "label": 0, "name": ""}, size=8, resize=9)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 200 * 2**20,) * 2)
for path in map(Path, sys.argv[1:]):
    example = {"bytes": path.read_bytes(), "label": 0, "name": str(path)}
    assert images.prepare_file(example, size=224, resize=256)["image"].shape == (224, 224, 3)
    assert images.augment_file(example, np.random.default_rng(0), size=224)["image"].shape == (224, 224, 3)
    assert photos.read(path, (224, 224, 3), 256).shape == (224, 224, 3)
    assert photos.read(path, (8, 8, 1), 65536).shape == (8, 8, 1), "what a strange file of a network asks for"
"""
    files = sorted(map(str, tmp_path.iterdir()))
    assert len(files) == 6
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]


def test_bombs_are_refused_by_their_pixels():
    content = bytearray(encoded(picture(), "PNG"))
    content[16:24] = (20000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(BadInput, match="bomb.png cannot be decoded: .*400000000 pixels"):
        pixels.decode(bytes(content), "bomb.png")


def test_a_photo_smaller_than_the_network_is_enlarged(tmp_path):
    picture(10, 10).save(tmp_path / "a.png")
    assert photos.read(tmp_path / "a.png", (32, 32, 3), 20).min(axis=(0, 1)).max() > 0, "no black border"


# ------------------------------------------------------------------------------------------------------------- damage


compiled = pytest.mark.skipif(not jpeg.available(), reason="jpeg.cc was not compiled")


@compiled
def test_half_grey_images_are_damaged_and_whole_ones_are_not():
    noisy = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    for mode, options in (("RGB", {}), ("L", {}), ("CMYK", {}), ("RGB", {"progressive": True}),
                          ("RGB", {"restart_marker_blocks": 2}), ("RGB", {"subsampling": 0})):  # fmt: skip
        whole = encoded(noisy.convert(mode), "JPEG", **options)
        assert images.damage(whole) == images.damage(whole + b"more") == ""
        half = whole[: len(whole) // 2] + b"\xff\xd9"
        pixels.decode(half, "half.jpg")
        assert "Corrupt JPEG data: premature end" in images.damage(half)
        holed = whole[: len(whole) // 2] + bytes(500) + whole[len(whole) // 2 + 500 :]
        assert "Corrupt JPEG" in images.damage(holed)
    png = encoded(noisy, "PNG", compress_level=0)
    assert images.damage(png) == ""
    place = len(png) // 2
    flipped = png[:place] + bytes([png[place] ^ 1]) + png[place + 1 :]
    assert "IDAT" in images.damage(flipped)


@compiled
def test_photos_are_whole(shared):
    with zipfile.ZipFile(shared / "data" / "imagenet_sample1000_s256.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith(".JPEG")][::10]
        assert [name for name in names if images.damage(archive.read(name))] == []


# ------------------------------------------------------------------------------------------------------------ folders


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 1)):
        for name in ("apple", "banana"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                values = rng.integers(0, 256, (20, 24, 3), np.uint8)
                Image.fromarray(values).save(tmp_path / split / name / f"{i}.jpg")
    return tmp_path


def test_hidden_files_are_no_examples_and_hidden_folders_no_classes(folder):
    before = data.build("folder", str(folder), 16)
    for name in (".ipynb_checkpoints", "__MACOSX", ".git", "@eaDir"):
        for place in (folder / "train", folder / "val", folder / "train" / "apple"):
            (place / name).mkdir()
            picture().save(place / name / "0.jpg")
    for split in ("train", "val"):
        for name in (".DS_Store", "._0.jpg", "Thumbs.db", ".hidden.png"):
            for place in (folder / split, folder / split / "apple"):
                (place / name).write_bytes(b"\0\5\x16\7" + bytes(40))
    after = data.build("folder", str(folder), 16)
    assert (after.train.pairs, after.eval.pairs, after.label_names) == (
        before.train.pairs, before.eval.pairs, ("apple", "banana"))  # fmt: skip
    assert after.left_out == () and after.note == ""


def test_images_left_out_are_counted_and_named(folder, capsys):
    apple = folder / "train" / "apple"
    for name in ("a.webp", "b.HEIC", "c.bmp", "d.tiff"):
        (apple / name).write_bytes(b"")
    (apple / "more").mkdir()
    picture().save(apple / "more" / "e.jpg")
    picture().save(folder / "val" / "beside.png")
    (apple / "phone").write_bytes(encoded(picture(), "JPEG"))
    (apple / "notes.txt").write_text("no image")
    (apple / "README").write_text("no image")
    (apple / "folder.jpg").mkdir()
    source = data.build("folder", str(folder), 16)
    assert len(source.train) == 6 and len(source.eval) == 2
    assert sorted(os.path.basename(path) for path in source.left_out) == [
        "a.webp", "b.HEIC", "beside.png", "c.bmp", "d.tiff", "e.jpg", "phone"]  # fmt: skip
    counts = "left out: 7 images (2 in other folders, 1 .heic, 1 .webp, 1 .bmp, 1 .tiff, 1 without a suffix): "
    assert set(source.note.split(": ")[1]) == set(counts.split(": ")[1])
    assert f"{apple / 'a.webp'}" in source.note and source.note.endswith(" and 4 more\n")
    config = small(**{"data.name": "folder", "data.dir": str(folder), "data.image_size": 16})
    assert scan.run(config) == 1
    assert "FIX  left out          7 images are not read: " in capsys.readouterr().out
    assert data.hold_out(source, 1).left_out == source.left_out


def test_a_class_with_no_image_left_is_an_error(folder):
    (folder / "train" / "cherry").mkdir()
    with pytest.raises(BadInput, match=r"train/cherry has no image that is read\nthe folder is empty\n.*remove"):
        data.build("folder", str(folder), 16)
    (folder / "train" / "cherry" / "a.webp").write_bytes(b"")
    (folder / "val" / "cherry").mkdir()
    picture().save(folder / "val" / "cherry" / "a.jpg")
    with pytest.raises(BadInput, match=r"train/cherry has no image that is read\nleft out: 1 images \(1 .webp\)"):
        data.build("folder", str(folder), 16)


def test_folders_that_cannot_be_named_or_read(folder, monkeypatch):
    os.mkdir(os.fsencode(folder / "train") + b"/\xff")
    with pytest.raises(BadInput, match=r"class \\udcff has a name that is not UTF-8"):
        data.build("folder", str(folder), 16)

    def denied(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(BadInput, match="train cannot be read: Permission denied"):
        data.build("folder", str(folder), 16)


def test_a_link_that_leads_nowhere_is_missed(folder):
    (folder / "train" / "apple" / "z.jpg").symlink_to("nowhere.jpg")
    source = data.build("folder", str(folder), 16)
    with pytest.raises(BadInput, match=r"apple/z.jpg cannot be read: No such file"):
        source.train[3]


@compiled
def test_the_data_check_names_half_grey_images(folder, capsys):
    path = folder / "train" / "banana" / "1.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2 + 200] + b"\xff\xd9")
    config = small(**{"data.name": "folder", "data.dir": str(folder), "data.image_size": 16})
    assert scan.run(config) == 1
    assert f"1 of 8 broken: {path} is damaged: Corrupt JPEG data: premature end" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------- resize


def test_resize_follows_the_size_of_images(folder):
    assert data.short_side(224, 0) == 256 and data.short_side(64, 0) == 73 and data.short_side(64, 256) == 256
    picture(300, 200).save(folder / "val" / "apple" / "0.jpg")
    config = small(**{"data.name": "folder", "data.dir": str(folder), "data.image_size": 64, "data.resize": 0})
    source = build.source(config)
    found = source.prepare(source.eval[0])["image"]
    image = Image.open(folder / "val" / "apple" / "0.jpg")
    np.testing.assert_array_equal(found, whole_then_crop(image, 73, 64))


def test_prepare_takes_pixels_alone():
    source = data.build("digits", image_size=8)
    prepare = lambda images: prepared(images, source, np.float32)
    assert prepare(source.eval.images[:2]).shape == (2, 8, 8, 1)
    floats = source.eval.images[:2].astype(np.float32)
    for wrong in (floats / 255, floats, floats.astype(int), source.eval.images[:2, :7]):
        with pytest.raises(BadInput, match=r"prepare takes images uint8 \[n, 8, 8, 1\], values 0 to 255; these are"):
            prepare(wrong)


# ------------------------------------------------------------------------------------------------------------- arrays


def header(shape, dtype="<f4", length=0):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(length)


@pytest.fixture
def unread(monkeypatch):
    """Fails where numbers of an array are read."""

    def fail(*_, **__):
        raise AssertionError("the numbers are read")

    monkeypatch.setattr(np, "load", fail)
    monkeypatch.setattr(np.lib.format, "read_array", fail)


CLAIMS = [
    header((1 << 25, 1 << 25)), header((10**9,), length=100), header((), "<U1000000000"), header((-1, -4), length=16),
    header((2,), "|O", 16), header((3, 4), length=47), header((3, 4), length=49), b"\x93NUMPY\x03\x00" + bytes(50),
    b"\x93NUMPY\x02\x00\xff\xff\xff\xff", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x10\x00{'descr': 1}    ", b"",
]  # fmt: skip


@pytest.mark.parametrize("content", CLAIMS, ids=lambda content: str(content[:60]))
def test_arrays_that_are_not_what_they_claim(content, unread):
    with pytest.raises(Exception, match=r"^(?!.*the numbers are read)"):
        stored.read_npy(content)
    with pytest.raises(BadInput, match=r"^a: its depth (?!.*the numbers are read)"):
        depth_rules().read({"image": encoded(picture(), "PNG"), "depth": content, "name": "a"})


def test_plain_arrays_come_through(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"a/b": rng.normal(size=(3, 4)), "c": np.zeros((0, 5)), "d": np.asfortranarray(rng.normal(size=(2, 3)))}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        with stored.Npz(tmp_path / "a.npz") as file:
            assert set(file.claims) == set(arrays) and file.claims["a/b"].size == 12
            for name, array in arrays.items():
                np.testing.assert_array_equal(file.read(name), array)


def bomb(path, **claims):
    """An .npz of a kilobyte whose headers, and those of the archive, claim arrays."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, dtype) in claims.items():
            content = header(shape, dtype)
            archive.writestr(f"{name}.npy", content)
            size = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
            archive.getinfo(f"{name}.npy").file_size = len(content) + size
    return path


def test_gigabytes_of_zeros_are_not_read(tmp_path, unread):
    from bireal_jax import importers

    large = bomb(tmp_path / "a.npz", other=((1 << 30,), "<f4"))
    with pytest.raises(BadInput, match="a.npz: its arrays are to take 4,294,967,296 bytes"):
        importers.load("bireal_tiny", large)
    with pytest.raises(BadInput, match="a.npz is not CIFAR-10: there is no x_train"):
        data.build("cifar10", str(large), 32)
    small_one = bomb(tmp_path / "b.npz", other=((1 << 26,), "<f4"))
    with pytest.raises(BadInput, match="b.npz: these are not weights of bireal_tiny"):
        importers.load("bireal_tiny", small_one)
    names = {"conv1.weight": ((32, 3, 3, 3), "<f4"), "fc.weight": ((10, 64), "<f4"), "other": ((1 << 26,), "<f4")}
    with pytest.raises(BadInput, match="c.npz: its arrays are to have 67,.* numbers; bireal_tiny has "):
        importers.load("bireal_tiny", bomb(tmp_path / "c.npz", **names))
    parts = {"x_train": ((700_000, 32, 32, 3), "|u1"), "y_train": ((700_000,), "|u1")}
    parts |= {"x_test": ((1, 32, 32, 3), "|u1"), "y_test": ((1,), "|u1")}
    with pytest.raises(BadInput, match="d.npz: x_train has 700,000 images, at most 600,000 are read"):
        data.build("cifar10", str(bomb(tmp_path / "d.npz", **parts)), 32)
    with pytest.raises(BadInput, match="e.npz: x_train is float64"):
        data.build("cifar10", str(bomb(tmp_path / "e.npz", **parts | {"x_train": ((1 << 40,), "<f8")})), 32)


def test_claims_of_other_weight_files(tmp_path):
    from bireal_jax.importers import readers

    h5py = pytest.importorskip("h5py", reason="needs h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("conv1.weight", (1 << 20, 1 << 20), "f4", chunks=(1024, 1024))  # no byte of it is stored
    torch = pytest.importorskip("torch", reason="needs torch")
    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 20, 1 << 20)}, tmp_path / "b.pt")
    for name in ("a.h5", "b.pt"):
        with pytest.raises(BadInput, match=f"{name}: its arrays are to take 4,398,046,511,104 bytes; no network here"):
            readers.read(tmp_path / name)
    torch.save({"conv1.weight": torch.zeros(4)}, tmp_path / "c.pt")
    with zipfile.ZipFile(tmp_path / "c.pt") as whole, zipfile.ZipFile(tmp_path / "d.pt", "w", 8) as archive:
        for info in whole.infolist():
            archive.writestr(info.filename, whole.read(info))
            if "data/0" in info.filename:
                archive.getinfo(info.filename).file_size = 1 << 35
    with pytest.raises(BadInput, match="d.pt: its parts are to take 34,359,7.* bytes; no network here takes"):
        readers.read(tmp_path / "d.pt")


def test_labels_are_checked_before_images_are_held_out():
    digits = data.build("digits", image_size=8)
    for wrong in (-1, 10):
        labels = np.full_like(digits.train.labels, wrong)
        source = dataclasses.replace(digits, train=Arrays(digits.train.images, labels))
        with pytest.raises(BadInput, match=rf"training image \d+: label {wrong} is not in 0..9"):
            data.hold_out(source, 2)


def test_hidden_names():
    for name in (".x", "._a.jpg", "__MACOSX", "Thumbs.db", "THUMBS.DB", ".ipynb_checkpoints"):
        assert listing.hidden(name)
    for name in ("a", "_a", "__init__", "n01440764", "macosx"):
        assert not listing.hidden(name)
