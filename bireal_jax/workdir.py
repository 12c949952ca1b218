"""A workdir: what a run leaves behind, and the rule that it belongs to one config.

config.json, metrics.jsonl (what was computed; two runs of one config can be compared with `cmp`), timing.jsonl (how
fast), events.* for TensorBoard, stage_<i>/checkpoints/, result.json once the run is finished.
"""

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bireal_jax import config as config_lib
from bireal_jax.errors import BadInput


def claim(workdir: Path, config: ConfigDict) -> None:
    """Makes the workdir and writes config.json, or checks that the one there is of the same run.

    Raises:
      BadInput: another config lives there, or it cannot be written.
    """
    path = workdir / "config.json"
    try:
        if path.exists():
            changes = config_lib.differences(path.read_text(), config)
            if changes:
                shown = ", ".join(changes[:3]) + (f" and {len(changes) - 3} more" if len(changes) > 3 else "")
                raise BadInput(
                    f"{workdir} belongs to another config: {shown}\nuse another --workdir, or the config of {path}"
                )
        elif jax.process_index() == 0:
            write(path, config_lib.to_json(config))
    except json.JSONDecodeError as error:
        raise BadInput(f"{path} is not readable ({error}); use another --workdir") from None


def result(workdir: Path) -> dict[str, Any] | None:
    """What result.json says, or None while the run is not finished."""
    path = workdir / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises BadInput if the place cannot be written."""
    scratch = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text)
        os.replace(scratch, path)
    except OSError as error:
        raise unwritable(path.parent, error) from None


def unwritable(place: Path, error: OSError) -> BadInput:
    """The message for an OSError while writing below `place`."""
    hint = (
        "free some space and start the same command again"
        if error.errno == errno.ENOSPC
        else "choose another --workdir"
    )
    return BadInput(f"cannot write to {place}: {error.strerror}\n{hint}")


class Log:
    """metrics.jsonl, timing.jsonl and TensorBoard events of one stage. On all hosts but the first it does nothing.

    Args:
      workdir: where they lie.
      stage: index of the stage.
      step: the step that training resumes from. Lines of later steps, written before the run was cut off, are dropped:
        those steps are about to be done again.
      offset: steps of all earlier stages, for the one time axis of TensorBoard.
    """

    def __init__(self, workdir: Path, stage: int, step: int, offset: int):
        self.workdir, self.stage, self.offset = workdir, stage, offset
        self._events = None
        if jax.process_index() == 0:
            from tensorboardX import SummaryWriter

            for name in ("metrics.jsonl", "timing.jsonl"):
                self._keep(workdir / name, stage, step)
            self._events = SummaryWriter(str(workdir), purge_step=offset + step + 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._events:
            self._events.close()

    def write(self, step: int, split: str, values: dict[str, float], timing: dict[str, float] | None = None) -> None:
        """One line of metrics, and of timing if there is any.

        Raises:
          BadInput: the disk is full.
        """
        if not self._events:
            return
        head = {"stage": self.stage, "step": step, "split": split}
        try:
            self._append("metrics.jsonl", head | values)
            if timing:
                self._append("timing.jsonl", head | timing | {"time": round(time.time(), 1)})
            for name, value in (values | (timing or {})).items():
                self._events.add_scalar(f"{split}/{name}", value, self.offset + step)
        except OSError as error:
            raise unwritable(self.workdir, error) from None

    def _append(self, name, line):
        with open(self.workdir / name, "a") as file:
            file.write(json.dumps(line) + "\n")

    @staticmethod
    def _keep(path, stage, step):
        """Drops the lines after (stage, step), and a last line cut off in the middle."""
        if path.exists():
            lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            heads = [json.loads(line) for line in lines]
            kept = [line for line, h in zip(lines, heads, strict=True) if (h["stage"], h["step"]) <= (stage, step)]
            write(path, "".join(kept))
