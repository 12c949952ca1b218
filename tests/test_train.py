import dataclasses
import json
import subprocess
import sys
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import config, data, models
from bireal_jax.binary import losses
from bireal_jax.data import batching
from bireal_jax.errors import BadInput
from bireal_jax.running import parallel, progress, workdir
from bireal_jax.training import calls, optim, train
from bireal_jax.training.evaluate import make_eval_step
from bireal_jax.training.step import State, close_window, make_state, make_train_step


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def digits():
    return data.build("digits", image_size=8)


def train_on(devices, digits, dtype, steps):
    """Losses of each step, and the final state, on so many virtual devices with cross-replica statistics."""
    model = models.build("bireal_tiny", 10, dtype, bn_over=parallel.AXIS)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1), dtype))
    tx = optim.make("adam", optim.schedule("linear", 1e-3, 100), variables["params"])
    step = make_train_step(model, partial(losses.cross_entropy, label_smoothing=0.1), tx, digits)
    run = jax.pmap(step, parallel.AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:devices])
    state = make_state(variables, tx, 0, False, jnp.promote_types(dtype, jnp.float32))
    seen = []
    for _, batch in zip(range(steps), batching.train_batches(digits, 16, 0, 0, devices=devices), strict=False):
        state, loss = run(state, batch)
        shards = [np.asarray(s.data) for s in loss.addressable_shards]
        assert all(np.array_equal(shards[0], s) for s in shards), "a mean over the devices was forgotten"
        seen.append(float(loss))
    return np.asarray(seen), state


@pytest.mark.parametrize("devices", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))])
def test_one_and_several_devices_give_the_same_losses(digits, x64, devices):
    """In float32 the order of a sum can turn a sign near zero. Seen, in the same 20 steps: 2 and 4 devices stay within
    2.4e-7 of one device; with 8 a sign turns at the last step, whose loss is 0.18 % off.
    """
    reference, _ = train_on(1, digits, jnp.float64, 20)
    assert reference[-1] < reference[0]
    seen, state = train_on(devices, digits, jnp.float64, 20)
    np.testing.assert_allclose(seen, reference, rtol=1e-8)
    for leaf in jax.tree.leaves(state):
        first = np.asarray(leaf.addressable_shards[0].data)
        assert all(np.array_equal(first, np.asarray(s.data)) for s in leaf.addressable_shards)


@pytest.mark.parametrize("batch_size", [1, 100, 512])
def test_evaluation_is_exact_over_eight_devices(digits, batch_size):
    """Against the mean over one plain forward pass of all 359 images; at 8 devices and size 1 the last batch has 7."""
    model = models.build("bireal_tiny", 10)
    variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
    step = make_eval_step(model, losses.get("cross_entropy"), digits)
    scores = calls.Evaluation(step, digits, batch_size)(parallel.replicate(variables))
    images = (digits.eval.images / 255.0 - 0.5) / 0.5
    logits = np.asarray(model.apply(variables, jnp.asarray(images, jnp.float32)), np.float64)
    labels = digits.eval.labels
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert scores["top1"] == pytest.approx(100 * np.mean(logits.argmax(1) == labels))
    assert scores["loss"] == pytest.approx(-log_p[np.arange(359), labels].mean(), rel=1e-4)


def test_evaluation_notices_a_lost_batch(digits, monkeypatch):
    whole = batching.eval_batches
    monkeypatch.setattr(batching, "eval_batches", lambda *a, **k: list(whole(*a, **k))[:-1])
    model = models.build("bireal_tiny", 10)
    variables = jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 8, 8, 1)))
    evaluation = calls.Evaluation(make_eval_step(model, losses.get("cross_entropy"), digits), digits, 256)
    with pytest.raises(RuntimeError, match="evaluation saw 256 of 359 examples"):
        evaluation(parallel.replicate(variables))


