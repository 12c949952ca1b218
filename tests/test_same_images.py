"""A run knows its images again, and where they lie: others in their place are told, and so is a missing folder."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax import build, data, importers, main, runtime, used
from bireal_jax.checks import doctor
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.running import described, known, workdir
from bireal_jax.training.step import Plan

SHORT = {"total_steps": 1, "batch_size": 4}


def picture(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), shade, np.uint8)).save(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with photos/CLASS/*: ten of a, five of b."""
    for name, count in (("a", 10), ("b", 5)):
        for i in range(count):
            picture(tmp_path / "here" / "photos" / name / f"{i}.png", 10 * i)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def photos(**fields):
    return small(**{"data.name": "folder", "data.dir": "photos", "data.image_size": 16, **SHORT, **fields})


def begin(place, config):
    """The workdir of a run that has just begun."""
    with workdir.claim(place, config, [build.source(config)]):
        return place


def swapped(place, label="a"):
    """Another photo in the place of one that was trained on."""
    trained = next(e["name"] for e in build.source(photos()).train if f"/{label}/" in e["name"])
    os.replace(trained, place / "photos" / label / "another.png")


def looked_at(run, capsys, **fields):
    capsys.readouterr()
    used._examples(photos(**fields), known.read(run), False)
    return capsys.readouterr().out


def test_other_photos_are_told_where_they_are_as_many(here, tmp_path, capsys):
    run = begin(tmp_path / "w", photos())
    assert looked_at(run, capsys) == ""
    workdir.check(run, photos(), [build.source(photos())])
    swapped(here)
    assert "no longer those of the run in" in (said := looked_at(run, capsys)) and "trained on some of those" in said
    assert "no longer those" in looked_at(run, capsys, **{"data.dir": str(here / "photos")}), "the same folder"
    with pytest.raises(BadInput, match="other images, though as many: .*\nuse .*--config.init_from=.*put the files"):
        workdir.check(run, photos(), [build.source(photos())])
    stored = json.loads((run / "data.json").read_text())
    del stored["stages"][0]["files"]
    (run / "data.json").write_text(json.dumps(stored))
    workdir.check(run, photos(), [build.source(photos())])
    assert looked_at(run, capsys) == "", "of an older run nothing is known"


def test_another_folder_is_held_out_of_no_training(here, tmp_path, capsys):
    """Copies with some photos in another class, or gone: what is split off there may have been trained on."""
    run, elsewhere = begin(tmp_path / "w", photos()), str(tmp_path / "p3")

    def judged():
        capsys.readouterr()
        found, _ = used._examples(photos(**{"data.dir": elsewhere}), known.read(run), False)
        return found.split, capsys.readouterr().out

    shutil.copytree("photos", elsewhere)
    assert judged() == ("held-out", ""), "the same images"
    os.replace(f"{elsewhere}/a/9.png", f"{elsewhere}/b/9.png")
    split, said = judged()
    assert split == "evaluation" and f"{elsewhere} has other images than the run in {tmp_path}/w had, " in said
    assert "12 to train on, 3 held out\nsome of the 3 that are evaluated here may have been trained on" in said
    os.remove(f"{elsewhere}/a/8.png")
    assert judged()[0] == "evaluation" and "has other images" in judged()[1]
    shutil.rmtree(f"{elsewhere}/b")
    with pytest.raises(BadInput, match="other classes"):
        picture(tmp_path / "p3" / "c" / "0.png", 0)
        picture(tmp_path / "p3" / "c" / "1.png", 0)
        judged()
    os.rename(f"{elsewhere}/a", tmp_path / "a")
    shutil.rmtree(elsewhere)
    os.makedirs(f"{elsewhere}/val")
    shutil.move(tmp_path / "a", f"{elsewhere}/val/a")
    assert judged() == ("test", f"note: the data set here has 1 of the 2 classes of the run in {tmp_path}/w\n"), (
        "set apart"
    )


