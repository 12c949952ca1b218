"""A state that lies flat is the same state, and a step of it the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small
from test_calls import ask_at

from bireal_jax.running import health, preempt
from bireal_jax.training import flat, train
from bireal_jax.training.step import Plan

OPTIMIZERS = {
    "adam": {"ema_decay": 0.9},
    "adamw": {"optim.weight_decay": 0.1, "optim.decay_on": ("binary",)},
    "sgd": {"optim.weight_decay": 5e-4, "optim.binary_lr": 10.0, "optim.latent_clip": 1e-3},
}


def leaves(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    monkeypatch.setattr(flat, "pays", lambda: True)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_follows_from_gradients_has_the_same_bits(name, as_on_a_gpu):
    """Of parameters, statistics, averages and metrics, also where a gradient is not finite; operation by operation."""
    plan = Plan(small(**{"optim.name": name}, **OPTIMIZERS[name]))
    rng = np.random.default_rng(0)
    wild = lambda tree: jax.tree.map(lambda v: jnp.asarray(rng.normal(size=v.shape), v.dtype), tree)
    state = plan.fresh(wild(plan.shapes), 0)
    for worst in (1.0, np.nan):
        sums = {"loss": jnp.float32(worst), "top1": jnp.float32(1), "top5": jnp.float32(1), "seen": jnp.float32(2)}
        asked, total = jnp.zeros((), jnp.int32), (wild(state.params), wild(state.batch_stats), sums)
        apart, report = health.guard(plan.train_step, 1).finish(state, (total, asked), 1)
        given = plan.form.flat(state), (plan.form.flat(total), asked), 1
        found, flat_report = health.guard(plan.loop_step, 1).finish(*given)
        assert len(jax.tree.leaves(found.params)) == 4 and found.params["latent"].ndim == 1
        assert leaves(plan.form.apart(found)) == leaves(apart) and leaves(report) == leaves(flat_report)
        assert leaves(apart.params) != leaves(state.params) or np.isnan(worst)
        state = apart


def test_trees_come_back_as_they_were():
    """Also scalars; not dealt with are trees that are not known, and those whose leaves of a name differ in type."""
    rng = np.random.default_rng(0)
    known = {"a": {"latent": rng.normal(size=(3, 3, 4, 5)), "bias": rng.normal(size=5)}, "bias": np.float64(3)}
    mixed = {"a": {"mean": np.ones(3, np.float32)}, "b": {"mean": np.ones(3, np.float16)}}
    form, state = flat.Form([known, mixed]), {"p": known, "opt": (known, {"count": 1}), "stats": mixed}
    found = form.flat(state)
    assert jax.tree.map(np.shape, found["p"]) == {"latent": (180,), "bias": (6,)}
    assert found["opt"][1] == {"count": 1} and found["stats"] is not mixed and leaves(found["stats"]) == leaves(mixed)
    filters = np.asarray(found["p"]["latent"]).reshape(5, 3, 3, 4)
    np.testing.assert_array_equal(filters[2], known["a"]["latent"][..., 2].astype(filters.dtype))
    back = form.apart(found)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, np.asarray(b, np.asarray(a).dtype)), back, state)


def test_only_what_asks_for_names_alone_is_flat(as_on_a_gpu):
    for fields in (
        {"optim.frozen": "stem"}, {"optim.gradient_floor": 0.04}, {"optim.silent_decay": 1e-3},
        {"optim.binary": "bop", "model.weight": "direct", "model.latent_init": "signs"},
    ):  # fmt: skip
        assert Plan(small(**fields)).form is flat.APART
    assert Plan(small()).form is not flat.APART


def test_a_cpu_keeps_what_it_computed():
    assert Plan(small()).form is flat.APART


@pytest.mark.slow
def test_calls_of_flat_steps_train_as_others(tmp_path, monkeypatch):
    """Rounding differs with what is compiled together; a run that was cut off has the same bits."""
    c = small(call_steps="4", total_steps=8, log_steps=4, **{"optim.name": "sgd", "optim.lr": 0.01})
    results = [train.run(c, tmp_path / "apart")]
    monkeypatch.setattr(flat, "pays", lambda: True)
    results.append(train.run(c, tmp_path / "flat"))
    np.testing.assert_allclose(results[0]["loss"], results[1]["loss"], rtol=1e-4)
    with monkeypatch.context() as patch, preempt.Signals() as signals:
        ask_at(patch, 4)
        with pytest.raises(preempt.Stopped, match="stopped at step 4 of 8"):
            train.run(c, tmp_path / "cut", signals)
    assert train.run(c, tmp_path / "cut") == results[1]
    assert (tmp_path / "cut/metrics.jsonl").read_bytes() == (tmp_path / "flat/metrics.jsonl").read_bytes()
