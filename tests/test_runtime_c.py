"""The engine from C: programs of tests/engine against the installed library."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from engine import make_seeds

from bireal_jax import runtime
from bireal_jax.runtime import container

TESTS = Path(__file__).parent / "engine"
pytestmark = pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")


def build(name, tmp_path, *flags):
    """Compiles a program of tests/engine, strictly."""
    compiler = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("needs a C compiler (Debian: gcc)")
    runtime_folder = Path(runtime.__file__).parent
    library = runtime_folder / "_engine.so"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{runtime_folder / 'engine'}", *flags]
    command = [compiler, *strict, TESTS / f"{name}.c", library, f"-Wl,-rpath,{runtime_folder}", "-o", name]
    compiled = subprocess.run(command, cwd=tmp_path, text=True, capture_output=True)
    assert compiled.returncode == 0, compiled.stderr


def test_the_example(tmp_path):
    build("example", tmp_path)

    def run(*arguments):
        return subprocess.run([tmp_path / "example", *arguments], text=True, capture_output=True)

    net = tmp_path / "net.safetensors"
    net.write_bytes(container.dump(make_seeds.SEEDS["bireal"]()))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    (tmp_path / "image.raw").write_bytes(image.tobytes())
    logits = runtime.load(net)(image[None])[0]
    best = logits.argmax()
    done = run(net, tmp_path / "image.raw")
    assert done.returncode == 0 and done.stdout == f"{best} {'abü'[best]} {logits[best]:.6g}\n"
    for arguments, message in [
        ((net,), "usage"), ((net, net.with_name("none")), "192 bytes"), ((tmp_path / "none", net), "cannot be opened"),
        ((tmp_path / "image.raw", net), "no packed network"),
    ]:  # fmt: skip
        done = run(*arguments)
        assert done.returncode and message in done.stderr


@pytest.mark.parametrize("seed", ["bireal", "shapes"])
def test_processes_threads_and_mistakes(seed, tmp_path):
    """Forks before and after runs, and while other threads run; NULL wherever a caller may give it."""
    build("processes", tmp_path, "-pthread", "-rdynamic")
    net = tmp_path / "net.safetensors"
    net.write_bytes(container.dump(make_seeds.SEEDS[seed]()))
    done = subprocess.run([tmp_path / "processes", net], text=True, capture_output=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "right\n", (done.returncode, done.stderr)
