"""One HTML page of a run, complete in itself: curves, layers, weights, mistakes, cost, packed file, versions."""

import base64
import html
import io
import os
import re
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from bireal_jax import config as config_lib
from bireal_jax import models, places, recipe, used
from bireal_jax._version import __version__
from bireal_jax.binary import losses
from bireal_jax.checks import figures, layers, versions
from bireal_jax.checks.page import PAGE, details, section, table
from bireal_jax.data import batching
from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import known, metrics, progress, workdir
from bireal_jax.runtime import container
from bireal_jax.shipping import accuracy, cost, export, formats

PROBED = 64  # images whose maps are looked at in every layer
JUDGED = 10_000  # images of the confusion matrix, at most
MISTAKES = 12
NAME = 24  # letters of a class beside it
FITS = 18  # letters of a file's name below its picture
LARGEST = 30  # classes of a confusion matrix that is drawn whole


def run(config: ConfigDict, directory: Path, out: Path | None = None, given: Collection[str] | None = None) -> Path:
    """Writes the page of a run: report.html in its workdir, or `out`.

    Args:
      config, given: as of `used.weights`.
      directory: the workdir.
      out: the file.

    Returns:
      The file.

    Raises:
      BadInput: no weights there, or the data set is not at hand; matplotlib is missing; it cannot be written.
    """
    out = out or directory / "report.html"
    use, before = used.weights(config, directory, given), known.read(directory)
    rows, task = figures.lines(directory), metrics.task(use.source.depth_range)
    supernet = use.config.model.name in models.SUPERNETS
    packed = b"" if supernet else container.dump(export.packed(use))
    mistakes, share = ([], None) if use.source.depth_range else _mistakes(use)
    sections = [
        _head(use, before, directory, rows, task, share),
        section("Training", figures.curves(rows, task, _stages(before))) if rows else "",
        section("Binary layers", *_layers(use, directory, packed)) if packed else "",
        section("Weights", *_weights(use)),
        section("Where it errs", *mistakes) if mistakes else "",
        section("Cost", *_cost(use)),
        section("Packed file", _packed(use, packed)) if packed else "",
        section("Made by", _made_by(before, directory)),
    ]
    workdir.write(
        out, PAGE.format(title=html.escape(f"{use.config.model.name}, {directory}"), body="\n".join(sections))
    )
    progress.say(f"{out}: open it in a browser")
    return out


def _stages(before):
    """Names of the stages of a run; [] where it has none."""
    count = len(before.config.stages) if before else 0
    return [config_lib.stage_name(before.config, i) for i in range(count)]


def _head(use, before, directory, rows, task, share):
    """What it is, and the numbers that one asks for first: those of its run, or else the `share` of right answers."""
    path = directory / "result.json"
    result = places.read_json(path) if path.is_file() else {}
    last = [row for row in rows if row["split"] == "eval"][-1:]
    scores, stages, numbers = result or (last[0] if last else {}), _stages(before), []
    of = f" of stage {stages[rows[-1].get('stage', 0)]}" if rows and stages else ""
    if task.metric in scores:
        what = "after the last step" if result else f"so far, step {last[0]['step']:,}{of}: the training has not ended"
        numbers.append((task.form.format(scores[task.metric]), f"{use.source.split} {task.title}, {what}"))
    elif share is not None:
        numbers.append((task.form.format(100 * share), f"{use.source.split} {task.title}, counted for this page"))
    if f"best_{task.metric}" in scores:
        numbers.append(
            (task.form.format(scores[f"best_{task.metric}"]), f"best evaluation, step {scores['best_step']:,}{of}")
        )
    total = cost.total(cost.rows(use.model, use.variables, use.source.image_shape))
    numbers += [
        (
            f"{total.memory / 8192:,.0f} KiB",
            f"of {total.parameters:,} parameters, {total.binary / total.parameters:.1%} in 1 bit",
        ),
        (f"{total.ops / 1e6:,.2f} M OPs", "FLOPs + BOPs / 64, an image"),
    ]
    shown = "".join(f"<div><b>{html.escape(str(value))}</b>{html.escape(name)}</div>" for value, name in numbers)
    c = use.config
    place = f"{c.data.name} {c.data.dir}".strip()
    data = f"{place}, {len(use.source.train):,} training and {len(use.source.eval):,} {use.source.split} images"
    return (
        f"<h1>{html.escape(c.model.name)} on {html.escape(Path(c.data.dir).name or c.data.name)}</h1>\n"
        f'<p class="soft">{html.escape(str(directory))}: '
        f"{html.escape(data)}; "
        f"weights of {html.escape(use.origin)}</p>\n"
        f'<div class="numbers">{shown}</div>'
    )


