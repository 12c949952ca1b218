"""A workdir: what a run leaves behind, and the rule that it belongs to one config.

config.json, data.json (what the data sets are), metrics.jsonl (what was computed; `cmp` compares two runs of one
config), timing.jsonl (how fast), events.* for TensorBoard, stage_<i>/checkpoints/, lock (held while a run is under
way), result.json once it is finished.
"""

import contextlib
import errno
import fcntl
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
from ml_collections import ConfigDict

from bireal_jax import config as config_lib
from bireal_jax import places
from bireal_jax.data import Source
from bireal_jax.errors import BadInput, first_line
from bireal_jax.running import described, known, progress, settings

OTHERS = "other images, though as many: files have other names or classes"


def begun(workdir: Path) -> bool:
    """Whether a run has claimed the workdir."""
    return (workdir / "config.json").exists()


def changes(workdir: Path, config: ConfigDict) -> list[str]:
    """Fields in which the config of the run that lives in the workdir differs from this one; [] where none lives."""
    path = workdir / "config.json"
    return _changes(path, lambda old: settings.differences(old, settings.to_json(config), str(path)))


def _changes(path, differences):
    try:
        return differences(json.dumps(places.read_json(path))) if os.path.lexists(path) else []
    except BadInput:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise BadInput(f"{path} is not readable ({first_line(error)}); use another --workdir") from None


def _data_changes(workdir, data):
    """As `changes`, of the data sets. What data.json lacks is newer than it is and was not looked at."""

    def differences(old):
        rows = zip(json.loads(old)["stages"], data["stages"], strict=True)
        pairs = [(a, {name: value for name, value in b.items() if name in a}) for a, b in rows]
        apart = settings.apart(*({"stages": list(side)} for side in zip(*pairs, strict=True)))
        return [text for text in apart if ".files " not in text] or (apart and [OTHERS])

    return _changes(workdir / "data.json", differences)


def check(workdir: Path, config: ConfigDict, sources: list[Source]) -> None:
    """Raises BadInput if another config or other data live in a workdir."""
    _refuse(workdir, workdir / "config.json", changes(workdir, config))
    _refuse(workdir, workdir / "data.json", _data_changes(workdir, _data(sources)))


def _data(sources):
    return {"stages": [described.row(source) for source in sources]}


def _refuse(workdir, path, found):
    longer = any(text.startswith(("total_epochs", "total_steps", OTHERS)) for text in found)
    on = f", with --config.init_from={workdir} to go on from its weights," if longer else ","
    back = "put the files back as they were" if OTHERS in found else f"what {path} says"
    if found:
        raise BadInput(
            f"{workdir} belongs to another config: {known.shown(found)}\nuse another --workdir{on} or {back}"
        )


