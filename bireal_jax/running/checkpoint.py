"""Checkpoints: written in the background, whole or not at all, and never believed unread.

Arrays of nothing but +1.0 and -1.0, the weights that Bop trains, are stored as bits and come back as they were.

Orbax writes and lists them. It notices neither a flipped bit nor another dtype, and falls back to nothing, so every
leaf's CRC-32 is stored beside it and checked on the way in, and a damaged checkpoint is set aside, with a warning, for
the one before it.
"""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental.multihost_utils import sync_global_devices
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import settings
from bireal_jax.running.metrics import score

log = logging.getLogger("bireal_jax")


def _is_news(record: logging.LogRecord) -> bool:
    """Not what Orbax logs beside raising it, nor that a directory is read-only which we have opened so."""
    return not record.exc_info and not record.getMessage().startswith("Given directory is read only")


logging.getLogger("absl").addFilter(_is_news)


@dataclasses.dataclass
class _BestAndLast(PreservationPolicy):
    """Keeps the last few checkpoints and the one with the best score."""

    keep_last: int
    scores: dict[int, float]

    def best(self) -> int | None:
        """The step of the best score, the later of two equal ones."""
        return max(self.scores, key=lambda step: (self.scores[step], step), default=None)

    def should_preserve(self, checkpoints, *, context):
        """Orbax's question: which of these, oldest first?"""
        recent = {c.step for c in checkpoints[-self.keep_last :]}
        return [c.step in recent or c.step == self.best() for c in checkpoints]


