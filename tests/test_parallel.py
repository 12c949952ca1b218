"""A batch that is divided, over devices and processes or one part after the other, gives what the whole one gives."""

import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import build, config
from bireal_jax.binary import losses
from bireal_jax.binary.binarize import activation, weight
from bireal_jax.binary.layers import BatchNorm, BinaryConv, Dense
from bireal_jax.binary.norm import Over
from bireal_jax.binary.pool import global_avg_pool
from bireal_jax.data import batching
from bireal_jax.errors import BadInput
from bireal_jax.running import parallel
from bireal_jax.training import calls, division, optim
from bireal_jax.training.evaluate import make_eval_step
from bireal_jax.training.step import Plan, make_state, make_train_step

ROOT = Path(__file__).parents[1]


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
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1), dtype))
    rng = np.random.default_rng(0)  # and not the initializers, which take longest to compile
    variables = jax.tree.map(lambda s: jnp.asarray(rng.uniform(0.1, 1, s.shape) - 0.5 * (s.ndim > 1), s.dtype), shapes)
    tx = optim.make("sgd", optim.schedule("linear", 1e-2, 100), variables["params"])
    step = parallel.pmap(make_train_step(model, losses.cross_entropy, tx, source, **fields), donate=True)
    state = parallel.replicate(make_state(variables, tx, 0, False, dtype))
    where = {"devices": devices, "process": process, "processes": processes}
    for _, batch in zip(
        range(steps), parallel.prefetch(batching.train_batches(source, 16, 0, 0, **where)), strict=False
    ):
        before = state
        state, _ = step(before, batch)
        reused = all(leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state)))
        assert reused != bool(fields.get("replica"))
    eval_step = make_eval_step(model, losses.cross_entropy, source, fields.get("replica", 0))
    held = calls.hold(source)["eval"]
    return parallel.fetch(state), calls.Evaluation(eval_step, source, 16, held=held)(state.variables)


def digest(state, scores):
    leaves = [leaf.tobytes() for leaf in jax.tree.leaves(state.trees())]
    return hashlib.sha256(b"".join(leaves)).hexdigest(), scores


def test_a_divided_batch_gives_what_the_whole_one_gives(x64, monkeypatch):
    """In float64, statistics over groups of four included: parts and recomputation, and logical replicas."""
    results = []
    for devices, fields in ((1, {}), (2, {"parts": 2, "remat": True}), (2, {"replica": 4})):
        with monkeypatch.context() as patch:
            state, scores = run(devices, patch, dtype=jnp.float64, **fields)
        results.append(jax.tree.leaves((state.trees(), scores)))
    for divided in results[1:]:
        for a, b in zip(results[0], divided, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


CHILD = """
import sys
import jax

jax.config.update("jax_num_cpu_devices", 2)
sys.path.insert(0, "tests")
from bireal_jax.running import hosts
from test_parallel import digest, run

port, index = sys.argv[1:]
assert hosts.join("localhost:" + port, 2, int(index))
print(*digest(*run(2, process=int(index), processes=2, over=None, replica=2)))
"""


def test_the_same_bits_on_one_device_and_on_two_processes_of_two(monkeypatch, optimized):
    """Parameters, statistics, moments, and the scores of 359 images, in float32: see `parallel.Step.replica`."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD, port, str(i)], cwd=ROOT, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) for i in (0, 1)
    ]  # fmt: skip
    expected = digest(*run(1, monkeypatch, over=None, replica=2))
    outputs = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    assert [out.splitlines()[-1] for out, _ in outputs] == [" ".join(map(str, expected))] * 2


def test_the_config_says_how_a_batch_is_divided():
    step = Plan(small(accumulate=2, deterministic=True, **{"model.bn_group": 1}))
    assert (step.train_step.parts, step.train_step.replica, step.eval_step.replica, step.model.bn_over) == (2, 1, 1, 1)
    plain = Plan(small())
    assert (plain.train_step.parts, plain.train_step.replica, plain.eval_step.replica) == (1, 0, 0)


def test_recomputation_keeps_less_for_the_backward_pass(monkeypatch):
    """Bytes that a step of bireal_tiny keeps, as traced: less than 0.4 times as many."""
    kept = []
    real = jax.value_and_grad

    def spy(objective, has_aux):
        def run(params):
            residuals = jax.eval_shape(lambda p: jax.vjp(objective, p, has_aux=True)[1], params)
            kept.append(sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(residuals)))
            return real(objective, has_aux=has_aux)(params)

        return run

    monkeypatch.setattr(jax, "value_and_grad", spy)
    for remat in (False, True):
        plan = Plan(small(remat=remat, batch_size=64))
        state = jax.eval_shape(lambda v, plan=plan: plan.fresh(v, 0), plan.shapes)
        batch = next(batching.train_batches(plan.source, 64, 0, 0, devices=1))
        jax.eval_shape(plan.train_step.part, state, jax.tree.map(lambda a: a[0], batch))
    assert kept[1] < 0.4 * kept[0], kept


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"deterministic": True, "batch_size": 24 * 3}, None),
        ({"deterministic": True, "batch_size": 20}, "batch_size=20 does not divide into 8 parts .*; use 24"),
        ({"accumulate": 2, "batch_size": 24}, r"into 16 parts .*accumulate=2\) .*; use 32"),
        ({"model.bn_group": 3, "batch_size": 16}, "into 8 parts .* of groups of config.model.bn_group=3; use 24"),
        ({"model.bn_group": 2, "model.sync_bn": True}, "sync_bn normalizes over all devices"),
    ],
)
def test_what_does_not_divide_is_named(fields, message):
    c = small(**fields)
    if message is None:
        assert [division.part_size(c, devices) for devices in (1, 2, 4, 8)] == [9] * 4
        with pytest.raises(BadInput, match="8 logical replicas, which 3 devices cannot share"):
            division.part_size(c, 3)
        return
    with pytest.raises(BadInput, match=message):
        config.validate(c)
        division.part_size(c, 8)