def test_window_sums_and_flips(digits):
    """What is logged is the mean over the window, and the flips are those since the last log."""
    model = models.build("bireal_tiny", 10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    tx = optim.make("adam", lambda _: 1e-3, variables["params"])
    step = parallel.pmap(make_train_step(model, losses.get("cross_entropy"), tx, digits), donate=True)
    state = parallel.replicate(make_state(variables, tx, 0, False, jnp.float32))
    first = [np.asarray(w) >= 0 for w in optim.latents(state.params)]
    seen = []
    for _, batch in zip(range(3), batching.train_batches(digits, 16, 0, 0, devices=8), strict=False):
        state, loss = step(state, batch)
        seen.append(float(loss))
    flips = sum(np.sum(a != (np.asarray(b) >= 0)) for a, b in zip(first, optim.latents(state.params), strict=True))
    state, totals, flipped = parallel.on_all(close_window)(state)
    assert int(totals["seen"]) == 48 and float(totals["loss"]) == pytest.approx(16 * sum(seen), rel=1e-5)
    assert int(flipped) == flips > 1000
    assert int(parallel.on_all(close_window)(state)[2]) == 0
    assert float(state.window["seen"]) == 0


@pytest.mark.parametrize("call_steps", ["1", "2"])
def test_compiles_once(digits, call_steps):
    """A state or batch that lies elsewhere than the step wants it would compile the step a second time."""
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, _, **__: compiled.append(name) if name == "/jax/core/compile/backend_compile_duration" else None
    )
    stage = train.Stage(0, "train", small(call_steps=call_steps), None, 0)
    stage._place(())
    state, counts = parallel.replicate(jax.jit(stage._fresh)(stage._initial(None))), []
    stops = (1, 2, 4, 5) if call_steps != "1" else (1, 2, 3, 4)
    inputs = stage.training.inputs(stage.source, 16, 0, 0, iter(stops), lambda: False)
    for _, given in zip(stops, inputs, strict=False):
        state, _ = stage.training(state, given)
        state, _, _ = stage.close_window(state)
        stage.evaluation(state.variables)
        counts.append(len(compiled))
    inputs.close()
    jax.monitoring.clear_event_listeners()
    assert counts[0] >= 3 and counts == [counts[0]] * 4


def test_a_step_knows_how_far_the_training_is(digits):
    """A network whose loss is the progress it is told."""

    class Echo(nn.Module):
        dtype: type = jnp.float32

        @nn.compact
        def __call__(self, x, train, progress):
            self.variable("batch_stats", "mean", jnp.zeros, 1)
            return self.param("w", nn.initializers.zeros, (10,)) + jnp.full((len(x), 10), progress)

    tx = optim.make("sgd", lambda _: 0.0, {"w": jnp.zeros(10)})
    state = make_state(
        {"params": {"w": jnp.zeros(10)}, "batch_stats": {"mean": jnp.zeros(1)}}, tx, 0, False, jnp.float32
    )
    step = make_train_step(Echo(), lambda logits, _: logits[:, 0], tx, digits, total_steps=4)
    run = jax.pmap(step, parallel.AXIS, in_axes=(None, 0), out_axes=None, devices=jax.devices()[:1])
    seen = []
    for _, batch in zip(range(4), batching.train_batches(digits, 8, 0, 0, devices=1), strict=False):
        state, loss = run(state, batch)
        seen.append(float(loss))
    assert seen == [0.0, 0.25, 0.5, 0.75]


def test_state_goes_through_its_trees():
    model = models.build("bireal_tiny", 10)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    tx = optim.make("sgd", lambda _: 1e-3, variables["params"])
    for ema in (False, True):
        state = make_state(variables, tx, 0, ema, jnp.float32)
        again = State.from_trees(state.trees())
        assert jax.tree.structure(again) == jax.tree.structure(state)


def test_run_writes_what_it_promises_and_a_second_start_says_so(tmp_path, capsys):
    result = train.run(small(), tmp_path)
    written = lines(tmp_path)
    assert [(w["split"], w["step"]) for w in written] == [
        ("train", 3),
        ("train", 6),
        ("eval", 6),
        ("train", 9),
        ("train", 12),
        ("eval", 12),
    ]
    assert all(w["flipped"] >= 0 and w["learning_rate"] > 0 for w in written if w["split"] == "train")
    assert result["top1"] == written[-1]["top1"] and result["steps"] == 12
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert json.loads((tmp_path / "config.json").read_text())["model"]["name"] == "bireal_tiny"
    assert list(tmp_path.glob("events.*")) and len((tmp_path / "timing.jsonl").read_text().splitlines()) == 4
    assert "images/s" in capsys.readouterr().out
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert train.run(small(), tmp_path) == result
    assert "is finished: top-1" in capsys.readouterr().out
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    scores = train.run_eval(small(), tmp_path)
    assert scores["top1"] == result["best_top1"]
    model, variables, prepare = train.build.trained(tmp_path)
    source = train.build.source(small())
    logits = model.apply(variables, prepare(source.eval.images))
    assert 100 * np.mean(np.argmax(logits, 1) == source.eval.labels) == pytest.approx(result["best_top1"])
    with pytest.raises(BadInput, match="no run in"):
        train.build.trained(tmp_path / "none")


