"""A random walk over the command line and over the files of a run: success or BadInput, whatever is asked or found.

BIREAL_FUZZ_SECONDS says for how long each walk goes (10), BIREAL_FUZZ_SEED where it begins (0).
"""

import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small import small

from bireal_jax import build, config, importers, main
from bireal_jax.binary import binarize
from bireal_jax.data import images
from bireal_jax.errors import BadInput
from bireal_jax.models import arch
from bireal_jax.running import checkpoint, known, parallel, workdir
from bireal_jax.search import record
from bireal_jax.training import train
from bireal_jax.training.step import Plan

SECONDS, SEED = (
    int(os.environ.get(f"BIREAL_FUZZ_{name}", default)) for name, default in (("SECONDS", 10), ("SEED", 0))
)
DIGITS = Path(__file__).parents[1] / "configs" / "digits.py"
ODD = (
    "", "None", "[]", "{}", "ü", "\udcfc", "a b", "..", "/", "gs://x", "~", "x" * 300, "*", "%s", "9" * 400, "nan",
    "-1", "bireal_tiny 1 2", "digits", "folder", "cifar10", "imagenet2012", "depth_folder", "nyu_depth_v2",
    "bireal_tiny", "react_tiny", "resnet_tiny", "bireal18", "bireal18_cifar", "metaprune_mbv1", "ebn_tiny_supernet",
    "real", "direct", "bop", "sgd", "adam", "cosine", "steps", "constant", "float32", "bfloat16", "float64",
    "fcn", "uniform_001", "signs", "he", "distributional", "berhu", "cross_entropy",
    *binarize.DERIVATIVES, *binarize.WEIGHTS,
)  # fmt: skip
KINDS = {
    bool: ("True", "False"),
    int: ("0", "1", "2", "3", "7", "8", "16", "100", "100000", "1000000000000", "9" * 400, "-1"),
    float: ("0.0", "-0.0", "0.1", "0.5", "1.0", "3.5", "100.0", "1e-45", "1e-30", "1e30", "1e400", "nan", "-inf", "7"),
    tuple: (
        "()", "(0,)", "(1,)", "(1, 2)", "(0.5, 0.5, 0.5)", "(0, 8, 0, 8)", "('constant', 0.1)", "('linear', 1.0)",
        "('linear', 1.0, 0.1)", "('tenth', 0.1, 0)", "('tenth', 0.1, 3)", "('x', 1)", "(None,)", "('decay',)", "(nan,)",
        "({'name': 'a'},)", "({'optim.lr': 'x'},)", "({'optim.lr': 0.1}, {'model.act': 'clip'})", "(1e400, -1)",
        "({'total_steps': 0}, {'x': 1})", "({'stages': ()},)", "({1: 2},)", "({'name': 3}, {'data.name': 'folder'})",
    ),
}  # fmt: skip
MODES = ["train"] * 6 + ["cost"] * 6 + ["eval", "export", "verify", "search", "data", "trian"]


class Begun(Exception):
    """All that is looked at before a run was in order."""


def fields(c, prefix=""):
    for name, value in c.items():
        yield from fields(value, f"{prefix}{name}.") if hasattr(value, "items") else [(f"{prefix}{name}", value)]


def near(rng, value):
    """A value of the same kind, or any."""
    return rng.choice(KINDS.get(type(value), ODD) if rng.random() < 0.9 else ODD)


def walk(step):
    """Calls step(rng) until the time is over; returns how many times, and what broke."""
    began, count, broken = time.monotonic(), 0, []
    while time.monotonic() - began < SECONDS and len(broken) < 20:
        rng = random.Random(f"{SEED} {count}")
        count += 1
        try:
            step(rng)
        except (BadInput, Begun) as said:
            if len(str(said).splitlines()) > 3:
                broken.append(f"{count - 1}: more than three lines: {said}")
        except SystemExit as end:
            if end.code not in (0, 1, 2):
                broken.append(f"{count - 1}: status {end.code}")
        except Exception as error:
            broken.append(f"{count - 1}: {type(error).__name__}: {str(error)[:300]} {getattr(error, '__notes__', '')}")
    print(f"{count} steps")
    return broken


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_walk_over_the_command_line(tmp_path, monkeypatch):
    known = dict(fields(config.default()))

    def begun(stage, *_):
        jax.eval_shape(stage._fresh, stage.shapes)
        stage.rate(0)
        raise Begun

    monkeypatch.setattr(train.Stage, "run", begun)  # what is compiled and trained is for other tests
    monkeypatch.chdir(tmp_path)

    def step(rng):
        mode = rng.choice(MODES)
        argv = ["main", f"--config={DIGITS}", f"--mode={mode}", f"--workdir={rng.choice(['w', 'x/y', *ODD])}"]
        argv = argv if rng.random() < 0.1 else [*argv[:3], f"--workdir={tmp_path / 'w' / str(rng.random())}"]
        for field in rng.sample(sorted(known), rng.choice((1, 1, 2, 3))):
            argv.append(f"--config.{field}={near(rng, known[field])}")
        if rng.random() < 0.1:
            argv.append(
                rng.choice(
                    (
                        "--format=csv",
                        "--format=x",
                        "--out=",
                        "--out=.",
                        "--num_processes=2",
                        "--x",
                        "y",
                        "--config.optim=1",
                        "--config.optim.lr",
                        "--config.x.y=1",
                        "--",
                        "-",
                    )
                )
            )
        try:
            main.main(argv)
        except Exception as error:
            error.add_note(" ".join(argv[2:])[:600].encode("ascii", "backslashreplace").decode())
            raise
        finally:
            jax.config.update("jax_enable_x64", False)

    assert not (broken := walk(step)), "\n".join(broken)


