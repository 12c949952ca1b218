"""Ablation of gradient estimators: a grid of cells, so many seeds each, one row a run, a table and figures at the end.

    python -m experiments.estimators.run                                     the paper's grid on digits, under SGD
    python -m experiments.estimators.run --optimizer sgd:0.01 adam:0.001     and under Adam
    python -m experiments.estimators.run --arch bireal_tiny --act ste approx_sign swish_sign tanh triangle power
    python -m experiments.estimators.run --part 1/2                          half of the cells; 2/2 in another terminal
    python -m experiments.estimators.run --config configs/cifar10_sgd.py --config.data.dir=cifar10.npz ...

The seeds of a cell train as one vmapped program. A cell whose rows are in OUT/rows.jsonl is not trained again, so the
same command continues a grid that was cut off, and adds what is new in a larger one. Networks that start from a
real-valued one (--init relu, clip) share it with the other cells of the same architecture: ReLU from scratch; for clip,
from there on through leaky clip to clip. These runs are rows too, with weight "real".
"""

import argparse
import dataclasses
import fcntl
import hashlib
import itertools
import json
import os
import sys
import time
from pathlib import Path

from bireal_jax.errors import BadInput
from bireal_jax.main import cache_compilations, keep_freed_memory
from bireal_jax.main import parse as parse_recipe

INITS = ("relu", "clip", "uniform_001", "glorot", "he")  # the first two are pretrained real-valued networks
HISTOGRAM = (-0.5, 0.5, 100)  # of latent weights: lowest, highest, bins; what lies beyond counts in the outermost


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
    add("--config", default="configs/digits.py", help="base recipe; --config.FIELD=VALUE sets a field of it")
    add("--arch", nargs="+", default=["bireal_tiny", "res_tiny", "plain_tiny"], help="keys of models.MODELS")
    add(
        "--init",
        nargs="+",
        default=["relu", "clip"],
        choices=INITS,
        help="relu, clip: a pretrained real-valued network",
    )
    add("--weight", nargs="+", default=["sign", "magnitude_aware", "released"], help="keys of binarize.WEIGHTS")
    add("--act", nargs="+", default=["ste", "approx_sign"], help="keys of binarize.DERIVATIVES")
    add(
        "--optimizer", nargs="+", default=["sgd:0.01"],
        help="NAME:LR[:FACTOR], the factor for binary weights alone; 'matched' is the mean of 1/alpha at the start, "
        "which gives the other rules the step of `released` (and its inverse for `released` itself)",
    )  # fmt: skip
    add("--seeds", type=int, default=5)
    add("--epochs", type=float, default=12.0, help="of the binary networks")
    add("--pretrain-epochs", type=float, nargs=3, default=[12.0, 4.0, 4.0], help="ReLU, leaky clip, clip")
    add("--pretrain-optimizer", default="sgd:0.1", help="of ReLU; leaky clip and clip take a tenth of the rate")
    add("--out", type=Path, default=Path("runs/estimators"))
    add("--part", default="1/1", help="I/N: the I-th of N shares of the cells, for several processes on one --out")
    add("--devices", type=int, default=0, help="virtual CPU devices for the seeds to divide over; 0: leave as it is")
    args, fields = parser.parse_known_args(argv)
    if wrong := [field for field in fields if not field.startswith("--config.")]:
        parser.error(f"unknown argument {wrong[0]}")
    args.fields = fields
    return args


def main(argv=None):
    """Trains what is missing, then writes table.md and the figures."""
    args = parse(argv)
    cache_compilations()
    import jax

    if args.devices:
        jax.config.update("jax_num_cpu_devices", args.devices)
    if jax.default_backend() == "cpu":
        keep_freed_memory()
    try:
        from experiments.estimators import plot, table
    except ModuleNotFoundError as error:
        raise BadInput(f"{error}; pip install -e '.[experiments]' brings it") from None
    grid = Grid(args)
    grid.check()
    grid.train()
    rows = read_rows(args.out / "rows.jsonl")
    table.write(rows, args.out)
    plot.write(rows, args.out)