@pytest.mark.parametrize("steps", [2, 50])
def test_profile_of_a_few_steps_or_of_what_there_is(tmp_path, steps):
    train.run(small(total_steps=13, profile_steps=steps), tmp_path)
    assert len(list((tmp_path / "profile").rglob("*.xplane.pb"))) == 1


@pytest.mark.parametrize(
    "fields", [{"model.dtype": "bfloat16"}, {"model.sync_bn": True}, {"model.weight": "magnitude_aware"}]
)
def test_other_modes_learn(tmp_path, fields):
    train.run(small(batch_size=64, total_steps=40, **fields), tmp_path)
    losses = [line["loss"] for line in lines(tmp_path) if line["split"] == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_float64_is_float64(tmp_path):
    with jax.enable_x64(False):  # and back to what it was
        before = jax.config.jax_enable_x64
    try:
        train.run(small(total_steps=2, **{"model.dtype": "float64"}), tmp_path)
        stage = train.Stage(0, "train", small(**{"model.dtype": "float64"}), None, 0)
        assert {leaf.dtype for leaf in jax.tree.leaves(stage.shapes)} == {np.dtype("float64")}
    finally:
        jax.config.update("jax_enable_x64", before)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_not_saved(tmp_path):
    with pytest.raises(BadInput, match=r"(?s)not finite.*try a lower config.optim.lr \(it is 1e\+30\)"):
        train.run(small(log_steps=1, save_steps=1, **{"optim.lr": 1e30}), tmp_path)
    assert all(np.isfinite(line["loss"]) for line in lines(tmp_path))
    assert not (tmp_path / "result.json").exists()


def test_one_process_at_a_time(tmp_path, digits):
    with workdir.claim(tmp_path, small(), [digits]), pytest.raises(BadInput, match="another process trains in"):
        train.run(small(), tmp_path)


class Cut(Exception):
    pass


def test_a_run_that_was_cut_off_continues_bit_for_bit(tmp_path, monkeypatch):
    """With EMA, two stages, and logs and saves at odd steps; cut in the middle of a window, and after a save."""
    c = small(ema_decay=0.9, log_steps=5, save_steps=3, eval_steps=0, eval_epochs=0.0)
    c.stages = ({"name": "a"}, {"name": "b", "optim.lr": 3e-4, "model.act": "ste", "total_steps": 9})
    train.run(c, tmp_path / "straight")
    real = progress.Bar.advance
    for stage, at in (("a", 7), ("a", 9), ("b", 6), ("b", 8)):

        def cut(self, step, stage=stage, at=at):
            real(self, step)
            if (self.name, step) == (stage, at):
                raise Cut

        monkeypatch.setattr(progress.Bar, "advance", cut)
        with pytest.raises(Cut):
            train.run(c, tmp_path / "cut")
    monkeypatch.undo()
    train.run(c, tmp_path / "cut")
    for name in ("metrics.jsonl", "result.json", "config.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    straight = lines(tmp_path / "straight")
    assert [(w["stage"], w["step"]) for w in straight if w["split"] == "eval"] == [(0, 12), (1, 9)]
    first_of_b = next(w for w in straight if w["stage"] == 1)
    assert first_of_b["loss"] < straight[0]["loss"], "stage b starts from the weights of stage a"


def test_start_from_weights_and_refuse_those_of_another_model(tmp_path):
    train.run(small(total_steps=3), tmp_path / "a")
    result = train.run(small(total_steps=1, init_from=str(tmp_path / "a"), **{"optim.lr": 1e-9}), tmp_path / "b")
    assert result["loss"] < 3
    other = small(init_from=str(tmp_path / "a"), **{"model.name": "bireal20"})
    with pytest.raises(BadInput, match="is of another model"):
        train.run_eval(other, tmp_path / "c")
    with pytest.raises(BadInput, match="no checkpoint in"):
        train.run_eval(small(), tmp_path / "none")
    with pytest.raises(BadInput, match="no such file"):
        train.run(small(init_from="typo.npz"), tmp_path / "d")
    assert not (tmp_path / "d").exists(), "the corrected command must be able to use this workdir"


def test_mistakes_show_before_anything_is_compiled(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "jit", None)
    for fields, message in (
        ({"batch_size": 100}, "batch_size 100 is not divisible by 8 devices; use 96 or 104"),
        ({"model.name": "bireal19"}, "unknown model"),
        ({"model.act": "aprox"}, "unknown activation derivative"),
        ({"optim.schedule": "linaer"}, "unknown schedule"),
        ({"optim.name": "adm"}, "unknown optimizer"),
        ({"loss": "mse"}, "unknown loss"),
        ({"optim.schedule": "constant", "optim.warmup_steps": 99}, "warmup of 99 steps leaves nothing of 12"),
        ({"model.name": "bireal18"}, "images of 8 pixels are too small for bireal18, which divides the size by 32"),
        ({"optim.lr": -1.0}, "config.optim.lr is -1.0; it must be above 0"),
        ({"data.name": "imagenet2012"}, "no prepared imagenet2012"),
    ):
        with pytest.raises(BadInput, match=message):
            train.run(small(**fields), tmp_path / "w")
        assert not (tmp_path / "w").exists(), "nothing is left behind"


def test_a_workdir_belongs_to_one_config(tmp_path):
    train.run(small(total_steps=2), tmp_path)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(BadInput, match=r"belongs to another config: optim.lr 0.001 -> 0.5, total_steps 2 -> 3"):
        train.run(small(total_steps=3, **{"optim.lr": 0.5}), tmp_path)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_workdir_belongs_to_one_data_set(tmp_path, monkeypatch):
    train.run(small(total_steps=2), tmp_path)
    (tmp_path / "result.json").unlink()
    whole = train.build.source(small())
    fewer = dataclasses.replace(whole, train=data.source.Arrays(whole.train.images[:800], whole.train.labels[:800]))
    monkeypatch.setattr(train.build, "source", lambda _: fewer)
    with pytest.raises(BadInput, match=r"belongs to another config: stages.0.train 1438 -> 800"):
        train.run(small(total_steps=2), tmp_path)


def test_a_damaged_log_is_named(tmp_path):
    """A last line that was cut off is dropped; another line that is none is an error."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": 0, "step": 1}\n{"stage": 0, "step": 2}\n{"sta')
    workdir.Log._keep(path, 0, 1)
    assert path.read_text() == '{"stage": 0, "step": 1}\n'
    path.write_bytes(b'{"stage": 0, "step": 1}\n{"st\xffge": 0, "step": 2}\n')
    with pytest.raises(BadInput, match="metrics.jsonl, line 2 is damaged: .*\ndelete that line"):
        workdir.Log._keep(path, 0, 1)


def test_a_damaged_result_is_named(tmp_path):
    train.run(small(total_steps=2), tmp_path)
    (tmp_path / "result.json").write_text('{"top1": 9')
    with pytest.raises(BadInput, match=r"result.json is damaged"):
        train.run(small(total_steps=2), tmp_path)
    (tmp_path / "result.json").unlink()
    assert train.run(small(total_steps=2), tmp_path)["steps"] == 2


def test_evaluation_says_that_the_recipe_is_another(tmp_path, capsys):
    train.run(small(total_steps=2), tmp_path)
    train.run_eval(small(total_steps=2, batch_size=100), tmp_path)  # any batch size will do
    assert "was trained, but for what is asked, batch_size 16 -> 100" in capsys.readouterr().out


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"file/w cannot be reached: .*\nchoose another --workdir"):
        train.run(small(), tmp_path / "file" / "w")


@pytest.mark.parametrize("size", [176, 200])
def test_an_image_size_that_does_not_divide_is_named(digits, size):
    source = dataclasses.replace(digits, image_shape=(size, size, 3), mean=(0.5,) * 3, std=(0.5,) * 3)
    better = {176: "160 or 192", 200: "192 or 224"}[size]
    with pytest.raises(BadInput, match=f"images of {size} pixels do not divide by 32, as bireal18 needs; use {better}"):
        train.build.model(config.default(), source)


def test_event_files_need_no_pytorch_and_hide_none():
    code = "import sys; from bireal_jax.running import workdir; workdir._event_writer(); print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