def mutated(rng, content):
    """Bytes near to these: some changed, cut out, doubled, or a number or word for another."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(content) + 1)
        match rng.randrange(6):
            case 0:
                content[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del content[at : at + rng.choice((1, 3, 1000))]
            case 2:
                content[at:at] = content[at : at + rng.choice((1, 20, 300))]
            case 3:
                content = content[:at]
            case 4:
                found = list(re.finditer(rb"-?\d+(\.\d+)?|\w+", content))
                if found:
                    old, new = (
                        rng.choice(found),
                        rng.choice(
                            (b"-1", b"0", b"1e999", b"NaN", b"true", b"null", b"[]", b"{}", b'""', b"2.5", b"9" * 30)
                        ),
                    )
                    content[old.start() : old.end()] = new
            case 5:
                content[at:at] = rng.choice((b"\xff\xfe", b"\0" * 9, b"\n", b'"', b"[" * 5000, b"{"))
    return bytes(content)


def same(found, wanted):
    return jax.tree.structure(found) == jax.tree.structure(wanted) and all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    )


def run_of(place):
    """A run, as far as its files go, with a packed file beside them; returns what it trained."""
    c, scores = small(), {"loss": 1.0, "top1": 50.0, "top5": 90.0}
    plan = Plan(c)
    variables = parallel.fetch(plan.initial(0))
    with workdir.claim(place, c, [plan.source]), workdir.Log(place, 0, 0, 0) as log:
        log.write(1, "train", scores)
        for step in (1, 2):
            with checkpoint.Checkpoints(place / "stage_0" / "checkpoints") as c_:
                c_.save(step, {"variables": variables}, scores)
    workdir.write(place / "result.json", json.dumps({"steps": 1, **scores, "best_step": 1, "best_top1": 50.0}) + "\n")
    return variables


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_walk_over_the_files_of_a_run(tmp_path):
    """Whatever is damaged in a workdir: what `build.trained` gives is what was saved, or a BadInput."""
    whole = tmp_path / "whole"
    variables, c = run_of(whole), small()
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    plain = [p for p in files if len(p.parts) == 1]

    def step(rng):
        place = tmp_path / "w"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(whole, place)
        name = rng.choice(plain if rng.random() < 0.7 else files)
        path = place / name
        match rng.randrange(8):
            case 0:
                path.unlink()
                path.mkdir()
            case 1:
                path.unlink()
                path.symlink_to("nowhere")
            case 2:
                path.unlink()
            case 3:
                (path.parent / rng.choice(("180.bak", "stage_0_backup", "tmp", "3", "x.orbax-checkpoint-tmp"))).mkdir()
            case _:
                path.write_bytes(mutated(rng, path.read_bytes()))
        for use in rng.sample((trained, begins_again, looked_at), 2):
            try:
                use(place)
            except Exception as error:
                error.add_note(f"{name} {use.__name__}")
                raise

    def trained(place):
        assert same(build.trained(place)[1], variables), "another result"

    def begins_again(place):
        if workdir.finished(place, c) is None:
            with workdir.claim(place, c, [source]), workdir.Log(place, 0, 1, 0):
                with checkpoint.Checkpoints(place / "stage_0" / "checkpoints") as found:
                    assert same(found.restore_latest({"variables": variables})[1]["variables"], variables)

    def looked_at(place):
        if run := known.read(place):
            run.again(c)
            run.check_classes(source, "the run")

    source = build.source(c)
    assert not (broken := walk(step)), "\n".join(broken)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_walk_over_small_files(tmp_path):
    """Recipes, weights, architectures, searches, packed networks and images, each a little damaged."""
    good = {"mine.py": DIGITS.read_bytes()}
    np.savez(tmp_path / "w.npz", a=np.ones((3, 4), np.float32), b=np.arange(3))
    candidate = record.Candidate(0, "random", (1, 2), 3.0, 50.0)
    record._save(tmp_path, {"space": "ebn_tiny", "budget": [0, 9]}, [candidate], list)
    for suffix in ("jpg", "png", "bmp", "gif", "tiff", "webp"):
        Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3)).save(tmp_path / f"x.{suffix}")
    good |= {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def step(rng):
        name = rng.choice(sorted(good))
        path = tmp_path / name
        path.write_bytes(mutated(rng, good[name]))
        try:
            match path.suffix:
                case ".py":
                    build.stages(main.load_recipe(path))
                case ".npz":
                    importers.load("bireal18", path)
                case ".json" if name == record.STATE:
                    record.load(path, {"space": "ebn_tiny"})
                case ".json":
                    arch.load(str(path), "ebn_tiny", (9, 9))
                case ".csv":
                    pass
                case _:
                    images.prepare_file({"bytes": path.read_bytes(), "label": 0, "name": name}, size=8, resize=9)
        except Exception as error:
            error.add_note(name)
            raise

    assert not (broken := walk(step)), "\n".join(broken)