def _layers(use, directory, packed):
    """Inputs of the signs on images, and how many weights flipped from the oldest checkpoint to the newest."""
    images = export.evenly(use.source, PROBED)
    found = layers.signs(packed, images)
    if not found:
        return ["<p>The network has no binary layers.</p>"]
    epoch_steps = len(use.source.train) / use.config.batch_size
    flipped, between = flips(directory, jax.eval_shape(lambda v: v, use.variables), epoch_steps)
    none = bool(flipped) and not any(flipped.values())
    shown = not none and flipped

    def draw(axes):
        for values, label, colour in (
            ([x.inside for x in found], "inside ±1", figures.BLUE),
            ([x.dead for x in found], "dead channels", figures.ORANGE),
        ):
            figures.dots(axes[0], 100 * np.asarray(values), colour, label)
        axes[0].set(title="sign's inputs, %", xlabel="sign, from the image on", ylim=(-3, 103))
        axes[0].figure.legend(loc="outside lower center", ncols=2)  # points lie anywhere in the panel
        figures.dots(axes[1], [x.deviation for x in found], figures.GREEN)
        axes[1].set(title="their standard deviation", xlabel="sign, from the image on")
        axes[1].set_ylim(0, axes[1].get_ylim()[1])
        if shown:
            figures.dots(axes[2], 100 * np.asarray([*flipped.values()]), figures.BLUE)
            axes[2].set(title=f"weights flipped, %, steps {between}", xlabel="binary layer, from the image on")
            axes[2].set_ylim(0, axes[2].get_ylim()[1])

    text = (
        f"On {len(images)} {use.source.split} images. Gradients pass where the derivative that stands in for sign's is "
        "not 0, for most rows of the tables inside ±1: a layer with few inputs there learns little. A channel that has "
        "one sign for every image and pixel is dead: it carries nothing."
    )
    rows = [(x.path, f"{100 * x.inside:.1f} %", f"{x.deviation:.2f}", f"{100 * x.dead:.1f} %") for x in found]
    return [
        f"<p>{text}</p>", figures.svg(draw, 3 if shown else 2, "inputs of the signs, layer by layer"),
        f"<p>None of the 1-bit weights flipped from step {between.replace(' to ', ' to step ')}.</p>" if none else "",
        details("each of them", table(("sign", "inside ±1", "deviation", "dead channels"), rows)),
    ]  # fmt: skip


def flips(directory: Path, shapes: Any, epoch_steps: float) -> tuple[dict[str, float], str]:
    """Share of the weights of a layer that flipped, and between which steps; none where these are near each other."""
    both = layers.ends(directory, shapes)
    if len(both) < 2:
        return {}, ""
    (old, before), (new, after) = both
    if new - old < min(epoch_steps, new / 10):  # at the end of a training the rate is near 0: they say nothing
        return {}, ""
    return layers.flips(before, after), f"{old:,} to {new:,}"


