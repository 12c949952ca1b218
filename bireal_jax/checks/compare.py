"""Several runs in one picture and one table: curves with intervals over seeds, and a CSV of every run."""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax import config as config_lib
from bireal_jax import places
from bireal_jax.checks import figures
from bireal_jax.checks.intervals import bounds, interval
from bireal_jax.checks.page import PAGE, section, table
from bireal_jax.errors import BadInput
from bireal_jax.running import known, metrics, progress, settings, workdir

Run = dict[str, Any]


def main(arguments: Sequence[str]) -> None:
    """What the command does with the rest of its line: workdirs, and --out=FILE.html. Raises BadInput as `run`."""
    out = [arg.removeprefix("--out=") for arg in arguments if arg.startswith("--out=")]
    runs = [arg for arg in arguments if not arg.startswith("--out=")]
    if strange := [arg for arg in runs if arg.startswith("-")]:
        raise BadInput(f"--mode=compare takes the workdirs of runs and --out=FILE.html, not {strange[0]}")
    run(runs, places.local(out[-1], "--out", "file") if out else None)


def run(named: Sequence[str], out: Path | None = None) -> Path:
    """Writes compare.html and compare.csv: a line for each group of runs that differ in nothing but their seed.

    Args:
      named: workdirs, of one task.
      out: the page; the CSV lies beside it, with that suffix. Default: compare.html here.

    Returns:
      The page.

    Raises:
      BadInput: fewer than two runs, one that is none, or runs of different tasks; it cannot be written.
    """
    if len(set(named)) < 2:
        raise BadInput(f"--mode=compare takes two runs or more; given: {', '.join(named) or 'none'}")
    out = out or Path("compare.html")
    runs = [_read(places.workdir(name, "a run")) for name in named]
    tasks = {run["task"].metric: run["task"] for run in runs}
    if len(tasks) > 1:
        raise BadInput(f"these runs cannot be compared: some report {' and some '.join(sorted(tasks))}")
    (task,) = tasks.values()
    groups = _groups(runs)
    workdir.write(out.with_suffix(".csv"), _csv(runs))
    head = ("", "differs in", "runs", f"{task.title}, last", "95 % interval of the mean", "best evaluation")
    rows = [(number, *_row(name, group)) for number, (name, group) in enumerate(groups.items(), 1)]
    body = [
        f"<h1>{len(runs)} runs</h1>", _lengths(runs), _curves(groups, task),
        section("After the last evaluation", table(head, rows)),
        '<p class="soft">Bands and intervals are of the mean over seeds, Student\'s t, 95 %; a single run has none. '
        f"Of fewer than {BAND} seeds no band is drawn, but the curve of each. "
        "Where some runs of a line have ended, the others are left out of it. "
        "The best evaluation was picked on the images that it was measured on.</p>",
        section("Runs", table(("run", "line", *COLUMNS[2:]), _listed(groups))),
    ]  # fmt: skip
    workdir.write(out, PAGE.format(title=f"{len(runs)} runs", body="\n".join(body)))
    progress.say(f"{out} and {out.with_suffix('.csv')}: {len(groups)} groups of {len(runs)} runs")
    return out


def _listed(groups):
    """Every run, with the number of its line in the table above, which says in what it differs."""
    for number, group in enumerate(groups.values(), 1):
        for run in group:
            yield [run["run"], number, *(_cell(run, c) for c in COLUMNS[2:])]


def _cell(run, column):
    value = run[column]
    if column in ("last", "best"):
        return run["task"].form.format(value)
    if column == "steps":
        return f"{value:,}" if run["finished"] else f"{value:,} of {run['length']:,}"
    return {True: "yes", False: "no"}[value] if column == "finished" else value


BAND = 3  # seeds; the interval of two is 12.7 standard errors, and its band hides the curves
QUIET = ("seed", *(f"{what}_{unit}" for what in ("log", "eval", "save") for unit in ("steps", "epochs")))
COLUMNS = ("run", "differs in", "seed", "finished", "steps", "last", "best")


def _read(directory):
    before, rows = known.read(directory), figures.lines(directory)
    if before is None:
        raise BadInput(f"no run in {directory}: there is no config.json")
    task = metrics.task(before.source.depth_range if before.source else None)
    steps, values = figures.curve(rows, "eval", task.metric)
    if not len(steps):
        raise BadInput(f"the run in {directory} has no evaluation yet; compare it when it has one")
    best = min if task.better < 0 else max
    return {
        "run": str(directory), "seed": before.config.seed, "finished": (directory / "result.json").exists(),
        "steps": int(steps[-1]), "length": _length(before) or int(steps[-1]),
        "last": float(values[-1]), "best": float(best(values)), "task": task, "lines": rows, "config": before.config,
    }  # fmt: skip


def _length(before):
    """Steps that a run is meant to have, all stages together; 0 where its data set is not known."""
    stages = zip(config_lib.stages(before.config), before.sources, strict=False)
    return sum(config_lib.steps(stage, "total", len(source.train)) for stage, source in stages)


def _uneven(runs):
    """Whether the lengths of some runs are further apart than the rounding of epochs to steps brings them."""
    found = [run["length"] for run in runs]
    return min(found) < 0.99 * max(found)


def _lengths(runs):
    """A line that says so where runs are of different length, whose curves then lie over shares of the training."""
    found = sorted({run["length"] for run in runs})
    said = f"Runs of different length, {found[0]:,} to {found[-1]:,} steps: the curves lie over the share of each."
    return f'<p class="soft">{said}</p>' if _uneven(runs) else ""


