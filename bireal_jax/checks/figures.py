"""Figures of a run as SVG in the colours of the page around them, light or dark."""

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bireal_jax.errors import BadInput

BLUE, ORANGE, GREEN, *_ = COLOURS = ("#3b82c4", "#d9822b", "#2f9e77", "#b65fa0", "#8a94a3", "#c94f4f")
INK = "#010203"  # stands for the colour of the page's text
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none",
    "figure.constrained_layout.use": True, "legend.frameon": False, "savefig.transparent": True,
    "svg.hashsalt": "bireal", "font.family": "sans-serif", "axes.facecolor": "none", "figure.facecolor": "none",
    **{f"{what}.color": INK for what in ("text", "xtick", "ytick", "grid")},
    "axes.edgecolor": INK, "axes.labelcolor": INK,
}  # fmt: skip


SIZE = (11.25, 2.7)  # inches: the width of the page


def svg(draw: Callable[[Any], None], panels: int, title: str = "", size: tuple[float, float] = SIZE) -> str:
    """An SVG element with some panels side by side.

    Args:
      draw: of the array of matplotlib axes.
      panels: how many.
      title: what it shows, for those who do not see it.
      size: of all panels together, width and height in inches.

    Raises:
      BadInput: matplotlib is missing.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        raise BadInput("figures need matplotlib, which is missing; pip install matplotlib") from None
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, panels, squeeze=False, figsize=size)
        for axis in axes[0]:
            axis.grid(axis="y", alpha=0.15, lw=0.6)
        draw(axes[0])
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        plt.close(figure)
    found = text.getvalue()
    found = found[found.index("<svg") :].replace(INK, "currentColor")
    found = re.sub(r"#000000", "currentColor", found)
    return found.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)


def lines(workdir: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl of a run says; [] where it has none.

    Raises:
      BadInput: a line is no JSON object.
    """
    path = workdir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        found = [json.loads(line) for line in path.read_text().splitlines()]
        if not all(isinstance(line, dict) and {"step", "split"} <= line.keys() for line in found):
            raise ValueError("a line is no row of metrics")
        return found
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} is damaged ({error}); --mode=verify tells more of the run") from None


def curve(rows: Iterable[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, counted over all stages, and the values of a metric."""
    ends: dict[int, int] = {}
    rows = list(rows)
    for row in rows:
        stage = row.get("stage", 0)
        ends[stage] = max(ends.get(stage, 0), row["step"])
    before = {stage: sum(end for other, end in ends.items() if other < stage) for stage in ends}
    found = [(before[r.get("stage", 0)] + r["step"], r[name]) for r in rows if r["split"] == split and name in r]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps), np.asarray(values, float)


def dots(axis: Any, values: Sequence[float] | np.ndarray, colour: str, label: str | None = None) -> None:
    """Values of layers, which are numbered from 1 on: no line goes from one to the next."""
    axis.margins(y=0.1)
    axis.plot(np.arange(1, len(values) + 1), values, "o", color=colour, ms=5, label=label)
    axis.xaxis.get_major_locator().set_params(integer=True)


def limits(values: np.ndarray, better: int) -> tuple[float, float] | None:
    """Of an axis without the worst tenth of a curve, its beginning, which would make a flat strip of the rest."""
    values = better * values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, 0.1, method="lower"), values.max()
    margin = 0.05 * (high - low) or 1.0
    first, last = sorted((better * (low - margin), better * (high + margin)))
    return float(first), float(last)


def curves(rows: Sequence[Mapping[str, Any]], metric: str, title: str, better: int) -> str:
    """Loss, the metric of the task, and how many weights flip, over the steps; `better` is 1 or -1, as of a `Task`."""

    def draw(axes):
        for axis, name, label in zip(
            axes, ("loss", metric, "flipped"), ("loss", title, "weights that flipped, %"), strict=True
        ):
            for split, colour in (("train", BLUE), ("eval", ORANGE)):
                steps, values = curve(rows, split, name)
                if len(steps):
                    values = 100 * values if name == "flipped" else values
                    mark = "o" if split == "eval" and len(steps) < 30 else None
                    axis.plot(steps, values, color=colour, lw=1.4, marker=mark, ms=3, label=split)
            axis.set(title=label, xlabel="step")
        axes[0].set_yscale("log")
        both = np.concatenate([curve(rows, split, metric)[1] for split in ("train", "eval")])
        axes[1].set_ylim(limits(both, better))
        if axes[0].get_legend_handles_labels()[0]:
            axes[0].legend()

    return svg(draw, 3, "loss, accuracy and flipped weights over the steps")
