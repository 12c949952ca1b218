"""The ablation command: what it trains, what it does not train twice, and the statistics of its table."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bireal_jax.binary import binarize
from bireal_jax.checks import intervals
from bireal_jax.errors import BadInput
from bireal_jax.training import seeds
from experiments.estimators import plot, rows, run, table

ARGS = ["--arch", "bireal_tiny", "--weight", "sign", "released", "--act", "ste", "--epochs", "0.1"]


class Calls(list):
    """What was trained, and where its checkpoints lay; `train` is the function that notes it."""

    def __init__(self):
        self.places = []


@pytest.fixture
def fake_training(monkeypatch):
    """Training that costs nothing: accuracy is 50 + seed, and more for the rule `released` and a start from clip."""
    calls = Calls()

    def train(c, chosen, variables=None, directory=None):
        calls.places.append(directory)
        directory.mkdir(parents=True)  # two cells in one place, or one that was left, are an error
        calls.append((c.model.weight, c.model.act, tuple(chosen), c.optim.binary_lr, c.optim.name))
        if variables is None:
            latent = np.full((len(chosen), 1, 1, 4, 2), 0.25)
            latent[..., 1] = 0.5
            variables = {"params": {"conv": {"latent": latent}}, "batch_stats": {}}
        top1 = 50.0 + np.asarray(chosen) + 10 * (c.model.weight == "released")
        stage = len(c.stages) - 1 if c.stages else 0
        common = {"stage": stage, "step": 1, "loss": np.ones(len(chosen)), "top1": top1}
        records = [common | {"split": "eval"}, common | {"split": "train", "flipped": np.full(len(chosen), 0.01)}]
        return variables, records

    monkeypatch.setattr(seeds, "train", train)
    calls.train = train
    return calls


def grid(out, *more):
    g = run.Grid(run.parse([*ARGS, "--out", str(out), *more]))
    g.check()
    g.train()
    return rows.read(out / "rows.jsonl")


def test_no_run_is_repeated_and_none_is_lost(tmp_path, fake_training):
    found = grid(tmp_path, "--init", "relu", "clip", "--seeds", "3")
    keys = [(tuple(r["cell"].values()), r["seed"]) for r in found]
    assert len(set(keys)) == len(keys) == 3 * (2 + 2 * 2)  # two real-valued networks, two rules on each
    assert len(fake_training) == 6
    assert grid(tmp_path, "--init", "relu", "clip", "--seeds", "3") == found and len(fake_training) == 6
    # A kill in the middle of writing: the last row is cut off, and only it is done again.
    text = (tmp_path / "rows.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text[:-30])
    assert grid(tmp_path, "--init", "relu", "clip", "--seeds", "3") != []
    assert fake_training[6:] == [("released", "ste", (2,), 1.0, "sgd")]
    again = rows.read(tmp_path / "rows.jsonl")
    assert sorted(keys) == sorted((tuple(r["cell"].values()), r["seed"]) for r in again)
    # A larger grid trains what is new.
    grid(tmp_path, "--init", "relu", "clip", "--seeds", "4", "--optimizer", "sgd:0.01")
    assert {call[2] for call in fake_training[7:]} == {(3,)}
    assert all(p.is_relative_to(tmp_path / "cells") for p in fake_training.places), (
        "where a cell is cut off, it goes on"
    )
    assert not any((tmp_path / "cells").iterdir()), "and what is finished leaves no checkpoints"


def test_parts_divide_the_cells(tmp_path, fake_training):
    first = grid(tmp_path, "--init", "he", "--part", "1/2", "--seeds", "1")
    both = grid(tmp_path, "--init", "he", "--part", "2/2", "--seeds", "1")
    assert [r["cell"]["weight"] for r in first] == ["sign"]
    assert [r["cell"]["weight"] for r in both] == ["sign", "released"]


def test_a_kill_between_network_and_row_counts_no_run_twice(tmp_path, fake_training, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", killed)  # rows of the real-valued networks are written, the networks are not
    with pytest.raises(KeyboardInterrupt):
        grid(tmp_path, "--init", "relu", "--seeds", "3")
    monkeypatch.undo()
    monkeypatch.setattr(seeds, "train", fake_training.train)
    shutil.rmtree(tmp_path / "cells")  # real training goes on there; the fake one would not
    found = grid(tmp_path, "--init", "relu", "--seeds", "3")
    assert sorted(r["seed"] for r in found if r["cell"]["weight"] == "real") == [0, 1, 2]


def test_matched_and_slowed_bring_all_rules_to_one_step(tmp_path, fake_training):
    """With alphas of 1/4 and 1/2 the mean of 1/alpha is 3."""
    words = ["sgd:0.01:matched", "sgd:0.01:slowed", "sgd:0.01:2.5"]
    more = ["--weight", "sign", "magnitude_aware", "released", "--init", "relu", "--seeds", "2"]
    found = {
        (r["cell"]["weight"], r["cell"]["optimizer"].split(":")[-1]): r["binary_lr"]
        for r in grid(tmp_path, *more, "--optimizer", *words)
    }
    assert found == {
        ("real", "0.1"): 1, ("sign", "matched"): 3, ("magnitude_aware", "matched"): 3, ("released", "matched"): 1,
        ("sign", "slowed"): 1, ("magnitude_aware", "slowed"): 1, ("released", "slowed"): 0.3333,
        ("sign", "2.5"): 2.5, ("magnitude_aware", "2.5"): 2.5, ("released", "2.5"): 2.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--act", "mine"], r"unknown activation derivative 'mine'(?s:.*)registered by the recipe: --config FILE.py"),
        (["--act", "aprox"], r"'aprox'; did you mean approx_sign\? known: .*, triangle$"),
        (["--weight", "mine", "--config", "configs/cifar10_sgd.py"], r"unknown weight binarizer 'mine'; known: .*$"),
        (["--act", "relu"], "real-valued networks come with --init relu or clip"),
        (["--weight", "relesed"], "did you mean released"),
        (["--epochs", "-1"], "--epochs and --pretrain-epochs must be above 0"),
        (["--arch", "vgg"], "unknown model 'vgg'"),
        (["--optimizer", "sgd"], "an optimizer is NAME:LR"),
        (["--optimizer", "adm:0.01"], "unknown optimizer 'adm'"),
        (["--pretrain-optimizer", "sgd:0.1:a"], "an optimizer is NAME:LR"),
        (["--init", "he", "--optimizer", "sgd:0.01:matched"], "needs --init relu or clip"),
        (["--weight", "clamped", "--optimizer", "sgd:0.01:slowed"], "not known for the weight rule clamped"),
        (["--config.optim.lr=0.1"], "the grid sets config.optim.lr itself"),
        (["--config.optim.warmup_epochs=50.0"], "leaves nothing of"),
        (["--config", "configs/digits_step.py"], "has stages or init_from"),
        (["--optimizer", "sgd:-1"], "config.optim.lr is -1.0; it must be above 0"),
        (["--part", "3/2"], "I must be from 1 to N"),
        (["--part", "1"], "must be I/N"),
        (["--config", "configs/none.py"], "no recipe configs/none.py"),
        (["--config.batchsize=3"], "no field config.batchsize; did you mean config.batch_size"),
    ],
)
def test_bad_grids_are_refused_before_anything_is_trained(more, message, tmp_path, fake_training):
    with pytest.raises(BadInput, match=message):
        grid(tmp_path, *more)
    assert not fake_training


def test_rows_of_an_estimator_that_was_changed_are_not_its_own(tmp_path, fake_training, monkeypatch):
    monkeypatch.setitem(binarize.DERIVATIVES, "mine", lambda x: jnp.maximum(0, 1 - jnp.abs(x)))
    args = ["--act", "mine", "--init", "he", "--seeds", "1"]
    assert len(grid(tmp_path, *args)) == len(grid(tmp_path, *args)) == 2
    monkeypatch.setitem(binarize.DERIVATIVES, "mine", lambda x: 2 * jnp.maximum(0, 1 - jnp.abs(x)))
    with pytest.raises(BadInput, match="mine or (sign|released) is not what it was"):
        grid(tmp_path, *args)


def test_another_length_needs_another_folder(tmp_path, fake_training):
    grid(tmp_path, "--init", "he", "--seeds", "1")
    with pytest.raises(BadInput, match=r"another grid: epochs 0.1 -> 2.0\nuse another --out"):
        grid(tmp_path, "--init", "he", "--seeds", "1", "--epochs", "2")
    with pytest.raises(BadInput, match=r"another grid: batch_size 64 -> 32"):
        grid(tmp_path, "--init", "he", "--seeds", "1", "--config.batch_size=32")
    grid(tmp_path, "--init", "he", "--seeds", "1", "--config.data.threads=1")
    (tmp_path / "base.json").unlink()
    with pytest.raises(BadInput, match="not empty and has no base.json"):
        grid(tmp_path, "--init", "he", "--seeds", "1")


def rows_of(values):
    """Rows of cells that differ in the weight rule: {rule: top-1 of each seed}."""
    return [
        {"cell": {"arch": "a", "init": "clip", "weight": rule, "act": "ste", "optimizer": "sgd:0.1"}, "seed": s,
         "top1": v, "loss": 1.0, "binary_lr": 1.0, "flipped": [0.1, 0.05, 0.0], "latents": [1] * 100}
        for rule, tops in values.items() for s, v in enumerate(tops)
    ]  # fmt: skip


def test_interval_is_students():
    mean, half = intervals.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3 and half == pytest.approx(2.7764451 * np.sqrt(2.5 / 5))
    assert table.shown([50.0, 52.0]) == "51.0 ± 12.7 (2)" and table.shown([7.0]) == "7.0 (1)"
    assert table.shown([1.0, 3.0]) == "2.0, 0.0 to 14.7 (2)", "no accuracy is below 0"
    assert table.shown([]) == "not run"


def test_comparisons_are_paired_by_seed():
    """The seeds differ by far more than the rules do, which only a paired comparison sees."""
    values = {"sign": [50.0, 60.0, 70.0, 80.0, 90.0], "released": [51.1, 60.9, 71.0, 81.1, 90.9]}
    (entry,) = table.comparisons(rows_of(values))
    reference = stats.ttest_rel(values["released"], values["sign"])
    assert entry["p"] == pytest.approx(reference.pvalue) and entry["difference"] == pytest.approx(1.0)
    low, high = reference.confidence_interval()
    assert entry["half"] == pytest.approx((high - low) / 2) and entry["significant"]
    assert stats.ttest_ind(values["released"], values["sign"]).pvalue > 0.9


def test_holms_correction():
    assert table.holm([0.04, 0.01, 0.02]) == [True] * 3  # Bonferroni would keep one
    assert table.holm([0.03, 0.04, 0.045]) == [False] * 3  # the last would pass, had the first not failed
    assert table.holm([0.02, 0.01, 0.5]) == [True, True, False]


def test_the_table_does_not_depend_on_the_order_of_the_rows(tmp_path):
    values = {"sign": [50.0, 52.0], "released": [60.0, 61.0], "magnitude_aware": [51.0, 53.0], "real": [97.0, 98.0]}
    texts = []
    for name, order in (("a", 1), ("b", -1)):
        (tmp_path / name).mkdir()
        table.write(rows_of(values)[::order], tmp_path / name)
        texts.append((tmp_path / name / "table.md").read_text())
    assert texts[0] == texts[1] and "| weight | sign | released |" in texts[0]


def test_table_and_figures_are_written(tmp_path):
    found = rows_of({"sign": [50.0, 52.0], "released": [60.0, 61.0], "real": [97.0, 98.0]})
    table.write(found, tmp_path)
    text = (tmp_path / "table.md").read_text()
    assert (
        "| clip | sign | ste | 51.0 ± 12.7 (2) |" in text
        and "| clip | real-valued network |  | 97.5, 91.1 to 100.0 (2) |" in text
    )
    assert "| weight | sign | released | sgd:0.1 | 1 | +9.5 ± 6.4 | 1 up, 0 down |" in text
    assert "| a | clip | sign | ste | sgd:0.1 | 1 | 10.00 | 5.00 | 0.00 | 15.00 |" in text
    plot.write(found, tmp_path)
    assert {p.name for p in (tmp_path / "figures").glob("*.png")} == {
        "gallery.png", "accuracy.png", "flips.png", "latents.png"
    }  # fmt: skip


def test_every_network_is_in_the_range_of_the_axis_and_two_seeds_have_no_interval(monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append(figure))
    found = rows_of({"sign": [90.0, 91.0]})
    found += [row | {"cell": row["cell"] | {"arch": "b"}, "top1": row["top1"] - 50} for row in found]
    plot.accuracy(found, None)
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 40 and 91 < high < 100 and not drawn[0].legends, "one rule needs no legend"
    assert not any(axis.containers for axis in drawn[0].axes)
    plot.accuracy([*found, *({**row, "seed": 2} for row in found[:1])], None)
    assert [len(axis.containers) for axis in drawn[1].axes] == [1, 0], "of three seeds there is one"


def test_derivatives_share_a_panel_where_there_is_one_rule(monkeypatch):
    drawn = []
    monkeypatch.setattr(plot, "save", lambda figure, path: drawn.append(figure))
    one = rows_of({"sign": [50.0, 52.0]})
    acts = [*one, *({**row, "cell": row["cell"] | {"act": "approx_sign"}} for row in one)]
    rules = [*acts, *({**row, "cell": row["cell"] | {"weight": "released"}} for row in acts)]
    for found in (acts, rules):
        plot.flip_rates(found, None)
        plot.latents(found, None)
    legends = [[text.get_text() for text in figure.legends[0].get_texts()] for figure in drawn]
    assert legends == [["ste", "approx_sign"]] * 2 + [["sign", "released"]] * 2
    assert [len(figure.axes) for figure in drawn] == [1, 1, 2, 2]


@pytest.mark.slow
def test_the_command_trains_for_real(tmp_path, monkeypatch):
    args = [*ARGS, "--init", "clip", "--seeds", "2", "--pretrain-epochs", "0.1", "0.1", "0.1", "--out", str(tmp_path)]
    run.main([*args, "--optimizer", "sgd:0.01", "sgd:0.01:matched"])
    found = rows.read(tmp_path / "rows.jsonl")
    assert len(found) == 2 * (2 + 2 * 2)
    assert all(sum(r["latents"]) == 165_888 and 0 <= r["top1"] <= 100 for r in found)
    assert json.loads((tmp_path / "rows.jsonl").read_text().splitlines()[0])["cell"]["weight"] == "real"