def _weights(use):
    """Latent weights, and scales of batch norm."""
    latents, scales = ([*layers.leaves(use.variables, name)] for name in ("latent", "scale"))

    def draw(axes):
        if latents:
            bound = max(
                1e-9, float(np.quantile(np.concatenate([np.abs(w).ravel()[:20_000] for _, w in latents]), 0.995))
            )
            bins = np.linspace(-bound, bound, 61)
            for k, (_, w) in enumerate(latents):
                share = np.histogram(w, bins)[0] / w.size
                axes[0].plot(
                    (bins[1:] + bins[:-1]) / 2,
                    100 * share,
                    color=figures.BLUE,
                    lw=0.9,
                    alpha=0.25 + 0.75 * k / len(latents),
                )
            axes[0].set(title="latent weights, % a bin; later layers darker", xlabel="latent weight")
        if scales:
            values = [np.quantile(np.abs(s), (0.1, 0.5, 0.9)) for _, s in scales]
            low, middle, high = np.transpose(values)
            axes[1].vlines(np.arange(1, len(scales) + 1), low, high, color=figures.GREEN, alpha=0.5, lw=3)
            figures.dots(axes[1], middle, figures.GREEN)
            axes[1].set(title="|scale| of batch norm: median, 10 to 90 %", xlabel="batch norm, from the image on")

    if not latents and not scales:
        return ["<p>No latent weights and no batch norm.</p>"]
    return [figures.svg(draw, 2, "latent weights and scales of batch norm")]


def _mistakes(use):
    """Confusion matrix, and the images whose label got the smallest probability; and what share of all is right."""
    source, apply = use.source, accuracy.in_float32(use.model, use.variables, use.source)
    loss = losses.evaluation(use.config.loss)
    truth, said, lost, seen = [], [], [], 0
    for batch in batching.eval_batches(source, 64, devices=1, threads=use.config.data.threads):
        images, labels, mask = (batch[name][0] for name in ("image", "label", "mask"))
        logits, mask = apply(images), np.asarray(mask, bool)
        lost += [np.asarray(loss(logits, labels))[mask]]
        truth, said, seen = [*truth, labels[mask]], [*said, np.asarray(logits).argmax(-1)[mask]], seen + int(mask.sum())
        if seen >= JUDGED:
            break
    truth, said, lost = (np.concatenate(parts) for parts in (truth, said, lost))
    names = source.label_names or tuple(map(str, range(source.num_classes)))
    wrong = np.flatnonzero(truth != said)
    worst = wrong[np.argsort(-lost[wrong], kind="stable")][:MISTAKES]
    shown = "".join(_mistake(source, int(i), names[truth[i]], names[said[i]]) for i in worst)
    part = "" if seen == len(source.eval) else f" of {len(source.eval):,}"
    text = f"<p>{len(wrong):,} of {seen:,}{part} {source.split} images are taken for another class.</p>"
    mistakes = f'<div class="mistakes">{shown}</div>' if len(worst) else ""
    parts = [text, _confusion(truth, said, names), "<h3>The worst</h3>" if mistakes else "", mistakes]
    return parts, None if part else 1 - len(wrong) / seen


def _mistake(source, index, truth, said):
    """An image, and below it what it is, what it was taken for, and the file, or its place in the array."""
    example = source.eval[index]
    path = example.get("name", "") if isinstance(example, Mapping) else ""
    name = os.path.basename(path) or f"image {source.eval.place(index) if hasattr(source.eval, 'place') else index}"
    return (
        f'<figure><img alt="" src="{_png(source.prepare(example)["image"])}">'
        f'<figcaption>{html.escape(truth)}, taken for {html.escape(said)}<br><span class="soft" '
        f'title="{html.escape(path)}">{_broken(name)}</span></figcaption></figure>'
    )


def _broken(name):
    """The name of a file, which may be broken into lines behind its marks, where it is long."""
    text = html.escape(name)
    return re.sub(r"[_.-]", r"\g<0><wbr>", text) if len(name) > FITS else text


