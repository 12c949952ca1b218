"""Gradients by tables are those of the plain convolution, with the same bits whoever computes them."""

import itertools
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_kernels import COMPILER, CROSS, PACKAGES, SANITIZE

from bireal_jax.binary import binarize, conv, layers, packed, tables

compiled = pytest.mark.skipif(not packed.available(), reason="no compiler when the package was installed")
BINARY = Path(packed.__file__).parent
DEVICES = 8  # of conftest.py

# images, size, channels, kernel, strides, padding
SHAPES = [
    (16, (8, 8), (16, 16), (3, 3), (1, 1), ((1, 1), (1, 1))),
    (33, (7, 7), (64, 33), (3, 3), (2, 2), ((1, 1), (1, 1))),
    (5, (7, 9), (13, 50), (3, 3), (2, 1), ((0, 2), (1, 0))),
    (17, (9, 8), (70, 40), (5, 5), (3, 3), ((2, 2), (2, 2))),
    (2, (6, 5), (3, 5), (2, 4), (1, 2), ((3, 4), (5, 0))),
    (1, (9, 9), (20, 130), (7, 7), (1, 1), ((3, 3), (3, 3))),
    (4, (11, 4), (8, 16), (1, 1), (3, 2), ((0, 0), (0, 0))),
    (32, (1, 1), (64, 64), (3, 3), (1, 1), ((1, 1), (1, 1))),
]


@pytest.fixture
def always(monkeypatch):
    """Tables wherever they can be used."""
    monkeypatch.setattr(tables, "LEAST_PIXELS", (0, 0))


def drawn(shape, seed=0, zeros=0.0):
    """(x, w, g, how) of a shape: signs, signs or 0, and what comes back."""
    rng = np.random.default_rng(seed)
    n, size, (cin, cout), kernel, strides, padding = shape
    how = {"strides": strides, "padding": padding}
    x = rng.choice([-1.0, 1.0], (n, *size, cin)).astype(np.float32)
    w = rng.choice([-1.0, 1.0], (*kernel, cin, cout)) * (rng.random((*kernel, cin, cout)) >= zeros)
    w = w.astype(np.float32)
    g = rng.normal(size=jax.eval_shape(partial(conv.xla_conv, **how), x, w).shape).astype(np.float32)
    return x, w, g, how


def both(x, w, g, how):
    """Ours, as numpy arrays."""
    x, w, g = map(jnp.asarray, (x, w, g))
    return np.asarray(tables.by_input(x, w, g, **how)), np.asarray(tables.by_kernel(x, w, g, **how))


def exact(x, w, g, how):
    """The same in float64, a tap at a time."""
    (kh, kw, *_), (sh, sw), (_, ho, wo, _) = w.shape, how["strides"], g.shape
    (top, _), (left, _) = how["padding"]
    x, w, g = (a.astype(np.float64) for a in (x, w, g))
    high, wide = top + x.shape[1] + ho * sh + kh, left + x.shape[2] + wo * sw + kw
    padded = np.zeros((len(x), high, wide, x.shape[3]))
    padded[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    dx, dw = np.zeros_like(padded), np.zeros(w.shape)
    for i in range(kh):
        for j in range(kw):
            at = np.s_[:, i : i + sh * ho : sh, j : j + sw * wo : sw]
            dx[at] += g @ w[i, j].T
            dw[i, j] = np.einsum("nhwi,nhwo->io", padded[at], g, optimize=True)
    return dx[:, top : top + x.shape[1], left : left + x.shape[2]], dw


def assert_near(found, expected, within=1e-6):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=within * max(np.abs(b).max(), 1e-30))


def use(monkeypatch, threads):
    monkeypatch.setattr(tables, "WORTH_A_THREAD", 1)
    monkeypatch.setattr(packed.os, "sched_getaffinity", lambda _: range(DEVICES * threads), raising=False)


