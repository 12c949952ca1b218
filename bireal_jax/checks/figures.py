"""Figures of a run as SVG in the colours of the page around them, light or dark."""

import html
import io
import json
import re
import warnings
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
    "text.parse_math": False, "svg.hashsalt": "bireal", "font.family": "sans-serif",
    "axes.facecolor": "none", "figure.facecolor": "none",
    **{f"{what}.color": INK for what in ("text", "xtick", "ytick", "grid")},
    "axes.edgecolor": INK, "axes.labelcolor": INK,
}  # fmt: skip
SPLITS = {"train": BLUE, "eval": ORANGE}
SIZES = {1: (4.8, 2.7), 2: (4.8, 2.7), 3: (3.6, 2.7)}  # panels beside each other -> width and height of each in inches
LARGER, SMALLER = 1.25, 0.7  # times its size that a panel has at most and at least; smaller, nobody reads its text
SHORT = 20  # values of a curve whose worst tenth is less than two of them
NEAR, FAR = 8, 300  # times from the lowest to the highest value of an axis that has equal steps, or powers of ten alone
NAME, LETTERS = 20, 50  # letters of a stage's name, and of those that have room above a panel


def svg(draw: Callable[[Any], None], panels: int, title: str = "", size: tuple[float, float] | None = None) -> str:
    """Panels, an SVG element each: side by side on a screen, below each other on a phone.

    Args:
      draw: of the matplotlib axes, one for each panel.
      panels: how many.
      title: what it shows, for those who do not see it; before the title of each panel.
      size: of a panel, width and height in inches.

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
        drawn = [plt.subplots(figsize=size or SIZES[panels]) for _ in range(panels)]
        for _, axis in drawn:
            axis.grid(axis="y", alpha=0.15, lw=0.6)
        draw([axis for _, axis in drawn])
        parts = [_element(figure, ": ".join(filter(None, (title, axis.get_title())))) for figure, axis in drawn]
        for figure, _ in drawn:
            plt.close(figure)
    return f'<div class="panels">{"".join(parts)}</div>'


def _element(figure, title):
    """A figure as an element that is as wide as there is room."""
    text = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser, which draws the text, has other fonts
        figure.savefig(text, format="svg", metadata={"Date": None})
    found = text.getvalue()
    found = found[found.index("<svg") :].replace(INK, "currentColor")
    found = re.sub(r"#000000", "currentColor", found)
    width = 96 * figure.get_figwidth()  # CSS has 96 pixels an inch
    style = f"width:100%; max-width:{LARGER * width:.0f}px; min-width:{SMALLER * width:.0f}px; height:auto"
    return found.replace("<svg", f'<svg role="img" aria-label="{html.escape(title)}" style="{style}"', 1)


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


def begins(rows: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Stage -> the step at which it begins, counted over all stages."""
    ends: dict[int, int] = {}
    for row in rows:
        stage = row.get("stage", 0)
        ends[stage] = max(ends.get(stage, 0), row["step"])
    return {stage: sum(end for other, end in ends.items() if other < stage) for stage in sorted(ends)}


