"""The first layer: its convolution and weight gradient are those in float64, and threads change no bit."""

import shutil
import subprocess
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import COMPILER, CROSS, PACKAGES, SANITIZE
from test_tables import BINARY, DEVICES, assert_near, exact, shapes

from bireal_jax.binary import conv, layers, packed, stem

compiled = pytest.mark.skipif(not packed.available(), reason="no compiler when the package was installed")


def drawn(shape, seed=0):
    """(x, w, g, how) of a shape of test_tables.py, no more than 4 channels in."""
    rng = np.random.default_rng(seed)
    n, size, (cin, cout), kernel, strides, padding = shape
    how = {"strides": strides, "padding": padding}
    x = rng.normal(size=(n, *size, cin % 4 + 1)).astype(np.float32)
    w = rng.normal(size=(*kernel, x.shape[3], cout)).astype(np.float32)
    g = rng.normal(size=jax.eval_shape(partial(conv.xla_conv, **how), x, w).shape).astype(np.float32)
    return x, w, g, how


def use(patch, threads, newest=2):
    patch.setattr(packed, "NEWEST", newest)
    patch.setattr(stem, "WORTH_A_THREAD", 1)
    patch.setattr(packed.os, "sched_getaffinity", lambda _: range(DEVICES * threads), raising=False)


def both(x, w, g, how):
    x, w, g = map(jnp.asarray, (x, w, g))
    return np.asarray(stem.product(x, w, **how)), np.asarray(stem.by_kernel(x, w, g, **how))


def right(x, w, g, how):
    with jax.enable_x64(True):
        y = conv.xla_conv(*(jnp.asarray(a, jnp.float64) for a in (x, w)), **how)
    return np.asarray(y), exact(x, w, g, how)[1]


@compiled
@settings(max_examples=30, deadline=None, derandomize=True)
@given(shapes(), st.integers(1, 8), st.integers(0, 2))
def test_random_shapes(shape, threads, newest):
    with pytest.MonkeyPatch.context() as patch:
        use(patch, threads, newest)
        drawing = drawn(shape)
        assert_near(both(*drawing), right(*drawing), 2e-6)


STEMS = [
    (3, (40, 37), (2, 64), (7, 7), (2, 2), ((3, 3), (3, 3))),
    (9, (32, 32), (2, 16), (3, 3), (1, 1), ((1, 1), (1, 1))),
    (2, (12, 20), (0, 70), (3, 5), (1, 2), ((2, 0), (0, 6))),
]


@compiled
@pytest.mark.parametrize("shape", STEMS)
def test_threads_change_no_bit(shape, monkeypatch):
    drawing = drawn(shape)
    for newest in (2, 1, 0):
        found = []
        for threads in (1, 2, 3, 8):
            use(monkeypatch, threads, newest)
            found.append(both(*drawing))
        assert_near(found[0], right(*drawing))
        for other in found[1:]:
            jax.tree.map(np.testing.assert_array_equal, other, found[0])


@compiled
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_reaches_what_it_would_reach(value):
    x, w, g, how = drawn(STEMS[1])
    x[1, 3, 31, 0] = g[2, 0, 0, 5] = value
    plain = conv.xla_conv(x, w, **how), conv.PLAIN.by_kernel(x, w, g, **how)
    for found, expected in zip(both(x, w, g, how), plain, strict=True):
        assert not np.isfinite(expected).all()
        np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))


def test_the_layer_uses_it_where_the_images_have_few_channels():
    x, w, _, how = drawn(STEMS[0])
    step = lambda x, w: jax.grad(lambda w: layers.conv2d(x, w, **how).sum())(w)
    said = str(jax.make_jaxpr(step)(x, w))
    assert (packed.STEM in said) == (packed.STEM_BY_KERNEL in said) == packed.available()
    wide, wider = np.ones((1, 8, 8, 5), np.float32), np.ones((3, 3, 5, 8), np.float32)
    assert "bireal_stem" not in str(jax.make_jaxpr(partial(layers.conv2d, **how))(wide, wider))
    half = x.astype(jnp.bfloat16), w.astype(jnp.bfloat16)
    assert "bireal_stem" not in str(jax.make_jaxpr(partial(layers.conv2d, **how))(*half))


@pytest.mark.parametrize(
    "compiler, flags, runner, instructions",
    [
        pytest.param(COMPILER, SANITIZE, [], (2, 0), id="sanitized"),
        pytest.param(CROSS, ["-O2", "-static"], ["qemu-aarch64"], (1,), id="neon", marks=pytest.mark.slow),
    ],
)
def test_stem_and_pooling_are_plain_loops_and_read_nothing_beyond(compiler, flags, runner, instructions, tmp_path):
    for tool in [compiler, *runner]:
        if not shutil.which(tool):
            pytest.skip(f"needs {tool} (Debian: {PACKAGES[tool]})")
    program = tmp_path / "stem_test"
    sources = [Path(__file__).parent / "tables" / "stem_test.cc", BINARY / "stem.cc", BINARY / "pool.cc"]
    command = [compiler, "-std=c++17", "-pthread", "-Wall", "-Wextra", "-Werror", *flags, f"-I{BINARY}", *sources]
    made = subprocess.run([*command, "-o", program], text=True, capture_output=True)
    assert made.returncode == 0, made.stderr
    for newest in instructions:
        result = subprocess.run([*runner, program, str(newest)], text=True, capture_output=True)
        assert (result.returncode, result.stdout) == (0, "0 wrong\n"), result.stderr
