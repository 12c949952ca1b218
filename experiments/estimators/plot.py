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
    """Dots with 95 % intervals: one panel an architecture and optimizer, x is init and activation, colour the rule."""
    binary = [r for r in rows if r["cell"]["weight"] != "real"]
    archs, optimizers, weights = (ordered(binary, axis) for axis in ("arch", "optimizer", "weight"))
    places = list(itertools.product(ordered(binary, "init"), ordered(binary, "act")))
    figure, axes = plt.subplots(
        len(optimizers), len(archs), squeeze=False, sharex=True, sharey="row",
        figsize=(0.8 + max(2.1, 0.7 * len(places)) * len(archs), 1.1 + 1.9 * len(optimizers)),
    )  # fmt: skip
    for (i, optimizer), (j, arch) in itertools.product(enumerate(optimizers), enumerate(archs)):
        axis = axes[i, j]
        for k, weight in enumerate(weights):
            offset = (k - (len(weights) - 1) / 2) * 0.2
            for place, (init, act) in enumerate(places):
                cell = dict(zip(AXES, (arch, init, weight, act, optimizer), strict=True))
                values = [r["top1"] for r in binary if r["cell"] == cell]
                if values:
                    mean, low, high = bounds(values)
                    axis.plot([place + offset] * len(values), values, ".", color=COLOURS[k], ms=5, alpha=0.35, mew=0)
                    axis.errorbar(
                        place + offset, mean, [[mean - low], [high - mean]], fmt=MARKERS[k], color=COLOURS[k], ms=4,
                        lw=1, capsize=2,
                    )  # fmt: skip
        axis.set_xticks(range(len(places)), [f"{init}\n{act}" for init, act in places], fontsize=7)
        axis.grid(axis="y", color="0.9", lw=0.6)
        axis.set_ylim(max(0, axis.get_ylim()[0]), min(100, axis.get_ylim()[1]))
        axis.set_title(f"{arch}, {optimizer}", family="monospace", fontsize=8)
        if j == 0:
            axis.set_ylabel("test top-1, %")
    handles = [
        axes[0, 0].plot([], [], MARKERS[k], color=COLOURS[k], ms=4, label=weight)[0] for k, weight in enumerate(weights)
    ]
    _legend(figure, handles, "weight rule")
    save(figure, path)


def flip_rates(rows, path):
    """Share of binary weights that flip an epoch, mean and range over seeds, network by derivative and optimizer."""
    binary = [r for r in rows if r["cell"]["weight"] != "real" and r["flipped"]]
    if not binary:
        return
    archs, optimizers, weights = (ordered(binary, axis) for axis in ("arch", "optimizer", "weight"))
    init, lines = ordered(binary, "init")[-1], list(itertools.product(optimizers, ordered(binary, "act")))
    figure, axes = plt.subplots(
        len(lines), len(archs), squeeze=False, sharex=True, sharey=True,
        figsize=(0.8 + max(2.3 * len(archs), 3.6), 1.0 + 1.7 * len(lines)),
    )  # fmt: skip
    for (i, (optimizer, act)), (j, arch) in itertools.product(enumerate(lines), enumerate(archs)):
        axis = axes[i, j]
        for k, weight in enumerate(weights):
            cell = dict(zip(AXES, (arch, init, weight, act, optimizer), strict=True))
            curves = 100 * np.asarray([r["flipped"] for r in binary if r["cell"] == cell])
            if len(curves):
                epochs = np.arange(1, curves.shape[1] + 1)
                axis.fill_between(epochs, curves.min(0), curves.max(0), color=COLOURS[k], alpha=0.15, lw=0)
                axis.plot(epochs, curves.mean(0), ".-", ms=3, color=COLOURS[k], lw=1.3, label=weight)
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        axis.set_yscale("symlog", linthresh=0.1)
        axis.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"], minor=False)
        axis.set_ylim(0, 200 * max(max(r["flipped"]) for r in binary))
        axis.grid(axis="y", color="0.9", lw=0.6)
        axis.set_title(f"{arch}, {act},\n{optimizer}", family="monospace", fontsize=8)
        if j == 0:
            axis.set_ylabel("flipped an epoch, %")
        if i == len(lines) - 1:
            axis.set_xlabel("epoch")
    legend(figure, axes, f"weight rule (init {init})")
    save(figure, path)


def latents(rows, path):
    """Histograms of the latent weights at the end, all seeds together: a panel an init, derivative and optimizer."""
    from experiments.estimators.rows import HISTOGRAM

    binary = [r for r in rows if r["cell"]["weight"] != "real"]
    arch = ordered(binary, "arch")[0]
    inits, optimizers, weights = (ordered(binary, axis) for axis in ("init", "optimizer", "weight"))
    lines = list(itertools.product(optimizers, ordered(binary, "act")))
    low, high, bins = HISTOGRAM
    edges = np.linspace(low, high, bins + 1)
    figure, axes = plt.subplots(
        len(lines), len(inits), squeeze=False, sharex=True, sharey=True,
        figsize=(0.8 + max(2.8 * len(inits), 4.0), 1.0 + 1.7 * len(lines)),
    )  # fmt: skip
    for (i, (optimizer, act)), (j, init) in itertools.product(enumerate(lines), enumerate(inits)):
        axis = axes[i, j]
        start = [
            r["latents"]
            for r in rows
            if r["cell"]["weight"] == "real" and r["cell"]["init"] == init and r["cell"]["arch"] == arch
        ]
        if start:
            counts = np.sum(start, 0)
            axis.stairs(counts / counts.sum() * 100, edges, color="0.85", fill=True, label="at the start", lw=0)
        for k, weight in enumerate(weights):
            cell = dict(zip(AXES, (arch, init, weight, act, optimizer), strict=True))
            found = [r["latents"] for r in binary if r["cell"] == cell]
            if found:
                counts = np.sum(found, 0)
                axis.stairs(counts / counts.sum() * 100, edges, color=COLOURS[k], lw=1.2, label=weight)
        axis.set_title(f"{init}, {act},\n{optimizer}", family="monospace", fontsize=8)
        if j == 0:
            axis.set_ylabel("% of the weights")
        if i == len(lines) - 1:
            axis.set_xlabel("latent weight")
    totals = np.sum([r["latents"] for r in binary], 0)
    shown = np.flatnonzero(totals > 5e-4 * totals.sum())
    axes[0, 0].set_xlim(edges[shown[0]], edges[shown[-1] + 1])
    legend(figure, axes, arch)
    save(figure, path)


def legend(figure, axes, title):
    """One legend above all panels, of what is in any of them."""
    found = {}
    for axis in axes.flat:
        found |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    _legend(figure, list(found.values()), title)


def _legend(figure, handles, title):
    figure.legend(handles=handles, title=title, loc="outside upper center", ncols=4, fontsize=8, title_fontsize=8)


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