def curve(rows: Iterable[Mapping[str, Any]], split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, counted over all stages, and the values of a metric."""
    rows = list(rows)
    before = begins(rows)
    found = [(before[r.get("stage", 0)] + r["step"], r[name]) for r in rows if r["split"] == split and name in r]
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.asarray(steps), np.asarray(values, float)


def dots(axis: Any, values: Sequence[float] | np.ndarray, colour: str, label: str | None = None) -> None:
    """Values of layers, which are numbered from 1 on: no line goes from one to the next."""
    axis.margins(y=0.1)
    axis.plot(np.arange(1, len(values) + 1), values, "o", color=colour, ms=5, label=label)
    axis.xaxis.get_major_locator().set_params(integer=True)


def titled(task: Any) -> str:
    """What a `metrics.Task` is measured in, with its unit."""
    return f"{task.title}, {task.form.split()[-1]}"


def plain_log(axis: Any) -> None:
    """A logarithmic axis whose ticks are plain numbers: of losses within a decade, too, which have no power of ten."""
    from matplotlib import ticker

    if not np.isfinite(axis.dataLim.minposy):  # no loss is a number above 0
        return
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    if high / low < NEAR:
        axis.yaxis.set_major_locator(ticker.MaxNLocator(6, steps=[1, 2, 5, 10]))
    else:
        axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1.0,) if high / low > FAR else (1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.set_minor_locator(ticker.NullLocator())


def limits(values: np.ndarray, better: int) -> tuple[float, float] | None:
    """Of an axis without the worst tenth of a curve, its beginning, which would make a flat strip of the rest.

    Short curves are shown whole, and so are those of which the worst tenth takes little room.
    """
    values = better * values[np.isfinite(values)]
    if not len(values):
        return None
    lowest, low, high = values.min(), np.quantile(values, 0.1, method="lower"), values.max()
    if len(values) < SHORT or high - lowest < 1.25 * (high - low):
        low = lowest
    margin = 0.05 * (high - low) or 1.0
    first, last = sorted((better * (low - margin), better * (high + margin)))
    return float(first), float(last)


def curves(rows: Sequence[Mapping[str, Any]], task: Any, stages: Sequence[str] = ()) -> str:
    """Loss, the metric of the task, and how many weights flip, over the steps.

    Args:
      rows: as of `lines`.
      task: a `metrics.Task`.
      stages: names of the stages, whose begin is marked; () for a run without stages.
    """
    shown = {"loss": "loss", task.metric: titled(task), "flipped": "weights that flipped, %"}
    shown = {name: label for name, label in shown.items() if any(name in row for row in rows)}
    last = max((int(curve(rows, split, name)[0].max(initial=0)) for split in SPLITS for name in shown), default=0)

    def draw(axes):
        for axis, (name, label) in zip(axes, shown.items(), strict=True):
            values = [
                _line(axis, *curve(rows, split, name), split, 100 if name == "flipped" else 1) for split in SPLITS
            ]
            axis.set(title=label, xlabel="step", xlim=(-0.03 * last, 1.03 * last))
            if name == "loss":
                plain_log(axis)
                axis.legend()
            elif name == "flipped":
                axis.set_ylim(0, None if np.nanmax(np.concatenate(values), initial=0) else 1)
            else:
                _without_beginning(axis, values, task.better)
            axis.xaxis.get_major_locator().set_params(integer=True)
            _mark(axis, begins(rows), stages, last)

    return svg(draw, len(shown), "over the steps")


def _line(axis, steps, values, split, times):
    """Draws a curve, with its points where they are few, and gives what it has drawn."""
    if len(steps):
        mark = "o" if len(steps) < (30 if split == "eval" else 3) else None
        axis.plot(steps, times * values, color=SPLITS[split], lw=1.4, marker=mark, ms=3, label=split)
    return values


def _without_beginning(axis, drawn, better):
    found = [ends for values in drawn if (ends := limits(values, better))]
    if not found:
        return
    low, high = min(low for low, _ in found), max(high for _, high in found)
    axis.set_ylim(low, high)
    values = np.concatenate(drawn)
    if np.nanmin(values) < low or np.nanmax(values) > high:
        axis.set_title(f"{axis.get_title()}; not its worst tenth")


def _mark(axis, places, names, last):
    """A line where a stage begins, and the names of the stages above."""
    if not names:
        return
    above = axis.secondary_xaxis("top")
    above.spines["top"].set_visible(False)
    for place in list(places.values())[1:]:
        axis.axvline(place, color=INK, alpha=0.5, lw=0.8, ls=":")
    shown = [names[stage][:NAME] if stage < len(names) else f"stage {stage}" for stage in places]
    gaps = np.diff([*places.values(), last]) / max(1, last)
    crowded = any(len(name) > gap * LETTERS for name, gap in zip(shown, gaps, strict=True))
    look = {"rotation": 30, "rotation_mode": "anchor"} if crowded else {}
    above.set_xticks([*places.values()], shown, size=7, ha="left", **look)
    above.tick_params(length=0, pad=1)
