from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expected import MODELS
from flax import traverse_util
from test_layers import conv_by_hand

from bireal_jax import models
from bireal_jax.binary import binarize
from bireal_jax.binary.layers import BatchNorm, BinaryConv, Conv
from bireal_jax.errors import BadInput
from bireal_jax.models import bireal
from bireal_jax.training import optim


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
    real_inputs = 1 if name in ("binarynet", "binary_alexnet") else 0  # its first convolution sees the image itself
    assert text.count("name=binary_conv2d") == MODELS[name][2] - real_inputs


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


@pytest.mark.parametrize("name", ["res_tiny", "plain_tiny", "xnor_tiny", "vgg_small", "binarynet"])
def test_baselines_are_built_as_their_docstrings_say(name):
    """Every convolution by its own: where its input comes from, and what stands between."""
    model = models.build(name, 10, latent_init="he")
    image = jax.ShapeDtypeStruct((2, *MODELS[name][3]), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    _, state = jax.eval_shape(lambda v, x: model.apply(v, x, capture_intermediates=True), variables, image)
    seen = traverse_util.flatten_dict(state["intermediates"])
    shape = {"/".join(path[:-1]): leaves[0].shape for path, leaves in seen.items()}
    if name == "res_tiny":
        assert shape["stage1_block2/binary_conv2"] == (2, 8, 8, 32) and "stage1_block3" not in shape
        assert shape["stage2_block1/binary_conv1"] == shape["stage2_block1/downsample_bn"] == (2, 4, 4, 64)
    if name == "plain_tiny":
        assert shape["stage2_block1/binary_conv"] == (2, 4, 4, 64) and "stage2_block1/downsample_bn" not in shape
    if name == "xnor_tiny":
        assert shape["stage2_block1/bn1"] == (2, 8, 8, 32) and shape["stage2_block1/bn2"] == (2, 4, 4, 64)
    if name == "vgg_small":
        assert [shape[f"bn{i}"][1] for i in range(1, 6)] == [16, 16, 8, 8, 4] and shape["binary_conv5"][1] == 8
    if name == "binarynet":
        assert [shape[f"binary_conv{i}"][1] for i in range(6)] == [30, 30, 15, 15, 7, 7]
        assert shape["binary_dense0"] == (2, 1, 1, 1024)


def test_shortcuts_are_where_they_should_be():
    """With batch norms that give 0, a residual block passes its input on and a plain one passes nothing."""
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    for name, blocks in (("res_tiny", 2), ("plain_tiny", 4)):
        model = models.build(name, 10, latent_init="he")
        variables = jax.jit(model.init)(jax.random.key(0), x)
        flat = traverse_util.flatten_dict(variables)
        silenced = lambda p: "_block" in p[1] and "bn" in p[-2] and p[-1] == "scale"
        silent = {p: jnp.zeros_like(v) if silenced(p) else v for p, v in flat.items()}
        _, state = model.apply(traverse_util.unflatten_dict(silent), x, capture_intermediates=True)
        seen = state["intermediates"]
        ends = [seen[f"stage1_block{j}"]["__call__"][0] for j in range(1, blocks + 1)]
        stem = seen["stem_bn"]["__call__"][0]
        for end in ends:
            np.testing.assert_array_equal(end, jnp.zeros_like(stem) if name == "plain_tiny" else stem)


def test_xnor_net_normalizes_before_the_sign():
    """So its sign is blind to the scale and the offset of a channel."""
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 32))
    block = bireal.Block(
        32, 1, partial(BinaryConv, activation=binarize.activation("ste"), weight=binarize.weight("through_scale")),
        Conv, BatchNorm, bireal.pooled_shortcut, convs=2, norm_first=True,
    )  # fmt: skip
    variables = block.init(jax.random.key(0), x, True)
    grown = 3 * x + 1
    (y, _), (z, _) = (block.apply(variables, v, True, mutable=["batch_stats"]) for v in (x, grown))
    np.testing.assert_allclose(y - x, z - grown, atol=1e-4)


