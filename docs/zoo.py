"""python docs/zoo.py: the model cards of docs/zoo.md, from the rows of the networks that come with the package."""

from pathlib import Path

import jax
import jax.numpy as jnp

from bireal_jax import models
from bireal_jax.runtime import container, named
from bireal_jax.shipping import cost

PAGE = Path(__file__).with_name("zoo.md")
MARK = "<!-- python docs/zoo.py writes what follows -->\n"
COLUMNS = ("parameters", "1-bit", "memory", "FLOPs", "BOPs", "OPs")


def page(text: str) -> str:
    """A page with the cards behind the mark made anew."""
    assert MARK in text
    return text.split(MARK)[0] + MARK + "\n" + "\n".join([table(), *(card(name) for name in named.rows())])


def table() -> str:
    """All networks, a line each."""
    lines = ["| name | network | data | top-1 | packed | float weights |", "|---|---|---|---:|---:|---|"]
    for name, row in named.rows().items():
        size = (named.PLACE / next(iter(row.packed))).stat().st_size
        kept = "yes" if row.weights else "±1 alone"
        lines.append(
            f"| [{name}](#{name}) | `{row.model}` | {row.data} | {row.top1:.2f} % | {size / 1000:,.0f} KB | {kept} |"
        )
    return "\n".join(lines) + "\n"


def card(name: str) -> str:
    """What is known of one network."""
    row = named.rows()[name]
    program = container.parse(named.packed(name))
    seeds = [row.last_top1, *row.others]
    classes = len(program.spec["labels"])
    several = f"; {len(seeds)} seeds: {', '.join(f'{v:.2f}' for v in seeds)}" if row.others else "; one seed"
    log = f"experiments/logs/{name}.jsonl"
    took = f", {row.seconds:,} s" if row.seconds else ""
    sums = cost.total(layers(row, program.shape(0)))
    cells = (
        f"{sums.parameters:,}", f"{sums.binary:,}", f"{sums.memory / 8e3:,.1f} KB", f"{sums.flops:,}", f"{sums.bops:,}",
        f"{sums.ops:,.0f}",
    )  # fmt: skip
    side = "x".join(map(str, program.shape(0)))
    return f"""## {name}

- Network: `{row.model}`, activations `{row.act}`, weights `{row.weight}`, images {side}, {classes} classes.
- Top-1 on all test images of {row.data}: **{row.top1:.2f} %**, of the packed file, by the engine. The training said
  {row.trained_top1:.2f} % for these weights and {row.last_top1:.2f} % after its last step{several}.
- Trained for {row.epochs} epochs on {row.date}, with seed {row.seed}{took}, on {row.where}, with commit `{row.commit}`:
  `python -m bireal_jax.main {row.recipe}`. Log: [{log}](../{log}).
- Licence: {row.licence}
- Limits: {row.limits}

| {" | ".join(COLUMNS)} |
|{"---:|" * len(COLUMNS)}
| {" | ".join(cells)} |
"""


def layers(row, image_shape):
    """Rows of its cost table."""
    module = models.build(row.model, 10, jnp.float32, act=row.act, weight=row.weight)
    shapes = jax.eval_shape(lambda key: module.init(key, jnp.zeros((1, *image_shape))), jax.random.key(0))
    return cost.rows(module, shapes, image_shape)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    PAGE.write_text(page(PAGE.read_text()))
