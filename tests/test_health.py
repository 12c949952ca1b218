"""Nothing that is not finite reaches a state or a checkpoint, and the message says where it began."""

import dataclasses
import json
import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import models
from bireal_jax.errors import BadInput
from bireal_jax.running import health, parallel
from bireal_jax.running.checkpoint import Checkpoints
from bireal_jax.training import step, train


@pytest.fixture
def poison(monkeypatch):
    """poison(steps, where): NaN in these steps, in a loss, a gradient, or the output of a layer."""

    def install(bad_steps, where):
        real = step.make_train_step

        def make(model, loss, tx, *args, **kwargs):
            def bad(state):
                return jnp.isin(state.step + 1, jnp.asarray(bad_steps))

            inner = real(model, loss, tx, *args, **kwargs)

            def part(state, batch):
                if where == "layer":
                    head = jax.tree.map(lambda v: jnp.where(bad(state), jnp.nan, v), state.params["head"])
                    state = dataclasses.replace(state, params=dict(state.params) | {"head": head})
                return inner.part(state, batch)

            def finish(state, *rest):
                after, value = inner.finish(state, *rest)
                if where == "loss":
                    return after, jnp.where(bad(state), jnp.inf, value)
                if where == "update":
                    params = jax.tree.map(lambda v: jnp.where(bad(state), jnp.nan, v), after.params)
                    after = dataclasses.replace(after, params=params)
                return after, value

            return dataclasses.replace(inner, part=part, finish=finish)

        monkeypatch.setattr(step, "make_train_step", make)

    return install


def saved(place):
    with Checkpoints(place / "stage_0" / "checkpoints", read_only=True) as found:
        return found.steps()


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("layer", "first in the output of head"),
        pytest.param("update", "in the updates of", marks=pytest.mark.slow),
        pytest.param("loss", "in the loss", marks=pytest.mark.slow),
    ],
)
def test_the_first_such_step_stops_the_run_before_its_update(tmp_path, poison, where, named):
    poison([7], where)
    with pytest.raises(BadInput) as error:
        train.run(small(total_steps=9, log_steps=8, save_steps=3, eval_steps=0), tmp_path)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("train, step 7: the loss or an update is not finite") and named in lines[0]
    assert lines[1].endswith("the last checkpoint is of step 6") and len(lines) == 3
    assert "lower config.optim.lr (it is 0.001)" in lines[2] and "--config.skip_nonfinite=10" in lines[2]
    assert saved(tmp_path) == [3, 6]


@pytest.mark.slow
def test_so_many_steps_in_a_row_are_skipped(tmp_path, poison, caplog):
    """Step 3 is logged alone and was skipped: no line. After three in a row the run stops, though two were allowed."""
    poison([3, 4, 6, 9, 10, 11], "update")
    with pytest.raises(BadInput, match="step 11: "), caplog.at_level(logging.WARNING, "bireal_jax"):
        train.run(small(total_steps=20, log_steps=1, save_steps=4, eval_steps=0, skip_nonfinite=2), tmp_path)
    assert [record.args[0] for record in caplog.records if "skipped" in record.msg] == [3, 4, 6, 9, 10]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 5, 7, 8]
    assert saved(tmp_path) == [4, 8]


@pytest.mark.parametrize("skip", [0, 1])
def test_a_withheld_step_leaves_the_state_as_it_was(skip):
    """And with skip 0 every later one too, sound or not, since the host hears of it late."""
    plan = train.Stage(0, "train", small(), None, 0)
    state = jax.jit(plan._fresh)(plan._initial(None))
    calls = iter([jnp.nan, 1.0])

    def once(state, total, count):
        grown = dataclasses.replace(
            state, step=state.step + 1, params=jax.tree.map(lambda p: p + 1, state.params),
            window=jax.tree.map(lambda v: v + 1, state.window),
        )  # fmt: skip
        return grown, jnp.asarray(next(calls))

    guarded = health.guard(parallel.Step(lambda *_: (), once), skip)
    guarded = lambda state, guarded=guarded: guarded.finish(state, ((), 0), 1)
    withheld, (ok, _) = guarded(state)
    assert not ok and withheld.step == 1
    jax.tree.map(np.testing.assert_array_equal, withheld.params, state.params)
    later, (ok, _) = guarded(withheld)
    assert bool(ok) == bool(skip) and later.step == 2
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b + skip), later.params, state.params)
    parallel.fetch(later)


def test_layers_of_the_teacher_are_named_as_such():
    student, teacher = (models.build("resnet_tiny", 10, act="relu").clone(name=name) for name in (None, "teacher"))
    names = []

    def watch(call, args, kwargs, context):
        names.append(health._name(context.module))
        return call(*args, **kwargs)

    with nn.intercept_methods(watch):
        for module in (student, teacher):
            jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    half = len(names) // 2
    assert names[half:] == [f"{name} of the teacher" for name in names[:half]]
    assert "head/linear" in names and "the logits" in names
