"""Ablation of gradient estimators: a grid of cells, so many seeds each, one row a run, a table and figures at the end.

    python -m experiments.estimators.run                                     the paper's grid on digits, under SGD
    python -m experiments.estimators.run --optimizer sgd:0.01 adam:0.001     and under Adam
    python -m experiments.estimators.run --arch bireal_tiny --act ste approx_sign swish_sign tanh triangle power
    python -m experiments.estimators.run --part 1/2                          half of the cells; 2/2 in another terminal
    python -m experiments.estimators.run --config configs/cifar10_sgd.py --config.data.dir=cifar10.npz ...

The seeds of a cell train as one vmapped program. A cell whose rows are in OUT/rows.jsonl is not trained again, and one
that was cut off goes on from its last checkpoint in OUT/cells, so the same command continues a grid that was cut off,
and adds what is new in a larger one. Networks that start from a
real-valued one (--init relu, clip) share it with the other cells of the same architecture: ReLU from scratch; for clip,
from there on through leaky clip to clip. These runs are rows too, with weight "real".
"""

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from bireal_jax import output
from bireal_jax.errors import BadInput
from bireal_jax.main import cache_compilations, keep_freed_memory
from bireal_jax.main import parse as parse_recipe
from bireal_jax.running import settings
from experiments.estimators import rows as rows_lib

BASE = "configs/digits.py"
PRETRAINED = ("relu", "clip")
INITS = (*PRETRAINED, "uniform_001", "glorot", "he")

# In front of a batch norm the gradient of these rules is 1/alpha times that of the plain one, or equal to it.
FAST, SLOW = ("released", "identity"), ("sign", "magnitude_aware", "through_scale")

