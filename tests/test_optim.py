import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax import models
from bireal_jax.errors import BadInput
from bireal_jax.training import optim

PARAMS = {
    "a": {"latent": jnp.full((1, 1, 2, 2), 0.5)},
    "b": {"kernel": jnp.full((2, 2), 0.5), "bias": jnp.full(2, 0.5)},
}


def test_labels():
    assert optim.labels(PARAMS) == {"a": {"latent": "binary"}, "b": {"kernel": "decay", "bias": "no_decay"}}
    assert optim.count_latents(PARAMS) == 4


@pytest.mark.parametrize("name", ["prelu20", "rprelu20", "maxout20"])
def test_slopes_are_apart_from_what_else_is_no_kernel(name):
    network = models.build(name, 10, latent_init="he")
    params = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    found = jax.tree_util.tree_leaves_with_path(optim.labels(params))
    slopes = [path[-1].key for path, label in found if label == "slope"]
    assert len(slopes) == 19 * (2 if name == "maxout20" else 1)  # behind the stem and 18 sums
    assert all(
        label == "no_decay" for path, label in found if path[-1].key in ("scale", "bias", "shift_in", "shift_out")
    )


def test_linear_falls_to_zero_by_the_step():
    rate = optim.schedule("linear", 0.1, total_steps=10)
    np.testing.assert_allclose([rate(s) for s in (0, 5, 9, 10)], [0.1, 0.05, 0.01, 0.0], rtol=1e-5, atol=1e-9)


def test_linear_epoch_is_the_released_table():
    """lr(e) = lr0 (1 - (e + 1) / 256): the scheduler is stepped before the epoch, so the last one runs at 0."""
    rate = optim.schedule("linear_epoch", 1e-3, total_steps=256 * 7, epoch_steps=7.0)
    for epoch in (0, 1, 100, 254, 255):
        for step in (epoch * 7, epoch * 7 + 6):
            np.testing.assert_allclose(rate(step), 1e-3 * (1 - (epoch + 1) / 256), rtol=1e-4, atol=1e-12)
    assert rate(255 * 7) == 0


def test_other_schedules():
    steps = optim.schedule("steps", 1.0, 100, epoch_steps=10.0, milestones=(3, 6))
    np.testing.assert_allclose([steps(s) for s in (29, 30, 59, 60, 99)], [1, 0.1, 0.1, 0.01, 0.01], rtol=1e-6)
    cosine = optim.schedule("cosine", 2.0, 100)
    np.testing.assert_allclose(
        [cosine(s) for s in (0, 25, 50, 100)], [2, 1 + np.cos(np.pi / 4), 1, 0], rtol=1e-6, atol=1e-7
    )
    warm = optim.schedule("constant", 1.0, 100, warmup_steps=10)
    np.testing.assert_allclose([warm(s) for s in (0, 5, 10, 50)], [0, 0.5, 1, 1], rtol=1e-6)


def test_milestones_in_one_step_both_count():
    steps = optim.schedule("steps", 1.0, 100, epoch_steps=10.0, milestones=(3, 3.01, 6))
    np.testing.assert_allclose([steps(s) for s in (29, 30, 60)], [1, 0.01, 0.001], rtol=1e-5)


@pytest.mark.parametrize(
    "name, total, options, message",
    [
        ("linear_epoch", 10, {"epoch_steps": 10.0}, "'linear_epoch' gives a learning rate of 0 in all 10 steps"),
        ("linear_epoch", 3, {"epoch_steps": 10.0}, "an epoch has 10 steps, and the last one runs at 0"),
        ("linear_epoch", 20, {"epoch_steps": 10.0, "warmup_steps": 10}, "0 in all 10 steps"),
        ("linear", 10, {"lr_end": 0.2}, "optim.lr_end is 0.2, above optim.lr, 0.1"),
        ("cosine", 10, {"lr_end": 0.2}, "optim.lr_end is 0.2, above optim.lr, 0.1"),
    ],
)
def test_schedules_that_would_not_train_are_refused(name, total, options, message):
    with pytest.raises(BadInput, match=message):
        optim.schedule(name, 0.1, total, **options)


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_one_step_is_a_training(name):
    """Or two, where the last epoch runs at 0."""
    rate = optim.schedule(name, 0.1, 2 if name == "linear_epoch" else 1)
    assert rate(0) > 0
    assert optim.schedule("linear", 0.1, 10, lr_end=0.1)(5) == np.float32(0.1)


