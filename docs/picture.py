"""Draws picture.svg, what a 1-bit network is and what it costs, in light and dark, for screens and phones.

    python docs/picture.py

The times are medians of experiments/speed/inference.jsonl: the newest row of Bi-Real Net 18, one image, one core, with
all engines. The sizes are those that `--mode=cost` counts.
"""

import json
from pathlib import Path
from statistics import median

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle

DOCS = Path(__file__).parent
ENGINES = {
    "ours_int16": "ours, 1-bit, rest int16", "ours": "ours, 1-bit, rest float32", "openvino_binary": "OpenVINO, 1-bit",
    "onnxruntime_int8": "onnxruntime, int8", "onnxruntime_float32": "onnxruntime, float32",
}  # fmt: skip
LIGHT = {
    "ink": "#1f2933", "soft": "#8a94a3", "card": "#ffffff", "on": "#2f6fb3", "off": "#e8c06a", "theirs": "#b9c2ce",
}  # fmt: skip
DARK = {
    "ink": "#e6e9ee", "soft": "#8a94a3", "card": "#131416", "on": "#5b9bd8", "off": "#d9a94a", "theirs": "#566170",
}  # fmt: skip


def times() -> dict[str, float]:
    """Milliseconds for each of ENGINES."""
    rows = [json.loads(line) for line in (DOCS.parent / "experiments/speed/inference.jsonl").read_text().splitlines()]
    fit = [
        r for r in rows if (r["model"], r["batch"], r["threads"]) == ("bireal18", 1, 1) and ENGINES.keys() <= r.keys()
    ]
    return {name: median(fit[-1][name]) for name in ENGINES}


def block(axes, colour):
    """One layer of Bi-Real Net: sign, 1-bit convolution, batch norm, and the real-valued values that go around it."""
    axes.set(xlim=(0, 10), ylim=(-0.7, 10), title="One layer: 1-bit products,\na real-valued path around them")
    axes.axis("off")
    arrow = {"arrowstyle": "-|>", "color": colour["ink"], "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    for y, text, fill in ((7.0, "sign", "on"), (4.55, "1-bit convolution", "on"), (2.1, "batch norm", "theirs")):
        axes.add_patch(
            FancyBboxPatch((0.4, y - 0.65), 5.4, 1.3, "round,pad=0,rounding_size=.3", fc=colour[fill], ec="none")
        )
        axes.text(
            3.1, y, text, ha="center", va="center", color="#ffffff" if fill == "on" else colour["ink"], weight="bold"
        )
    for y, end in ((9.6, 7.68), (6.32, 5.23), (3.87, 2.78), (1.42, -0.6)):
        axes.annotate("", (3.1, end), (3.1, y), arrowprops=arrow)
    axes.plot([3.1, 9.3, 9.3], [8.9, 8.9, 0.75], color=colour["ink"], lw=1.4)
    axes.annotate("", (3.3, 0.75), (9.3, 0.75), arrowprops=arrow)
    axes.text(3.1, 0.75, "+", ha="center", va="center", color=colour["ink"], size=13, weight="bold",
              bbox={"boxstyle": "circle,pad=.12", "fc": colour["card"], "ec": colour["ink"]})  # fmt: skip
    axes.text(8.95, 5.8, "shortcut, real-valued", rotation=90, ha="center", va="center", color=colour["soft"])
    for i, bit in enumerate(np.random.default_rng(3).integers(0, 2, 9)):  # a filter of +1 and -1
        axes.add_patch(
            Rectangle((6.3 + 0.62 * (i % 3), 3.65 + 0.62 * (i // 3)), 0.56, 0.56, fc=colour["on" if bit else "off"])
        )
    axes.text(7.2, 3.0, "+1, −1", ha="center", color=colour["soft"])


def derivative(axes, colour):
    """The sign and what stands in for its derivative."""
    x = np.linspace(-1.8, 1.8, 400)
    axes.plot(x, np.where(x >= 0, 1, -1), color=colour["ink"], lw=2, label="forward: sign")
    d = np.maximum(0, 2 - 2 * np.abs(x))
    axes.fill_between(x, d, color=colour["on"], alpha=0.25)
    axes.plot(x, d, color=colour["on"], lw=2, label="backward: ApproxSign")
    axes.plot(x, np.abs(x) <= 1, color=colour["off"], lw=2, ls="--", label="backward: clipped STE")
    axes.set(
        ylim=(-1.3, 3.9),
        yticks=[-1, 0, 1, 2],
        xticks=[-1, 0, 1],
        title="How it is trained: a derivative\nstands in for that of the sign",
    )
    axes.legend(frameon=False, loc="upper left", labelcolor=colour["ink"])
    axes.spines[["top", "right"]].set_visible(False)


def bars(axes, colour):
    """Milliseconds an image."""
    found = times()
    for row, (name, ms) in enumerate(found.items()):
        ours = name.startswith("ours")
        axes.barh(row, ms, color=colour["on" if ours else "theirs"], height=0.62)
        axes.text(ms + 0.6, row, f"{ms:.1f} ms", va="center", color=colour["ink"], weight="bold" if ours else "normal")
    axes.set(yticks=range(len(found)), yticklabels=ENGINES.values(), xticks=[], xlim=(0, 1.3 * max(found.values())),
             title="What it is for: 18 layers at 224 px,\none CPU core; 4.2 MB instead of 46.8 MB")  # fmt: skip
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def draw(colour: dict[str, str], path: Path, narrow: bool = False) -> None:
    """The picture in these colours; narrow: one part below the other, to be read on a phone."""
    ink = {
        name: colour["ink"]
        for name in ("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.titlecolor")
    }
    plain = {
        "svg.hashsalt": "bireal_jax",
        "font.size": 9.5,
        "axes.titlesize": 11,
        "axes.edgecolor": colour["soft"],
        "axes.facecolor": "none",
    }
    with mpl.rc_context(ink | plain | {"axes.titleweight": "bold"}):
        figure = plt.figure(figsize=(4.4, 9.6) if narrow else (12, 3.7), layout="constrained")
        figure.patch.set(alpha=0)
        figure.get_layout_engine().set(w_pad=0.2, h_pad=0.12)
        if narrow:
            axes = [part.subplots() for part in figure.subfigures(3, height_ratios=[1.25, 1, 0.8])]
            axes[2].title.set_x(0.3)  # of the bars, which begin behind their names
        else:
            axes = figure.subplots(1, 3, width_ratios=[1, 1, 1.15])
        for room, fill in zip(axes, (block, derivative, bars), strict=True):
            fill(room, colour)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    for name, colour in (("picture", LIGHT), ("picture-dark", DARK)):
        draw(colour, DOCS / f"{name}.svg")
        draw(colour, DOCS / f"{name}-narrow.svg", narrow=True)
