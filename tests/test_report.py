"""The page of a run and the page of several: what they say against what can be counted by hand."""

import dataclasses
import html
import json
import re
import shlex
import shutil
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import packed
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from small import small

from bireal_jax import build, main, recipe, used
from bireal_jax.checks import compare, figures, intervals, layers, page, report
from bireal_jax.data import folder, held_out
from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint, known, metrics, settings
from bireal_jax.runtime import container
from bireal_jax.shipping import export
from bireal_jax.training import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    place = tmp_path_factory.mktemp("report") / "w"
    train.run(small(), place)
    return place


def test_the_page_is_complete_in_itself_and_says_what_the_run_did(trained, tmp_path):
    path = report.run(small(), trained, tmp_path / "page.html")
    page = path.read_text()
    assert not re.search(r'(src|href)="(?!data:)', page.replace("xlink:href", "")), "something lies beside it"
    result = json.loads((trained / "result.json").read_text())
    assert f"{result['top1']:.2f} %" in page
    model, variables, prepare = build.trained(trained)
    source = build.source(small())
    images = np.stack([source.eval[i]["image"] for i in range(len(source.eval))])
    labels = np.array([source.eval[i]["label"] for i in range(len(source.eval))])
    wrong = int(np.sum(np.asarray(model.apply(variables, prepare(images))).argmax(-1) != labels))
    assert f"{wrong:,} of {len(labels)} test images are taken for another class" in page
    assert page.count("<figure>") == min(wrong, report.MISTAKES)
    order = np.random.default_rng(0).permutation(1797)  # that of digits.py
    for found in re.findall(r">(\d), taken for \d<br><span class=\"soft\" title=\"\">image (\d+)<", page):
        assert int(found[1]) in order[:359] and load_digits().target[int(found[1])] == int(found[0]), "its place there"
    assert page.count(">image ") == min(wrong, report.MISTAKES)
    for said in (
        "steps 8 to 12",
        "bireal_tiny",
        "169,834 parameters",
        "config.total_steps = 12",
        "times the same class",
    ):
        assert said in page, said
    assert page.count("<svg") == 3 + 3 + 2 + 1 and "#000000" not in page and figures.INK not in page


def test_a_run_that_was_only_evaluated_has_a_number_and_one_under_way_its_step(trained, tmp_path, monkeypatch):
    for slow in ("_layers", "_weights"):
        monkeypatch.setattr(report, slow, lambda *_: [])
    monkeypatch.setattr(report, "_packed", lambda *_: "")
    one = report.run(small(init_from=str(trained)), tmp_path / "evaluated").read_text()
    wrong, all_of_them = map(int, re.search(r"(\d+) of (\d+) test images are taken", one).groups())
    assert f"<b>{100 - 100 * wrong / all_of_them:.2f} %</b>test top-1, counted for this page" in one
    under_way = other(trained, tmp_path / "w", stages=[{"name": "<first>"}])
    (under_way / "result.json").unlink()
    page = report.run(small(), under_way).read_text()
    assert "test top-1, so far, step 12 of stage &lt;first&gt;: the training has not ended" in page


def test_the_command_on_the_page_repeats_the_run():
    """Pasted, it gives the same config; stages, tuples and what a shell would take apart included."""
    config = recipe.load_recipe(recipe.OWN / "finetune.py")
    asked = {"data.dir": "my photos", "data.image_size": 32, "model.name": "bireal20", "init_from": "bireal20_cifar10"}
    config.update_from_flattened_dict(asked)
    run = known.Known(Path("runs/it's"), config, (), 0, {})
    said, pre = report._again(run, run.directory)
    assert "nearest" in said and html.unescape(pre).count("--config.") == len(asked), (
        "only what differs from the recipe"
    )
    other = small(
        stages=({"name": "a 'b'", "share": 0.5, "optim.milestones": (1, 2)}, {"share": 0.5, "optim.lr": 1e-5})
    )
    other.optim.bop.gamma = ("linear", 0.1, 0.2)
    for wanted in (config, other):
        _, pre = report._again(dataclasses.replace(run, config=wanted), run.directory)
        words = shlex.split(html.unescape(pre)[len("<pre>") : -len("</pre>")].replace("\\\n", ""))
        parsed, place, mode = main.parse(words[2:])
        apart = settings.differences(settings.to_json(wanted), settings.to_json(parsed))
        assert all("_epochs" in field and wanted is other for field in apart), "of which steps win"
        assert parsed.data.dir == wanted.data.dir
        assert (str(place), mode) == ("runs/it's_again", "train")
    (said,) = report._again(dataclasses.replace(run, registered={"model.act": "gone.py"}), run.directory)
    assert "needs its recipe: no recipe gone.py" in said