def test_warmup_does_not_shift_what_is_counted_in_epochs():
    steps = optim.schedule("steps", 1.0, 100, epoch_steps=10.0, milestones=(3, 6), warmup_steps=20)
    np.testing.assert_allclose([steps(s) for s in (10, 29, 30, 59, 60)], [0.5, 1, 0.1, 0.1, 0.01], rtol=1e-5)
    epochs = optim.schedule("linear_epoch", 1.0, 100, epoch_steps=10.0, warmup_steps=15)
    np.testing.assert_allclose([epochs(s) for s in (19, 20, 99)], [0.8, 0.7, 0.0], rtol=1e-5, atol=1e-7)
    linear = optim.schedule("linear", 1.0, 100, warmup_steps=20)
    np.testing.assert_allclose([linear(s) for s in (20, 60, 100)], [1, 0.5, 0], atol=1e-6)


def test_binary_rate_latent_limit_and_frozen_parameters():
    g = jax.tree.map(lambda p: jnp.full_like(p, -1.0), PARAMS)

    def after_one_step(**options):
        tx = optim.make("sgd", lambda _: 0.1, PARAMS, **options)
        updates, _ = tx.update(g, tx.init(PARAMS), PARAMS)
        params = jax.tree.map(jnp.add, PARAMS, updates)
        return [float(jnp.ravel(v)[0]) for v in (params["a"]["latent"], params["b"]["kernel"], params["b"]["bias"])]

    np.testing.assert_allclose(after_one_step(), [0.6, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(after_one_step(binary_lr=4.0), [0.9, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(after_one_step(binary_lr=4.0, latent_clip=0.7), [0.7, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(after_one_step(latent_clip=0.2), [0.2, 0.6, 0.6], rtol=1e-6)
    np.testing.assert_allclose(after_one_step(frozen="^b/kern"), [0.6, 0.5, 0.6], rtol=1e-6)
    np.testing.assert_allclose(after_one_step(frozen="latent|bias", weight_decay=0.5), [0.5, 0.575, 0.5], rtol=1e-6)
    with pytest.raises(BadInput, match=r"optim.frozen='conv' is found in no parameter; they are called a/latent"):
        after_one_step(frozen="conv")
    with pytest.raises(BadInput, match=r"optim.frozen='.' is found in every parameter, so that nothing is trained"):
        after_one_step(frozen=".")
    with pytest.raises(BadInput, match=r"optim.frozen='\(' is no regular expression"):
        after_one_step(frozen="(")


def train(name, weight_decay, decay_on, steps=3):
    tx = optim.make(name, optim.schedule("constant", 0.1, 10), PARAMS, weight_decay, decay_on)
    params, state = PARAMS, tx.init(PARAMS)
    g = {
        "a": {"latent": jnp.full((1, 1, 2, 2), 0.3)},
        "b": {"kernel": jnp.full((2, 2), -0.2), "bias": jnp.full(2, 0.1)},
    }
    for _ in range(steps):
        updates, state = tx.update(g, state, params)
        params = {m: {k: v + updates[m][k] for k, v in leaves.items()} for m, leaves in params.items()}
    return params["a"]["latent"].ravel()[0], params["b"]["kernel"].ravel()[0], params["b"]["bias"][0]


def by_hand(name, g, decay, steps=3, lr=0.1):
    """torch.optim.Adam, AdamW and SGD(momentum=0.9) on one number from 0.5."""
    w, m, v = 0.5, 0.0, 0.0
    for t in range(1, steps + 1):
        d = g + (decay * w if name != "adamw" else 0)
        if name == "sgd":
            m = 0.9 * m + d
            w -= lr * m
            continue
        m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d * d
        w -= lr * ((m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + (decay * w if name == "adamw" else 0))
    return w


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_optimizers_against_torchs_formulas_with_decay_by_label(name):
    latent, kernel, bias = train(name, 0.5, ("decay",))
    np.testing.assert_allclose(
        [latent, kernel, bias], [by_hand(name, 0.3, 0), by_hand(name, -0.2, 0.5), by_hand(name, 0.1, 0)], rtol=3e-5
    )
    latent, kernel, bias = train(name, 0.5, ("binary", "no_decay"))
    np.testing.assert_allclose(
        [latent, kernel, bias], [by_hand(name, 0.3, 0.5), by_hand(name, -0.2, 0), by_hand(name, 0.1, 0.5)], rtol=3e-5
    )


def test_mistakes_are_named():
    with pytest.raises(BadInput, match=r"unknown optimizer 'adm'; did you mean adam\? known: adam, adamw, sgd"):
        optim.make("adm", lambda _: 0.1, PARAMS)
    with pytest.raises(BadInput, match="unknown label 'latent'"):
        optim.make("adam", lambda _: 0.1, PARAMS, decay_on=("latent",))
    with pytest.raises(BadInput, match="warmup of 10 steps leaves nothing of 10"):
        optim.schedule("linear", 0.1, 10, warmup_steps=10)
    with pytest.raises(BadInput, match="unknown schedule"):
        optim.schedule("linaer", 0.1, 10)
