"""The authors' own networks, in float64 (../shared/oracles/README.md says how the answers were made)."""

import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bireal_jax import importers, models
from bireal_jax.binary import losses

NETWORKS = ["bireal18", "bireal34", "bireal50", "react_r18", "react_r18_step1", "react_a", "react_a_step1"]
# What shares its code with another network, ReActNet and Adam run with -m slow: they take minutes.
LONG = ("bireal34", "bireal50", "react_a", "react_a_step1")  # half a minute of Adam and more
ADAM = [
    pytest.param(name, marks=[pytest.mark.slow, *([pytest.mark.campaign] if name in LONG else [])]) for name in NETWORKS
]
QUICK = ["bireal18", "bireal50"]
OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in QUICK]


def draw(seed, name, shape):
    """The oracle's weights."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    last = name.rsplit(".", 1)[-1]
    if last == "running_mean":
        return rng.normal(0, 0.1, shape)
    if last == "running_var":
        return rng.uniform(0.5, 1.5, shape)
    if "binary" in name and last in ("weight", "weights"):
        return rng.normal(0, 0.6, shape)
    if "prelu" in name:
        return rng.uniform(0.1, 0.4, shape)
    if last == "weight" and len(shape) == 1:
        return rng.uniform(0.5, 1.5, shape)
    if last == "weight":
        return rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
    return rng.normal(0, 0.1, shape)


def relative(ours, theirs):
    return np.max(np.abs(np.asarray(ours) - theirs)) / np.max(np.abs(theirs))


class Oracle:
    def __init__(self, shared, name):
        self.answers = np.load(shared / "oracles" / f"{name}.npz")
        self.seed = int(self.answers["seed"])
        keys = json.loads((shared / "oracles" / "keys.json").read_text())[name]
        self.state = {key: draw(self.seed, key, shape) for key, shape in keys.items()}
        self.name = name.removesuffix("_step1")  # whose weights are real-valued
        weight = "real" if name.endswith("_step1") else "released"
        self.model = models.build(self.name, num_classes=1000, dtype=jnp.float64, weight=weight)
        self.variables = importers.from_torch(self.name, self.state)

    def to_torch(self, tree):
        """Under the names that the oracle has: in the first step latent weights are ordinary ones."""
        theirs = importers.to_torch(self.name, tree)
        return {name if name in self.state else name.removesuffix("s"): a for name, a in theirs.items()}

    def batch(self, step, n, size):
        rng = np.random.default_rng([self.seed, 1000 + step])
        images = rng.normal(size=(n, 3, size, size)).transpose(0, 2, 3, 1)
        return jnp.asarray(images), jnp.asarray(rng.integers(0, 1000, n))

    def loss_and_grad(self):
        def objective(variables, images, labels):
            logits, updated = self.model.apply(variables, images, train=True, mutable=["batch_stats"])
            return losses.cross_entropy(logits, labels, 0.1).mean(), (logits, updated)

        def function(params, batch_stats, images, labels):
            pick = lambda p: objective({"params": p, "batch_stats": batch_stats}, images, labels)
            return jax.value_and_grad(pick, has_aux=True)(params)

        return jax.jit(function)


@pytest.fixture
def oracle(request, shared, x64, optimized):
    return Oracle(shared, request.param)


@pytest.mark.parametrize("oracle", [*QUICK, *OTHERS], indirect=True)
def test_evaluation_logits(oracle):
    apply = jax.jit(oracle.model.apply)
    for key, batch in {"eval224": (0, 1, 224), "eval64": (1, 4, 64)}.items():
        assert relative(apply(oracle.variables, oracle.batch(*batch)[0]), oracle.answers[f"{key}/logits"]) < 1e-8


@pytest.mark.parametrize("oracle", [*QUICK, *OTHERS], indirect=True)
def test_training_mode_gradients_and_statistics(oracle):
    answers, params, stats = oracle.answers, oracle.variables["params"], oracle.variables["batch_stats"]
    (loss, (logits, updated)), grads = oracle.loss_and_grad()(params, stats, *oracle.batch(1, 4, 64))
    assert relative(logits, answers["train64/logits"]) < 1e-8
    assert abs(loss - answers["train64/loss"]) < 1e-8 * abs(answers["train64/loss"])
    grads, updated = oracle.to_torch(grads), oracle.to_torch(updated)
    checked = 0
    for key in answers.files:
        kind, _, name = key.partition("/")
        if kind == "grad":
            g = grads[name].ravel()
            norm, total, first = np.linalg.norm(g), g.sum(), g[:16]
            expected = answers[key]
            assert abs(norm - expected[0]) < 1e-6 * expected[0], name
            # A sum that cancels is compared on the scale of what cancels.
            assert abs(total - expected[1]) < 1e-6 * max(abs(expected[1]), 1e-3 * np.abs(g).sum()), name
            assert relative(first, expected[2:]) < 1e-6, name
            checked += 1
        if kind == "stats":
            assert relative(updated[name][:8], answers[key]) < 1e-8, name
            checked += 1
    assert checked == sum(k.startswith(("grad/", "stats/")) for k in answers.files) > 60


@pytest.mark.parametrize("oracle", ADAM, indirect=True)
def test_five_adam_losses(oracle):
    step = oracle.loss_and_grad()
    params, stats = oracle.variables["params"], oracle.variables["batch_stats"]
    tx = optax.adam(1e-3)
    opt_state, seen = tx.init(params), []
    for i in range(5):
        (loss, (_, updated)), grads = step(params, stats, *oracle.batch(10 + i, 8, 64))
        updates, opt_state = tx.update(grads, opt_state)
        params, stats = optax.apply_updates(params, updates), updated["batch_stats"]
        seen.append(float(loss))
    np.testing.assert_allclose(seen, oracle.answers["adam5/losses"], rtol=1e-6)
