"""What newcomers trip over: each is told what is wrong, or it works."""

import ast
import ctypes
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small import small

from bireal_jax import main, places, runtime, used
from bireal_jax.binary import packed
from bireal_jax.checks import verify
from bireal_jax.data import jpeg
from bireal_jax.errors import BadInput
from bireal_jax.shipping import export
from bireal_jax.training import train

ROOT = Path(__file__).parents[1]
SCRIPTS = [p for p in sorted(ROOT.glob("experiments/**/*.py")) if '__name__ == "__main__"' in p.read_text()]
SHORT = {"total_steps": 1, "eval_steps": 1, "log_steps": 1, "save_steps": 1}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_script_explains_itself_and_may_be_cut_off_by_head(path):
    text = path.read_text()
    assert "argparse.ArgumentParser(" in text
    last = ast.parse(text).body[-1]
    assert isinstance(last, ast.If) and "with output.command():" in ast.unparse(last)


def test_help_writes_no_folder(tmp_path):
    command = [sys.executable, "-m", "experiments.depth.render", "--help"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0 and "usage: python -m experiments.depth.render" in done.stdout
    assert not list(tmp_path.iterdir())


def test_intervals_stay_within_a_hundred_percent():
    table = pytest.importorskip("experiments.estimators.table", reason="needs scipy")
    assert table.shown([98.0, 96.0]) == "97.0, 84.3 to 100.0 (2)"
    assert table.shown([1.0, 3.0]) == "2.0, 0.0 to 14.7 (2)"
    assert table.shown([97.0]) == "97.0 (1)" and table.shown([50.0, 51.0, 52.0]) == "51.0 ± 2.5 (3)"
    mean, low, high = table.bounds([99.0, 95.0])
    assert mean == 97 and low == pytest.approx(71.6, abs=0.1) and high == 100


@pytest.mark.parametrize("rules", [("released",), ("sign", "released")])
def test_figures_have_every_derivative(tmp_path, rules, monkeypatch):
    """As the colours of one panel, or, where these are the weight rules, as a panel each."""
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    plot = pytest.importorskip("experiments.estimators.plot", reason="needs scipy")
    rng, rows, seen, acts = np.random.default_rng(0), [], [], ("ste", "approx_sign", "narrowing")
    for act, rule in itertools.product(acts, rules):
        cell = {"arch": "bireal_tiny", "init": "he", "weight": rule, "act": act, "optimizer": "sgd:0.01"}
        rows.append({"cell": cell, "flipped": [0.1, 0.01], "latents": list(rng.integers(1, 9, plot_bins()))})

    def keep(figure, path):
        (legend,) = figure.legends
        seen.append(([axis.get_title() for axis in figure.axes], [text.get_text() for text in legend.get_texts()]))

    monkeypatch.setattr(plot, "save", keep)
    plot.flip_rates(rows, tmp_path)
    plot.latents(rows, tmp_path)
    assert len(seen) == 2
    for titles, colours in seen:
        assert tuple(colours) == (acts if len(rules) == 1 else rules)
        assert len(titles) == (1 if len(rules) == 1 else 3)
        assert len(rules) == 1 or all(act in title for act, title in zip(acts, titles, strict=True))


def plot_bins():
    from experiments.estimators.rows import HISTOGRAM

    return HISTOGRAM[2]


@pytest.mark.parametrize("part", [packed, jpeg, runtime], ids=lambda part: part.__name__)
def test_what_was_compiled_before_a_pull_says_what_to_run(part, monkeypatch):
    load = getattr(part, "_load", None) or part._load_engine
    if not part.available():
        pytest.skip("nothing is compiled here")
    old = ctypes.CDLL(None)
    monkeypatch.setattr(ctypes, "CDLL", lambda path: old)
    with pytest.raises(
        BadInput, match=r"\.so is older than the Python beside it: it has no bireal_.*\nrun `pip install -e"
    ):
        load()


@pytest.mark.slow
def test_a_directory_may_be_a_string_and_a_longer_training_is_told_how(tmp_path, capsys):
    run = str(tmp_path / "run")
    train.run(small(**SHORT), run)
    train.run(small(**SHORT), run)
    assert f"trains again, or on: --config.init_from={run}" in capsys.readouterr().out
    with pytest.raises(
        BadInput, match=rf"total_steps 1 -> 9\nuse another --workdir, with --config.init_from={run} to go on"
    ):
        train.run(small(**SHORT | {"total_steps": 9}), run)
    train.run_eval(small(**SHORT), run)
    assert used.weights(small(**SHORT), run).there and verify.run(small(**SHORT), run) == 1
    export.run(small(**SHORT), run, str(tmp_path / "net.safetensors"))
    for place in (str(tmp_path), tmp_path):
        with pytest.raises(BadInput, match="--out=.* is a folder; it must be a file"):
            export.run(small(**SHORT), run, place)


def test_out_that_is_a_folder_is_said_so(tmp_path):
    command = ["main", f"--config={ROOT / 'configs' / 'digits.py'}", f"--workdir={tmp_path / 'w'}", "--mode=export"]
    with pytest.raises(BadInput, match="--out=.* is a folder; it must be a file"):
        main.main([*command, f"--out={tmp_path}"])


def test_a_named_pipe_is_no_packed_file(tmp_path):
    os.mkfifo(tmp_path / "net.safetensors")
    with pytest.raises(BadInput, match="net.safetensors is no file, but a pipe or device"):
        runtime.load(tmp_path / "net.safetensors", kernels="reference")


def test_a_file_is_written_under_a_name_of_this_process_and_synced(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(os.readlink(f"/proc/self/fd/{number}")))
    path = tmp_path / "made" / "a.json"
    places.write(path, b"1")
    assert path.read_bytes() == b"1" and [p.name for p in path.parent.iterdir()] == ["a.json"]
    assert seen == [f"{path}.{os.getpid()}.partial"]

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        places.write(path, b"2")
    assert path.read_bytes() == b"1" and len(list(path.parent.iterdir())) == 1
