"""Where a run of yours departs from one of ours: python -m experiments.curves compare RUN.

    python -m experiments.curves compare runs/cifar10_sgd                          ours of the same network and data
    python -m experiments.curves compare runs/cifar10_sgd --ours bireal20_cifar10  a log of experiments/logs by name

RUN is a workdir; a name of experiments/logs will do, too. It prints the first epoch in which the learning rate is
another, the first from which training top-1 stays more than three points away, both runs at some epochs and at the end,
and draws RUN/curves.png. Epochs are those of the data: step * batch size / training images.
"""

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np

from bireal_jax import output, places
from bireal_jax.checks import figures
from bireal_jax.errors import BadInput, lookup
from bireal_jax.runtime import named

LOGS = Path(__file__).parent / "logs"
POINTS, ROW = 3.0, 3  # of training top-1, in so many epochs one after the other
SHOWN = 8  # lines of the table


@dataclasses.dataclass(frozen=True)
class Curves:
    """A run's log.

    Attributes:
      name: for titles.
      train, test: metric -> values [n]; "epoch" is one of them.
    """

    name: str
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]


def of_log(path: Path, name: str, length: float | None, epochs: float | None = None) -> Curves:
    """The curves of a metrics.jsonl.

    Args:
      path: the file.
      name: of the run.
      length: steps an epoch; None where the run is whole and has so many `epochs`.
      epochs: see `length`.

    Raises:
      BadInput: no log there, or a damaged one.
    """
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        ends = {stage: max(x["step"] for x in lines if x["stage"] == stage) for stage in {x["stage"] for x in lines}}
        offsets = {stage: sum(end for other, end in ends.items() if other < stage) for stage in ends}
        length = length or sum(ends.values()) / (epochs or 1.0)
        steps = [(offsets[line["stage"]] + line["step"]) / length for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no log that can be read: {type(error).__name__}: {error}") from None
    sides = []
    for split in ("train", "eval"):
        rows = [{"epoch": step, **line} for step, line in zip(steps, lines, strict=True) if line["split"] == split]
        names = ("epoch", "loss", "top1", "learning_rate", "flipped")
        sides.append({key: np.array([row.get(key, np.nan) for row in rows], float) for key in names})
    if not sides[0]["epoch"].size:
        raise BadInput(f"{path} has no line of training yet; wait for the first epoch")
    return Curves(name, *sides)


def ours(name: str) -> Curves:
    """A published log. Raises BadInput, which lists them, if there is none of that name."""
    known = {path.stem: path for path in LOGS.glob("*.jsonl")}
    row = named.rows()[lookup({key: key for key in known if key in named.rows()}, name, "published log")]
    return of_log(known[name], f"{name} (ours)", None, row.epochs)


def theirs(run: Path) -> Curves:
    """The log of a workdir. Raises BadInput if no run is there."""
    config, data = _stored(run)
    return of_log(run / "metrics.jsonl", str(run), data["stages"][0]["train"] / config["batch_size"])


def _stored(run):
    try:
        return places.read_json(run / "config.json"), places.read_json(run / "data.json")
    except (OSError, ValueError) as error:
        raise BadInput(f"{run} is no workdir of a run: {error}") from None


def like(run: Path) -> str:
    """The name of a published log of the network and the data of a run. Raises BadInput if there is none."""
    config, _ = _stored(run)
    model, data = config["model"]["name"], config["data"]["name"]
    for name, row in named.rows().items():
        if (row.model, row.data) == (model, data) and (LOGS / f"{name}.jsonl").exists():
            return name
    raise BadInput(f"no published log of {model} on {data}; --ours takes one of {', '.join(named.rows())}")


def departs(yours: Curves, other: Curves) -> tuple[float | None, float | None]:
    """The first epochs in which the learning rate differs by a fiftieth of its largest, and from which top-1 is away.

    Ours are interpolated to the epochs of yours, as far as both go. An epoch earlier or later is no difference: at the
    start of a training, seeds are that far apart.
    """
    epochs = yours.train["epoch"]
    both = epochs <= other.train["epoch"][-1] + 1e-6

    def beyond(key, margin):
        near = [np.interp(epochs + shift, other.train["epoch"], other.train[key]) for shift in (-1, 0, 1)]
        mine = yours.train[key]
        return both & ((mine < np.min(near, 0) - margin) | (mine > np.max(near, 0) + margin))

    wrong, away = beyond("learning_rate", 0.02 * other.train["learning_rate"].max()), beyond("top1", POINTS)
    row = np.convolve(away, np.ones(ROW), "valid") == ROW if len(away) >= ROW else np.zeros(0, bool)
    first, away_from = (float(epochs[np.argmax(found)]) if found.any() else None for found in (wrong, row))
    return first, away_from


def text(yours: Curves, other: Curves) -> str:
    """What `compare` prints."""
    rate, away = departs(yours, other)
    lines = [f"{yours.name} against {other.name}"]
    last = min(yours.train["epoch"][-1], other.train["epoch"][-1])
    says = f"the same for {last:.0f} epochs" if rate is None else f"another from epoch {rate:.1f} on"
    lines.append(f"learning rate: {says}")
    says = f"within {POINTS:g} points for {last:.0f} epochs" if away is None else f"departs in epoch {away:.1f}"
    lines += [f"training top-1: {says}", ""]
    lines.append(f"{'epoch':>8} {'loss':>8} {'ours':>8} {'top-1':>8} {'ours':>8} {'flipped':>9} {'ours':>9}")
    for epoch in np.linspace(min(1.0, last), last, SHOWN):
        cells = [f"{epoch:8.1f}"]
        for key, form, factor in (("loss", "8.3f", 1), ("top1", "8.2f", 1), ("flipped", "8.3f", 100)):
            for side in (yours, other):
                value = factor * np.interp(epoch, side.train["epoch"], side.train[key])
                cells.append(f"{value:{form}}" + ("%" if key == "flipped" else ""))
        lines.append(" ".join(cells))
    return "\n".join([*lines, "", f"last test top-1: {_last(yours)}, ours {_last(other)}"]).replace("nan%", "   -")


def _last(side):
    top1, epoch = side.test["top1"], side.test["epoch"]
    return f"{top1[-1]:.2f} % in epoch {epoch[-1]:.0f}" if top1.size else "not evaluated yet"


def draw(yours: Curves, other: Curves, path: Path) -> None:
    """Loss, top-1 with the test's as dots, and flips, of both."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    _, away = departs(yours, other)
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
    panels = (
        ("loss", "training loss", 1),
        ("top1", "top-1, % (dots: test)", 1),
        ("flipped", "flipped an epoch, %", 100),
    )
    for axis, (key, title, factor) in zip(axes, panels, strict=True):
        for side, colour in ((other, "#999999"), (yours, "#d55e00")):
            axis.plot(side.train["epoch"], factor * side.train[key], color=colour, lw=1.4, label=side.name)
            if key == "top1":
                axis.plot(side.test["epoch"], side.test["top1"], "o", color=colour, ms=4)
        if away is not None:
            axis.axvline(away, color="0.3", lw=0.8, ls=":", label=f"top-1 departs, epoch {away:.0f}")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("epoch")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="0.92")
    if np.nanmax(yours.train["flipped"], initial=0) > 0:
        figures.plain_log(axes[2])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main(argv=None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.curves", description=__doc__.split("\n")[0], allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("compare", help="print and draw where a run departs from one of ours").add_argument
    add("run", help="a workdir, or a name of experiments/logs")
    add("--ours", default="", help="a name of experiments/logs; default: of the same network and data")
    add("--out", type=Path, help="a .png; default: curves.png in the workdir")
    args = parser.parse_args(argv)
    run = Path(args.run)
    published = not run.is_dir() and named.is_name(args.run)
    yours = ours(args.run) if published else theirs(run)
    other = ours(args.ours or (args.run if published else like(run)))
    print(text(yours, other))
    path = args.out or (Path("curves.png") if published else run / "curves.png")
    draw(yours, other, path)
    print(path)


if __name__ == "__main__":
    with output.command():
        main()