def test_nothing_flipped_is_said_and_long_names_break_at_their_marks(trained, monkeypatch):
    use = used.weights(small(), trained)
    packed_net = container.dump(export.packed(use))
    for flipped, panels in ((0.0, 2), (0.1, 3)):
        monkeypatch.setattr(report, "flips", lambda *_, share=flipped: ({"a": share, "b": 0.0}, "8 to 12"))
        said = "".join(report._layers(use, trained, packed_net))
        assert said.count("<svg") == panels
        assert ("None of the 1-bit weights flipped from step 8 to step 12." in said) == (panels == 2)
    assert report._broken("n02085620_10131.JPEG.jpg") == "n02085620_<wbr>10131.<wbr>JPEG.<wbr>jpg"
    assert report._broken("one_photo.png") == "one_photo.png"
    cells = page.table(("a", "b"), [("lr=9.2e-07, x", "3")])
    assert '<td class="text">lr=<span class="one">9.2e-07</span>, x</td><td>3</td>' in cells


def test_two_seeds_are_curves_without_a_band_and_what_is_logged_makes_no_group(trained, tmp_path):
    runs = [other(trained, tmp_path / str(s), seed=s, save_epochs=1.0 + s, new_head=s == 1) for s in range(3)]
    two, three = (compare.run([*map(str, runs[:n])], tmp_path / "c.html").read_text() for n in (2, 3))
    for said, bands in ((two, 0), (three, 2)):
        assert said.count("FillBetweenPolyCollection") == bands, "groups of seeds alone"
        assert said.count("nothing but the seed") == 1, "it is said once"
    assert "(mean of 2, each of them thin)" in two and "thin" not in three[three.index("</p>") : three.index("<table")]
    staged = other(trained, tmp_path / "staged", stages=[{"name": "one"}])
    said = compare.run([str(trained), str(staged)], tmp_path / "c.html").read_text()
    assert "no stages" in said and "stages=[]" not in said


def test_layers_are_counted_as_by_hand():
    program = container.read(packed.written("res_tiny"))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1)).astype(np.uint8)
    found = layers.signs(container.dump(program), images)
    tensors = program.run(images)
    signs = [op for op in program.spec["ops"] if op["op"] == "sign"]
    assert [x.path for x in found] == [op["path"] for op in signs]
    for x, op in zip(found, signs, strict=True):
        t = tensors[op["inputs"][0]].astype(float)
        assert abs(x.inside - np.mean(np.abs(t) < 1)) < 1e-3
        np.testing.assert_allclose(x.deviation, t.std(), rtol=1e-3)
        alive = ((t >= 0).any((0, 1, 2))) & ((t < 0).any((0, 1, 2)))
        assert x.dead == pytest.approx(1 - alive.mean())


def test_flips_are_the_signs_that_differ():
    def tree(a, b):
        return {"params": {"one": {"latent": a}, "two": {"latent": b, "scale": a}}}

    a, b = np.array([1.0, -1.0, 0.0, 2.0]), np.array([-1.0, -1.0])
    assert layers.flips(tree(a, b), tree(np.array([1.0, 1.0, -0.5, 3.0]), b)) == {"one": 0.5, "two": 0.0}
    assert layers.ends(packed.written("res_tiny").parent, jax.eval_shape(lambda: {})) == []


