import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected import MODELS

from bireal_jax import binarize, models, optim
from bireal_jax.errors import BadInput


def shapes_of(name):
    classes = 1000 if MODELS[name][3][0] == 64 else 10
    model = models.build(name, classes)
    return model, jax.eval_shape(
        model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *MODELS[name][3]), jnp.float32)
    )


@pytest.mark.parametrize("name", models.MODELS)
def test_counts(name):
    parameters, binary, convolutions, _ = MODELS[name]
    params = shapes_of(name)[1]["params"]
    assert sum(p.size for p in jax.tree.leaves(params)) == parameters
    assert optim.count_latents(params) == binary
    assert len(optim.latents(params)) == convolutions


@pytest.mark.parametrize("name", [n for n in models.MODELS if n != "bireal152"])
def test_named_binary_convolutions_in_the_jaxpr(name):
    model, variables = shapes_of(name)
    image = jax.ShapeDtypeStruct((1, *MODELS[name][3]), jnp.float32)
    text = str(jax.make_jaxpr(model.apply)(variables, image))
    assert text.count("name=binary_conv2d") == MODELS[name][2]


@pytest.mark.parametrize("name", ["bireal20", "bireal_tiny"])
def test_forward_and_backward_are_finite_and_reach_every_weight(name):
    model = models.build(name, 10)
    x = jax.random.normal(jax.random.key(1), (4, *MODELS[name][3]))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    for latent in optim.latents(variables["params"]):
        sign = np.mean(np.asarray(latent) >= 0)
        assert sign == 1.0, "the released initialization starts with every binary weight at +1"

    def objective(params):
        logits, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(logits[:, 3] ** 2)

    grads = jax.jit(jax.grad(objective))(variables["params"])
    for path, g in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(g).all() and (np.abs(g).max() > 0 or "bias" in str(path)), path


def test_float64_model_has_float64_parameters(x64):
    model = models.build("bireal_tiny", 10, jnp.float64)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float64))
    assert {v.dtype for v in jax.tree.leaves(variables)} == {np.dtype("float64")}


def test_bfloat16_model_keeps_float32_parameters():
    model = models.build("bireal_tiny", 10, jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert {v.dtype for v in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert model.apply(variables, jnp.zeros((1, 8, 8, 1))).dtype == jnp.bfloat16


def test_names():
    with pytest.raises(BadInput, match="unknown model 'bireal19'; known: bireal152, bireal18"):
        models.build("bireal19")
    with pytest.raises(BadInput, match="unknown latent_init"):
        models.build("bireal18", latent_init="zeros")
    model = models.build("bireal_tiny", act=lambda x: jnp.exp(-jnp.abs(x)), weight=binarize.magnitude_aware)
    assert model.weight is binarize.magnitude_aware