def test_what_images_are_known_again_by(here):
    before = described.digest(build.source(photos()))
    shutil.move("photos", "moved")
    assert described.digest(build.source(photos(**{"data.dir": "moved"}))) == before, "wherever they lie"
    os.replace("moved/a/3.png", "moved/a/x.png")
    os.replace("moved/b/3.png", "moved/a/3.png")
    os.replace("moved/a/x.png", "moved/b/3.png")
    assert described.digest(build.source(photos(**{"data.dir": "moved"}))) == before, "names alone are looked at"
    assert described.digest(build.source(photos(**{"data.dir": "moved", "data.val_seed": 1}))) != before, "the split"
    images, labels = np.random.default_rng(0).integers(0, 256, (90, 8, 8, 1), np.uint8), np.arange(90) % 3

    def of(images, labels):
        return described.digest(data.Source(Arrays(images, labels), (), dict, (8, 8, 1), 3, (0.5,), (0.5,)))

    assert of(images, labels) == of(images, labels.astype(np.uint8)) != of(images, labels[::-1])
    assert of(images, labels) != of(images[::-1], labels)
    records = data.Source([{"image": images[0], "label": 0}], (), dict, (8, 8, 1), 3, (0.5,), (0.5,))
    assert described.digest(records) == "" and "files" not in described.row(records)


def test_a_relative_path_is_of_the_folder_that_the_run_began_in(here, tmp_path, monkeypatch, capsys):
    run = begin(tmp_path / "w", photos())
    assert known.read(run).config.data.dir == "photos"
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    assert known.read(run).config.data.dir == str(here / "photos")
    assert looked_at(run, capsys, **{"data.dir": str(here / "photos")}) == ""
    (resumed,) = build.stages(photos(), run)
    assert resumed.data.dir == str(here / "photos") and "there is no " in capsys.readouterr().out
    with pytest.raises(BadInput, match=f"no folder at config.data.dir='photos', from here {tmp_path}/there/photos: "):
        build.source(photos())
    (tmp_path / "there" / "fotos").mkdir()
    with pytest.raises(BadInput, match=r"\(did you mean fotos\?\)"):
        build.source(photos())
    shutil.move(here / "photos", tmp_path / "there" / "photos")
    assert known.read(run).config.data.dir == "photos", "the run was moved, with its data set"
    shutil.rmtree(tmp_path / "there" / "photos")
    with pytest.raises(BadInput, match=f"no folder at config.data.dir='{here}/photos'"):
        build.source(known.read(run).config)
    begin(tmp_path / "digits", small())
    assert "began_in" not in json.loads((tmp_path / "digits" / "data.json").read_text()), "no path, nothing to know"


def test_one_class_alone_says_what_was_left_out(here):
    shutil.move("photos/b", "b")
    picture(here / "photos" / "a" / "more" / "0.png", 0)
    with pytest.raises(
        BadInput,
        match="are of one class, .*: config.data.dir=photos\nput .*own\nleft out: 1 images .*photos/a/more/0.png",
    ):
        Plan(photos()).check(1)


def test_a_size_that_is_asked_for_brings_its_resize(here, tmp_path):
    run = known.read(begin(tmp_path / "w", photos()))
    found, said = run.again(photos(**{"data.image_size": 64}), ["data.image_size"])
    assert "asked, data.image_size 16 -> 64, data.resize 18 -> 73" in said and "with" not in said.split(",")[0]
    assert (found.data.image_size, found.data.resize) == (64, 0)
    assert run.again(photos(**{"optim.lr": 1.0}), ["optim.lr"])[1] == "", "nothing that an evaluation depends on"


def test_a_broken_photo_says_what_names_the_others(here):
    (here / "photos" / "a" / "0.png").write_bytes(b"no")
    source = build.source(photos(**{"data.val_share": 1.0}))
    with pytest.raises(BadInput, match="0.png cannot be decoded: .*\n.*; --mode=data names all that are broken"):
        source.prepare(source.eval[0])


def test_a_run_without_its_recipe_goes_on_by_its_command(here, tmp_path):
    begin(tmp_path / "w", photos())
    with pytest.raises(BadInput, match=f"--config is missing; the run in {tmp_path}/w goes on by the command that it"):
        main.parse(["main", f"--workdir={tmp_path / 'w'}"])