@pytest.mark.parametrize(("steps", "said"), [((784, 896, 899), "784 to 899"), ((896, 899), ""), ((899,), "")])
def test_flips_are_of_checkpoints_that_are_apart(tmp_path, steps, said):
    place = tmp_path / "stage_0" / "checkpoints"
    with checkpoint.Checkpoints(place, keep_last=9) as checkpoints:
        for step in steps:
            tree = {"params": {"one": {"latent": np.array([1.0, step - 850.0], np.float32)}}}
            checkpoints.save(step, {"variables": tree}, {"top1": 1.0})
    shapes = {"params": {"one": {"latent": np.zeros(2, np.float32)}}}
    assert [step for step, _ in layers.ends(tmp_path, shapes)] == [*dict.fromkeys((steps[0], steps[-1]))]
    assert report.flips(tmp_path, shapes, epoch_steps=22.5) == (({"one": 0.5}, said) if said else ({}, ""))


def test_columns_of_words_begin_at_the_left_and_a_curve_is_shown_where_it_is():
    found = page.table(("", "what", "number"), [(1, "a", "± 1.0"), (2, "b", "-"), ("", "", "+3 %")])
    assert "<th>number</th>" in found and '<th class="text">what</th>' in found and '<td class="text">b</td>' in found
    for better, edge in ((1, 90.0), (-1, 10.0)):
        values = np.array([*(50 - better * np.array([40.0, 20.0])), *np.linspace(edge, edge + better * 9, 18), np.nan])
        low, high = figures.limits(values, better)
        assert low < min(values[3:-1]) <= max(values[3:-1]) < high and not (low < values[0] < high)
    assert figures.limits(np.array([]), 1) is None
    short = np.array([20.0, *np.linspace(90, 99, 12)])
    low, high = figures.limits(short, 1)
    assert low < 20 and high > 99, "a short curve is shown whole"
    low, _ = figures.limits(np.linspace(0, 90, 60), 1)
    assert low < 0, "a curve that rises all the time is shown whole"


def shown(svg):
    """Texts of each panel of a figure."""
    return [re.findall(r">([^<>]+)</text>", part) for part in svg.split("<svg")[1:]]


def test_axes_of_curves_have_plain_numbers_and_marks_where_stages_begin():
    def rows(loss, stages=1, flipped=0.0):
        return [
            {"stage": stage, "step": 10 * k, "split": split, "loss": loss(k), "top1": 40.0 + k, "flipped": flipped / k}
            for stage in range(stages) for k in range(1, 9) for split in ("train", "eval")
        ]  # fmt: skip

    loss, top1, flips = shown(figures.curves(rows(lambda k: 1.72 - 0.005 * k, flipped=0.3), metrics.CLASSES))
    ticks = [text for text in loss if re.fullmatch(r"[\d.]+", text)]
    assert {"1.68", "1.7"} <= {*ticks} and not any("10" in text and "×" in text for text in loss), loss
    assert "top-1, %" in top1 and "weights that flipped, %" in flips
    loss, *_ = shown(figures.curves(rows(lambda k: 10.0 ** (-k / 4)), metrics.CLASSES))
    assert {"0.5", "0.1", "0.02"} <= {*loss}, "1, 2 and 5 in every decade"
    loss, *_ = shown(figures.curves(rows(lambda k: 1.6 - 0.1 * k), metrics.CLASSES))
    assert {"0.8", "1", "1.2"} <= {*loss}, "more than the 1 of its decade"
    two = shown(figures.curves(rows(lambda k: 1 / k, 2), metrics.CLASSES, ["head", "all of <it>"]))
    assert all({"head", "all of &lt;it&gt;", "160"} & {*panel} >= {"head", "all of &lt;it&gt;"} for panel in two)
    assert not any("head" in panel for panel in shown(figures.curves(rows(lambda k: 1 / k, 2), metrics.CLASSES)))
    figures.curves(rows(lambda k: float("nan")), metrics.CLASSES)
    assert len(shown(figures.curves([{"step": 1, "split": "train", "loss": 1.0}], metrics.CLASSES))) == 1


