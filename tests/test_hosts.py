"""Two processes of four devices against one of eight, through the command."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bireal_jax.errors import BadInput
from bireal_jax.running import hosts

ROOT = Path(__file__).parents[1]


def start(place, processes, *arguments):
    """The processes of a run on eight virtual devices altogether."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    count = f"--xla_force_host_platform_device_count={8 // processes}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
    command = [
        sys.executable, "-m", "bireal_jax.main", "--config=configs/digits.py", f"--workdir={place}",
        "--config.model.dtype=float64", "--config.model.sync_bn=True", "--config.batch_size=16",
        "--config.total_steps=20", "--config.log_steps=1", "--config.eval_steps=10", *arguments,
    ]  # fmt: skip
    several = [f"--coordinator=localhost:{port}", f"--num_processes={processes}"]
    return [
        subprocess.Popen(
            [*command, *([*several, f"--process_id={i}"] if processes > 1 else [])], cwd=ROOT, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("calls", "waits_for", "count"),
    [
        ((), "train  3/20", 22),
        pytest.param(("--config.call_steps=4", "--config.log_steps=6"), "train  6/20", 6, marks=pytest.mark.campaign),
    ],
    ids=["a step a call", "some steps a call"],
)
def test_two_processes_one_of_them_stopped_then_one_process(tmp_path, calls, waits_for, count):
    """The losses are those of one process, a signal to one saves on both, and one process goes on from there."""
    first, second = start(tmp_path / "several", 2, *calls)
    line = " "
    while line and waits_for not in line:
        line = first.stdout.readline()
    second.send_signal(signal.SIGTERM)
    outputs = [process.communicate(timeout=300)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    assert all("which is saved; the same command continues" in text for text in outputs), outputs
    stopped = {re.search(r"stopped at step (\d+) of 20", text)[1] for text in outputs}
    assert len(stopped) == 1 and (not calls or stopped < {"8", "10", "12", "16", "18", "20"}), "where a call ends"
    for place in ("several", "straight"):
        (process,) = start(tmp_path / place, 1, *calls)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == 0, output
    assert "resuming from step" not in output
    lines = [
        [json.loads(line) for line in (tmp_path / place / "metrics.jsonl").read_text().splitlines()]
        for place in ("several", "straight")
    ]
    assert len(lines[0]) == len(lines[1]) == count
    for ours, straight in zip(*lines, strict=True):
        assert [ours[name] for name in ("step", "split", "top1")] == [straight[n] for n in ("step", "split", "top1")]
        np.testing.assert_allclose(ours["loss"], straight["loss"], rtol=1e-8)


def test_what_does_not_fit_together_is_named():
    for arguments in (("localhost:1",), ("localhost:1", 2), ("localhost:1", 2, 2), ("localhost", 2, 0), ("", 2, 0)):
        with pytest.raises(BadInput, match="do not fit together\nevery process needs all three"):
            hosts.join(*arguments)
    assert not hosts.join()


@pytest.mark.parametrize(
    ("seconds", "line"),
    [
        (1, "host 1 (there) is stuck after step 2: no progress for 1 s"),
        (0, "host 1 (there) has not been heard of for 1.5 s and seems dead; last at step 2"),
    ],
)
def test_the_stuck_or_dead_host_is_named(tmp_path, seconds, line):
    """The other host is a file: it gets less far than this one, is heard of for a while, and then no more."""
    (tmp_path / "1").write_text("9 3 2 there")
    script = f"""
import time
from pathlib import Path
from bireal_jax.running import hosts
hosts.TICK = 0.1
with hosts.Watch(Path({str(tmp_path)!r}), {seconds}, 0, 2, silent_seconds=1.5) as watch:
    for step in range(4):
        watch.beat(step)
    time.sleep(0.3)
    Path({str(tmp_path / "1")!r}).write_text("10 3 2 there")
    time.sleep(60)
"""
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert process.returncode == 1 and process.stderr.startswith(line), process.stderr
    assert len(process.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.campaign
@pytest.mark.parametrize(("victim", "number"), [(1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGKILL)])
def test_a_host_that_dies_ends_the_others(tmp_path, victim, number):
    processes = first, _ = start(tmp_path / "w", 2, "--config.total_steps=3000", "--config.eval_steps=0")
    line = " "
    while line and " 3/3000" not in line:
        line = first.stdout.readline()
    processes[victim].send_signal(number)
    began, other = time.monotonic(), processes[1 - victim]
    output = other.communicate(timeout=300)[0]
    print(f"{number!r}: {time.monotonic() - began:.1f} s, status {other.returncode}\n{output[-1500:]}")
    processes[victim].kill()
    processes[victim].communicate()
    assert other.returncode not in (0, None) and time.monotonic() - began < 45
    assert f"host {victim} (" in output and "seems dead" in output