class Grid:
    """The cells of one command, and where their rows are.

    Args:
      args: from `parse`.

    Raises:
      BadInput: the base recipe cannot be read, or --part is not I/N.
    """

    def __init__(self, args):
        self.args, self.base = args, parse_recipe(["run", f"--config={args.config}", *args.fields])[0]
        self.base.stages = ()
        self.seeds = list(range(args.seeds))
        cells = [Cell(*c) for c in itertools.product(args.arch, args.init, args.weight, args.act, args.optimizer)]
        try:
            part, parts = map(int, args.part.split("/"))
            self.cells = cells[part - 1 :: parts]
        except ValueError:
            raise BadInput(f"--part {args.part}: must be I/N, such as 1/2") from None
        if not 1 <= part <= parts:
            raise BadInput(f"--part {args.part}: I must be from 1 to N")

    def check(self):
        """Raises BadInput for a cell that cannot work, before anything is trained."""
        from bireal_jax import config as config_lib
        from bireal_jax import models

        for cell in self.cells:
            models.build(cell.arch, act=cell.act, weight=cell.weight)
            config_lib.validate(self.config(cell, 1.0))

    def config(self, cell, factor):
        """The recipe of a cell; `factor` where the cell says "matched"."""
        try:
            name, rate, *more = cell.optimizer.split(":")
            rate, binary = float(rate), (factor if more == ["matched"] else float(*more or [1.0]))
        except (ValueError, TypeError):
            raise BadInput(f"--optimizer {cell.optimizer}: must be NAME:LR or NAME:LR:FACTOR") from None
        c = self.base.copy_and_resolve_references()
        c.update_from_flattened_dict({
            "model.name": cell.arch, "model.act": cell.act, "model.weight": cell.weight, "optim.name": name,
            "optim.lr": rate, "optim.binary_lr": float(binary), "total_epochs": self.args.epochs, "eval_epochs": 1.0,
            "model.latent_init": cell.init if cell.init not in ("relu", "clip") else "he",
        })  # fmt: skip
        return c

    def fingerprint(self):
        """A digest of all that a row depends on and that its own fields do not say."""
        from bireal_jax import config as config_lib

        a = self.args
        text = f"{config_lib.to_json(self.base)} {a.epochs} {a.pretrain_epochs} {a.pretrain_optimizer}"
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def train(self):
        """Trains the cells whose rows are missing."""
        path, mark = self.args.out / "rows.jsonl", self.fingerprint()
        self.args.out.mkdir(parents=True, exist_ok=True)
        rows = read_rows(path)
        if any(row["fingerprint"] != mark for row in rows):
            raise BadInput(f"{path} holds rows of another base recipe or length; use another --out")
        done = {(Cell(**row["cell"]), row["seed"]) for row in rows}
        todo = [(cell, [s for s in self.seeds if (cell, s) not in done]) for cell in self.cells]
        todo = [(cell, seeds) for cell, seeds in todo if seeds]
        print(f"{len(self.cells)} cells, {len(todo)} to train; rows go to {path}")
        begin = time.monotonic()
        for number, (cell, seeds) in enumerate(todo, 1):
            rows = self.train_cell(cell, seeds)
            append(path, rows)
            left = (time.monotonic() - begin) / number * (len(todo) - number)
            mean = sum(row["top1"] for row in rows) / len(rows)
            shown = " ".join(dataclasses.astuple(cell))
            print(f"{number}/{len(todo)}  {shown}  top-1 {mean:.1f} %  left {left / 60:.0f} min", flush=True)

    def train_cell(self, cell, seeds):
        """The rows of a cell."""
        import numpy as np

        from bireal_jax import optim
        from bireal_jax import seeds as seeds_lib

        start = self.pretrained(cell.arch, cell.init, seeds) if cell.init in ("relu", "clip") else None
        factor = 1.0
        if start and cell.optimizer.endswith(":matched"):
            latents = optim.latents(start["params"])  # [seeds, kh, kw, cin, cout]
            sums = [np.sum(w[0].size / w.shape[-1] / np.abs(w).mean((1, 2, 3))) for w in latents]
            inverse = sum(sums) / sum(w.size for w in latents)  # mean of 1/alpha over all weights
            factor = 1 / inverse if cell.weight == "released" else inverse
        begin, c = time.monotonic(), self.config(cell, factor)
        variables, records = seeds_lib.train(c, seeds, start)
        return self.rows(cell, seeds, variables, records, c.optim.binary_lr, time.monotonic() - begin)

    def rows(self, cell, seeds, variables, records, factor, seconds):
        """One row a seed, from what `seeds.train` returned. `factor`: of the rate of binary weights."""
        import numpy as np

        from bireal_jax import optim

        latents = optim.latents(variables["params"])
        low, high, bins = HISTOGRAM

        def of(name, split):  # the curve of seed number `place`
            return [round(float(r[name][place]), 6) for r in records if r["split"] == split and name in r]

        rows = []
        for place, seed in enumerate(seeds):
            weights = np.clip(np.concatenate([w[place].ravel() for w in latents]), low, high)
            rows.append({
                "cell": dataclasses.asdict(cell), "seed": seed, "top1": of("top1", "eval")[-1],
                "best_top1": max(of("top1", "eval")), "loss": of("loss", "eval")[-1],
                "train_loss": of("loss", "train")[-1], "curve": of("top1", "eval"), "flipped": of("flipped", "train"),
                "latents": np.histogram(weights, bins, (low, high))[0].tolist(), "binary_lr": round(float(factor), 4),
                "seconds": round(seconds / len(seeds), 2), "fingerprint": self.fingerprint(),
            })  # fmt: skip
        return rows

    def pretrained(self, arch, init, seeds):
        """Variables of the real-valued networks, stacked over seeds, from OUT/pretrained or trained now."""
        place = self.args.out / "pretrained"
        place.mkdir(exist_ok=True)
        with open(place / f"{arch}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another part of the grid may be at it
            return self._load(arch, init, seeds, place)

    def _load(self, arch, init, seeds, place):
        import jax
        import numpy as np
        from flax import traverse_util

        paths = {seed: place / f"{arch}_{init}_{seed}.npz" for seed in seeds}
        missing = {seed: path for seed, path in paths.items() if not path.exists()}
        if missing:
            variables = self._pretrain(arch, init, list(missing), place)
            for i, path in enumerate(missing.values()):
                flat = traverse_util.flatten_dict(jax.tree.map(lambda leaf, i=i: leaf[i], variables), sep="/")
                scratch = path.with_name("." + path.name)
                np.savez(scratch, **flat)
                os.replace(scratch, path)
        each = []
        for path in paths.values():
            with np.load(path, allow_pickle=False) as stored:
                each.append(traverse_util.unflatten_dict(dict(stored), sep="/"))
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    def _pretrain(self, arch, init, seeds, place):
        from bireal_jax import seeds as seeds_lib

        name, rate = self.args.pretrain_optimizer.split(":")
        relu, *finetuning = self.args.pretrain_epochs
        start, stages = None, [("relu", relu, float(rate))]
        if init == "clip":
            start = self._load(arch, "relu", seeds, place)
            stages = [(act, n, float(rate) / 10) for act, n in zip(("leaky_clip", "clip"), finetuning, strict=True)]
        cell = Cell(arch, init, "real", init, f"{name}:{rate}")
        c = self.config(cell, 1.0)
        c.stages = tuple(
            {"name": act, "model.act": act, "total_epochs": epochs, "optim.lr": lr} for act, epochs, lr in stages
        )
        begin = time.monotonic()
        variables, records = seeds_lib.train(c, seeds, start)
        last = [record for record in records if record["stage"] == len(stages) - 1]
        append(self.args.out / "rows.jsonl", self.rows(cell, seeds, variables, last, 1.0, time.monotonic() - begin))
        return variables


def read_rows(path):
    """The rows that are there; a last line cut off in the middle does not count."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def append(path, rows):
    """Adds rows in one write, so that a kill leaves whole lines but for the last."""
    with open(path, "a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(size - 1)
            if file.read(1) != b"\n":  # a line cut off by a kill
                whole = path.read_bytes()
                file.truncate(whole.rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"error: {error}")
