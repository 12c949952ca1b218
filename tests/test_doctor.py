"""The doctor: all is well where it is, and what is not is named."""

import dataclasses

import numpy as np
from PIL import Image
from small import small

from bireal_jax import runtime
from bireal_jax.checks import doctor, seen
from bireal_jax.data import Source, held_out
from bireal_jax.training import pictures


def test_a_recipe_that_works_is_found_to_work_and_nothing_is_left_behind(tmp_path, capsys):
    place = tmp_path / "not" / "there"
    to_mend = doctor.run(small(), place)
    lines = capsys.readouterr().out.splitlines()
    assert [line[5:23].strip() for line in lines[:-1]] == list(doctor.CHECKS)
    bad = [line for line in lines[:-1] if not line.startswith("OK ")]
    if not runtime.available():
        assert "engine that runs them is not compiled" in bad.pop()
    assert not bad and to_mend == (not runtime.available())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [place / "doctor.png"]
    assert any(f"{place / 'doctor.png'}: what training and evaluation see" in line for line in lines)
    with Image.open(place / "doctor.png") as shown:
        assert shown.format == "PNG" and shown.size == (8 * 134 + 6, 2 * (21 + 6 + 128 + 21 + 10) + 6)


def test_images_of_evaluation_are_drawn_from_all_classes_and_the_same_ones_every_time(tmp_path):
    def drawn():
        visit = doctor.Visit(small(batch_size=8), tmp_path)
        visit.data_set()
        examples = visit.source.eval
        order = np.argsort(examples.labels, kind="stable")  # class by class, as the files of a folder lie
        visit.source = dataclasses.replace(visit.source, eval=held_out.Part(examples, order))
        visit._draw()
        image, label = (visit.seen["evaluation"][name].reshape(8, -1) for name in ("image", "label"))
        for pixels, kind in zip(image, label, strict=True):
            same = (examples.images.reshape(len(examples), -1) == pixels).all(1)
            assert kind in examples.labels[same], "its label goes with it"
        return image, label

    (image, label), (again, _) = drawn(), drawn()
    assert len(np.unique(label)) > 3 and np.array_equal(image, again)


def test_depth_is_drawn_below_its_image():
    source = Source((), (), dict, (128, 128, 3), 1, label_shape=(4, 6), depth_range=(0.5, 10.0))
    near_to_far = np.broadcast_to(np.array([0.0, 1, 2, 3, 4, 5], np.float32), (1, 1, 4, 6))
    batch = {"image": np.full((1, 1, 128, 128, 3), 7, np.uint8), "label": near_to_far, "mask": np.ones((1, 1), bool)}
    page = np.asarray(seen.sheet(source, {"training": batch}))
    top = 21 + seen.GAP
    assert (page[top : top + 128, seen.GAP : seen.GAP + 128] == 7).all()
    below = page[top + 128 + seen.GAP :][:128, seen.GAP : seen.GAP + 128]
    colours = [tuple(below[64, int((k + 0.5) * 128 / 6)]) for k in range(6)]
    assert colours[0] == (0, 0, 0) and (colours[1], colours[5]) == (
        tuple(pictures.COLOURS[0]),
        tuple(pictures.COLOURS[-1]),
    )


def test_names_of_classes_are_written_in_letters_that_are_there():
    source = Source((), (), dict, (8, 8, 3), 3, label_names=("Vögel", "猫", "dog"))
    assert [seen._name(source, i) for i in range(3)] == ["Vogel", "class 1", "dog"]


def test_batches_are_drawn_as_the_run_draws_them(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in ("data set", "decoder")})
    for split in ("train_batches", "eval_batches"):

        def fails(source, batch_size, *_, split=split, **loading):
            assert (batch_size, loading) == (8, {"devices": 8, "threads": 3, "workers": 2})
            raise RuntimeError(f"Worker process was terminated unexpectedly with exit code -7. {split}")
            yield

        with monkeypatch.context() as patch:
            patch.setattr(doctor.batching, split, fails)
            config = small(batch_size=8, **{"data.threads": 3, "data.workers": 2})
            assert doctor.run(config, tmp_path) == 1
        assert "FIX  decoder           a data worker process ran out of shared memory, of which /dev/shm has" in (
            capsys.readouterr().out
        )


def test_what_does_not_work_is_named_with_what_mends_it(tmp_path, capsys, monkeypatch):
    quick = {name: check for name, check in doctor.CHECKS.items() if name not in ("training step", "memory", "weights")}
    monkeypatch.setattr(doctor, "CHECKS", quick)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: type("", (), {"free": 10**5}))
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: ["jax<0.1", "no-such-thing>=1", "h5py; extra == 'x'"])
    (tmp_path / "file").write_text("")
    config = small(**{"data.name": "folder", "data.dir": str(tmp_path), "batch_size": 100, "data.image_size": 32})
    assert doctor.run(config, tmp_path / "file") == len(quick)
    out = capsys.readouterr().out
    for line in (
        "FIX  versions          missing or of another version: jax<0.1, no-such-thing>=1; pip install 'jax<0.1' 'no-s",
        "FIX  devices           batch_size 100 is not divisible by 8 devices; use 96 or 104",
        f"FIX  data set          no folder in {tmp_path}: config.data.dir must hold train/CLASS/",
        "FIX  decoder           there is no data set to decode; mend the line above first",
        "FIX  save and restore  there is no state to try it with",
    ):
        assert line in out
    for name in ("write access", "disk space"):
        assert f"FIX  {name:<17} cannot write to {tmp_path / 'file'}" in out
    monkeypatch.setattr(doctor, "CHECKS", {"disk space": doctor.Visit.disk_space})
    assert doctor.run(small(), tmp_path) == 1
    assert "0.1 MB free" in (out := capsys.readouterr().out) and "df -h" in out
