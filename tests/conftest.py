"""Eight virtual devices, a compilation cache between runs, and where the material beside the checkout lies."""

import ctypes
import gc
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "bireal_jax" / "tests"))

import jax
import packed
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Compiling is most of the work here. Unoptimized code is compiled in half the time and computes the same mathematics;
# test_parity.py and the runs of test_end_to_end.py are optimized as for a user.
jax.config.update("jax_disable_most_optimizations", True)

SHARED = Path(__file__).parents[2] / "shared"


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="write tests/golden anew; read the diff")


@pytest.fixture(scope="module", autouse=True)
def memory():
    """What a file of tests compiled and cached goes with it: two workers of the long tests took 18 GB otherwise."""
    yield
    packed.network.cache_clear()
    jax.clear_caches()
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture
def x64():
    """float64 within the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimized():
    """XLA's usual optimizations within the test."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def shared():
    """The folder of oracles and real images beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (oracles and real images), which is not part of the package")
    return SHARED
