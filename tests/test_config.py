import json

import pytest

from bireal_jax import config, limits
from bireal_jax.errors import BadInput
from bireal_jax.running import settings


def test_steps_win_over_epochs():
    c = config.default()
    c.batch_size, c.total_epochs = 100, 2.5
    assert config.steps(c, "total", 1000) == 25
    c.total_steps = 7
    assert config.steps(c, "total", 1000) == 7
    c.optim.warmup_epochs = 0.001
    assert config.steps(c, "optim.warmup", 1000) == 1, "a duration above zero is at least one step"
    c.log_epochs = 0.0
    assert config.steps(c, "log", 1000) == 0


def test_stages_are_overrides_of_a_locked_schema():
    c = config.default()
    assert [config.stage_name(c, 0), len(list(config.stages(c)))] == ["train", 1]
    c.stages = ({"name": "clip", "optim.lr": 0.5, "total_epochs": 3.0}, {"model.act": "ste"})
    first, second = config.stages(c)
    assert (first.optim.lr, first.total_epochs, first.model.act) == (0.5, 3.0, "approx_sign")
    assert (second.optim.lr, second.total_epochs, second.model.act) == (1e-3, 256.0, "ste")
    assert config.stage_name(c, 1) == "stage 1"
    c.stages = ({"name": "clip", "optim.rl": 0.5},)
    with pytest.raises(BadInput, match="stage 'clip': no field config.optim.rl; did you mean config.optim.lr?"):
        config.stage(c, 0)
    c.stages = ({"name": "clip", "optim.lr": "fast"},)
    for value in ("fast", 10**400):
        c.stages = ({"name": "clip", "optim.lr": value},)
        with pytest.raises(BadInput, match="stage 'clip'"):
            config.validate(c)


def test_a_stage_may_be_a_share_of_the_whole():
    c = config.default()
    c.total_epochs, c.batch_size = 40.0, 100
    c.stages = ({"name": "head", "share": 0.25}, {"name": "all", "share": 0.75}, {"name": "more"})
    assert [config.steps(stage, "total", 1000) for stage in config.stages(c)] == [100, 300, 400]
    c.total_steps = 9
    assert [config.steps(stage, "total", 1000) for stage in config.stages(c)] == [2, 7, 9]
    for share in (0.0, 1.5, "half", True, 1):
        c.stages = ({"name": "head", "share": share},)
        with pytest.raises(BadInput, match="stage 'head'"):
            config.validate(c)


def test_what_a_command_line_gives_and_no_stage_takes_is_refused():
    c = config.default()
    assert config.unheard(c, ["optim.lr", "total_epochs"]) == []
    c.stages = ({"name": "a", "optim.lr": 0.1, "total_epochs": 3.0}, {"name": "b", "total_epochs": 4.0})
    assert config.unheard(c, ["optim.lr", "seed"]) == [
        "note: config.optim.lr=0.001 leaves out the stages that have their own ('a' 0.1)"
    ]
    with pytest.raises(
        BadInput, match=r"total_epochs=256.0 would do nothing: every stage .* has its own \('a' 3.0, 'b' 4.0\)\nchange"
    ):
        config.unheard(c, ["total_epochs"])
    assert config.unheard(c, ["total_steps"]) == [], "steps win over the epochs of the stages"
    for field in ("log", "optim.warmup"):
        c.update_from_flattened_dict({f"{field}_steps": 5, f"{field}_epochs": 0.0})
        assert config.unheard(c, [f"{field}_epochs"]) == [], "0 epochs are what steps leave of them"
        c.update_from_flattened_dict({f"{field}_epochs": 1.0})
        with pytest.raises(BadInput, match=rf"config.{field}_epochs=.* would do nothing: config.{field}_steps is set"):
            config.unheard(c, [f"{field}_epochs"])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("optim.lr", -0.1, "config.optim.lr is -0.1; it must be above 0 and finite"),
        ("optim.lr", float("nan"), "config.optim.lr is nan"),
        ("batch_size", 0, "config.batch_size is 0; it must be at least 1 and finite"),
        ("label_smoothing", 1.0, r"config.label_smoothing is 1.0; it must be in \[0, 1\)"),
        ("model.dtype", "float8", "float32, bfloat16 or float64"),
        ("total_epochs", 0.0, "both 0"),
        ("total_epochs", float("inf"), "config.total_epochs is inf"),
        ("optim.lr", float("inf"), "config.optim.lr is inf"),
        ("optim.milestones", ("a",), "epochs, numbers above 0"),
        ("seed", 2**40, r"config.seed is 1099511627776; it must be in \[0"),
        ("optim.lr", 1e-45, r"config.optim.lr is 1e-45; float32 holds 0 and sizes from 1.2e-38 to 3.4e\+38"),
        ("optim.lr", 1e39, "config.optim.lr is 1e"),
        ("optim.lr", -0.0, "config.optim.lr is -0.0; it must be above 0"),
        ("optim.weight_decay", 1e-320, "config.optim.weight_decay is 1e-320; float32 holds"),
        ("data.mean", (0.5, float("nan")), r"config.data.mean is \(0.5, nan\); float32 holds"),
        ("data.std", (float("inf"),), r"config.data.std is \(inf,\); float32 holds"),
        ("optim.milestones", (True,), r"config.optim.milestones is \(True,\); True is no number"),
        ("optim.bop.gamma", ("constant", 1e-45), "config.optim.bop.gamma is"),
        ("batch_size", 10**12, "config.batch_size is 1000000000000; its size must be at most 2147483647"),
        ("total_steps", 2**63, "config.total_steps is 9223372036854775808; its size"),
        ("data.depth.crop", (0, 10**10, 0, 4), "config.data.depth.crop"),
        ("total_epochs", 1e300, r"config.total_epochs is 1e\+300; float32 holds"),
        ("batch_size", True, "config.batch_size is True; it must be a value like 512"),
        ("seed", None, "config.seed is None; it must be a value like 0"),
        ("model.name", None, "config.model.name is None; it must be a value like 'bireal18'"),
    ],
)
def test_values_out_of_their_limits(field, value, message):
    c = config.default()
    c.update_from_flattened_dict({field: value})
    with pytest.raises(BadInput, match=message):
        config.validate(c)
    c = config.default()
    c.stages = ({field: value},)
    with pytest.raises(BadInput, match=message):
        config.validate(c)


