"""How many equations a step has on an accelerator, where each may be a kernel: CPU machines cannot time a GPU.

The numbers are those of the code as it is. A change that needs more says why, and writes the new number here.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bireal_jax import models
from bireal_jax.binary import layers, losses, norm
from bireal_jax.data import Source
from bireal_jax.models import bireal
from bireal_jax.running import health, parallel
from bireal_jax.training import flat, optim
from bireal_jax.training.step import make_state, make_train_step


def equations(jaxpr, platform="cuda"):
    """Those of a jaxpr and of all within, of a choice by platform the one that this platform gets."""
    count, index = 0, {}
    for eqn in jaxpr.eqns:
        inner = [v for value in eqn.params.values() for v in (value if isinstance(value, tuple) else (value,))]
        inner = [getattr(v, "jaxpr", v) for v in inner if hasattr(getattr(v, "jaxpr", v), "eqns")]
        if eqn.primitive.name == "platform_index":
            choices = eqn.params["platforms"]
            index[eqn.outvars[0]] = next(i for i, names in enumerate(choices) if names is None or platform in names)
            continue
        if eqn.primitive.name == "cond" and eqn.invars[0] in index:
            inner = [inner[index[eqn.invars[0]]]]
        count += sum(equations(j, platform) for j in inner) if inner else 1
    return count


def there_and_back(function, *args):
    """Of a function and its gradient by all arguments."""
    return equations(jax.make_jaxpr(lambda *a: jax.value_and_grad(function, range(len(a)))(*a))(*args).jaxpr)


def test_only_the_branch_of_the_platform_counts():
    traced = jax.make_jaxpr(lambda x: jax.lax.platform_dependent(x, cpu=lambda x: x + x + x, default=jnp.sin))(
        1.0
    ).jaxpr
    assert (equations(traced, "cpu"), equations(traced, "cuda")) == (2, 1)


@pytest.mark.parametrize(("pooled", "most"), [(False, 65), (True, 175)])
def test_of_a_batch_norm(pooled, most):
    """Four more than with the mean of an image taken off, and three kernels less: that mean was a reduction."""
    x, c = jnp.ones((4, 8, 8, 16), jnp.bfloat16), jnp.ones(16)
    found = there_and_back(lambda x, s, b: norm.normalize_batch(x, s, b, 1e-5, None, pooled)[0].sum(), x, c, c)
    assert found <= most


def test_of_a_block():
    dtype = {"dtype": jnp.bfloat16}
    binary_conv = models.build("bireal_tiny", 10, jnp.bfloat16).binary_layer(1.0)
    block = bireal.Block(
        16, 1, binary_conv, partial(layers.Conv, **dtype), partial(layers.BatchNorm, **dtype), bireal.pooled_shortcut
    )
    x = jnp.ones((4, 8, 8, 16), jnp.bfloat16)
    variables = block.init(jax.random.key(0), x, True)
    run = lambda x, params: block.apply(variables | {"params": params}, x, True, mutable=["batch_stats"])[0].sum()
    assert there_and_back(run, x, variables["params"]) <= 139


@pytest.mark.parametrize(
    ("name", "most", "flat_most"), [("bireal_tiny", 1955, 1702), ("bireal20", 4137, 3276), ("bireal18", 3909, 3276)]
)
def test_of_a_step(name, most, flat_most):
    """By itself, and guarded and with the state flat, as in calls of several steps: apart, bireal20 had 4,985."""
    shape = (32, 32, 3)
    source = Source(train=(), eval=(), augment=lambda *_: {}, prepare=dict, image_shape=shape, num_classes=10)
    model = models.build(name, 10, jnp.bfloat16)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
    variables = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variables)
    batch = {"image": np.zeros((8, *shape), np.uint8), "label": np.zeros(8, np.int32), "mask": np.ones(8, bool)}
    for form, bound in ((flat.APART, most), (flat.Form(variables.values()), flat_most)):
        tx = optim.make("adam", lambda _: 1e-3, form.flat(variables["params"]))
        step = make_train_step(model, losses.cross_entropy, tx, source, form=form)
        step = step if form is flat.APART else health.guard(step, 0)
        state = form.flat(make_state(variables, tx, 0, False, jnp.float32))
        traced = jax.make_jaxpr(step, axis_env=[(parallel.AXIS, 1)])(state, batch)
        assert equations(traced.jaxpr) <= bound
