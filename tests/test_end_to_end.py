"""The command as a user runs it, killed as machines kill it."""

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


# Two stages, a moving average, and logs, saves and evaluations that do not fall together. A file beside the recipe has
# a "+" for every call that was begun and a "-" for every one whose results were there.
RECIPE = """
from bireal_jax.main import load_recipe
from bireal_jax.training import calls
from pathlib import Path
from threading import Thread
import jax, os

marks = os.open(Path(__file__).with_suffix(".calls"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
begin = calls.Training.__call__

def marked(self, state, given):
    os.write(marks, b"+")
    state, report = begin(self, state, given)
    Thread(target=lambda: (jax.block_until_ready(report), os.write(marks, b"-")), daemon=True).start()
    return state, report

calls.Training.__call__ = marked

def get_config():
    c = load_recipe(Path("configs/digits.py"))
    c.ema_decay = 0.9
    c.batch_size = 32
    c.log_steps, c.save_steps, c.eval_steps, c.call_steps = %d, %d, 25, "%d"
    c.stages = ({"name": "first", "total_steps": %d}, {"name": "second", "total_steps": %d, "optim.lr": 3e-4})
    return c
"""


def start(workdir, *arguments, recipe="configs/digits.py"):
    command = [sys.executable, "-m", "bireal_jax.main", f"--config={recipe}", f"--workdir={workdir}", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def in_a_save(place, _):
    """Whether an unfinished save lies there."""
    return any(place.glob("stage_*/checkpoints/*tmp*"))


def in_a_call(_, recipe):
    """Whether a call is under way."""
    marks = recipe.with_suffix(".calls").read_bytes()
    return marks.count(b"+") > marks.count(b"-")


AIMS = (in_a_save, None)


def kill_and_resume(tmp_path, kills, steps, seed, log=2, save=3, call=1, numbers=(signal.SIGKILL,), aims=AIMS):
    """A run with so many signals, in turn of `numbers` and at moments in turn of `aims`, against one without.

    Returns how many there were, how many hit a save, and how many a call that had begun.
    """
    recipe = tmp_path / "two_stages.py"
    recipe.write_text(RECIPE % (log, save, call, steps // 2, steps - steps // 2))
    straight = start(tmp_path / "straight", recipe=recipe)
    output = straight.communicate(timeout=900)[0]
    assert straight.returncode == 0, output
    rng, in_save, in_call, done, place = random.Random(seed), 0, 0, 0, tmp_path / "killed"
    while done < kills:
        process = start(place, recipe=recipe)
        seen = saved(place)
        while saved(place) < seen + 3 and process.poll() is None:  # let it get on by a save, then a random while
            time.sleep(0.002)
        aim = aims[done % len(aims)]
        if aim:
            wait_for(partial(aim, place, recipe), process)
        time.sleep(rng.uniform(0, {in_a_call: 0.01, in_a_save: 0}.get(aim, 0.3)))
        process.send_signal(number := numbers[done % len(numbers)])
        hit = in_a_call(place, recipe)
        output = process.communicate(timeout=60)[0]
        stopped = "which is saved; the same command continues" in output
        assert process.returncode in ((0,) if number == signal.SIGTERM else (-9, 0)), output
        if process.returncode == 0 and not stopped:
            break
        assert not stopped or ended(output, log, save, call), output
        in_save += in_a_save(place, recipe)
        in_call += hit
        done += 1
    last = start(place, recipe=recipe)
    output = last.communicate(timeout=600)[0]
    assert last.returncode == 0, output
    for name in ("metrics.jsonl", "result.json"):
        assert (place / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert not list(place.glob("stage_*/damaged"))
    return done, in_save, in_call


def wait_for(happens, process):
    """For five seconds at most."""
    deadline = time.monotonic() + 5
    while not happens() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.0005)


def ended(output, *every):
    """Whether the run stopped where a call ends."""
    step = int(re.search(r"stopped at step (\d+) of", output)[1])
    return any(step % n == 0 for n in (*every, 25))


def saved(place):
    """Steps done, over both stages, according to the newest finished checkpoints."""
    steps = {}
    for path in place.glob("stage_*/checkpoints/*"):
        if path.name.isdigit():
            stage = path.parts[-3]
            steps[stage] = max(steps.get(stage, 0), int(path.name))
    return sum(steps.values())


def test_killed_once(tmp_path):
    done, *_ = kill_and_resume(tmp_path, kills=1, steps=24, seed=0)
    assert done == 1


@pytest.mark.slow
@pytest.mark.campaign
def test_killed_twenty_four_times(tmp_path):
    done, in_save, in_call = kill_and_resume(tmp_path, kills=24, steps=300, seed=1)
    print(f"{done} kills, {in_save} of them with an unfinished save on the disk, {in_call} in a step")
    assert done >= 20 and in_save >= 3


@pytest.mark.slow
@pytest.mark.campaign
def test_killed_twenty_four_times_in_calls_of_several_steps(tmp_path):
    """Calls of 4 and 8 steps. Every other signal is SIGTERM, which ends of calls answer; a third aim into a call."""
    how = {"log": 8, "save": 12, "call": 8, "numbers": (signal.SIGKILL, signal.SIGTERM), "aims": (*AIMS, in_a_call)}
    done, in_save, in_call = kill_and_resume(tmp_path, kills=24, steps=900, seed=2, **how)
    print(f"{done} signals, {in_save} of them with an unfinished save on the disk, {in_call} in a call")
    assert done >= 20 and in_save >= 3 and in_call >= 6


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
            assert process.returncode == 2, output
            error, way_out = output.splitlines()[-2:]
            assert error.startswith("error: cannot save") and error.endswith("no space left on the device"), output
            assert way_out == "free some space and start the same command again", output
            noise = ("Traceback", "Future", "RESOURCE_EXHAUSTED", "exception was never retrieved")
            assert not any(word in output for word in noise), output
        assert saved(place / "w") == 20
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["tars", "folder"])
def test_imagenet_code_path_on_real_images(shared, tmp_path, layout):
    """r18 unchanged but for length and batch size, on real JPEGs in the layout of the data set, or as a folder."""
    sample = tmp_path / "sample"
    subprocess.run([sys.executable, shared / "data" / "unpack.py", "imagenet_sample", sample], check=True)
    files = [next(path.glob("*.JPEG")) for path in sorted(sample.iterdir()) if path.is_dir()][:60]
    short = ["--config.total_steps=2", "--config.batch_size=8", "--config.log_steps=1"]
    if layout == "folder":
        for split, some in (("train", files[:40]), ("val", files[:10])):
            for path in some:
                place = tmp_path / "data" / split / path.parent.name
                place.mkdir(parents=True)
                (place / path.name).write_bytes(path.read_bytes())
        short += ["--config.data.name=folder"]
    else:
        write_imagenet_tars(tmp_path, files)
        prepare = ["-m", "bireal_jax.data.prepare", "imagenet2012", "--tars", tmp_path, "--out", tmp_path / "data"]
        subprocess.run([sys.executable, *prepare], cwd=ROOT, check=True, capture_output=True)
    process = start(tmp_path / "w", f"--config.data.dir={tmp_path / 'data'}", *short, recipe="configs/r18.py")
    output = process.communicate(timeout=900)[0]
    assert process.returncode == 0, output
    written = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert [line["split"] for line in written] == ["train", "train", "eval"]
    if layout == "tars":
        assert 5 < written[0]["loss"] < 10, "a thousand classes: about ln 1000"


def write_imagenet_tars(folder, files):
    """The two tars of ImageNet with one image a class in train, and ten of the images in validation."""
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for path in files:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as tar:
                tar.add(path, f"{path.parent.name}_1.JPEG")
            member = tarfile.TarInfo(f"{path.parent.name}.tar")
            member.size = inner.tell()
            inner.seek(0)
            outer.addfile(member, inner)
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for i, path in enumerate(files[:10], 1):
            tar.add(path, f"ILSVRC2012_val_{i:08d}.JPEG")