def test_more_steps_than_can_be_counted():
    c = config.default()
    c.total_epochs = 1e30
    config.validate(c)
    with pytest.raises(BadInput, match=r"config.total_epochs is 1e\+30, .*steps; at most 2147483647 are possible"):
        config.steps(c, "total", 1000)
    c.total_epochs = 1e-30
    assert config.steps(c, "total", 1000) == 1


def test_every_limit_belongs_to_a_field_and_the_default_keeps_them():
    c = config.default()
    config.validate(c)
    for field in (*limits.LIMITS, *settings.FREE):
        config.get(c, field)


def test_a_resize_that_follows_is_the_256_of_before():
    c = config.default()
    text = settings.to_json(c)
    before = text.replace('"resize": 0', '"resize": 256')
    assert before != text and settings.differences(before, text) == settings.differences(text, before) == []
    assert settings.differences(before.replace("256", "240"), text.replace("256", "240"))[0] == "data.resize 240 -> 256"
    c.data.image_size = 64  # here 256 was another crop, which is kept to
    text = settings.to_json(c)
    assert settings.differences(text.replace('"resize": 0', '"resize": 256'), text) == ["data.resize 256 -> 73"]
    c.data.image_size, c.stages = 224, ({"data.image_size": 128},)
    text = settings.to_json(c)
    assert settings.differences(text.replace('"resize": 0', '"resize": 256'), text) == ["data.resize 256 -> 0"]


def test_differences_name_fields_and_leave_out_where_things_lie():
    c = config.default()
    stored = settings.to_json(c)
    assert json.loads(stored)["optim"]["lr"] == 1e-3
    c.data.dir, c.data.workers = "elsewhere", 3
    assert settings.differences(stored, settings.to_json(c)) == []
    c.optim.lr, c.stages = 0.01, ({"name": "a"},)
    assert settings.differences(stored, settings.to_json(c)) == [
        "optim.lr 0.001 -> 0.01",
        "stages [] -> (none)",
        "stages.0.name (none) -> a",
    ]


def test_stages_that_are_none():
    c = config.default()
    for stages, message in (
        (("clip",), "must be a dict"),
        (({"init_from": "x"},), "init_from is of the whole run; set it outside"),
    ):
        c.stages = stages
        with pytest.raises(BadInput, match=message):
            config.validate(c)


def test_steps_are_no_more_than_can_be_counted():
    for field, value in (("total_steps", 2**31), ("total_epochs", 1e30)):
        c = config.default()
        c[field] = value
        with pytest.raises(BadInput, match="2147483647"):
            config.steps(c, "total", 1000)


def test_a_shape_that_would_overflow_is_refused():
    c = config.default()
    c.data.image_size = 10**12
    with pytest.raises(BadInput, match="config.data.image_size is 1000000000000; it must be in"):
        config.validate(c)
