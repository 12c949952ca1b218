"""Figures of an ablation: the gallery of estimators, accuracy with intervals, flip rates, latent weights.

python -m experiments.estimators.plot runs/estimators
"""

import argparse
import inspect
import itertools
from pathlib import Path

import matplotlib
import matplotlib.ticker

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from bireal_jax import output
from bireal_jax.checks.intervals import bounds
from experiments.estimators.table import AXES, ordered

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#999999", "#000000")  # Okabe and Ito
MARKERS = "osD^vPX*"
NAMES = {"arch": "", "init": "init", "weight": "weight rule", "act": "derivative", "optimizer": ""}
TITLE = {"family": "monospace", "fontsize": 8}
FEW = 3  # seeds from which on an interval is drawn: that of two is 13 standard errors wide to either side
STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 9, "legend.frameon": False,
    "figure.constrained_layout.use": True, "savefig.dpi": 200,
}  # fmt: skip


def gallery(path):
    """Every derivative and what it is the derivative of; scheduled ones at the start, the middle and the end."""
    import jax.numpy as jnp

    from bireal_jax.binary import binarize

    x = np.linspace(-2, 2, 1601)
    shades = {0.0: 0.3, 0.5: 0.6, 1.0: 1.0}
    count = len(binarize.DERIVATIVES)
    figure, axes = plt.subplots(2, count, figsize=(1.75 * count, 3.4), sharex=True)
    for column, (name, d) in enumerate(binarize.DERIVATIVES.items()):
        scheduled = "progress" in inspect.signature(d).parameters
        for progress in shades if scheduled else (1.0,):
            slope = np.asarray(binarize.with_progress(d)(jnp.asarray(x), progress), float)
            forward = np.concatenate([[0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(x))])
            for axis, y in zip(axes[:, column], (forward - forward[len(x) // 2], slope), strict=True):
                axis.plot(x, y, color=COLOURS[0], alpha=shades[progress], lw=1.4)
        axes[0, column].plot(x, np.sign(x), color="0.6", lw=0.8, ls="--", zorder=0)
        axes[0, column].set_ylim(-2.2, 2.2)
        axes[0, column].set_title(name, family="monospace")
        axes[1, column].set_xlabel("x")
        axes[1, column].axhline(0, color="0.85", lw=0.6, zorder=0)
    axes[0, 0].set_ylabel("surrogate F(x)")
    axes[1, 0].set_ylabel("derivative d(x)")
    handles = [
        axes[0, 0].plot([], [], color=COLOURS[0], alpha=shade, label=f"progress {p:g}")[0]
        for p, shade in shades.items()
    ]
    title = "where the derivative changes with the training"
    figure.legend(handles=handles, title=title, loc="outside upper right", ncols=3, fontsize=7, title_fontsize=7)
    save(figure, path)


def accuracy(rows, path):
    """One panel an architecture and optimizer, x is init and activation, colour the rule.

    Dots with 95 % intervals; of fewer than FEW seeds, whose interval says nothing, the seeds and a dash at their mean.
    """
    binary = [r for r in rows if r["cell"]["weight"] != "real"]
    archs, optimizers, weights = (ordered(binary, axis) for axis in ("arch", "optimizer", "weight"))
    places = list(itertools.product(ordered(binary, "init"), ordered(binary, "act")))
    ticks = ["\n".join(_several(binary, {"init": init, "act": act}) or [act]) for init, act in places]
    figure, axes = plt.subplots(
        len(optimizers), len(archs), squeeze=False, sharex=True, sharey="row",
        figsize=(0.8 + max(3.6, max(2.1, 0.7 * len(places)) * len(archs)), 1.1 + 1.9 * len(optimizers)),
    )  # fmt: skip
    for (i, optimizer), (j, arch) in itertools.product(enumerate(optimizers), enumerate(archs)):
        axis = axes[i, j]
        for k, weight in enumerate(weights):
            offset = (k - (len(weights) - 1) / 2) * 0.2
            for place, (init, act) in enumerate(places):
                cell = dict(zip(AXES, (arch, init, weight, act, optimizer), strict=True))
                values = [r["top1"] for r in binary if r["cell"] == cell]
                if values:
                    _dots(axis, place + offset, values, k)
        axis.set_xticks(range(len(places)), ticks, fontsize=7)
        axis.set_xlim(-0.5, len(places) - 0.5)
        axis.grid(axis="y", color="0.9", lw=0.6)
        axis.set_title(_title(binary, {"arch": arch, "optimizer": optimizer}), **TITLE)
        if j == 0:
            axis.set_ylabel("test top-1, %")
    for axis in axes[:, 0]:  # when all of a line are drawn: a limit ends its growth
        axis.set_ylim(max(-1, axis.get_ylim()[0]), min(101, axis.get_ylim()[1]))  # a cap at 0 or 100 is seen
    handles = [
        axes[0, 0].plot([], [], MARKERS[k], color=COLOURS[k], ms=4, label=weight)[0] for k, weight in enumerate(weights)
    ]
    _legend(figure, handles, "weight", binary)
    save(figure, path)


def _dots(axis, x, values, k):
    """The seeds of a cell, their mean, and its interval where there are enough of them."""
    mean, low, high = bounds(values)
    few = len(values) < FEW
    look = {"ms": 8, "alpha": 0.8} if few else {"ms": 5, "alpha": 0.35}
    axis.plot([x] * len(values), values, ".", color=COLOURS[k], mew=0, **look)
    if few:
        axis.plot(x, mean, "_", color=COLOURS[k], ms=14)
    else:
        axis.errorbar(
            x, mean, [[mean - low], [high - mean]], fmt=MARKERS[k], color=COLOURS[k], ms=4, lw=1, capsize=2
        )  # fmt: skip


def flip_rates(rows, path):
    """Share of binary weights that flip an epoch, mean and range over seeds; panels and colours as of `_panels`."""
    binary = [r for r in rows if r["cell"]["weight"] != "real" and r["flipped"]]
    if not binary:
        return
    init = ordered(binary, "init")[-1]
    binary = [r for r in binary if r["cell"]["init"] == init]
    shares = 100 * np.concatenate([r["flipped"] for r in binary])
    positive = shares[shares > 0]
    for axis, found in _panels(binary, "arch", 2.3, path, "epoch", "flipped an epoch, %"):
        for colour, label, members in found:
            curves = 100 * np.asarray([r["flipped"] for r in members])
            epochs = np.arange(1, curves.shape[1] + 1)
            axis.fill_between(epochs, curves.min(0), curves.max(0), color=colour, alpha=0.15, lw=0)
            axis.plot(epochs, curves.mean(0), ".-", ms=3, color=colour, lw=1.3, label=label)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        if len(positive) and positive.max() > 20 * positive.min():
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.grid(axis="y", color="0.9", lw=0.6)


def latents(rows, path):
    """Histograms of the latent weights at the end, all seeds together; panels and colours as of `_panels`."""
    from experiments.estimators.rows import HISTOGRAM

    arch = ordered([r for r in rows if r["cell"]["weight"] != "real"], "arch")[0]
    binary = [r for r in rows if r["cell"]["weight"] != "real" and r["cell"]["arch"] == arch]
    low, high, bins = HISTOGRAM
    edges = np.linspace(low, high, bins + 1)
    totals = np.sum([r["latents"] for r in binary], 0)
    shown = np.flatnonzero(totals > 5e-4 * totals.sum())
    for axis, found in _panels(binary, "init", 2.8, path, "latent weight", "% of the weights"):
        init = found[0][2][0]["cell"]["init"]
        start = [r for r in rows if (r["cell"]["weight"], r["cell"]["init"], r["cell"]["arch"]) == ("real", init, arch)]
        if start:
            counts = np.sum([r["latents"] for r in start], 0)
            axis.stairs(counts / counts.sum() * 100, edges, color="0.85", fill=True, label="at the start", lw=0)
        widths = np.linspace(1.2, 3.6, len(found))  # lines that lie on one another are seen all the same
        for k, (colour, label, members) in enumerate(found):
            counts = np.sum([r["latents"] for r in members], 0)
            axis.stairs(counts / counts.sum() * 100, edges, color=colour, lw=widths[-1 - k], label=label)
        axis.set_xlim(edges[shown[0]], edges[shown[-1] + 1])


def _panels(rows, columns, width, path, xlabel, ylabel):
    """Draws a figure whose colours are the weight rules, or the derivatives if there is one rule alone.

    The panels are an optimizer and derivative (if that is not the colour) a line, and a value of the axis `columns` a
    column, `width` inches wide each.

    Yields:
      A panel that has any rows, and its [(colour, label, rows)]; the caller draws them.
    """
    colour, other = ("weight", "act") if len(ordered(rows, "weight")) > 1 else ("act", "weight")
    lines, across = list(itertools.product(ordered(rows, "optimizer"), ordered(rows, other))), ordered(rows, columns)
    figure, axes = plt.subplots(
        len(lines), len(across), squeeze=False, sharex=True, sharey=True,
        figsize=(0.8 + max(width * len(across), 4.0), 1.0 + max(1.7 * len(lines), 2.2)),
    )  # fmt: skip
    handles = {}
    for (i, (optimizer, kind)), (j, place) in itertools.product(enumerate(lines), enumerate(across)):
        cell = {"optimizer": optimizer, other: kind, columns: place}
        of_panel = [r for r in rows if cell.items() <= r["cell"].items()]
        found = [
            (COLOURS[k], value, members)
            for k, value in enumerate(ordered(rows, colour))
            if (members := [r for r in of_panel if r["cell"][colour] == value])
        ]
        if found:
            yield axes[i, j], found
        titled = {axis: cell[axis] for axis in (columns, other, "optimizer")}
        axes[i, j].set_title(_title(rows, titled), **TITLE)
        axes[i, j].set(xlabel=xlabel if i == len(lines) - 1 else "", ylabel=ylabel if j == 0 else "")
        handles |= dict(zip(*reversed(axes[i, j].get_legend_handles_labels()), strict=True))
    _legend(figure, list(handles.values()), colour, rows)
    save(figure, path)


def _several(rows, cell):
    """The values of a cell, without those that all rows have."""
    return [value for axis, value in cell.items() if len(ordered(rows, axis)) > 1]


def _title(rows, cell):
    """What a panel has that others have not, in one line or two."""
    *first, last = _several(rows, cell) or [""]
    return ", ".join(first) + ("\n" if len(first) > 1 else ", " if first else "") + last


def _legend(figure, handles, colour, rows):
    """What all rows have, and under it one legend of all panels; none of one entry."""
    values = {axis: ordered(rows, axis) for axis in AXES}
    same = ", ".join(f"{NAMES[axis]} {found[0]}".strip() for axis, found in values.items() if len(found) == 1)
    if len(handles) < 2:
        figure.suptitle(same, fontsize=8)
        return
    title = "\n".join(filter(None, [same, NAMES[colour]]))
    legend = figure.legend(
        handles=handles, title=title, loc="outside upper center", ncols=4, fontsize=8, title_fontsize=8
    )
    legend.get_title().set_multialignment("center")


def save(figure, path):
    """As PNG and as PDF."""
    figure.savefig(path.with_suffix(".png"))
    figure.savefig(path.with_suffix(".pdf"))
    plt.close(figure)
    print(path.with_suffix(".png"))


def write(rows, out):
    """All figures, into OUT/figures."""
    place = out / "figures"
    place.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        gallery(place / "gallery")
        if any(row["cell"]["weight"] != "real" for row in rows):
            accuracy(rows, place / "accuracy")
            flip_rates(rows, place / "flips")
            latents(rows, place / "latents")


if __name__ == "__main__":
    from experiments.estimators.rows import read

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    with output.command():
        write(read(out / "rows.jsonl"), out)