@compiled
@pytest.mark.parametrize("zeros", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_they_are_the_sums_in_float64(shape, zeros, always):
    drawing = drawn(shape, zeros=zeros)
    assert_near(both(*drawing), exact(*drawing))


@st.composite
def shapes(draw):
    pick = lambda most, least=1: draw(st.integers(least, most))
    kernel = (draw(st.sampled_from([1, 2, 3, 4, 5, 7])), draw(st.sampled_from([1, 2, 3, 5])))
    padding = tuple((pick(k + 1, 0), pick(k + 1, 0)) for k in kernel)
    size = tuple(max(pick(9), k - low - high) for k, (low, high) in zip(kernel, padding, strict=True))
    return pick(33), size, (pick(70), pick(70)), kernel, (pick(3), pick(3)), padding


@compiled
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(shapes(), st.sampled_from([0.0, 0.1]), st.integers(1, 8))
def test_random_shapes(always, shape, zeros, threads):
    with pytest.MonkeyPatch.context() as patch:
        use(patch, threads)
        drawing = drawn(shape, zeros=zeros)
        assert_near(both(*drawing), exact(*drawing))


@compiled
@pytest.mark.parametrize(
    "shape", [SHAPES[1], SHAPES[2], SHAPES[4], (9, (12, 5), (16, 16), (3, 3), (1, 1), ((1, 1), (1, 1)))]
)
def test_bits_depend_on_neither_threads_nor_instructions(shape, always, monkeypatch):
    drawing = drawn(shape)
    expected = both(*drawing)
    for newest in (2, 1, 0):
        monkeypatch.setattr(packed, "NEWEST", newest)
        for threads in range(1, 9) if newest == 2 else (1, 3):
            use(monkeypatch, threads)
            jax.tree.map(np.testing.assert_array_equal, both(*drawing), expected)


@compiled
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [SHAPES[2], (4, (4, 5), (17, 20), (3, 3), (1, 1), ((1, 1), (1, 1)))])
def test_what_is_not_finite_reaches_what_it_would_reach(shape, value, always):
    """Just as in XLA's sums, in which 0 times NaN is NaN: weights of 0, and zeros beyond the border."""
    rng = np.random.default_rng(0)
    for zeros in (0.0, 0.3):
        x, w, g, how = drawn(shape, zeros=zeros)
        for _ in range(3):
            bad = g.copy()
            bad[tuple(rng.integers(0, g.shape))] = value
            bad[0, 0, 0, 0] = rng.choice([1.0, value])
            bad[-1, -1, -1, 0] = -bad[0, 0, 0, 0]
            plain = [np.asarray(f(x, w, bad, **how)) for f in conv.PLAIN]
            for a, b in zip(both(x, w, bad, how), plain, strict=True):
                assert not np.isfinite(b).all()
                np.testing.assert_array_equal(np.isfinite(a), np.isfinite(b))


def off(found, right):
    return np.sqrt(np.mean((found - right) ** 2))


@compiled
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_terms_of_very_different_size_are_added_as_well_as_by_xla(zeros, always):
    x, w, g, how = drawn((8, (10, 10), (24, 48), (3, 3), (1, 1), ((1, 1), (1, 1))), zeros=zeros)
    large = np.random.default_rng(1).random(g.shape) < 0.05
    g = np.where(large, 1e8 * g, g)
    plain = [np.asarray(f(*map(jnp.asarray, (x, w, g)), **how)) for f in conv.PLAIN]
    for ours, xlas, right in zip(both(x, w, g, how), plain, exact(x, w, g, how), strict=True):
        assert off(ours, right) <= 1.2 * off(xlas, right)


@compiled
def test_a_large_term_touches_nothing_that_it_does_not_reach(always):
    x, w, g, how = drawn((8, (10, 10), (24, 48), (3, 3), (1, 1), ((1, 1), (1, 1))))
    g[:, 0] *= 1e8  # the upper taps never see the first row
    (dx, dw), (right_dx, right_dw) = both(x, w, g, how), exact(x, w, g, how)
    assert_near([dx[:, 2:], dw[0]], [right_dx[:, 2:], right_dw[0]])


