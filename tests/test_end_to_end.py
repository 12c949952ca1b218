"""The command as a user runs it, killed as machines kill it."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def start(workdir, *arguments):
    command = [
        sys.executable,
        "-m",
        "bireal_jax.main",
        "--config=configs/digits.py",
        f"--workdir={workdir}",
        *arguments,
    ]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill_and_resume(tmp_path, kills, steps, seed):
    """A run with so many SIGKILLs, against one without. Returns how many kills hit a save."""
    short = [
        f"--config.total_steps={steps}",
        "--config.log_steps=2",
        "--config.save_steps=3",
        "--config.eval_steps=50",
        "--config.batch_size=32",
    ]
    straight = start(tmp_path / "straight", *short)
    output = straight.communicate(timeout=600)[0]
    assert straight.returncode == 0, output
    rng, in_save, done, place = random.Random(seed), 0, 0, tmp_path / "killed"
    saves = place / "stage_0" / "checkpoints"
    while done < kills:
        process = start(place, *short)
        seen = newest(saves)
        while newest(saves) < seen + 3 and process.poll() is None:  # let it get on by a save, then a random while
            time.sleep(0.002)
        if done % 2:
            time.sleep(rng.uniform(0, 0.3))
        else:  # every other kill waits for the next save to begin
            deadline = time.monotonic() + 5
            while not list(saves.glob("*tmp*")) and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.0005)
        process.send_signal(signal.SIGKILL)
        output = process.communicate()[0]
        assert process.returncode in (-9, 0), output
        if process.returncode == 0:
            break
        in_save += bool(list(saves.glob("*tmp*")))
        done += 1
    last = start(place, *short)
    output = last.communicate(timeout=600)[0]
    assert last.returncode == 0, output
    for name in ("metrics.jsonl", "result.json"):
        assert (place / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert not (place / "stage_0" / "damaged").exists()
    return done, in_save


def newest(saves):
    return max((int(p.name) for p in saves.glob("*") if p.name.isdigit()), default=0)


def test_killed_twice(tmp_path):
    done, _ = kill_and_resume(tmp_path, kills=2, steps=60, seed=0)
    assert done == 2


@pytest.mark.slow
def test_killed_twenty_four_times(tmp_path):
    done, in_save = kill_and_resume(tmp_path, kills=24, steps=300, seed=1)
    print(f"{done} kills, {in_save} of them with an unfinished save on the disk")
    assert done >= 20 and in_save >= 3


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can mount a small file system")
def test_full_disk(tmp_path):
    """Saves that fail for want of space end the run in two lines, and with space it continues to the same numbers."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs here")
    short = ["--config.total_steps=60", "--config.log_steps=10", "--config.save_steps=10"]
    try:
        for _ in range(2):
            process = start(place / "w", *short)
            output = process.communicate(timeout=300)[0]
            assert process.returncode == 2 and "Traceback" not in output, output
            assert output.strip().splitlines()[-2].endswith("no space left on the device")
        assert newest(place / "w" / "stage_0" / "checkpoints") == 20
        subprocess.run(["mount", "-o", "remount,size=60m", place], check=True)
        assert start(place / "w", *short).wait(timeout=300) == 0
        assert start(tmp_path / "straight", *short).wait(timeout=300) == 0
        assert (place / "w" / "metrics.jsonl").read_bytes() == (tmp_path / "straight" / "metrics.jsonl").read_bytes()
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_digits_reach_97_percent_with_three_seeds(tmp_path):
    scores = []
    for seed in range(3):
        process = start(tmp_path / str(seed), f"--config.seed={seed}")
        output = process.communicate(timeout=600)[0]
        assert process.returncode == 0, output
        assert output.strip().splitlines()[-1].startswith("test top-1 ")
        scores.append(json.loads((tmp_path / str(seed) / "result.json").read_text())["top1"])
    print(f"digits: {scores}")
    assert sum(scores) / 3 >= 97.0


def test_trained_cifar_network_scores_what_its_authors_report(shared, tmp_path):
    """A really trained 1-bit network, imported: 83.19 % on the 10,000 test images."""
    data = tmp_path / "cifar10.npz"
    subprocess.run([sys.executable, shared / "data" / "unpack.py", "cifar10", data], check=True)
    command = [
        sys.executable, "-m", "bireal_jax.main", "--config=configs/cifar10_r20.py", "--mode=eval",
        f"--workdir={tmp_path / 'w'}", f"--config.data.dir={data}",
        f"--config.init_from={shared / 'data' / 'weights' / 'bireal20_cifar10.npz'}",
    ]  # fmt: skip
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert output.returncode == 0, output.stderr
    assert abs(json.loads((tmp_path / "w" / "eval.json").read_text())["top1"] - 83.19) <= 0.03
