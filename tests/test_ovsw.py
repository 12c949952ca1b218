"""OvSW's two rules against numpy, and where they stand in the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax.errors import BadInput
from bireal_jax.running import progress
from bireal_jax.training import optim, ovsw, train


def test_filters_of_small_gradients_are_scaled_and_the_others_are_not(x64):
    rng = np.random.default_rng(0)
    w, g = rng.normal(size=(3, 3, 4, 5)), rng.normal(size=(3, 3, 4, 5))
    g *= np.array([1.0, 1e-2, 1e-9, 0.0, 1.0])  # filters 1, 2 and 3 are below the floor; norms count from 1e-6
    w[..., 4] *= 1e-6
    tx = ovsw.gradient_floor(0.04)
    found, _ = tx.update(g, tx.init(w), w)
    norm = lambda v, least: np.maximum(np.sqrt((v**2).sum((0, 1, 2))), least)
    ratio = norm(g, 1e-6) / norm(w, 1e-3)
    assert list(ratio < 0.04) == [False, True, True, True, False]
    np.testing.assert_allclose(found, np.where(ratio < 0.04, 0.04 / ratio, 1) * g, rtol=1e-12)
    np.testing.assert_array_equal(found[..., 0], g[..., 0])
    np.testing.assert_allclose(norm(found, 0)[1] / norm(w, 0)[1], 0.04, rtol=1e-12)


def test_silent_weights_decay_until_they_flip(x64):
    rng = np.random.default_rng(1)
    weights = rng.choice([-1.0, 1.0], (6, 1, 1, 3, 4)) * rng.uniform(0.5, 1, (6, 1, 1, 3, 4))
    weights[1], weights[..., 1] = weights[0], np.abs(weights[..., 1])
    weights[2, ..., 0] = 0.0  # of sign +1
    tx = ovsw.silent_decay(9e-4)
    state, g, average = tx.init(weights[0]), rng.normal(size=(1, 1, 3, 4)), 0.0
    for before, w in zip([weights[0], *weights], weights, strict=False):
        average = 0.999 * average + 0.001 * ((before >= 0) != (w >= 0))
        found, state = tx.update(g, state, w)
        np.testing.assert_allclose(found, g + 9e-4 * w * (average < 1e-4), rtol=1e-12)
    assert 0 < np.mean(average < 1e-4) < 1
    np.testing.assert_allclose(state.flips, average, rtol=1e-12)


def test_they_stand_before_decay_and_momentum_and_touch_latent_weights_alone():
    params = {"a": {"latent": jnp.full((1, 1, 4, 1), 0.5)}, "b": {"kernel": jnp.full((4, 1), 0.5)}}
    g = jax.tree.map(lambda p: jnp.full_like(p, 1e-4), params)
    tx = optim.make(
        "sgd", lambda _: 1.0, params, 0.1, ("binary", "decay"), gradient_floor=0.04, silent_decay=1e-2
    )  # fmt: skip
    state, momentum = tx.init(params), np.zeros(2)
    for _ in range(2):
        updates, state = tx.update(g, state, params)
        # |g| / |w| = 2e-4 becomes 0.04, so that g is 0.02; then w / 100 for the silent one; then a tenth of w for all
        momentum = 0.9 * momentum + [0.02 + 0.005 + 0.05, 1e-4 + 0.05]
        found = [float(u.ravel()[0]) for u in jax.tree.leaves(updates)]
        np.testing.assert_allclose(found, -momentum, rtol=1e-5)


def test_without_them_the_optimizer_remembers_what_it_did():
    params = {"a": {"latent": jnp.ones((1, 1, 2, 2))}}
    plain, off = (
        optim.make("sgd", lambda _: 1.0, params, **kw) for kw in ({}, {"gradient_floor": 0.0, "silent_decay": 0.0})
    )
    assert jax.tree.structure(plain.init(params)) == jax.tree.structure(off.init(params))
    with pytest.raises(BadInput, match="no latent weights; leave .*gradient_floor and optim.silent_decay at 0.0"):
        optim.make("sgd", lambda _: 1.0, params, binary=optim.optax.identity(), gradient_floor=0.1)


@pytest.mark.slow
def test_a_run_that_was_cut_off_remembers_which_weights_are_silent(tmp_path, monkeypatch):
    c = small(total_steps=4, save_steps=1, **{"optim.gradient_floor": 0.04, "optim.silent_decay": 0.1})
    train.run(c, tmp_path / "straight")
    real = progress.Bar.advance

    def cut(self, step):
        real(self, step)
        if step == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.Bar, "advance", cut)
    with pytest.raises(KeyboardInterrupt):
        train.run(c, tmp_path / "cut")
    monkeypatch.undo()
    train.run(c, tmp_path / "cut")
    for name in ("metrics.jsonl", "result.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