@compiled
@pytest.mark.parametrize("groups", [1, 2])
def test_the_binary_convolution_has_these_gradients(groups, always):
    """As in float64, also vmapped over networks, and in a jitted step."""
    x, w, g, how = drawn((16, (6, 6), (32, 32 // groups), (3, 3), (2, 2), ((1, 1), (1, 1))))
    w = np.concatenate([w[:, :, : 32 // groups]] * groups, -1)
    g = np.concatenate([g] * groups, -1)
    alpha = np.linspace(0.5, 1.5, 32, dtype=np.float32)
    layer = partial(layers.binary_conv2d, groups=groups, **how)

    def pull(x, w, g):
        return jax.vjp(lambda x, w: layer(x, w, alpha.astype(x.dtype)), x, w)[1](g)

    assert str(jax.make_jaxpr(pull)(x, w, g)).count("bireal_tables") == 2 * groups
    found = jax.jit(pull)(x, w, g)
    with jax.enable_x64(True):
        expected = jax.jit(pull)(*(jnp.asarray(a, jnp.float64) for a in (x, w, g)))
    assert_near(found, expected)
    seeds = jax.jit(jax.vmap(pull, (0, None, 0)))(np.stack([x, -x]), w, np.stack([g, g]))
    assert_near([a[0] for a in seeds], found, 0)
    np.testing.assert_array_equal(seeds[1][1], -seeds[1][0])


@compiled
def test_a_training_step_uses_them_and_its_forward_pass_needs_no_float():
    module = layers.BinaryConv(16, binarize.activation("ste"), binarize.weight("released"))
    x = jnp.ones((16, 4, 4, 16))
    variables = module.init(jax.random.key(0), x)
    step = jax.make_jaxpr(jax.grad(lambda v: module.apply(v, x).sum()))(variables)
    assert packed.BY_KERNEL in str(step)


def test_what_tables_do_not_do_or_do_slower_is_left_to_xla(monkeypatch):
    used = lambda *drawing: "bireal_tables" in str(jax.make_jaxpr(partial(tables.by_input, **drawing[3]))(*drawing[:3]))
    x, w, g, how = drawn(SHAPES[0])
    assert used(x, w, g, how) == packed.available()
    half = [jnp.asarray(a, jnp.bfloat16) for a in (x, w, g)]
    assert not used(*half, how)
    assert not used(x[:0], w, g[:0], how) and not used(x[:1, :4, :4], w, g[:1, :4, :4], how)
    monkeypatch.setattr(packed, "LARGEST", x[0].size - 1)
    assert not used(x, w, g, how)


LIMITED = """
import resource, sys
import jax, jax.numpy as jnp
from bireal_jax.binary import tables
jax.config.update("jax_platforms", "cpu")
x, w, g = jnp.ones((16, 32, 32, 512)), jnp.ones((15, 15, 512, 16)), jnp.ones((16, 32, 32, 16))  # 236 MB of sums
run = jax.jit(lambda x, w, g: tables.by_kernel(x, w, g, strides=(1, 1), padding=((7, 7), (7, 7))))
run = run.lower(x, w, g).compile()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (24 << 20), resource.RLIM_INFINITY))
try:
    run(x, w, g).block_until_ready()
except Exception as error:
    print(error)
"""


@compiled
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_memory_that_cannot_be_had_is_one_error():
    result = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert result.stdout.startswith("RESOURCE_EXHAUSTED: no memory for the gradient"), result.stdout + result.stderr


# What is compiled and run: compiler, flags, what runs it, instructions, every so many shapes, or "memory".
BUILDS = {
    "native": (COMPILER, ["-O2", "-Wall", "-Wextra", "-Werror"], [], (2, 1, 0), ["1"]),
    "sanitized": (COMPILER, [*SANITIZE, "-DNO_THREADS"], [], (2, 0), ["7", "memory"]),
    "neon": (CROSS, ["-O2", "-static"], ["qemu-aarch64"], (1, 0), ["7"]),
}
SAID = {
    "1": "240 shapes, 0 failed, digest 7c10842fcda86f31",  # these bits on every CPU
    "7": "35 shapes, 0 failed, digest 87cad0dd32dd21ac",
    "memory": "each failed in one piece",
}


@pytest.mark.parametrize("build", BUILDS)
def test_every_instruction_set_has_the_same_bits(build, tmp_path):
    """Sanitized: where there is no thread but the caller, and each allocation fails in turn."""
    compiler, flags, runner, instructions, parts = BUILDS[build]
    for tool in [compiler, *runner]:
        if not shutil.which(tool):
            pytest.skip(f"needs {tool} (Debian: {PACKAGES[tool]})")
    program = tmp_path / "tables_test"
    sources = [Path(__file__).parent / "tables" / "tables_test.cc", *sorted(BINARY.glob("tables*.cc"))]
    command = [compiler, "-std=c++17", "-pthread", *flags, f"-I{BINARY}", *sources, "-o", program]
    made = subprocess.run(command, text=True, capture_output=True)
    assert made.returncode == 0, made.stderr
    for newest, part in itertools.product(instructions, parts):
        result = subprocess.run([*runner, program, str(newest), part], text=True, capture_output=True)
        assert (result.returncode, result.stdout.strip()) == (0, SAID[part]), result.stderr
