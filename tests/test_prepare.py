"""ImageNet's tars, small: the layout of the real ones, with its CMYK file and its PNG called .JPEG."""

import io
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from bireal_jax import data
from bireal_jax.data import batching, prepare
from bireal_jax.errors import BadInput

SYNSETS = ("n01440764", "n01443537", "n01739381", "n02105855")


def jpeg(seed, mode="RGB", kind="JPEG"):
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((80, 60)).convert(mode)
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def add(tar, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_tars(folder, extra=()):
    stored = {f"{s}_{i}.JPEG": jpeg(10 * k + i) for k, s in enumerate(SYNSETS) for i in range(3)}
    stored |= {
        "n01739381_1309.JPEG": jpeg(90, "CMYK"),
        "n02105855_2933.JPEG": jpeg(91, kind="PNG"),
        "n01440764_9.JPEG": jpeg(92, "L"),
    }
    stored |= dict(extra)
    with tarfile.open(folder / prepare.TRAIN, "w") as outer:
        for synset in SYNSETS:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for name, content in stored.items():
                    if name.startswith(synset):
                        add(tar, name, content)
            add(outer, f"{synset}.tar", inner.getvalue())
    with tarfile.open(folder / prepare.VAL, "w") as tar:
        for i in (5, 3, 2, 1):  # neither sorted nor complete: no label may shift
            add(tar, f"ILSVRC2012_val_{i:08d}.JPEG", jpeg(100 + i))
    return stored


def test_prepared_tars_are_read_back_with_their_bytes_and_labels(tmp_path):
    stored = write_tars(tmp_path)
    prepare.main(["imagenet2012", "--tars", str(tmp_path), "--out", str(tmp_path / "out")])
    source = data.build("imagenet2012", str(tmp_path / "out"), 32, 40)
    assert (len(source.train), len(source.eval), source.num_classes) == (15, 4, 1000)
    examples = {e["name"]: e for e in (source.train[i] for i in range(15))}
    assert set(examples) == set(stored)
    for name, example in examples.items():
        assert source.label_names[example["label"]] == name.split("_")[0]
        reencoded = name in ("n01739381_1309.JPEG", "n02105855_2933.JPEG")
        assert (example["bytes"] == stored[name]) != reencoded
        if reencoded:
            image = Image.open(io.BytesIO(example["bytes"]))
            assert (image.format, image.mode) == ("JPEG", "RGB")
    val = {e["name"]: e["label"] for e in (source.eval[i] for i in range(4))}
    # Labels of the first validation images of ILSVRC 2012, as in every public copy of the list.
    assert [source.label_names[val[f"ILSVRC2012_val_{i:08d}.JPEG"]] for i in (1, 2, 3, 5)] == [
        "n01751748", "n09193705", "n02105855", "n03125729",
    ]  # fmt: skip
    batch = next(batching.train_batches(source, 4, 0, 0, devices=2))
    assert batch["image"].shape == (2, 2, 32, 32, 3)
    assert "tensorflow" not in sys.modules


def test_missing_tar_and_broken_image_are_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        prepare.main(["imagenet2012", "--tars", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "ILSVRC2012_img_train.tar\nregister at image-net.org" in capsys.readouterr().err
    write_tars(tmp_path, {"n01440764_99.JPEG": jpeg(0)[:200]})
    with pytest.raises(BadInput, match="n01440764_99.JPEG cannot be decoded"):
        prepare.imagenet2012(tmp_path, tmp_path / "out")
    (tmp_path / prepare.TRAIN).write_bytes(b"no tar at all")
    with pytest.raises(BadInput, match="is damaged"):
        prepare.imagenet2012(tmp_path, tmp_path / "out2")


def test_strange_names_and_strangers_in_the_tars(tmp_path, capsys):
    """Paths before names, what file managers leave behind, sparse files; nothing is asked for again."""
    with tarfile.open(tmp_path / prepare.TRAIN, "w") as outer:
        add(outer, "./._n01440764.tar", b"junk")
        add(outer, "./.DS_Store", b"junk")
        for i, synset in enumerate(SYNSETS[:2]):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                add(tar, f"../../{synset}/{synset}_1.JPEG", jpeg(i))
                add(tar, f"._{synset}_1.JPEG", b"junk")
                add(tar, "Thumbs.db", b"junk")
                add(tar, "list.txt", b"a list")
            add(outer, ("./", "train/")[i] + f"{synset}.tar", inner.getvalue())
        add(outer, "README", b"no tar")
    with tarfile.open(tmp_path / prepare.VAL, "w", format=tarfile.GNU_FORMAT) as tar:
        add(tar, ".DS_Store", b"junk")
        add(tar, "./val/ILSVRC2012_val_00000001.JPEG", jpeg(3))
        member = tarfile.TarInfo("ILSVRC2012_val_00000002.JPEG")
        member.type = tarfile.GNUTYPE_SPARSE
        block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        block[483:495] = b"77777777777\0"  # 8 GiB, of which nothing is stored
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        tar.fileobj.write(block)
    prepare.main(["imagenet2012", "--tars", str(tmp_path), "--out", str(tmp_path / "out")])
    source = data.build("imagenet2012", str(tmp_path / "out"), 32, 40)
    names = {(e["name"], source.label_names[e["label"]]) for e in (source.train[i] for i in range(len(source.train)))}
    assert names == {(f"{synset}_1.JPEG", synset) for synset in SYNSETS[:2]}
    assert (len(source.eval), source.eval[0]["name"]) == (1, "ILSVRC2012_val_00000001.JPEG")
    said = capsys.readouterr().out
    assert "2 train and 1 validation images; ILSVRC2012 has 1,281,167 and 50,000" in said
    assert "left out: 4 files that are no images of ILSVRC2012: " in said
    for stranger in ("n01440764.tar: list.txt", "n01443537.tar: list.txt", f"{prepare.TRAIN}: README"):
        assert stranger in said


def test_a_damaged_tar_is_named(tmp_path):
    write_tars(tmp_path)
    with tarfile.open(tmp_path / prepare.TRAIN, "w") as outer:
        add(outer, "n01440764.tar", b"no tar")
    with pytest.raises(BadInput, match=r"ILSVRC2012_img_train.tar, n01440764.tar is damaged: "):
        prepare.imagenet2012(tmp_path, tmp_path / "out")
    with tarfile.open(tmp_path / prepare.TRAIN, "w") as outer:
        add(outer, "README", b"nothing else")
    with pytest.raises(BadInput, match=r"ILSVRC2012_img_train.tar holds nothing of the kind n"):
        prepare.imagenet2012(tmp_path, tmp_path / "out2")
