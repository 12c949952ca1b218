"""Binarization rules written in plain JAX are packed as bits where they are ±1, and where not it is said."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import packed
import pytest

from bireal_jax import config, main
from bireal_jax.binary import binarize
from bireal_jax.binary.layers import BinaryConv, Dense
from bireal_jax.binary.pool import global_avg_pool
from bireal_jax.errors import BadInput
from bireal_jax.shipping import cost, export

stop = jax.lax.stop_gradient


def straight_through(w):
    return w + stop(binarize.sign(w) - w), jnp.ones(w.shape[-1], w.dtype)


def scaled(w):
    return binarize.mean_abs(w) * binarize.sign(w), None


def scaled_straight_through(w):
    return w + stop(binarize.mean_abs(w) * jnp.sign(w) - w), None


def numpy_sign(w):
    return jnp.sign(w), jnp.ones(w.shape[-1], w.dtype)


def chosen(w):
    return jnp.where(w > 0, 1.0, -1.0).astype(w.dtype), stop(binarize.mean_abs(w))


def turned(w):
    return jnp.transpose(binarize.sign(jnp.transpose(w, (3, 2, 0, 1))), (2, 3, 1, 0)), binarize.mean_abs(w)


def one_scale(w):
    return jnp.mean(jnp.abs(w)) * (w - stop(w - binarize.sign(w))), None


PROVEN = [straight_through, scaled, scaled_straight_through, numpy_sign, chosen, turned, one_scale]


def ternary(w):
    return jnp.where(jnp.abs(w) < 0.1, 0.0, jnp.sign(w)), jnp.ones(w.shape[-1], w.dtype)


def scaled_inputs(w):
    return jnp.mean(jnp.abs(w), (0, 1, 3), keepdims=True) * jnp.sign(w), None


def soft(w):
    return jnp.tanh(w), jnp.ones(w.shape[-1], w.dtype)


class Net(nn.Module):
    """Three layers, as quickly traced as can be."""

    act: Callable = binarize.activation("ste")
    weight: Callable = binarize.weight("sign")
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train=False):
        for i in range(2):
            rules = {"activation": self.act, "weight": self.weight, "use_bias": True}
            x = BinaryConv(6, **rules, dtype=self.dtype, param_dtype=self.param_dtype, name=f"conv{i}")(x)
        return Dense(10, self.dtype, self.param_dtype, name="head")(global_avg_pool(x))


SHAPE = (4, 4, 3)


def own(**rules):
    """(module, variables, source) of a network with rules of one's own."""
    return Net(**rules), packed.drawn(Net(**rules), SHAPE), packed.source(SHAPE)


def close(module, variables, source, made):
    images = np.random.default_rng(1).normal(size=(4, *source.image_shape))
    wide = module.clone(dtype=jnp.float64, param_dtype=jnp.float64)
    theirs = jax.jit(wide.apply)(variables, images)
    ours = made.run(images, np.float64)[-1].reshape(4, -1)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("rule", PROVEN, ids=lambda rule: rule.__name__)
def test_weights_that_are_one_bit_by_value(rule, x64, capsys):
    found = own(weight=rule)
    made = export.program("bireal_tiny", *found, dtype=np.float64)
    assert [op["op"] for op in made.spec["ops"]].count("binary_conv") == 2
    assert "note" not in capsys.readouterr().out
    close(*found, made)
    rows = cost.rows(*found[:2], SHAPE)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), found[1])
    assert cost.rows(found[0], shapes, SHAPE) == rows, "shapes are enough to tell"
    assert [(r.input_bits, r.weight_bits) for r in rows[:3]] == [(1, 1), (1, 1), (32, 32)]


@pytest.mark.parametrize(
    "rule, why", [(ternary, "of its weights are 0"), (scaled_inputs, "sizes from"), (soft, "sizes from")]
)
def test_weights_that_are_not_are_named(rule, why, x64, capsys):
    found = own(weight=rule)
    made = export.program("bireal_tiny", *found, dtype=np.float64)
    said = capsys.readouterr().out
    assert said.startswith("note: conv0 and 1 more have latent weights") and why in said
    assert said.count("\n") == 1
    close(*found, made)
    shapes = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), found[1])
    assert cost.notes(cost.rows(found[0], shapes, SHAPE))[0].split(":")[1] in said


def test_a_zero_makes_a_numpy_sign_real(x64, capsys):
    module, variables, source = own(weight=numpy_sign)
    variables["params"]["conv0"]["latent"][0, 0, 0, :2] = 0.0
    made = export.program("bireal_tiny", module, variables, source, dtype=np.float64)
    assert "note: conv0 has latent weights" in capsys.readouterr().out
    close(module, variables, source, made)


def test_real_weights_are_meant_to_be_real(capsys):
    export.program("bireal_tiny", *own(weight=binarize.real))
    assert capsys.readouterr().out == ""


def ste(x):
    return x + stop(binarize.sign(x) - x)


def clipped(x):
    return jnp.clip(x, -1, 1) + stop(binarize.sign(x) - jnp.clip(x, -1, 1))


def compared(x):
    return x - stop(x - jnp.where(x >= 0, 1.0, -1.0).astype(x.dtype))


def below(x):
    return jnp.where(x < 0.25, -1.0, 1.0).astype(x.dtype)


@pytest.mark.parametrize("rule", [ste, clipped, compared, below], ids=lambda rule: rule.__name__)
def test_activations_in_plain_jax(rule, x64):
    found = own(act=rule, weight=scaled)
    made = export.program("bireal_tiny", *found, dtype=np.float64)
    kinds = [op["op"] for op in made.spec["ops"]]
    assert kinds.count("binary_conv") == 2 and "clip" not in kinds
    close(*found, made)


@jax.jit
def sign(x):
    """Called as ours is, and -1 at 0."""
    return jnp.where(x > 0, jnp.ones_like(x), -jnp.ones_like(x))


@pytest.mark.parametrize(
    "rule, why",
    [
        (jnp.sign, "jnp.sign gives 0 at 0"),
        (sign, "-1 at 0 has no operation"),
        (lambda x: x - jnp.clip(x, -1, 1), "two maps"),
        (lambda x: (x >= 0).astype(x.dtype), "a comparison"),
        (lambda x: jnp.where(x >= 0, 1.0, 0.0).astype(x.dtype), "only where"),
    ],
)
def test_activations_that_are_no_sign_are_refused(rule, why):
    found = own(act=rule)
    with pytest.raises(BadInput, match=why):
        export.program("bireal_tiny", *found)


def test_the_command_says_it_beside_the_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(binarize.WEIGHTS, "mine", soft)  # as a recipe does
    c = config.default()
    c.update_from_flattened_dict({"model.name": "bireal_tiny", "data.name": "digits", "data.image_size": 8})
    c.model.weight = "mine"
    main.print_cost(c, "csv")
    said = capsys.readouterr()
    assert "comes out real-valued" in said.err and "note" not in said.out