@pytest.mark.parametrize("act", binarize.REAL)
def test_real_valued_networks(act):
    model = models.build("bireal_tiny", 10, act=act, weight="real", latent_init="he")
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    assert "name=binary_conv2d" not in str(jax.make_jaxpr(model.apply)(variables, x))
    block = variables["params"]["stage1_block1"]["binary_conv"]["latent"]
    _, state = model.apply(variables, x, capture_intermediates=True)
    seen = state["intermediates"]
    inputs = np.asarray(seen["stem_bn"]["__call__"][0], np.float64)
    expected = conv_by_hand(np.asarray(binarize.REAL[act](inputs)), np.asarray(block, np.float64), 1, 1)
    np.testing.assert_allclose(seen["stage1_block1"]["binary_conv"]["__call__"][0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["bireal_tiny", "vgg_small", "binarynet"])
def test_progress_reaches_every_convolution(name):
    """With weights of scale `progress` every binary convolution gives 0 at the start of the training."""
    model = models.build(
        name, 10, act=lambda x, progress: jnp.full_like(x, progress), latent_init="he",
        weight=lambda w, progress: (binarize.sign(w), jnp.full(w.shape[-1], progress)),
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(1), (1, *MODELS[name][3]))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    run = jax.jit(lambda v, p: model.apply(v, x, progress=p, capture_intermediates=True)[1]["intermediates"])
    for progress in (0.0, 0.5):
        seen = traverse_util.flatten_dict(run(variables, progress))
        outputs = [leaves[0] for path, leaves in seen.items() if len(path) > 1 and "binary" in path[-2]]
        assert len(outputs) == MODELS[name][2]
        assert all((np.abs(y).max() > 0) == (progress > 0) for y in outputs)
    slope = lambda p: jax.grad(lambda x: jnp.sum(model.activation(x, p)))(x)
    np.testing.assert_array_equal(slope(0.25), 0.25)


@pytest.mark.parametrize("name", ["plain_tiny", "vgg_small"])
def test_progress_reaches_every_derivative(name):
    """Without shortcuts a derivative that is zero from half of the training on stops all gradients to the stem."""
    model = models.build(name, 10, act=lambda x, progress: jnp.full_like(x, 1) * (progress < 0.5), latent_init="he")
    x = jax.random.normal(jax.random.key(1), (2, *MODELS[name][3]))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    loss = lambda v, p: jnp.sum(model.apply(v, x, progress=p)[:, 0])
    slope = jax.jit(lambda p: jax.grad(loss)(variables, p)["params"]["stem_conv"]["kernel"])
    assert np.abs(slope(0.25)).max() > 0 and not np.any(slope(0.75))


def test_float64_model_has_float64_parameters(x64):
    model = models.build("bireal_tiny", 10, jnp.float64)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float64))
    assert {v.dtype for v in jax.tree.leaves(variables)} == {np.dtype("float64")}


def test_bfloat16_model_keeps_float32_parameters():
    model = models.build("bireal_tiny", 10, jnp.bfloat16)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    assert {v.dtype for v in jax.tree.leaves(variables)} == {np.dtype("float32")}
    assert model.apply(variables, jnp.zeros((1, 8, 8, 1))).dtype == jnp.bfloat16


def test_grouped_pairs_of_reactnet_b_are_two_grouped_convolutions_side_by_side(x64):
    """Computed by hand: output k of either one sees only the quarter of the channels that k lies in."""
    model = models.build("react_tiny", 10, jnp.float64).clone(real_groups=4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 1)))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    _, state = model.apply(variables, x, capture_intermediates=True)
    block = state["intermediates"]["block1"]
    y, z = (np.asarray(block[name]["__call__"][0]) for name in ("rprelu1", "conv2"))
    kernel = np.asarray(variables["params"]["block1"]["conv2"]["kernel"])[0, 0]  # [16 / 4, 32]
    for k in range(32):
        quarter = k % 16 // 4 * 4
        np.testing.assert_allclose(z[..., k], y[..., quarter : quarter + 4] @ kernel[:, k], rtol=1e-10, atol=1e-12)


def test_names():
    with pytest.raises(
        BadInput, match=r"unknown model 'bireal19'; did you mean bireal18\? known: binary_alexnet, binarynet, bireal152"
    ):
        models.build("bireal19")
    with pytest.raises(BadInput, match="unknown latent_init"):
        models.build("bireal18", latent_init="zeros")
    models.build("bireal_tiny", act=lambda x: jnp.exp(-jnp.abs(x)), weight=binarize.magnitude_aware)