def _confusion(truth, said, names):
    """The matrix where it can be read, or the pairs of classes that are taken for each other most often."""
    matrix = np.zeros((len(names), len(names)), int)
    np.add.at(matrix, (truth, said), 1)
    if len(names) > LARGEST:
        apart = matrix - np.diag(np.diag(matrix))
        pairs = [np.unravel_index(i, apart.shape) for i in np.argsort(-apart, axis=None, kind="stable")[:20]]
        return table(
            ("class", "taken for", "images"), [(names[a], names[b], apart[a, b]) for a, b in pairs if apart[a, b]]
        )

    few, count, longest = len(names) <= 12, len(names), max(map(len, names))
    size, shown = 9 if few else 7, [name if len(name) <= NAME else name[: NAME - 1] + "…" for name in names]

    def draw(axes):
        axis = axes[0]
        for (a, b), images in np.ndenumerate(matrix):
            if not images:
                continue
            depth = 0.15 + 0.35 * (images / matrix[a].sum()) ** 0.5  # of the paper and the ink, light or dark
            colour = figures.BLUE if a == b else figures.ORANGE
            axis.broken_barh([(b - 0.5, 1)], (a - 0.5, 1), color=colour, alpha=depth, lw=0)
            axis.text(b, a, images, ha="center", va="center", size=size)
        axis.set_xticks(range(count), shown, rotation=90 if longest > 2 else 0, size=size)
        axis.set_yticks(range(count), shown, size=size)
        axis.set(xlabel="taken for", ylabel="class", aspect="equal", xlim=(-0.5, count - 0.5), ylim=(count - 0.5, -0.5))
        axis.grid(visible=False)

    side = 0.7 + (0.36 if few else 0.3) * count + 0.07 * min(longest, NAME)
    scale = '<p class="soft">The deeper a colour, the larger the share of the class.</p>'
    return figures.svg(draw, 1, "confusion matrix", (side, side)) + scale


def _png(image):
    text = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(text, "PNG")
    return "data:image/png;base64," + base64.b64encode(text.getvalue()).decode()


def _cost(use):
    head, *rows = cost.cells(cost.rows(use.model, use.variables, use.source.image_shape))
    return [details("layer by layer", table(head, rows))]


def _packed(use, packed):
    """What the export would say of it."""
    found = export.compare(use.model, use.variables, use.source, packed, export.evenly(use.source, export.CHECKED))
    count = min(len(use.source.eval), export.CHECKED)
    what, kernels = f"{use.source.split} images", f"{found['kernels']} kernels"
    said = formats.agreement(found, count, what, kernels, "the trained network").splitlines()
    return f"<p>{len(packed):,} bytes, {html.escape('; '.join(said))}.</p>"


def _made_by(before, directory):
    """Versions, and the command that repeats the run."""
    devices = jax.devices()
    what = f"{len(devices)} x {html.escape(devices[0].device_kind)}"
    parts = [f"<p>This page: bireal_jax {__version__}, {versions.shown()}, {what}.</p>"]
    if before:
        defaults, flat = config_lib.flat(config_lib.default().to_dict()), config_lib.flat(before.config.to_dict())
        fields = "\n".join(f"config.{k} = {v!r}" for k, v in sorted(flat.items()) if defaults.get(k) != v)
        parts += [
            "<p>Its fields, where they are not the defaults:</p>",
            f"<pre>{html.escape(fields)}</pre>",
            *_again(before, directory),
        ]
    return "\n".join(parts)


def _again(before, directory):
    """The command that repeats a run: a run does not know its recipe, unless that has registered something."""
    own = next(filter(None, before.registered.values()), "")
    try:
        words = recipe.repeating(before.config, own)
    except BadInput as error:
        return [f"<p>What repeats it needs its recipe: {html.escape(first_line(error))}.</p>"]
    whose = "its recipe" if own else "the recipe of the package that is nearest to it"
    lines = " \\\n  ".join(["python -m bireal_jax.main", *words, shlex.quote(f"--workdir={directory}_again")])
    return [f"<p>This repeats it, from {whose}:</p>", f"<pre>{html.escape(lines)}</pre>"]
