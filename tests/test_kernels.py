"""The engine's kernels of every instruction set against plain loops, bit for bit: tests/engine/kernels_test.cc.

What this CPU lacks is emulated: NEON by QEMU, AVX-512 by SIMDe.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

TESTS = Path(__file__).parent / "engine"
ENGINE = Path(__file__).parents[1] / "bireal_jax" / "runtime" / "engine"
COMPILER = os.environ.get("CXX", "g++")
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
SIMDE = ["-DBIREAL_SIMDE", f"-I{TESTS}", "-Wno-psabi", "-march=native"]
NATIVE = ["portable", "avx2", "avx512", "avx512_vpopcnt", "neon"]
EMULATED = ["avx512", "avx512_vpopcnt"]
CROSS = "aarch64-linux-gnu-g++"
HEADER = "simde/x86/avx512.h"
CPU = Path("/proc/cpuinfo")
NEEDED = {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vpopcntdq", "avx512_vnni"}

# What is compiled and run: compiler, flags, what runs it, kernels, every so many cases; -long: a slow test.
BUILDS = {
    "native": (COMPILER, ["-O3", "-Wall", "-Wextra", "-Werror"], [], NATIVE, 3),
    "sanitized": (COMPILER, SANITIZE, [], NATIVE, 41),
    "avx512": (COMPILER, ["-O1", *SIMDE], [], EMULATED, 11),
    "neon": (CROSS, ["-O2", "-static"], ["qemu-aarch64"], ["neon"], 11),
    "native-long": (COMPILER, ["-O2"], [], NATIVE, 1),
    "sanitized-long": (COMPILER, SANITIZE, [], NATIVE, 3),
    "avx512-long": (COMPILER, ["-O2", *SIMDE], [], EMULATED, 1),
    # SIMDe adds signed bytes beyond their range.
    "avx512-sanitized-long": (COMPILER, [*SANITIZE, "-fno-sanitize=signed-integer-overflow", *SIMDE], [], EMULATED, 3),
    "neon-long": (CROSS, ["-O3", "-static"], ["qemu-aarch64"], ["neon"], 2),
}
LONG = [pytest.mark.slow, pytest.mark.campaign]
PACKAGES = {COMPILER: "g++", CROSS: "g++-aarch64-linux-gnu", "qemu-aarch64": "qemu-user"}


def need(compiler, flags, runner, long):
    """Skips the test where a tool is missing, or emulation has nothing to show."""
    for tool in [compiler, *runner]:
        if not shutil.which(tool):
            pytest.skip(f"needs {tool} (Debian: {PACKAGES[tool]})")
    if SIMDE[0] in flags:
        if long and NEEDED <= set(CPU.read_text().split() if CPU.exists() else ()):
            pytest.skip("this CPU has AVX-512: the native builds run on it")
        found = subprocess.run(
            [compiler, "-E", "-x", "c++", "-"], input=f"#include <{HEADER}>", text=True, capture_output=True
        )
        if found.returncode:
            pytest.skip(f"needs {HEADER} (Debian: libsimde-dev)")


@pytest.mark.parametrize("build", [pytest.param(b, marks=LONG if b.endswith("-long") else []) for b in BUILDS])
def test_kernels_equal_plain_loops(build, tmp_path):
    compiler, flags, runner, names, every = BUILDS[build]
    need(compiler, flags, runner, build.endswith("-long"))
    program = tmp_path / "kernels_test"
    sources = [TESTS / "kernels_test.cc", ENGINE / "winograd.cc", *sorted(ENGINE.glob("kernels_*.cc"))]
    command = [compiler, "-std=c++17", *flags, f"-I{ENGINE}", *sources, "-o", program]
    compiled = subprocess.run(command, text=True, capture_output=True)
    assert compiled.returncode == 0, compiled.stderr
    ran = []
    for name in names:
        result = subprocess.run([*runner, program, name, str(every)], text=True, capture_output=True)
        if result.returncode == 2 and names is NATIVE:
            continue  # not on this CPU
        assert result.returncode == 0, result.stdout + result.stderr
        assert f"{name}: " in result.stdout and " 0 failed" in result.stdout
        ran.append(name)
    assert ran and (names is not NATIVE or "portable" in ran)