# What a cell and the command line say, not the base recipe.
OVERRIDDEN = (
    "model.name", "model.act", "model.weight", "model.latent_init", "optim.name", "optim.lr", "optim.binary_lr",
    "total_epochs", "total_steps", "eval_epochs", "eval_steps", "log_epochs", "log_steps", "stages", "init_from",
    "seed",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of the grid. `optimizer` is NAME:LR, or NAME:LR:FACTOR with a factor for the rate of binary weights."""

    arch: str
    init: str
    weight: str
    act: str
    optimizer: str


def parse(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.estimators.run",
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--config", default=BASE, help="base recipe: data, batch size, schedule; own estimators")
    add("--arch", nargs="+", default=["bireal_tiny", "res_tiny", "plain_tiny"], help="keys of models.MODELS")
    what = "relu, clip: a pretrained real-valued network"
    add("--init", nargs="+", default=["relu", "clip"], choices=INITS, help=what)
    add("--weight", nargs="+", default=["sign", "magnitude_aware", "released"], help="keys of binarize.WEIGHTS")
    add("--act", nargs="+", default=["ste", "approx_sign"], help="keys of binarize.DERIVATIVES")
    add(
        "--optimizer", nargs="+", default=["sgd:0.01"],
        help="NAME:LR[:FACTOR], a factor for the rate of binary weights; 'matched' and 'slowed' give all weight rules "
        "one step, that of `released` or of `sign`: the factor is the mean of 1/alpha at the start, or its inverse",
    )  # fmt: skip
    add("--seeds", type=int, default=5, help="networks a cell, of seeds 0, 1, ...")
    add("--epochs", type=float, default=12.0, help="of the binary networks")
    add("--pretrain-epochs", type=float, nargs=3, default=[12.0, 4.0, 4.0], help="ReLU, leaky clip, clip")
    add("--pretrain-optimizer", default="sgd:0.1", help="of ReLU; leaky clip and clip take a tenth of the rate")
    add("--out", type=Path, default=Path("runs/estimators"), help="rows.jsonl, table.md, figures/, pretrained/")
    add("--part", default="1/1", help="I/N: the I-th of N shares of the cells, for several processes on one --out")
    add("--devices", type=int, default=0, help="virtual CPU devices for the seeds to divide over; 0: leave as it is")
    args, fields = parser.parse_known_args(argv)
    if wrong := [field for field in fields if not (field.startswith("--config.") and "=" in field)]:
        parser.error(f"unknown argument {wrong[0]}; fields of the base recipe are --config.FIELD=VALUE")
    args.fields = fields
    return args


def main(argv=None):
    """Trains what is missing, then writes table.md and the figures."""
    args = parse(argv)
    cache_compilations()
    keep_freed_memory()
    import jax

    if args.devices:
        jax.config.update("jax_num_cpu_devices", args.devices)
    try:
        from experiments.estimators import plot, table
    except ModuleNotFoundError as error:
        raise BadInput(f"{error}; pip install -e '.[experiments]' brings it") from None
    grid = Grid(args)
    grid.check()
    grid.train()
    rows = rows_lib.read(args.out / "rows.jsonl")
    table.write(rows, args.out)
    plot.write(rows, args.out)


class Grid:
    """The cells of one command, and where their rows are.

    Args:
      args: from `parse`.

    Raises:
      BadInput: the base recipe cannot be read or sets what a cell sets, or --part is not I/N.
    """

    epoch_steps = 1  # known after `check`

    def __init__(self, args):
        self.args, self.base = args, parse_recipe(["run", f"--config={args.config}", *args.fields])[0]
        for field in args.fields:
            if (name := field.split("=")[0].removeprefix("--config.")) in OVERRIDDEN:
                raise BadInput(f"{field}: the grid sets config.{name} itself; --help lists its own options")
        if self.base.stages or self.base.init_from:
            raise BadInput(f"{args.config} has stages or init_from; take a recipe without")
        self.seeds = list(range(args.seeds))
        cells = [Cell(*c) for c in itertools.product(args.arch, args.init, args.weight, args.act, args.optimizer)]
        try:
            part, parts = map(int, args.part.split("/"))
            self.cells = cells[part - 1 :: parts]
        except ValueError:
            raise BadInput(f"--part {args.part}: must be I/N, such as 1/2") from None
        if not 1 <= part <= parts or not self.seeds:
            raise BadInput(f"--part {args.part}, --seeds {args.seeds}: I must be from 1 to N, and seeds 1 or more")

    def check(self):
        """Raises BadInput for a cell that cannot work, before anything is trained."""
        from bireal_jax import build
        from bireal_jax.binary import binarize
        from bireal_jax.training.step import Plan

        if min(self.args.epochs, *self.args.pretrain_epochs) <= 0:
            raise BadInput("--epochs and --pretrain-epochs must be above 0")
        for rule, act in {(cell.weight, cell.act) for cell in self.cells}:
            if act in binarize.REAL or rule == "real":
                raise BadInput(f"--act {act} --weight {rule}: real-valued networks come with --init relu or clip")
            try:
                rows_lib.rules_digest(act, rule)
            except BadInput as error:
                unknown = act not in binarize.DERIVATIVES or rule not in binarize.WEIGHTS
                if self.args.config != BASE or not unknown or "did you mean" in str(error):
                    raise
                raise BadInput(
                    f"{error}\nan estimator of your own is registered by the recipe: --config FILE.py"
                ) from None
        configs = [self.config(cell) for cell in {(c.arch, c.optimizer): c for c in self.cells}.values()]
        for arch, init in {(c.arch, c.init) for c in self.cells if c.init in PRETRAINED}:
            configs.append(self.pretraining(arch, init))
        for config in configs:
            for stage in build.stages(config):
                self.epoch_steps = Plan(stage).log_every
        for cell in self.cells:
            if cell.optimizer.endswith((":matched", ":slowed")):
                if cell.weight not in FAST + SLOW:
                    raise BadInput(f"--optimizer {cell.optimizer}: not known for the weight rule {cell.weight}")
                if cell.init not in PRETRAINED:
                    raise BadInput(f"--optimizer {cell.optimizer} needs --init relu or clip")

    def config(self, cell, factor=1.0):
        """The recipe of a cell; `factor`: of the rate of binary weights, where the cell says matched or slowed."""
        name, rate, *more = _split(cell.optimizer)
        c = self.base.copy_and_resolve_references()
        c.update_from_flattened_dict({
            "model.name": cell.arch, "model.act": cell.act, "model.weight": cell.weight, "optim.name": name,
            "optim.lr": rate, "optim.binary_lr": more[0] if more and isinstance(more[0], float) else float(factor),
            "total_epochs": self.args.epochs, "eval_epochs": 1.0, "log_epochs": 1.0, "total_steps": 0, "eval_steps": 0,
            "log_steps": 0, "model.latent_init": "he" if cell.init in PRETRAINED else cell.init,
        })  # fmt: skip
        return c

    def pretraining(self, arch, init):
        """The recipe of the real-valued networks; for clip without the ReLU stage, whose networks are there."""
        relu, leaky, clip = self.args.pretrain_epochs
        rate = _split(self.args.pretrain_optimizer)[1]
        c = self.config(Cell(arch, init, "real", init, self.args.pretrain_optimizer))
        finetune = {"optim.lr": rate / 10, "optim.warmup_epochs": 0.0, "optim.warmup_steps": 0}
        c.stages = {
            "relu": ({"name": "relu", "model.act": "relu", "total_epochs": relu},),
            "clip": (
                {"name": "leaky_clip", "model.act": "leaky_clip", "total_epochs": leaky, **finetune},
                {"name": "clip", "model.act": "clip", "total_epochs": clip, **finetune},
            ),
        }[init]
        return c

    def claim(self):
        """Makes OUT, or checks that the rows there are of this base recipe and these lengths.

        Raises:
          BadInput: they are not, or OUT is in other use.
        """
        self.args.out.mkdir(parents=True, exist_ok=True)
        place = self.args.out / "base.json"
        lengths = {name: getattr(self.args, name) for name in ("epochs", "pretrain_epochs", "pretrain_optimizer")}
        wanted = {"config": json.loads(settings.to_json(self.base)), **lengths}
        with rows_lib.lock(self.args.out / "lock"):
            if place.exists():
                found = json.loads(place.read_text())
                changes = settings.differences(*(json.dumps(d["config"]) for d in (found, wanted)))
                changes = [change for change in changes if change.split()[0] not in OVERRIDDEN]
                changes += [
                    f"{name} {found[name]} -> {wanted[name]}" for name in lengths if found[name] != wanted[name]
                ]
                if changes:
                    raise BadInput(f"{self.args.out} holds another grid: {', '.join(changes)}\nuse another --out")
            elif any(path.name != "lock" for path in self.args.out.iterdir()):
                raise BadInput(f"{self.args.out} is not empty and has no base.json; use another --out")
            else:
                place.write_text(json.dumps(wanted, indent=1) + "\n")
            rows_lib.note_start(self.args.out / "starts.jsonl")

    def train(self):
        """Trains the cells whose rows are missing."""
        self.claim()
        path, begin, trained = self.args.out / "rows.jsonl", time.monotonic(), 0
        rows = rows_lib.read(path)
        for row in rows:
            act, weight = row["cell"]["act"], row["cell"]["weight"]
            if weight != "real" and (act, weight) in {(c.act, c.weight) for c in self.cells}:
                if row["rules"] != rows_lib.rules_digest(act, weight):
                    raise BadInput(
                        f"{act} or {weight} is not what it was when rows of {path} were trained\n"
                        "give it another name, or use another --out"
                    )
        print(
            f"{len(self.cells)} cells of {len(self.seeds)} seeds, {len(rows)} runs are in {path}; compiling ...",
            flush=True,
        )
        for number, cell in enumerate(self.cells, 1):
            done = {(Cell(**row["cell"]), row["seed"]) for row in rows_lib.read(path)}  # others may be at it, too
            seeds = [seed for seed in self.seeds if (cell, seed) not in done]
            if not seeds:
                continue
            rows = self.train_cell(cell, seeds)
            rows_lib.append(path, rows)
            shutil.rmtree(self.place(cell, seeds), ignore_errors=True)
            trained += 1
            left = (time.monotonic() - begin) / trained * (len(self.cells) - number)
            mean = sum(row["top1"] for row in rows) / len(rows)
            shown = " ".join(dataclasses.astuple(cell))
            print(f"{number}/{len(self.cells)}  {shown}  top-1 {mean:.1f} %  left {left / 60:.0f} min", flush=True)

    def train_cell(self, cell, seeds) -> list[dict[str, Any]]:
        """The rows of a cell."""
        from bireal_jax.training import seeds as seeds_lib

        start = self.pretrained(cell.arch, cell.init, seeds) if cell.init in PRETRAINED else None
        begin, c = time.monotonic(), self.config(cell, self.factor(cell))
        variables, records = seeds_lib.train(c, seeds, start, self.place(cell, seeds))
        rows = rows_lib.make(cell, seeds, variables, records, self.epoch_steps, time.monotonic() - begin)
        more = {"binary_lr": round(float(c.optim.binary_lr), 4), "rules": rows_lib.rules_digest(cell.act, cell.weight)}
        return [row | more for row in rows]

    def place(self, cell, seeds):
        """Where the checkpoints of a cell lie while it is trained."""
        return self.args.out / "cells" / "_".join([*dataclasses.astuple(cell), *map(str, seeds)])

    def factor(self, cell):
        """What brings the step of the cell's weight rule to that of the others, from the network of seed 0."""
        import numpy as np

        from bireal_jax.training import optim

        word = cell.optimizer.split(":")[-1]
        if cell.weight not in {"matched": SLOW, "slowed": FAST}.get(word, ()):
            return 1.0
        latents = optim.latents(self.pretrained(cell.arch, cell.init, [0])["params"])  # [1, kh, kw, cin, cout]
        totals = [np.sum(w[..., 0].size / np.abs(w).mean((0, 1, 2, 3))) for w in latents]
        inverse = sum(totals) / sum(w.size for w in latents)  # mean of 1/alpha over all weights
        return inverse if word == "matched" else 1 / inverse

    def pretrained(self, arch, init, seeds):
        """Variables of the real-valued networks, stacked over seeds, from OUT/pretrained or trained now."""
        place = self.args.out / "pretrained"
        place.mkdir(exist_ok=True)
        with rows_lib.lock(place / f"{arch}.lock"):  # another part of the grid may be at it
            return self._load(arch, init, seeds, place)

    def _load(self, arch, init, seeds, place):
        import jax
        import numpy as np
        from flax import traverse_util

        paths = {seed: place / f"{arch}_{init}_{seed}.npz" for seed in seeds}
        missing = {seed: path for seed, path in paths.items() if not path.exists()}
        if missing:
            variables, done = self._pretrain(arch, init, list(missing), place)
            for i, path in enumerate(missing.values()):
                flat: dict[str, Any] = traverse_util.flatten_dict(
                    jax.tree.map(lambda leaf, i=i: leaf[i], variables), sep="/"
                )
                scratch = path.with_name("." + path.name)
                np.savez(scratch, **flat)
                os.replace(scratch, path)
            shutil.rmtree(done, ignore_errors=True)
        each = []
        for path in paths.values():
            with np.load(path, allow_pickle=False) as stored:
                each.append(traverse_util.unflatten_dict(dict(stored), sep="/"))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def _pretrain(self, arch, init, seeds, place):
        from bireal_jax.training import seeds as seeds_lib

        start = self._load(arch, "relu", seeds, place) if init == "clip" else None
        begin = time.monotonic()
        cell = Cell(arch, init, "real", init, self.args.pretrain_optimizer)
        variables, records = seeds_lib.train(self.pretraining(arch, init), seeds, start, self.place(cell, seeds))
        last = [record for record in records if record["stage"] == records[-1]["stage"]]
        rows = rows_lib.make(cell, seeds, variables, last, self.epoch_steps, time.monotonic() - begin)
        rows_lib.append(self.args.out / "rows.jsonl", rows)
        return variables, self.place(cell, seeds)


def _split(optimizer) -> tuple[Any, ...]:
    """(name, rate) or (name, rate, factor or word) of NAME:LR[:FACTOR]."""
    try:
        name, rate, *more = optimizer.split(":")
        more = [word if word in ("matched", "slowed") else float(word) for word in more]
        if len(more) < 2:
            return name, float(rate), *more
    except ValueError:
        pass
    raise BadInput(f"{optimizer}: an optimizer is NAME:LR or NAME:LR:FACTOR, FACTOR a number, matched or slowed")


if __name__ == "__main__":
    try:
        with output.command():
            main()
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", file=sys.stderr)
        sys.exit(130)