def finished(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """What result.json says, or None while the run is not finished.

    Raises:
      BadInput: another config lives there, or result.json is damaged.
    """
    _refuse(workdir, workdir / "config.json", changes(workdir, config))
    path = workdir / "result.json"
    try:
        if not os.path.lexists(path):
            return None
        found = places.read_json(path)
        if not isinstance(found, dict):
            raise ValueError("it holds no names and values")
        return found
    except (ValueError, OSError) as error:
        raise BadInput(f"{path} is damaged ({first_line(error)})\ndelete it; the same command writes it anew") from None


@contextlib.contextmanager
def claim(
    workdir: Path, config: ConfigDict, sources: list[Source], registered: Mapping[str, str] | None = None
) -> Iterator[None]:
    """Holds the workdir for this run, as long as the context lasts: makes it, locks it, writes config and data.json.

    data.json holds what the stages' data sets are: steps and order follow from it, and `build.trained` needs it.
    registered.json is there where a recipe has registered what the config names: field -> file.

    Raises:
      BadInput: another config or other data lives there, another process trains there, or it cannot be written.
    """
    if jax.process_index() != 0:
        yield
        return
    texts = {
        "config.json": settings.to_json(config),
        "data.json": json.dumps(_data(sources) | described.began(list(config_lib.stages(config))), indent=1) + "\n",
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = open(workdir / "lock", "w")
    except OSError as error:
        raise unwritable(workdir, error) from None
    with lock:
        if said := hold(lock, workdir):
            progress.say(f"note: {said}")
        check(workdir, config, sources)
        for name, text in texts.items():
            if not (workdir / name).exists():
                write(workdir / name, text)
        if registered:
            write(workdir / "registered.json", json.dumps(dict(registered), indent=1) + "\n")
        yield


NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def hold(file: IO, workdir: Path) -> str:
    """Locks a file of a workdir, so that no other process trains there until it is closed.

    Returns:
      "", or that the file system has no locks: no reason not to train.

    Raises:
      BadInput: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BadInput(f"another process trains in {workdir}; wait for it, or use another --workdir") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise unwritable(workdir, error) from None
        return f"the file system of {workdir} has no locks ({error.strerror}); see that no other process trains there"
    return ""


def write(path: Path, text: str) -> None:
    """Writes a file whole or not at all. Raises BadInput if the place cannot be written."""
    try:
        places.write(path, text.encode())
    except OSError as error:
        raise unwritable(path.parent, error) from None


def to_json(values: dict[str, Any], indent: int | None = None) -> str:
    """JSON, which has neither NaN nor infinity. Raises BadInput for these."""
    try:
        return json.dumps(values, indent=indent, allow_nan=False)
    except ValueError:
        bad = [f"{name} is {v}" for name, v in values.items() if isinstance(v, float) and not math.isfinite(v)]
        raise BadInput(f"a figure to be written down is not finite: {', '.join(bad) or str(values)[:300]}") from None


class Unwritable(BadInput):
    """A place cannot be written."""


def unwritable(place: Path, error: OSError) -> Unwritable:
    """The message for an OSError while writing below `place`."""
    hint = (
        "free some space and start the same command again"
        if error.errno == errno.ENOSPC
        else "choose another --workdir"
    )
    return Unwritable(f"cannot write to {place}: {error.strerror}\n{hint}")


def _head(path, number, line):
    """(stage, step) of a line of a log."""
    try:
        head = json.loads(line)
        return int(head["stage"]), int(head["step"])
    except (ValueError, TypeError, KeyError):
        raise BadInput(
            f"{path}, line {number} is damaged: {line[:40]!r}\n"
            "delete that line, or the whole file: a run is continued from its checkpoints, not from its logs"
        ) from None


def _event_writer():
    """tensorboardX's classes, without PyTorch: where that is installed it would be imported, too, which takes seconds.

    SummaryWriter has a thread, which a full disk ends, and then its queue blocks the training; hence these two.
    """
    modules: dict[str, Any] = sys.modules
    hidden = {} if "torch" in modules else {"torch": None}
    modules.update(hidden)
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event  # pyrefly: ignore[missing-module-attribute]
    finally:
        for name in hidden:
            del modules[name]
    return EventsWriter, Event


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
            for name in ("metrics.jsonl", "timing.jsonl"):
                self._keep(workdir / name, stage, step)
            events_writer, self._new_event = _event_writer()
            try:
                self._events = events_writer(str(workdir / "events"), f".{stage}.{step}")
                self._event(
                    offset + step + 1, session_log={"status": "START"}
                )  # later events of earlier starts are void
            except OSError as error:
                raise unwritable(workdir, error) from None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self._events:
            try:
                self._events.close()
            except OSError as error:
                if kind is None:  # or else the first error is the one to show
                    raise unwritable(self.workdir, error) from None

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
            scalars = (values | (timing or {})).items()
            summary = {"value": [{"tag": f"{split}/{name}", "simple_value": value} for name, value in scalars]}
            self._event(self.offset + step, summary=summary)
        except OSError as error:
            raise unwritable(self.workdir, error) from None

    def _event(self, step, **content):
        assert self._events
        self._events.write_event(self._new_event(wall_time=time.time(), step=step, **content))
        self._events.flush()

    def _append(self, name, line):
        with open(self.workdir / name, "a") as file:
            file.write(to_json(line) + "\n")

    @staticmethod
    def _keep(path, stage, step):
        """Drops the lines after (stage, step), and a last line cut off in the middle."""
        if path.exists():
            text = path.read_text(errors="replace")
            lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
            heads = [_head(path, number, line) for number, line in enumerate(lines, 1)]
            kept = [line for line, head in zip(lines, heads, strict=True) if head <= (stage, step)]
            write(path, "".join(kept))
