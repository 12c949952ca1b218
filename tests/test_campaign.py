"""The campaign on CIFAR-10: its queue, its end in time, what it continues, its rows; and runs held against ours."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bireal_jax import build, data, main, models
from bireal_jax.errors import BadInput
from bireal_jax.runtime import named
from experiments import curves
from experiments.cifar import jobs, report, run

ROOT = Path(__file__).parents[1]
# Trains for as many tenths of a second as total_epochs says, saved when asked to stop, as the command does.
STUB = """
import json, pathlib, signal, sys, time
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:])
place = pathlib.Path(words["workdir"])
if words["mode"] == "fail": sys.exit("error: no such thing")
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
place.mkdir(exist_ok=True)
saved = place / "saved"
begin = int(saved.read_text()) if saved.exists() else 0
for step in range(begin, int(words["config.steps"])):
    if asked: sys.exit(print("stopped at", step))
    time.sleep(0.05)
    saved.write_text(str(step + 1))
(place / "config.json").write_text(json.dumps(
    {"seed": 0, "stages": [], "total_epochs": 2.0, "init_from": words["workdir"] + "/a", "arch": "",
     "teacher": {"weights": ""}, "data": {"name": "digits", "dir": words["workdir"]}}))
if words["mode"] == "train": (place / "result.json").write_text(json.dumps({"top1": 50.0, "best_top1": 60.0}))
"""


@pytest.fixture
def campaign(tmp_path, monkeypatch):
    """A function: makes a campaign of jobs whose runs are STUB's, with little time to save and to start."""
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(run, "COMMAND", [sys.executable, str(tmp_path / "stub.py")])
    monkeypatch.setattr(run, "SAVING", 0.0)
    monkeypatch.setattr(run, "LEAST", 0.0)
    monkeypatch.setattr(run, "packed", lambda *_: 49.9)

    def make(queue, seconds=60.0, together=1):
        words = [f"--minutes={seconds / 60}", f"--out={tmp_path / 'out'}", "--small", f"--together={together}"]
        return run.Campaign(run.parse(words), queue)

    return make


def job(name, steps=1, **more):
    return jobs.Job(name, "r.py", small=("", (f"steps={steps}",)), **more)


def order(out):
    return [row["job"] for row in report.read(out / "rows.jsonl")]


def test_the_most_valuable_first_and_what_others_need_before_them(campaign, tmp_path, capsys):
    queue = [job("retrain", after=("search",)), job("b"), job("search", mode="search", after=("c",)), job("c")]
    c = campaign(queue)
    c.run()
    assert order(tmp_path / "out") == ["b", "c", "retrain"] and not c.left() and not c.failed
    rows = report.read(tmp_path / "out" / "rows.jsonl")
    assert [(r["last"], r["best"], r["packed"], r["epochs"], r["seed"]) for r in rows] == [
        (50.0, 60.0, 49.9, 2.0, 0)
    ] * 3
    assert len({r["digest"] for r in rows}) == 1, "where a run lies is not what it is"
    campaign(queue).run()
    assert len((tmp_path / "out" / "rows.jsonl").read_text().splitlines()) == 3, "nothing is trained or told twice"
    assert "retrain: finished" in capsys.readouterr().out


def test_it_ends_in_time_and_continues(campaign, tmp_path):
    queue = [job("long", 60), job("next")]
    first = campaign(queue, 1.5)
    begin = time.monotonic()
    first.run()
    assert time.monotonic() - begin < 4 and first.left() == ["long", "next"] and not first.failed
    saved = int((tmp_path / "out" / "long" / "saved").read_text())
    assert 0 < saved < 60 and not (tmp_path / "out" / "next").exists()
    campaign(queue).run()
    assert order(tmp_path / "out") == ["long", "next"]
    assert (tmp_path / "out" / "long" / "output").read_text() == f"stopped at {saved}\n", "it went on from there"
    (row, _) = report.read(tmp_path / "out" / "rows.jsonl")
    assert row["seconds"] >= 3, "of both starts"


def test_a_search_that_was_stopped_is_not_done(campaign, tmp_path):
    queue = [job("search", 60, mode="search"), job("retrain", after=("search",))]
    c = campaign(queue, 1.0)
    c.run()
    assert c.left() == ["search", "retrain"]


