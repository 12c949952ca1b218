"""What would train nothing, or give figures that are no numbers, is refused or said."""

import dataclasses
import json

import jax
import numpy as np
import packed
import pytest
from small import small

from bireal_jax import build, importers, models
from bireal_jax.checks import doctor
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.running import workdir
from bireal_jax.shipping import export
from bireal_jax.training import seeds, train
from bireal_jax.training.step import Plan


def plan(size=8, **fields):
    """Of the digits, whose images are cut to `size` pixels."""
    source = build.source(small())
    train_set = Arrays(source.train.images[:, :size, :size], source.train.labels)
    return Plan(small(**fields), dataclasses.replace(source, train=train_set, image_shape=(size, size, 1)))


@pytest.mark.parametrize(
    "fields, devices, bad",
    [
        ({"batch_size": 8}, 8, True),
        ({"batch_size": 8}, 4, False),
        ({"batch_size": 16, "accumulate": 2}, 8, True),
        ({"batch_size": 16, "model.bn_group": 1}, 1, True),
        ({"batch_size": 16, "model.bn_group": 2}, 1, False),
        ({"batch_size": 16, "deterministic": True, "accumulate": 2}, 1, True),
        ({"batch_size": 8, "model.sync_bn": True}, 8, False),
        ({"batch_size": 1, "model.sync_bn": True}, 1, True),
    ],
)
def test_batch_norm_over_one_value(fields, devices, bad):
    stride = models.build("bireal_tiny", 10).total_stride
    plan(2 * stride, **fields).check(devices)  # four values
    small_maps = plan(stride, **fields)
    if not bad:
        return small_maps.check(devices)
    with pytest.raises(BadInput, match="normalizes one value per channel, a map of one pixel of one image"):
        small_maps.check(devices)


def test_a_batch_larger_than_the_data_set(tmp_path, monkeypatch, capsys):
    whole = build.source(small())
    few = dataclasses.replace(whole, train=Arrays(whole.train.images[:15], whole.train.labels[:15]))
    monkeypatch.setattr(build, "source", lambda config: few)
    message = "config.batch_size=16 is more than the 15 training images of digits"
    with pytest.raises(BadInput, match=message):
        train.run(small(), tmp_path / "w")
    with pytest.raises(BadInput, match=message):
        seeds.train(small(), [0])
    assert not (tmp_path / "w").exists()
    checks = ("data set", "schedule")
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in checks})
    assert doctor.run(small(), tmp_path) == 1
    assert f"FIX  schedule          {message}" in capsys.readouterr().out


def test_what_is_hardly_meant_is_said(tmp_path, capsys, monkeypatch):
    for fields, said in (
        ({}, []),
        ({"optim.schedule": "steps", "optim.milestones": (0.05,)}, []),
        (
            {"optim.schedule": "steps", "optim.milestones": (0.05, 60)},
            ["milestones: 60 is not reached in 0.1335 epochs"],
        ),
        ({"optim.milestones": (30,)}, ["milestones are of the schedule 'steps', and this is 'linear'"]),
        ({"optim.schedule": "steps"}, ["without milestones the rate does not fall"]),
        ({"ema_decay": 0.9}, []),
        ({"ema_decay": 0.999}, ["after 12 steps the average that is evaluated is 99% what the training began with"]),
    ):
        notes = plan(**fields).notes()
        assert len(notes) == len(said) and all(text in note for text, note in zip(said, notes, strict=True))
    monkeypatch.setattr(doctor, "CHECKS", {name: doctor.CHECKS[name] for name in ("data set", "schedule")})
    doctor.run(small(ema_decay=0.999), tmp_path)
    assert "OK   schedule          12 steps; note: config.ema_decay=0.999" in capsys.readouterr().out
    stage = train.Stage(0, "train", small(ema_decay=0.999), tmp_path, 0)
    assert stage._headline(0).startswith("note: config.ema_decay=0.999")


def test_an_evaluation_that_is_no_number_is_an_error(tmp_path, monkeypatch):
    variables = jax.device_get(plan().initial(0))
    path = tmp_path / "a.npz"
    importers.save(variables, path)
    monkeypatch.setattr(importers.values, "check", lambda *_: None)  # what a file may not hold
    variables["batch_stats"]["stem_bn"]["var"] = -np.ones_like(variables["batch_stats"]["stem_bn"]["var"])
    importers.save(variables, path)
    message = (
        "evaluation is nan: the network's outputs are not finite; 1 arrays are no weights, batch_stats/stem_bn/var"
    )
    with pytest.raises(BadInput, match=message):
        train.run_eval(small(init_from=str(path)), tmp_path / "w")
    assert not (tmp_path / "w" / "eval.json").exists()


def test_a_model_that_gives_no_numbers_is_not_shipped():
    module, variables, source = packed.network("bireal_tiny")
    wrong = jax.tree.map(np.array, variables)
    wrong["batch_stats"]["stem_bn"]["var"] -= 10
    images = np.zeros((2, *source.image_shape), np.uint8)
    with pytest.raises(BadInput, match="the model's outputs are not finite on the images"):
        export.compare(module, wrong, source, packed.written("bireal_tiny"), images)


def test_nothing_that_is_no_number_is_written_down(tmp_path):
    assert json.loads(workdir.to_json({"loss": 1.5}, 1)) == {"loss": 1.5}
    for value in (np.nan, np.inf, float("-inf")):
        with pytest.raises(BadInput, match=f"a figure to be written down is not finite: loss is {value}"):
            workdir.to_json({"loss": value, "top1": 7.8})
    with pytest.raises(BadInput, match="not finite: {'stages': .*nan"):
        workdir.to_json({"stages": [{"loss": np.nan}]})
    with workdir.Log(tmp_path, 0, 0, 0) as log, pytest.raises(BadInput, match="loss is nan"):
        log.write(1, "train", {"loss": float("nan")})
    assert not (tmp_path / "metrics.jsonl").read_text()
