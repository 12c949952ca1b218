"""The engine under libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and under ThreadSanitizer."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from engine import make_seeds

TESTS = Path(__file__).parent / "engine"
ENGINE = Path(__file__).parents[1] / "bireal_jax" / "runtime" / "engine"
SANITIZERS = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all", "-fno-sanitize-coverage=trace-cmp")
CLANGS = ("clang++", *(f"clang++-{version}" for version in range(22, 13, -1)))


def build(program, flags):
    """Compiles the engine with clang; skips the test where that or its libraries are missing."""
    compiler = next((c for c in CLANGS if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("needs clang++ and its sanitizers (Debian: clang-14 libclang-rt-14-dev)")
    probe = subprocess.run(
        [compiler, *flags, "-x", "c++", "-", "-o", program], capture_output=True, text=True,
        input='extern "C" int LLVMFuzzerTestOneInput(const char*, unsigned long) { return 0; }\n'
        "#if __has_feature(thread_sanitizer)\nint main() {}\n#endif\n",
    )  # fmt: skip
    if probe.returncode:
        pytest.skip("needs clang's libFuzzer and sanitizers (Debian: libclang-rt-14-dev)")
    command = [compiler, "-std=c++17", "-pthread", "-DBIREAL_LIGHT=0", f"-I{ENGINE}"]
    sources = [TESTS / f"{program.name}.cc", *sorted(ENGINE.glob("*.cc"))]
    if program.name == "fuzz":  # the mutator goes without sanitizers, and last (see there)
        mutator = program.with_name("mutate.o")
        subprocess.run([*command, "-O2", "-c", TESTS / "mutate.cc", "-o", mutator], check=True)
        sources.append(mutator)
    compiled = subprocess.run([*command, "-g1", *flags, "-o", program, *sources], capture_output=True, text=True)
    assert compiled.returncode == 0, compiled.stderr


def fuzz(folder, optimize, **limits):
    """Both modes, from the seeds on. limits: by mode."""
    build(folder / "fuzz", [optimize, *SANITIZERS])
    make_seeds.write(folder / "seeds")
    for mode, limit in limits.items():
        (folder / mode).mkdir()
        # A second of time and the memory are the program's own checks; -timeout is for what never ends, where other
        # programs have the processor. No -rss_limit_mb: a peak begins with what the parent had when it forked.
        done = subprocess.run(
            [folder / "fuzz", "-timeout=60", "-rss_limit_mb=0", "-mutate_depth=1", "-entropic=0", "-max_len=8192",
             limit, "-seed=1", "-print_final_stats=1", f"-artifact_prefix={folder}/", mode, "seeds"],
            cwd=folder, capture_output=True, text=True, errors="replace", env={**os.environ, "BIREAL_FUZZ": mode},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]
        runs = int(done.stderr.split("stat::number_of_executed_units:")[1].split()[0])
        shares = next(line for line in done.stderr.splitlines() if line.startswith("inputs refused"))
        print(f"{mode}: {runs} runs; {shares}")
        reached = [int(number) for number in re.findall(r": (\d+)", shares)]
        assert (all(reached[:4]) and (mode == "parse" or reached[4])) or runs < 2000, shares
        assert runs > len(make_seeds.SEEDS)


def test_fuzz(tmp_path):
    fuzz(tmp_path, "-O0", parse="-runs=1000", infer="-runs=100")


@pytest.mark.slow
@pytest.mark.campaign
def test_fuzz_long(tmp_path):
    limit = f"-max_total_time={os.environ.get('BIREAL_FUZZ_SECONDS', 15)}"
    fuzz(tmp_path, "-O2", parse=limit, infer=limit)


@pytest.mark.slow
def test_threads_share_a_network(tmp_path):
    build(tmp_path / "threads", ["-O1", "-fsanitize=thread"])
    seeds = make_seeds.write(tmp_path / "seeds")
    done = subprocess.run([tmp_path / "threads", *seeds], capture_output=True, text=True)
    assert done.returncode == 0 and "0 wrong" in done.stdout, done.stdout + done.stderr[-4000:]
