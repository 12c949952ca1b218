"""Signals: saved where it is, status 0, and the same bits afterwards."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint, preempt, progress
from bireal_jax.training import train

ROOT = Path(__file__).parents[1]


def at_step(monkeypatch, action, *steps):
    """Calls action() when training has finished one of these steps."""
    real = progress.Bar.advance

    def advance(self, step):
        real(self, step)
        if step in steps:
            action()

    monkeypatch.setattr(progress.Bar, "advance", advance)


def run(config, place):
    with preempt.Signals() as signals:
        return train.run(config, place, signals)


def same_run(a, b):
    for name in ("metrics.jsonl", "result.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def digests(place):
    """What the last checkpoint holds, leaf by leaf."""
    with checkpoint.Checkpoints(place / "stage_0" / "checkpoints", read_only=True) as found:
        return found._record(found.steps()[-1])["leaves"]


def test_a_signal_saves_the_step_and_the_restart_gets_to_the_same_bits(tmp_path, monkeypatch):
    """Between two saves, and in the last evaluation, which the restart makes up for."""
    config = small(total_steps=8, log_steps=4, save_steps=4, eval_steps=8)
    train.run(config, tmp_path / "straight")
    place = tmp_path / "stopped"
    for number, step in ((signal.SIGINT, 3), (signal.SIGTERM, 8)):
        with monkeypatch.context() as patch:
            at_step(patch, lambda number=number: os.kill(os.getpid(), number), step)
            with pytest.raises(preempt.Stopped, match=f"stopped at step {step} of 8 of train, which is saved"):
                run(config, place)
    run(config, place)
    same_run(place, tmp_path / "straight")
    assert digests(place) == digests(tmp_path / "straight")
    assert set(json.loads((place / "stage_0" / "late_metrics.json").read_text())["record"]) == {"8"}


def test_the_first_ctrl_c_does_not_interrupt_where_the_thread_was_faster_than_the_handler():
    with preempt.Signals() as signals:
        signals.disposable = False
        signals.asked = True  # by the thread
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked


def test_a_second_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), preempt.Signals() as signals:
        signals.disposable = False
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_process_with_nothing_to_lose_leaves_at_once_though_python_is_busy_elsewhere():
    script = """
import hashlib
from bireal_jax.running import preempt
with preempt.Signals():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)  # minutes of C code, as a compilation: no handler runs
"""
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert (
        "stopped before the first step; nothing is lost" in process.communicate(timeout=5)[0]
        and process.returncode == 0
    )


def test_a_dead_worker_is_named_and_made_up_for_when_a_signal_killed_it():
    def make(step, workers=1):
        for number in range(step, 9):
            if workers and number == 3:
                raise RuntimeError("Worker process was terminated unexpectedly with exit code -15.")
            yield number

    assert list(zip(range(6), preempt.unbroken(make, 0, lambda: True), strict=False)) == [(i, i) for i in range(6)]
    assert list(preempt.unbroken(make, 7, lambda: False)) == [7, 8], "evaluations end"
    with pytest.raises(BadInput, match="a data worker process was killed"):
        list(preempt.unbroken(make, 0, lambda: False))
    for code, said in ((-7, r"shared memory, of which /dev/shm has .*\n.*--shm-size"), (1, "and said why above")):

        def ends(step, code=code):
            raise RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}. Search the logs")
            yield

        with pytest.raises(BadInput, match=said):
            list(preempt.unbroken(ends, 0, lambda: False))


def digits_folder(place):
    """Digits as PNG files, since only files are decoded by worker processes."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (image, label) in enumerate(zip(digits.images[:160], digits.target, strict=False)):
        path = place / ("val" if i % 5 == 4 else "train") / str(label) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(image * 15)).resize((16, 16)).save(path)


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize("workers", [2])
def test_a_signal_to_the_process_or_its_group(tmp_path, workers):
    digits_folder(tmp_path / "data")
    command = [
        sys.executable, "-m", "bireal_jax.main", "--config=configs/digits.py", "--config.data.name=folder",
        f"--config.data.dir={tmp_path / 'data'}", f"--config.data.workers={workers}", "--config.data.image_size=16",
        "--config.batch_size=16", "--config.total_steps=400", "--config.log_steps=1", "--config.eval_steps=100",
    ]  # fmt: skip
    options = {"cwd": ROOT, "env": os.environ | {"JAX_PLATFORMS": "cpu"}, "start_new_session": True, "text": True}
    options |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    for send in (os.kill, os.killpg):
        process = subprocess.Popen([*command, f"--workdir={tmp_path / 'w'}"], **options)
        lines = [process.stdout.readline()]
        while lines[-1] and "loss" not in lines[-1]:
            lines.append(process.stdout.readline())
        send(process.pid, signal.SIGTERM)
        began = time.monotonic()
        output = "".join(lines) + process.communicate(timeout=60)[0]
        assert process.returncode == 0 and "which is saved; the same command continues" in output, output
        assert time.monotonic() - began < 10 and "Traceback" not in output, output