def _groups(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Runs by what distinguishes their configs, the seed left out."""
    texts = [_matters(json.loads(settings.to_json(run["config"]))) for run in runs]
    fields: dict[str, None] = {}
    for text in texts[1:]:
        fields.update((line.split(" ")[0], None) for line in settings.apart(texts[0], text))
    found: dict[str, list[Run]] = {}
    for run, text in zip(runs, texts, strict=True):
        flat = config_lib.flat(text)
        run["fields"] = {name: flat[name] for name in fields if name in flat}
        run["differs in"] = _named(run["fields"]) or "nothing but the seed"
        found.setdefault(run["differs in"], []).append(run)
    return found


def _matters(config):
    """A config without what does not touch the weights that come out, or the seed."""
    quiet = dict.fromkeys(QUIET, 0)
    return config | quiet | {"new_head": config["new_head"] and bool(config["init_from"])}


def _brief(groups: Sequence[dict[str, Any]]) -> list[str]:
    """A name for each group, of the fields in which they differ, as few as tell them apart; "" where one is long."""

    def named(kept):
        return [_named({name: group[name] for name in kept if name in group}) for group in groups]

    kept: list[str] = []
    while len({*named(kept)}) < len(groups):
        fields = sorted(set().union(*groups), key=lambda name: (not name.startswith("model."), name))
        kept.append(max(fields, key=lambda name: len({*named([*kept, name])})))
    found = named(kept)
    return found if max(map(len, found)) <= SHORT else [""] * len(found)


def _named(fields):
    shown = {name.removeprefix("model."): value for name, value in fields.items()}
    return ", ".join(f"no {name}" if value in ("", []) else f"{name}={value}" for name, value in shown.items())


def _counted(group):
    """The runs of a group that its mean is of: those that have ended, or all where none has."""
    return [run for run in group if run["finished"]] or group


def _shared(group, split, metric):
    """Steps that all runs of a group have a value of, and the values [runs, steps]."""
    found = [figures.curve(run["lines"], split, metric) for run in group]
    steps = sorted(set.intersection(*({*map(int, steps)} for steps, _ in found)))
    return steps, np.array([values[np.searchsorted(own, steps)] for own, values in found])


def _seeds(group):
    """Seeds, in words: a number alone would be read as how many there are."""

    def words(runs):
        seeds = sorted(run["seed"] for run in runs)
        return f"seed {seeds[0]}" if len(seeds) == 1 else f"{len(seeds)} seeds: {', '.join(map(str, seeds))}"

    counted = _counted(group)
    others = [run for run in group if run not in counted]
    if counted[0]["finished"]:
        return words(counted) + (f"; not ended: {words(others)}" if others else "")
    return f"{words(counted)}; not ended, step {max(run['steps'] for run in counted):,}"


def _apart(group):
    """Whether runs are of different seeds; of the same one they say nothing of the spread."""
    return len(group) > 1 and len({run["seed"] for run in group}) == len(group)


def _row(name, group):
    counted, task = _counted(group), group[0]["task"]
    steps, values = _shared(counted, "eval", task.metric)
    last, between = values[:, -1] if steps else [run["last"] for run in counted], "-"
    if _apart(counted):
        half, (_, low, high) = interval(last)[1], bounds(last)
        cut = _percent(task) and not np.isclose(high - low, 2 * half)
        between = f"{low:.2f} to {high:.2f}" if cut else f"± {half:.2f}"
    best = task.form.format(np.mean([run["best"] for run in counted]))
    return name, _seeds(group), task.form.format(np.mean(last)), between, best


def _percent(task):
    return task.title.startswith("top")


SHORT = 44  # characters of a group's name that have room beside its curve; of longer ones the numbers stand there
LINES = ("-", "--", ":", "-.")


def _curves(groups, task):
    brief = _brief([group[0]["fields"] for group in groups.values()])
    shares = _uneven(run for group in groups.values() for run in group)

    def draw(axes):
        for number, group in enumerate(groups.values()):
            line, colour = divmod(number, len(figures.COLOURS))
            look = {"color": figures.COLOURS[colour], "ls": LINES[line % len(LINES)], "lw": 1.4, "ms": 3}
            look["label"] = f"{number + 1}  {brief[number]}".strip()
            counted = _counted(group)
            if 1 < len(counted) < BAND:
                look["label"] += f"  (mean of {len(counted)}, each of them thin)"
            for axis, split, metric in ((axes[0], "train", "loss"), (axes[1], "eval", task.metric)):
                steps, values = _shared(counted, split, metric)
                if not steps:
                    continue
                x = np.array(steps) * (100 / counted[0]["length"] if shares else 1)
                axis.plot(x, values.mean(0), marker="o" if len(steps) < 30 else None, **look)
                if 1 < len(counted) < BAND:
                    axis.plot(x, values.T, color=look["color"], lw=0.7, alpha=0.5)
                elif _apart(counted):
                    half = np.array([interval(column)[1] for column in values.T])
                    low, high = values.mean(0) - half, values.mean(0) + half
                    if metric != "loss" and _percent(task):
                        low, high = np.clip(low, 0, 100), np.clip(high, 0, 100)
                    axis.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
        xlabel = "share of the training, %" if shares else "step"
        axes[0].set(title="training loss", xlabel=xlabel)
        axes[1].set(title=f"evaluation: {figures.titled(task)}", xlabel=xlabel)
        figures.plain_log(axes[0])
        axes[0].legend(fontsize=8)

    return figures.svg(draw, 2)


def _csv(runs):
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([run[name] for name in COLUMNS] for run in runs)
    return text.getvalue()