def test_what_few_evaluations_say_is_shown_whole(monkeypatch):
    drawn = plt.subplots(1, 3)
    monkeypatch.setattr(figures, "svg", lambda draw, panels, title: draw(drawn[1]))
    rows = [{"step": k, "split": "train", "loss": 1.0, "top1": 5.0 if k < 4 else 90.0 + k / 10} for k in range(1, 41)]
    rows += [{"step": k, "split": "eval", "loss": 1.0, "top1": 60.0 + 5 * k} for k in range(1, 7)]
    figures.curves([row | {"flipped": 0.1} for row in rows], metrics.CLASSES)
    low, high = drawn[1][1].get_ylim()
    plt.close(drawn[0])
    assert 50 < low < 65 and 94 < high and drawn[1][1].get_title().endswith("not its worst tenth")


@pytest.mark.parametrize("share", [0.3, 0.0])
def test_no_share_of_weights_is_below_0(share, monkeypatch):
    drawn = plt.subplots(1, 3)
    monkeypatch.setattr(figures, "svg", lambda draw, panels, title: draw(drawn[1]))
    rows = [{"step": k, "split": "train", "loss": 1.0, "top1": 50.0, "flipped": share / k} for k in range(1, 9)]
    figures.curves(rows, metrics.CLASSES)
    low, high = drawn[1][2].get_ylim()
    plt.close(drawn[0])
    assert low == 0 and high >= (30 if share else 1)


@pytest.mark.parametrize("panels", [1, 2, 3])
def test_panels_fit_a_phone(panels):
    found = figures.svg(lambda axes: None, panels)
    for least, most in re.findall(r"max-width:(\d+)px; min-width:(\d+)px", found):
        assert int(most) <= 390 - 2 * 16 <= int(least), "as wide as a phone without its margins"
        assert 9 * 96 / 72 * 358 / (int(least) / figures.LARGER) > 7.5, "pixels of the letters there"
    assert found.count("<svg") == panels


