"""A batch that is divided, over devices and processes or one part after the other, gives what the whole one gives."""

import hashlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import build, losses, optim, parallel
from bireal_jax.binarize import activation, weight
from bireal_jax.data import batching
from bireal_jax.evaluate import evaluate, make_eval_step
from bireal_jax.layers import BatchNorm, BinaryConv, Dense
from bireal_jax.norm import Over
from bireal_jax.pool import global_avg_pool
from bireal_jax.step import make_state, make_train_step


class Tiny(nn.Module):
    """One real-valued and one binary convolution, each with batch norm."""

    bn_over: Over = None
    dtype: type = jnp.float32

    @nn.compact
    def __call__(self, x, train=False, progress=1.0):
        precision = {"dtype": self.dtype, "param_dtype": self.dtype}
        binary = {"activation": activation("approx_sign"), "weight": weight("released"), **precision}
        x = BatchNorm(self.bn_over, **precision)(BinaryConv(8, real_input=True, **binary)(x), train)
        x = BatchNorm(self.bn_over, **precision)(BinaryConv(16, **binary)(x), train)
        return Dense(10, **precision)(global_avg_pool(x))


def run(devices, monkeypatch=None, over=4, dtype=jnp.float32, steps=3, process=0, processes=1, **fields):
    """The state after some steps of 16 images, and the scores, on so many of the local devices."""
    if monkeypatch:
        local = jax.local_devices()[:devices]
        monkeypatch.setattr(jax, "local_devices", lambda: local)
        monkeypatch.setattr(jax, "local_device_count", lambda: devices)
    source = build.source(small())
    model = Tiny(over, dtype)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1), dtype))
    tx = optim.make("adam", optim.schedule("linear", 1e-2, 100), variables["params"])
    step = parallel.pmap(make_train_step(model, losses.cross_entropy, tx, source, **fields), donate=True)
    state = parallel.replicate(make_state(variables, tx, 0, False, dtype))
    where = {"devices": devices, "process": process, "processes": processes}
    for _, batch in zip(
        range(steps), parallel.prefetch(batching.train_batches(source, 16, 0, 0, **where)), strict=False
    ):
        state, _ = step(state, batch)
    eval_step = parallel.pmap(make_eval_step(model, losses.cross_entropy, source, fields.get("replica", 0)))
    return parallel.fetch(state), evaluate(eval_step, state.variables, source, 16)


def digest(state, scores):
    leaves = [leaf.tobytes() for leaf in jax.tree.leaves(state.trees())]
    return hashlib.sha256(b"".join(leaves)).hexdigest(), scores


@pytest.mark.parametrize(
    ("devices", "fields"),
    [(1, {"parts": 2}), (1, {"remat": True}), (2, {"parts": 2, "remat": True}), (2, {"replica": 4})],
)
def test_a_divided_batch_gives_what_the_whole_one_gives(x64, monkeypatch, devices, fields):
    """In float64, statistics over groups of four included: parts, recomputation and logical replicas."""
    with monkeypatch.context() as patch:
        whole = run(1, patch, dtype=jnp.float64)
    divided = run(devices, monkeypatch, dtype=jnp.float64, **fields)
    for a, b in zip(*(jax.tree.leaves((state.trees(), scores)) for state, scores in (whole, divided)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