class Checkpoints:
    """The checkpoints of one stage: the best by `metrics.score` and the last few, below one directory.

    A checkpoint is a dict of trees of numpy arrays, one entry for each thing that may be wanted alone. Used as a
    context manager; leaving it waits for what is still being written, and raises if that failed.
    """

    def __init__(self, directory: str | Path, keep_last: int = 2, read_only: bool = False):
        """`read_only` disturbs nobody who writes there, and takes no notice of what is not finished."""
        self.directory = Path(directory).absolute()
        self._late = self.directory.parent / "late_metrics.json"
        self._policy = _BestAndLast(keep_last, {})
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy,
            read_only=read_only,
            create=not read_only,
            cleanup_tmp_directories=not read_only,
            save_interval_steps=int(not read_only),
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        for step in self.steps():
            try:
                metrics = self.metrics(step)
            except Damaged as error:  # restoring it says so again, and what is done about it
                log.warning("damaged checkpoint: %s", error)
            else:
                self._policy.scores |= {step: score(metrics)} if metrics else {}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            return self.close()
        with contextlib.suppress(Exception):  # the first error is the one to show
            self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a finished checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, trees: Mapping[str, Any], metrics: Mapping[str, float] | None) -> None:
        """Starts to write `trees` as the checkpoint of `step`, and returns while that goes on.

        Args:
          step: must be new.
          trees: name -> tree of numpy arrays that nobody changes any more.
          metrics: of the evaluation at this step, which `metrics.score` judges; None if there was none.

        Raises:
          BadInput: this or the previous save failed, for instance on a full disk. Older checkpoints are intact.
        """
        bits = {name: binary_leaves(tree) for name, tree in trees.items()}
        items: dict[str, Any] = {
            name: ocp.args.StandardSave(_at(bits[name], pack_bits, tree)) for name, tree in trees.items()
        }
        record = {
            "leaves": {name: digest(tree) for name, tree in trees.items()},
            "bits": bits,
            "metrics": dict(metrics) if metrics else None,
        }
        items["digest"] = ocp.args.JsonSave({"record": record, "crc32": _crc(record)})
        self._policy.scores |= {step: score(metrics)} if metrics else {}
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        except Exception as error:
            raise self._failed(error) from error

    def wait(self) -> None:
        """Until everything is on the disk. Raises as `save`."""
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._failed(error) from error

    def close(self) -> None:
        """Waits, then lets go. Raises as `save`."""
        self.wait()
        self._manager.close()

    def best_step(self) -> int | None:
        """The step of the best evaluation, the later of two equal ones; None if nothing was evaluated."""
        return self._policy.best()

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics saved with `step`, or added later, or None. Raises Damaged."""
        return self._record(step)["metrics"] or self._added().get(str(step))

    def digests(self, step: int) -> dict[str, dict[str, str]]:
        """tree -> leaf -> "dtype [shape] crc32" of a checkpoint, as it was saved. Raises Damaged."""
        return self._record(step)["leaves"]

    def add_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Of an evaluation that was cut off when `step` was saved; the checkpoint itself stays as it is."""
        self._policy.scores |= {step: score(metrics)}
        if jax.process_index() != 0:
            return
        record = self._added() | {str(step): dict(metrics)}
        scratch = self._late.with_suffix(".tmp")
        try:
            scratch.write_text(json.dumps({"record": record, "crc32": _crc(record)}) + "\n")
            scratch.replace(self._late)
        except OSError as error:
            raise self._failed(error) from error

    def _added(self):
        """What `add_metrics` wrote; a damaged file is as good as none: the evaluation is done again."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            content = json.loads(self._late.read_text())
            if content["crc32"] == _crc(content["record"]):
                return content["record"]
        return {}

    def restore(self, step: int, templates: Mapping[str, Any]) -> dict[str, Any]:
        """The named trees of one checkpoint, checked.

        Args:
          step: one of `steps()`.
          templates: name -> tree of arrays or ShapeDtypeStructs, which fixes structure, shapes and dtypes.

        Returns:
          name -> tree of numpy arrays.

        Raises:
          Damaged: something cannot be read or is not what was written.
          BadInput: it was written for other variables, by another model.
        """
        record = self._record(step)
        stored, bits = record["leaves"], record.get("bits", {})
        for name, tree in templates.items():
            changed = settings.changed_network(self.directory.parents[1])
            check_same(stored[name], shapes(tree), f"checkpoint {self.directory / str(step)}", changed)
        numpy = {name: jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), tree) for name, tree in templates.items()}
        packed = {name: _at(bits.get(name, ()), pack_bits, tree) for name, tree in numpy.items()}
        read = self._read(step, {name: ocp.args.StandardRestore(tree) for name, tree in packed.items()})
        trees = {name: _at(bits.get(name, ()), unpack_bits, read[name], tree) for name, tree in numpy.items()}
        for name in templates:
            for leaf, found in digest(trees[name]).items():
                if found != stored[name][leaf]:
                    raise Damaged(
                        f"{self.directory / str(step)}: {name} {leaf} is {found}, was written as {stored[name][leaf]}"
                    )
        return trees

    def restore_latest(self, templates: Mapping[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint that is sound, as (step, trees); None where there has never been one.

        A damaged one is moved to `damaged/` beside the directory, with a warning, and the one before it is tried.

        Raises:
          BadInput: there are checkpoints, and none is sound; or as `restore`.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return step, self.restore(step, templates)
            except Damaged as error:
                place = self._set_aside(step)
                log.warning("damaged checkpoint: %s\nmoved to %s; trying the one before it", error, place)
        damaged = self.directory.parent / "damaged"
        if steps or damaged.exists():  # set aside just now, or by an earlier start: nothing begins anew without a word
            raise BadInput(
                f"no sound checkpoint is left in {self.directory}; damaged ones are in {damaged}\n"
                "start again with another --workdir"
            )
        return None

    def _record(self, step):
        """What `save` wrote about the trees: their digests, and the metrics."""
        content = self._read(step, {"digest": ocp.args.JsonRestore()})["digest"]
        if not isinstance(content, dict) or content.get("crc32") != _crc(content.get("record")):
            raise Damaged(f"{self.directory / str(step)}: its digest is damaged")
        return content["record"]

    def _read(self, step, items):
        try:
            return self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # Orbax and TensorStore raise bare Exceptions for damaged files
            raise Damaged(f"{self.directory / str(step)}: {first_line(error)}") from error

    def _set_aside(self, step):
        place = self.directory.parent / "damaged" / str(step)
        sync_global_devices("all have read it")
        if jax.process_index() == 0:
            place.parent.mkdir(exist_ok=True)
            while place.exists():
                place = place.with_name(place.name + "_")
            shutil.move(self.directory / str(step), place)
        sync_global_devices("it is set aside")
        self._manager.reload()
        self._policy.scores.pop(step, None)
        return place

    def _failed(self, error):
        if "no space left" in str(error).lower() or "RESOURCE_EXHAUSTED" in str(error):
            reason, way_out = "no space left on the device", "free some space and start the same command again"
        elif isinstance(error, OSError):
            reason, way_out = first_line(error), "mend that and start the same command again"
        else:
            return error
        return BadInput(f"cannot save a checkpoint below {self.directory}: {reason}\n{way_out}")


def directories(workdir: Path) -> dict[int, Path]:
    """stage -> directory of its checkpoints, ascending, of the stages in a workdir. A stage_0_backup is none."""
    found = {path.parent.name.removeprefix("stage_"): path for path in workdir.glob("stage_*/checkpoints")}
    numbered = {int(stage): path for stage, path in found.items() if re.fullmatch(r"0|[1-9]\d*", stage, re.ASCII)}
    return {stage: numbered[stage] for stage in sorted(numbered) if numbered[stage].is_dir()}


class Damaged(Exception):
    """A checkpoint is not what was written."""


def shapes(tree: Any) -> dict[str, str]:
    """leaf path -> "dtype [shape]" of every leaf."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(p, simple=True, separator="/"): f"{np.dtype(v.dtype)} {list(v.shape)}" for p, v in pairs
    }


