"""What a run knew goes with its weights: whoever uses them takes it, or refuses and names the field."""

import dataclasses
import json
import re
import runpy
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from small import small

from bireal_jax import build, data, importers, main, registered, runtime, used
from bireal_jax.binary import binarize, losses
from bireal_jax.checks import doctor, verify
from bireal_jax.data import Source, batching
from bireal_jax.errors import BadInput
from bireal_jax.running import known, parallel, settings, workdir
from bireal_jax.shipping import export
from bireal_jax.training import seeds, teacher, train
from bireal_jax.training.step import Plan

OWN = {"model.act": "relu", "model.weight": "real", "data.mean": (0.0,), "data.std": (0.05,), "ema_decay": 0.5}
SHORT = {"total_steps": 4, "eval_steps": 4, "log_steps": 4}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a run with another normalization and other estimators than `small` has."""
    place = tmp_path_factory.mktemp("trained") / "w"
    train.run(small(**OWN, **SHORT), place)
    return place


@pytest.fixture
def changed(trained, tmp_path):
    """Copies the workdir, with changes of config.json and data.json."""

    def copy(config_json=lambda stored: None, data_json=lambda stored: None):
        place = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(trained, place)
        for name, change in (("config.json", config_json), ("data.json", data_json)):
            stored = json.loads((place / name).read_text())
            change(stored)
            (place / name).write_text(json.dumps(stored))
        return place

    return copy


def swap(stored):
    labels = stored["stages"][0]["labels"]
    labels[0], labels[1] = labels[1], labels[0]


def student(place, **fields):
    return small(**{
        "loss": "distributional", "teacher.name": "bireal_tiny", "teacher.weights": str(place), **SHORT, **fields,
    })  # fmt: skip


def test_a_teacher_sees_images_as_in_its_own_training(trained):
    """The first loss is the one by hand, with the teacher as `build.trained` gives it."""
    c = student(trained)
    module, variables, prepare = build.trained(trained)
    plan = Plan(c)
    assert plan.teacher.activation(2.0) == module.activation(2.0) == 2.0, "of its own run, not of the student"
    batch = next(batching.train_batches(plan.source, c.batch_size, 0, 0, devices=1))
    ours = plan.initial(0)
    state = jax.jit(plan.fresh)(ours, 0)
    step = parallel.networks(plan.train_step, 1, (False, False, True))
    inputs = (jax.tree.map(lambda x: x[None], state), batch, teacher.variables(c, plan.teacher_shapes))
    _, loss = step(*inputs)
    images = batch["image"][0]
    apply = jax.jit(lambda x: plan.model.apply(ours, x, train=True, mutable=["batch_stats"])[0])
    taught = jax.jit(module.apply)(variables, prepare(images))
    by_hand = losses.distributional(apply(np.float32((images / 255 - 0.5) / 0.5)), taught).mean()
    np.testing.assert_allclose(loss[0], by_hand, rtol=1e-4)


def test_a_teacher_of_other_classes_or_sizes_is_refused(changed, trained):
    source = build.source(small())
    for change, message in (
        (swap, "trained on other classes .*: class 0 is '0', not '1'"),
        (
            lambda s: s["stages"][0].update(image_shape=[16, 16, 1]),
            r"on images of \[16, 16, 1\], config.data.image_size",
        ),
        (
            lambda s: s["stages"][0].update(classes=3, labels=["a", "b", "c"]),
            "10 classes, not 3; not known there: 0, 1, 2, ",
        ),
    ):
        with pytest.raises(BadInput, match=message):
            teacher.network(student(changed(data_json=change)), source)
    message = "of another model: it has .*='bireal_tiny', not 'resnet_tiny'\nadd --config.teacher.name=bireal_tiny$"
    with pytest.raises(BadInput, match=message):
        teacher.network(student(trained, **{"teacher.name": "resnet_tiny"}), source)


def test_evaluation_and_export_need_no_override_again(trained, capsys):
    result = json.loads((trained / "result.json").read_text())
    capsys.readouterr()
    assert train.run_eval(small(), trained)["top1"] == result["best_top1"]
    out = capsys.readouterr().out
    said = (
        "trained, with data.mean [0.0], not [], data.std [0.05], not [], model.act relu, not approx_sign and 1 more\n"
    )
    assert said in out, "and nothing of what only a training asks, such as ema_decay"
    export.run(small(), trained)
    net = runtime.load(trained / "net.safetensors", kernels=None if runtime.available() else "reference")
    assert net._program.spec["image"]["mean"] == [0.0] and list(net.labels) == list("0123456789")
    assert verify.run(small(), trained) == 1


def test_a_training_that_has_not_ended_is_said_to_be_so(changed, capsys):
    place = changed()
    used.weights(small(), place)
    assert "has not ended" not in capsys.readouterr().out
    (place / "result.json").unlink()
    used.weights(small(), place)
    assert f"note: the training in {place} has not ended; " in capsys.readouterr().out


def test_what_an_evaluation_may_set_counts(trained, capsys):
    use = used.weights(small(**{"data.held_out": 2, "data.mean": (0.7,)}), trained)
    assert use.source.split == "held-out" and use.source.mean == (0.0,)
    assert "data.mean [0.0], not [0.7], " in (said := capsys.readouterr().out)
    assert ", but for what is asked, data.held_out 0 -> 2\n" in said
    recipe = small(batch_size=99, **{"data.held_out": 2})  # of a recipe, not of the command line
    use = used.weights(recipe, trained, given=["batch_size", "model.act"])
    assert (use.config.batch_size, use.config.data.held_out, use.config.model.act) == (99, 0, "relu")
    line = ["main", "--config=configs/digits.py", "--config.optim.lr=0.5", "--noconfig.remat", "--workdir=w"]
    assert main.overridden(line) == ["optim.lr", "remat"]


def test_classes_are_those_of_the_run(changed, capsys):
    place = changed(data_json=swap)
    with pytest.raises(BadInput, match="other classes .*: class 0 is '0', not '1'\nset config.data.dir"):
        train.run_eval(small(), place)
    export.run(small(), place)
    assert "other classes: class 0 is '0', not '1'\nthe file gets those of the run" in capsys.readouterr().out
    net = runtime.load(place / "net.safetensors", kernels="reference")
    assert list(net.labels)[:3] == ["1", "0", "2"]
    (place / "result.json").unlink()
    fix = doctor.Visit(small(**OWN, **SHORT), place)
    with pytest.raises(BadInput, match="stages.0.labels .'1', '0'"):
        fix.data_set()


def test_an_evaluation_may_have_some_of_the_classes(trained, tmp_path, capsys):
    digits = data.build("digits", image_size=8).eval
    kept = np.isin(digits.labels, (3, 7))
    images, truth = digits.images[kept], digits.labels[kept]
    arrays = {"images": images, "labels": np.where(truth == 7, 0, 1), "label_names": ["7", "3"]}
    fields = {"data.name": "arrays", "data.dir": str(tmp_path / "two.npz"), "data.val_share": 1.0}
    np.savez(fields["data.dir"], **arrays)
    capsys.readouterr()
    top1 = train.run_eval(small(**fields), trained, given=fields)["top1"]
    assert f"note: the data set here has 2 of the 10 classes of the run in {trained}\n" in capsys.readouterr().out
    module, variables, prepare = build.trained(trained)
    assert top1 == pytest.approx(100 * np.mean(module.apply(variables, prepare(images)).argmax(-1) == truth))
    use = used.weights(small(**fields), trained, given=fields, pack=True)
    assert use.source.num_classes == 10 and use.source.note == ""
    np.savez(fields["data.dir"], **arrays | {"label_names": ["y", "x"]})
    with pytest.raises(
        BadInput, match="2 classes, not 10; not known there: y, x\\nset config.data.dir to the data set .*: 0, 1, "
    ):
        train.run_eval(small(**fields), trained, given=fields)
    pairs = [{"image": image, "label": label} for image, label in zip(images, arrays["labels"], strict=True)]
    some = Source(pairs, (), dict, (8, 8, 1), 2, (0.5,), (0.5,), label_names=("7", "3"))
    seen = data.numbered(some, tuple("0123456789")).train
    assert [seen[i]["label"] for i in range(len(seen))] == truth.tolist() and seen[1]["image"] is pairs[1]["image"]


def test_a_training_that_starts_from_a_run_says_what_it_changes(changed, trained, tmp_path, capsys):
    c = small(init_from=str(trained), **{"model.weight": "real", "data.mean": (0.5,), "data.std": (0.5,)})
    source = build.source(c)
    build.variables(c, build.model(c, source)[1], source=source)
    out = capsys.readouterr().out
    assert "; here it is model.act relu -> approx_sign, data.mean (0.0,) -> (0.5,), data.std" in out
    for start in (train.run, lambda c, _: seeds.train(c, [0])):
        with pytest.raises(BadInput, match="class 0 of the run in .* is '1', which is now class 1\n"):
            start(small(init_from=str(changed(data_json=swap)), **SHORT), tmp_path / "w")
    assert not (tmp_path / "w").exists()
    two = [Source((), (), dict, (8, 8, 3), 2, label_names=names) for names in (("a", "b"), ("b", "a"))]
    with pytest.raises(BadInput, match="class 0 of stage 'x' is 'a', which is now class 1"):
        known.check_order(*two, "of stage 'x'")


def test_what_a_run_has_started_from_is_not_what_is_evaluated(changed, capsys):
    place = changed(config_json=lambda stored: stored.update(init_from="gone.npz"))
    assert "stage_0, step 4" in used.weights(small(init_from="gone.npz"), place).origin
    assert "is what the run in" in capsys.readouterr().out


def test_a_run_of_an_older_version_goes_on(changed):
    """Fields that are newer than a run have their defaults; one that there is no more is named."""

    def older(stored):
        del stored["remat"], stored["optim"]["bop"], stored["model"]["latent_init"], stored["search"]

    def old_data(stored):
        del stored["stages"][0]["labels"], stored["stages"][0]["eval"]

    place, c = changed(older, old_data), small(**OWN, **SHORT)
    assert train.run(c, place)["steps"] == 4, "finished"
    with workdir.claim(place, c, [build.source(c)]):
        assert build.trained(place)[0].activation(2.0) == 2.0
    with pytest.raises(BadInput, match="belongs to another config: remat False -> True"):
        train.run(small(remat=True, **OWN, **SHORT), place)
    place = changed(lambda stored: stored["model"].update(old=1))
    for use in (lambda: train.run(c, place), lambda: train.run_eval(c, place), lambda: build.trained(place)):
        with pytest.raises(BadInput, match="config.json cannot be used: no field config.model.old\n"):
            use()
    with pytest.raises(BadInput, match="data.json is damaged .*mean"):
        build.trained(changed(data_json=lambda stored: stored["stages"][0].pop("mean")))


def test_a_run_that_was_cut_off_in_its_first_stage_is_of_that_stage(changed):
    def staged(stored):
        stored["stages"] = [{"name": "a"}, {"name": "b", "model.act": "ste"}]

    place = changed(staged, lambda stored: stored["stages"].append(stored["stages"][0]))
    assert build.trained(place)[0].activation(2.0) == 2.0
    assert used.weights(small(), place).config.model.act == "relu"


def test_the_recipe_that_registers_an_estimator_is_named(changed, tmp_path, monkeypatch):
    monkeypatch.setattr(binarize, "REAL", dict(binarize.REAL))
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "import jax\nfrom bireal_jax.binary import binarize\n\n\ndef half(x):\n    return jax.nn.relu(x) / 2\n\n\n"
        "binarize.REAL['half'] = half\n"
    )
    place = changed(lambda stored: stored["model"].update(act="half"))
    runpy.run_path(str(recipe))
    c = small(**OWN | {"model.act": "half"}, **SHORT)
    assert registered.fields([small(), c]) == {"model.act": str(recipe)}
    assert registered.fields([c], "other.py") == {"model.act": str(Path("other.py").absolute())}, "what is to be run"
    with workdir.claim(place, c, [build.source(c)], registered.fields([c])):
        pass
    del binarize.REAL["half"]
    uses = (lambda: build.trained(place), lambda: used.weights(small(), place), lambda: Plan(student(place)))
    uses += (lambda: main.main(["main", f"--workdir={place}", "--mode=cost"]),)
    for use in uses:
        with pytest.raises(BadInput, match=rf"config.model.act='half', which is registered by {recipe}\n") as caught:
            use()
        assert f"\nrun that first: add --config={recipe}\n" in str(caught.value)
        assert f"build.trained(RUN, recipe='{recipe}')" in str(caught.value)
        assert str(caught.value).endswith(f"recipe.load_recipe(recipe.find('{recipe}'))")
    with pytest.raises(BadInput, match="no recipe"):
        build.trained(place, recipe="nowhere.py")
    recipe.write_text(f"from configs import digits\n{recipe.read_text()}")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if not (Path(p) / "configs" / "digits.py").exists()])
    monkeypatch.delitem(sys.modules, "configs", raising=False)  # as in a folder of one's own
    assert build.trained(place, recipe=recipe)[0].activation(2.0) == 1.0


def test_doctor_says_how_a_teacher_sees_the_images(trained, changed, tmp_path):
    visit = doctor.Visit(student(trained), tmp_path / "w")
    visit.data_set()
    assert "the teacher sees images normalized by its own (0.0,), (0.05,)" in visit.weights()
    visit = doctor.Visit(student(changed(data_json=swap)), tmp_path / "w")
    visit.data_set()
    with pytest.raises(BadInput, match="other classes"):
        visit.weights()


@pytest.fixture
def exported(trained, tmp_path):
    """An .npz that the command wrote of that run."""
    importers.main([str(trained), str(tmp_path / "of_run.npz")])
    return tmp_path / "of_run.npz"


@pytest.mark.parametrize("of", ["trained", "exported"])
def test_a_start_takes_the_normalization_of_its_weights(of, request, tmp_path, capsys):
    place = request.getfixturevalue(of)
    c = small(init_from=str(place), **{"model.act": "relu", "model.weight": "real"})
    source, plain = build.source(c), build.source(small())
    assert (source.mean, source.std) == ((0.0,), (0.05,)) != (plain.mean, plain.std)
    said = f"note: images are normalized as for .* {place}, by mean .0., std .0.05.\n"
    assert re.fullmatch(said, source.note) and not plain.note
    c.data.mean = (0.25,)
    source = build.source(c)
    assert (source.mean, source.std) == ((0.25,), (0.05,)) and "by std (0.05)\n" in source.note
    c.data.name, c.data.dir, c.data.mean = "arrays", str(tmp_path / "rgb.npz"), ()
    np.savez(c.data.dir, images=np.ones((9, 8, 8, 3), np.uint8), labels=np.arange(9) % 3)
    assert build.source(c).std == (1.0, 1.0, 1.0), "other colours"
    capsys.readouterr()
    result = json.loads((request.getfixturevalue("trained") / "result.json").read_text())
    assert train.run_eval(small(init_from=str(place), **{"data.mean": (0.5,)}), tmp_path)["top1"] == result["best_top1"]
    out = capsys.readouterr().out
    assert "arrays alone" not in out and ("std (0.05)" in out if of == "exported" else "std [0.05]" in out)


def test_a_file_of_weights_knows_what_it_is(exported, trained, tmp_path):
    found, run = known.read(exported), known.read(trained)
    assert (
        found.source == dataclasses.replace(run.source, prepare=found.source.prepare) and found.last.model.act == "relu"
    )
    module, shapes, seen = teacher.network(student(exported), build.source(small()))
    assert module.activation(2.0) == 2.0 and seen.mean == (0.0,) and teacher.variables(student(exported), shapes)
    with np.load(exported) as stored:
        arrays = dict(stored)
    text = str(arrays.pop(known.KNOWN))
    assert str(tmp_path.parent) not in text, "no path of this machine"
    for wrong in ("{", "[]", text.replace("model.act", "model.atc"), text.replace("mean", "men")):
        np.savez(tmp_path / "wrong.npz", **arrays, **{known.KNOWN: np.array(wrong)})
        with pytest.raises(BadInput, match="wrong.npz: bireal_jax, which says what its weights are, is damaged"):
            known.read(tmp_path / "wrong.npz")
    importers.main([str(exported), str(tmp_path / "again.npz")])
    assert (tmp_path / "again.npz").read_bytes() == exported.read_bytes()
    np.savez(tmp_path / "alone.npz", **arrays)
    use = used.weights(small(init_from=str(tmp_path / "alone.npz")), trained)
    assert use.source.mean == (0.0,), "as the workdir that it is looked at in"


def test_a_run_goes_on_where_what_it_started_from_is_gone(changed, tmp_path, monkeypatch):
    start, place = changed(), tmp_path / "on"
    c = small(init_from=str(start), **{"model.act": "relu", "model.weight": "real"}, **SHORT)
    with workdir.claim(place, c, [build.source(c)]):
        start.rename(tmp_path / "elsewhere")
    assert "1,438 training" in doctor.Visit(c, place).data_set()
    monkeypatch.setattr(train.Stage, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # what is there was compared before
        train.run(c, place)


def test_a_part_of_a_run_names_the_run(trained, tmp_path, capsys):
    for place in (trained / "stage_0", trained / "stage_0" / "checkpoints" / "4"):
        with pytest.raises(BadInput, match=f"{place} is a part of the run in {trained}, .*: name {trained}$"):
            used.weights(small(init_from=str(place)), tmp_path / "w")
    assert "arrays alone" not in capsys.readouterr().out


def test_arrays_alone_are_said_to_be_so(trained, tmp_path, capsys):
    importers.save(build.trained(trained)[1], tmp_path / "net.npz")
    c = small(init_from=str(tmp_path / "net.npz"), **{"model.weight": "real"})
    build.variables(c, build.model(c, build.source(c))[1])
    assert "net.npz has arrays alone; normalization, classes" in capsys.readouterr().out


def test_a_stored_config_of_another_type_is_named():
    for stored, message in (
        ({"model": 3}, "model is 3, no fields"),
        ([], "all of it is .., no fields"),
        ({"batch_size": "many"}, "batch_size"),
    ):
        with pytest.raises(BadInput, match=f"x.json cannot be used: .*{message}"):
            settings.filled(stored, "x.json")