def test_the_name_of_a_folder_is_no_pattern(here, tmp_path, monkeypatch):
    os.rename("photos", "photos [1]")
    run = begin(tmp_path / "w", photos(**{"data.dir": "photos [1]"}))
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    (resumed,) = build.stages(photos(**{"data.dir": "photos [1]"}), run)
    assert resumed.data.dir == str(here / "photos [1]")


def test_a_folder_of_one_class_with_a_folder_in_it_is_told_to_be_one(here):
    picture(here / "photos" / "a" / "more" / "0.png", 0)
    with pytest.raises(BadInput, match="photos/a has images, and one folder, more, beside them\nif it is a class, "):
        build.source(photos(**{"data.dir": "photos/a"}))
    (here / "empty").mkdir()
    with pytest.raises(BadInput, match=f"no folder in {here}/empty: config.data.dir must hold") as caught:
        build.source(photos(**{"data.dir": "empty"}))
    assert "digits" not in str(caught.value), "nothing for those who have photos"


def test_all_of_a_folder_is_evaluated_and_nothing_called_held_out(here, tmp_path, capsys):
    run, every = begin(tmp_path / "w", photos()), {"data.val_share": 1.0}
    source = build.source(photos(**every))
    assert (len(source.train), len(source.eval), source.split) == (0, 15, "evaluation")
    assert "here are 0 and 15\nthe run may have been trained on some of those" in looked_at(run, capsys, **every)
    with pytest.raises(BadInput, match="to train, leave config.data.val_share below 1.0"):
        Plan(photos(**every))
    small_share = build.source(photos(**{"data.val_share": 1e-9}))
    assert np.bincount(small_share.eval.labels).tolist() == [1, 1] and small_share.split == "held-out"
    with pytest.raises(BadInput, match="config.data.val_share is 0.0; it must be above 0 and at most 1"):
        build.stages(photos(**{"data.val_share": 0.0}))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--config.data.dri=p"],
            "no field config.data.dri; did you mean config.data.dir.\n--config is missing, the re",
        ),
        (
            ["--config.optim.lr=1.0"],
            "^--config is missing, the recipe that --config.optim.lr changes; for a first run: ",
        ),
        (["--config.data.dir=p"], "data.dir changes; for images of your own: --config=configs/finetune.py"),
        (["--config.init_from", "p", "--mode=data"], "; for images of your own: --config=configs/finetune.py"),
    ],
)
def test_a_field_without_a_recipe_is_told_which_one(argv, message):
    with pytest.raises(BadInput, match=message):
        main.parse(["main", *argv])


def test_doctor_says_that_there_is_nothing_to_train_on(here, tmp_path):
    visit = doctor.Visit(photos(**{"data.val_share": 1.0}), tmp_path / "w")
    with pytest.raises(BadInput, match="has no training images, only images to evaluate on"):
        visit.data_set()
    with pytest.raises(BadInput, match="there is no data set to decode"):
        visit.decoder()


def test_stages_with_data_sets_of_their_own_find_them_again(here, monkeypatch):
    config = photos(stages=({"name": "one"}, {"name": "two", "data.dir": "photos/a"}))
    monkeypatch.chdir(here.parent)
    found = described.located(config, str(here)).stages
    assert [stage.get("data.dir") for stage in found] == [None, str(here / "photos" / "a")]


def test_what_is_no_kind_of_weights_file_is_told_what_else_weights_are():
    with pytest.raises(
        BadInput,
        match="README.md ends in '.md'; known: .*\nconfig.init_from also takes the workdir of a run, and a network",
    ):
        importers.load("bireal_tiny", "README.md")


@pytest.mark.parametrize("name", ["a.npz", "a.pth", "a.safetensors"])
def test_a_file_of_no_bytes_is_told_to_be_empty(name, tmp_path):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(BadInput, match=f"{name} is not a readable .*: it is an empty file\n"):
        importers.load("bireal_tiny", tmp_path / name)
    with pytest.raises(BadInput, match="is no packed network, but an empty file"):
        runtime.load(tmp_path / name, kernels="reference")
    with pytest.raises(BadInput, match="is not a file of images: it is an empty file\n"):
        data.build("arrays", str(tmp_path / name), 8)