def test_the_worst_have_the_names_of_their_files(tmp_path):
    for name in ("a/one.png", "b/zwei <&>.png", "a/three.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    source = held_out.split_off(folder.build(str(tmp_path), 8, 8), 1.0, 0)
    names = [re.search(r"<span.*>(.*)</span>", report._mistake(source, i, "a", "b"))[1] for i in range(3)]
    assert names == ["one.png", "three.png", "zwei &lt;&amp;&gt;.png"]


def other(place, to, **fields):
    shutil.copytree(place, to)
    stored = json.loads((to / "config.json").read_text())
    stored.update(fields)
    (to / "config.json").write_text(json.dumps(stored))
    return to


def test_runs_are_grouped_by_what_differs_and_intervals_are_students(trained, tmp_path, capsys):
    one = other(trained, tmp_path / "one", seed=1)
    two = other(trained, tmp_path / "two", label_smoothing=0.1)
    rows = (one / "metrics.jsonl").read_text().splitlines()
    top1 = json.loads((trained / "result.json").read_text())["top1"]
    out = tmp_path / "page.html"

    def page_where(other_top1):
        last = json.loads(rows[-1]) | {"top1": other_top1}
        (one / "metrics.jsonl").write_text("\n".join([*rows[:-1], json.dumps(last)]) + "\n")
        main.main(["main", "--mode=compare", str(trained), str(one), str(two), f"--out={out}"])
        return out.read_text()

    assert "0.00 to 100.00" in page_where(top1 - 50), "no accuracy is above 100 %"
    page = page_where(top1 - 0.1)
    assert "2 groups of 3 runs" in capsys.readouterr().out
    half = 12.7062 * 0.1 / 2  # t of one degree of freedom; deviation over sqrt(2) is half the distance
    assert f"± {half:.2f}" in page and f"{top1 - 0.05:.2f} %" in page
    lines = out.with_suffix(".csv").read_text().splitlines()
    assert lines[0].startswith("run,differs in,seed") and len(lines) == 4 and "label_smoothing=0.1" in lines[3]
    assert np.isnan(intervals.interval([3.0])[1]), "one run has no interval"
    assert "2  label_smoothing=0.1" in page, "beside its curve"
    more = [
        other(
            trained,
            tmp_path / f"m{i}",
            label_smoothing=0.1,
            batch_size=8 * i,
            skip_nonfinite=i,
            eval_steps=i,
            save_steps=1,
        )
        for i in (1, 2, 3)
    ]
    page = compare.run([*map(str, more)], out).read_text()
    assert "1  batch_size=8<" in page and "label_smoothing" not in page[: page.index("</svg")], "what tells them apart"
    assert "different length" not in page
    longer = other(trained, tmp_path / "longer", total_steps=24)
    assert "Runs of different length, 12 to 24 steps" in compare.run([str(trained), str(longer)], out).read_text()
    assert ">share of the training, %</text>" in out.read_text()
    near = other(trained, tmp_path / "near", total_steps=2401)
    far = other(trained, tmp_path / "far", total_steps=2400)
    assert "different length" not in compare.run([str(near), str(far)], out).read_text(), "epochs that were rounded"
    twins = [other(trained, tmp_path / f"long{i}", init_from=f"{'runs/' * 15}{i}") for i in range(2)]
    page = compare.run([str(trained), *map(str, twins)], out).read_text()
    for i in range(2):
        assert f'<td>{i + 2}</td><td class="long">init_from={"runs/" * 15}{i}</td>' in page, (
            "numbers tell long ones apart"
        )
    assert "init_from" not in page[page.index("<svg") : page.index("</svg")] and ">3</text>" in page


def test_a_group_is_of_the_runs_that_have_ended(trained, tmp_path):
    rows = (trained / "metrics.jsonl").read_text().splitlines()
    runs = [other(trained, tmp_path / str(seed), seed=seed) for seed in (0, 1, 2)]
    (runs[2] / "result.json").unlink()
    (runs[2] / "metrics.jsonl").write_text("\n".join(rows[: len(rows) // 2]) + "\n")
    ended, under_way = json.loads(rows[-1]), [json.loads(row) for row in rows[: len(rows) // 2]]
    under_way = [row for row in under_way if row["split"] == "eval"][-1]
    assert ended["split"] == "eval" and ended["top1"] != under_way["top1"], "or the test says nothing"
    out = tmp_path / "page.html"
    page = compare.run([*map(str, runs)], out).read_text()
    mean, interval = f"<td>{ended['top1']:.2f} %</td>", "<td>± 0.00</td>"
    assert "2 seeds: 0, 1; not ended: seed 2<" in page and mean in page and interval in page, "without the third"
    assert f"<td>{under_way['step']} of {ended['step']}</td>" in page
    assert out.with_suffix(".csv").read_text().splitlines()[3].split(",")[2:5] == ["2", "False", str(under_way["step"])]
    page = compare.run([str(runs[2]), str(other(trained, tmp_path / "b", label_smoothing=0.1))], out).read_text()
    assert ">seed 0<" in page, "a 0 alone would be no seeds"
    assert f"seed 2; not ended, step {under_way['step']}<" in page
    page = compare.run([str(runs[0]), str(other(trained, tmp_path / "again"))], out).read_text()
    assert "± 0.00" not in page, "the same seed again says nothing of the spread"


def test_what_cannot_be_compared_or_shown(trained, tmp_path):
    for runs, said in (
        ([trained], "takes two runs or more"), ([trained, tmp_path / "none"], "no run in"),
        ([trained, "--seed=1"], "not --seed=1"),
    ):  # fmt: skip
        with pytest.raises(BadInput, match=said):
            main.main(["main", "--mode=compare", *map(str, runs)])
    empty = other(trained, tmp_path / "empty")
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(BadInput, match="no evaluation yet"):
        compare.run([str(trained), str(empty)])
    (empty / "metrics.jsonl").write_text("[1]\n")
    with pytest.raises(BadInput, match="is damaged"):
        report.run(small(), empty)
    with pytest.raises(BadInput, match="no checkpoint"):
        report.run(small(), tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