def digest(tree: Any) -> dict[str, str]:
    """leaf path -> "dtype [shape] crc32" of every leaf, an array."""
    # pyrefly: ignore[bad-argument-type] - numpy's stubs call an array a buffer from Python 3.12 on only
    crcs = [zlib.crc32(np.ascontiguousarray(leaf)) for leaf in jax.tree.leaves(tree)]
    return {path: f"{shape} {crc:08x}" for (path, shape), crc in zip(shapes(tree).items(), crcs, strict=True)}


def binary_leaves(tree: Any) -> list[str]:
    """Paths of the floating-point leaves, numpy arrays, that hold nothing but +1 and -1."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in pairs
        if leaf.size and jax.numpy.issubdtype(leaf.dtype, np.floating) and np.all(np.abs(leaf) == 1)
    ]


def pack_bits(leaf: np.ndarray) -> np.ndarray:
    """uint8 [ceil(size / 8)], bit 1 where the leaf is above 0."""
    return np.packbits(leaf.ravel() > 0)


def unpack_bits(packed: np.ndarray, like: np.ndarray) -> np.ndarray:
    """What `pack_bits` packed, in shape and dtype of `like`."""
    return (2.0 * np.unpackbits(packed, count=like.size) - 1).astype(like.dtype).reshape(like.shape)


def _at(paths, function, tree, *rest):
    """The tree with the function applied to the leaves at `paths`."""
    chosen = set(paths)

    def apply(path, *leaves):
        return function(*leaves) if jax.tree_util.keystr(path, simple=True, separator="/") in chosen else leaves[0]

    return jax.tree_util.tree_map_with_path(apply, tree, *rest)


def check_same(stored: dict[str, str], wanted: dict[str, str], what: str, way_out: str = "") -> None:
    """Raises BadInput, with both sides, unless two results of `shapes` (or `digest`, whose CRC is ignored) agree.

    `way_out` is said instead of the sides, where there is one.
    """
    stored = {path: text.split("]")[0] + "]" for path, text in stored.items()}
    odd = sorted(path for path in stored | wanted if stored.get(path) != wanted.get(path))
    if odd:
        first = odd[0]
        raise BadInput(
            f"{what} is of another model: {len(odd)} of {len(stored | wanted)} variables differ\n"
            + (way_out or f"{first}: stored {stored.get(first, 'nothing')}, wanted {wanted.get(first, 'nothing')}")
        )


def merge(variables: Any, target: Any, what: str) -> Any:
    """`variables` in the dtypes of `target`, after a check that both trees have the same leaves and shapes.

    Raises:
      BadInput: they have not; the message shows both sides.
    """

    def without_dtype(tree):
        return {path: text.split(" ", 1)[1] for path, text in shapes(tree).items()}

    check_same(without_dtype(variables), without_dtype(target), what)
    return jax.tree.map(lambda v, t: np.asarray(v, t.dtype), variables, target)


def _crc(record):
    return f"{zlib.crc32(json.dumps(record, sort_keys=True).encode()):08x}"
