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