def test_packing_does_not_hold_the_card(campaign, tmp_path, monkeypatch):
    c, trained = campaign([job("a"), job("b")]), []

    def packed(job, *_):
        for _ in range(100):
            if job.name == "b" or (tmp_path / "out" / "b" / "result.json").exists():
                trained.append(job.name)
                return 49.9
            time.sleep(0.1)

    monkeypatch.setattr(run, "packed", packed)
    c.run()
    assert trained == ["a", "b"] and order(tmp_path / "out") == ["a", "b"], "b was trained while a was packed"


def test_a_packing_that_breaks_is_told(campaign, monkeypatch):
    c = campaign([job("a")])
    monkeypatch.setattr(run, "packed", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        c.run()


def test_a_signal_is_an_end_in_time(campaign):
    c = campaign([job("long", 200), job("other", 200)], together=2)
    before = signal.signal(signal.SIGALRM, c.stop)
    signal.setitimer(signal.ITIMER_REAL, 1.5)
    begin = time.monotonic()
    c.run()
    signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begin < 6 and c.left() == ["long", "other"]
    assert all((c.out / name / "saved").exists() for name in c.left()), "both ran at once"


def test_one_that_fails_stops_only_what_needs_it(campaign, capsys):
    c = campaign([job("bad", mode="fail"), job("needs", after=("bad",)), job("good")])
    c.run()
    assert c.failed == ["bad"] and c.left() == ["bad", "needs"]
    assert "bad: failed with status 1:\n  error: no such thing" in capsys.readouterr().out


def test_a_row_for_which_there_was_no_time_is_written_later(campaign, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "LEAST", 1e9)
    c = campaign([job("a")])
    c._start(c.queue[0])
    c.running[c.queue[0]][0].wait()
    c.run()
    assert not order(tmp_path / "out") and not c.left()
    monkeypatch.setattr(run, "LEAST", 0.0)
    campaign([job("a")]).run()
    assert order(tmp_path / "out") == ["a"]


SLOW = [pytest.mark.slow]


@pytest.mark.parametrize("which", ["own", pytest.param("full", marks=SLOW), pytest.param("small", marks=SLOW)])
def test_every_job_is_a_command_that_can_run(which, tmp_path, monkeypatch):
    """Of all jobs, or of those whose recipe is the campaign's own."""
    small = which == "small"
    monkeypatch.chdir(ROOT)
    for name in ("xnor18_cifar", "plain18_cifar", "react_r18_cifar"):  # registered here, and gone at the end
        monkeypatch.setitem(models.MODELS, name, None)
    names = [j.name for j in jobs.JOBS]
    assert len(set(names)) == len(names) and len([n for n in names if n.startswith("grid_")]) == 36
    built = set()
    for place, j in enumerate(jobs.JOBS):
        assert set(j.after) <= set(names[:place]), "what it needs stands before it"
        words = j.words(tmp_path, "there.npz", small)
        if (j.name.startswith("grid_") and j.seed) or (which == "own" and jobs.RECIPE not in j.recipe):
            continue
        config, workdir, mode = main.parse(["main", *words, "--config.arch="])  # a file that a search will have written
        assert workdir == tmp_path / j.name and mode == j.mode and config.seed == j.seed
        assert small or config.data.dir == "there.npz"
        last = build.stages(config)[-1]
        assert small or not j.name.startswith("grid_") or last.model.name == "bireal20", "the paper's grid is of it"
        fields = tuple(map(str, (last.model.name, last.model.act, last.model.weight, last.data.name)))
        if fields not in built and jobs.RECIPE in j.recipe:  # others are those of configs
            built.add(fields)
            build.model(last, data.stand_in(last.data.name, last.data.image_size))


def test_names_of_jobs(capsys):
    assert [j.name for j in jobs.chosen(["vgg", "r20"])] == ["r20", "vgg"]
    assert len(jobs.chosen(["grid*"])) == 36 and jobs.chosen([]) == jobs.JOBS
    with pytest.raises(BadInput, match=r"no job 'r2'; known: r20, .*, grid\*"):
        run.main(["--minutes=1", "--small", "--only", "r2"])
    with pytest.raises(BadInput, match="--data is missing"):
        run.main(["--minutes=1"])


@pytest.mark.slow
def test_a_small_campaign_from_end_to_end(tmp_path):
    """Stopped twice by a signal within a run, which then goes on from its checkpoint; packed, evaluated, in a row."""
    words = [
        sys.executable,
        "-m",
        "experiments.cifar.run",
        "--minutes=8",
        "--small",
        f"--out={tmp_path}",
        "--only",
        "r20",
    ]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (tmp_path / "r20" / "config.json").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and ("0 of 1 done; left: r20" in said or "1 of 1 done" in said)
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "1 of 1 done; left: nothing" in said
    (row,) = report.read(tmp_path / "rows.jsonl")
    assert row["job"] == "r20" and row["epochs"] == 1.0 and row["data"] == "digits"
    assert abs(row["packed"] - row["best"]) < 0.6 and f"{row['last']:.2f}" in said


def test_the_published_table_is_current():
    text = (ROOT / "docs" / "cifar.md").read_text()
    assert report.page(text) == text, "python -m experiments.cifar.report writes it anew"
    rows = report.read(ROOT / "experiments" / "cifar" / "rows.jsonl")
    for row in (r for r in rows if not r["job"].startswith("short")):  # those tell what a recipe is made of
        assert f"{row['last']:.2f}" in (ROOT / "docs" / "results.md").read_text()


def test_seeds_of_one_config_are_one_line():
    one = {
        "job": "a",
        "digest": "d",
        "epochs": 3.0,
        "best": 2.0,
        "packed": None,
        "seconds": 9,
        "card": "c",
        "date": "t",
        "commit": "k",
    }
    text = report.table([{**one, "seed": s, "last": 80.0 + s} for s in (0, 1)])
    assert text.splitlines()[-1] == "| a | 3 | 80.50 (80.00, 81.00) | 2.00 (2.00, 2.00) | - | 9 (9, 9) | c, t, k |"


# ------------------------------------------------------------------------------------------------------------- curves


def workdir(place, change=lambda line: line, cut=None):
    """One with our log of digits, changed."""
    place.mkdir()
    lines = [json.loads(line) for line in (curves.LOGS / "digits.jsonl").read_text().splitlines()][:cut]
    (place / "metrics.jsonl").write_text("".join(json.dumps(change(dict(line))) + "\n" for line in lines))
    config = {"batch_size": 64, "model": {"name": "bireal_tiny"}, "data": {"name": "digits"}}
    (place / "config.json").write_text(json.dumps(config))
    (place / "data.json").write_text(json.dumps({"stages": [{"train": 1438}]}))
    return place


def test_a_run_is_held_against_ours(tmp_path, capsys):
    def slower(line):
        if line["step"] > 450 and line["split"] == "train":  # epoch 20
            line["learning_rate"] *= 0.5
            line["top1"] -= 10 * (line["step"] > 600)  # epoch 26.7
        return line

    curves.main(["compare", str(workdir(tmp_path / "same"))])
    said = capsys.readouterr().out
    assert "learning rate: the same for 40 epochs" in said and "within 3 points for 40 epochs" in said
    assert "last test top-1: 98.89 % in epoch 40, ours 98.89 % in epoch 40" in said
    curves.main(["compare", str(workdir(tmp_path / "slower", slower))])
    said = capsys.readouterr().out
    assert "learning rate: another from epoch 2" in said and "training top-1: departs in epoch 27" in said
    assert (tmp_path / "slower" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    curves.main(["compare", str(workdir(tmp_path / "begun", cut=3))])
    assert "not evaluated yet, ours 98.89" in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path):
    place = workdir(tmp_path / "run")
    (place / "metrics.jsonl").write_text("{\n")
    with pytest.raises(BadInput, match="is no log that can be read"):
        curves.main(["compare", str(place)])
    (place / "metrics.jsonl").write_text("")
    with pytest.raises(BadInput, match="no line of training yet"):
        curves.main(["compare", str(place)])
    place = workdir(tmp_path / "other")
    with pytest.raises(
        BadInput, match=r"unknown published log 'digit'; did you mean digits\? known: bireal18_cifar10, "
    ):
        curves.main(["compare", str(place), "--ours=digit"])
    config = json.loads((place / "config.json").read_text()) | {"model": {"name": "vgg_small"}}
    (place / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="no published log of vgg_small on digits"):
        curves.main(["compare", str(place)])
    with pytest.raises(BadInput, match="unknown published log 'nowhere'"):
        curves.main(["compare", "nowhere"])


@pytest.mark.parametrize("name", named.rows())
def test_a_published_log_is_that_of_its_network(name):
    found, row = curves.ours(name), named.rows()[name]
    assert found.train["epoch"][-1] == pytest.approx(row.epochs) and np.isfinite(found.train["loss"]).all()
    assert np.max(np.diff(found.train["epoch"])) < 1.01, "a line an epoch"
    assert round(found.test["top1"][-1], 2) == row.last_top1
