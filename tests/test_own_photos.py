"""A newcomer's photos, from a folder with faults to answers: checked, mended, trained a little, packed, classified."""

import csv
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import photos
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
COMMON = (
    "--config=configs/finetune.py", "--config.model.name=bireal_tiny", "--config.data.image_size=32",
    "--config.watchdog_seconds=0",
)  # fmt: skip


@pytest.mark.slow
def test_photos_of_five_classes(shared, tmp_path):
    folder, run = tmp_path / "photos", tmp_path / "run"
    assert photos.unpack(shared / "data" / "imagenet_sample1000_s256.zip", folder, 24) == 103
    faults = photos.spoil(folder)
    given = [*COMMON, f"--config.data.dir={folder}", f"--workdir={run}"]

    def command(*arguments, module="main", ok=True):
        done = subprocess.run(
            [sys.executable, "-m", f"bireal_jax.{module}", *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    said = command(*given, "--mode=data", ok=False)
    assert f"the class {faults['no image']} has no image that is read" in said
    faults["no image"].rmdir()
    said = command(*given, "--mode=data", ok=False)
    assert "3 of 103 broken" in said and "OK   classes" in said and said.count("FIX") == 1
    for what in ("cut off", "text", "empty"):
        assert faults[what].name in said
        faults[what].unlink()
    for what in ("grey", "CMYK", "PNG"):
        assert faults[what].name not in said, "it is fine as it is"
    assert "FIX" not in command(*given, "--mode=data")
    said = _doctor(command, given)
    assert f"{run / 'doctor.png'}: what training and evaluation see" in said
    with Image.open(run / "doctor.png") as shown:
        assert len(np.unique(shown)) > 100, "photos"
    short = ["--config.total_epochs=1.0", "--config.stages=()"]
    said = command(*given, *short)
    assert "bireal_tiny on 80 training and 20 held-out images, 5 classes" in said
    said = command(*given, *short, "--mode=export")
    packed = tmp_path / "net.safetensors"
    shutil.copy(run / "net.safetensors", packed)
    said = command(packed, faults["CMYK"], module="runtime")
    assert sum(name in said for name in photos.CLASSES) == 5, "the five likeliest classes, by name"
    _classified(command, packed, folder)
    command(*given, *short, "--mode=report")
    page = (run / "report.html").read_text()
    assert "of 20 held-out images are taken for another class" in page and page.count("<svg") >= 4
    assert all(name in page for name in photos.CLASSES)


def _doctor(command, given):
    try:
        return command(*given, "--mode=doctor")
    except AssertionError as error:  # without a compiler the engine is to be mended, and nothing else
        assert str(error).count("FIX") == 1 and "engine that runs them is not compiled" in str(error)
        return str(error)


def _classified(command, packed, folder):
    """The whole folder, as a table."""
    said = command(packed, folder, "--format=csv", module="runtime")
    rows = list(csv.DictReader(io.StringIO(said)))
    assert {row["file"] for row in rows} == {str(path) for path in folder.glob("*/*.jpg")} and len(rows) == 5 * 100
    assert {row["label"] for row in rows} == set(photos.CLASSES)
