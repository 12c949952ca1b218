"""Disks that are full or read-only, and files that are damaged, under a whole run."""

import contextlib
import random
import shutil
import signal
import subprocess
from pathlib import Path

from experiments.faults.bench import STEPS, Bench, message, newest, steps


@contextlib.contextmanager
def mounted(place: Path, options: str):
    """A file system in memory at `place`."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def remount(place: Path, options: str) -> None:
    """With other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", place], check=True)


def can_mount() -> bool:
    """Whether this user may mount file systems, in this place."""
    probe = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return probe.returncode == 0


def full_disk(bench: Bench, rng: random.Random) -> dict:
    """No space left in the middle of a run, twice; then there is."""
    disk, straight = bench.place() / "disk", bench.straight("digits")
    size = rng.randrange(1_000, 14_000)  # kB; a checkpoint has 2,700, and up to four are there
    with mounted(disk, f"size={size}k"):
        for _ in range(2):
            before = newest(disk / "w")
            run = bench.start(disk / "w")
            if run.wait() == 0:
                break
            if wrong := message(run) or ("no space left" not in run.text().lower() and run.text()[-1500:]):
                return {"failed": wrong, "full disk": 1}
            if newest(disk / "w") < before:
                return {"failed": f"{before} is gone", "full disk": 1}
        else:
            remount(disk, "size=100m")
            return {"failed": bench.finish(disk / "w", straight), "full disk": 1}
        return {"failed": "", "disk that was just large enough": 1}


def read_only(bench: Bench, rng: random.Random) -> dict:
    """A workdir that turns read-only between two starts: every mode says so, or does without."""
    disk, straight = bench.place() / "disk", bench.straight("digits")
    tally = {"read-only workdir": 0}
    with mounted(disk, "size=100m"):
        remount(disk, "ro")
        for begun in (False, True):
            for mode in ("train", "eval", "export", "verify"):
                run = bench.start(disk / "w", [f"--mode={mode}"])
                status = run.wait()
                tally["read-only workdir"] += 1
                reads = begun and mode == "verify"
                if status != (0 if reads else 2) or (not reads and (wrong := message(run))):
                    return {"failed": f"{mode}: {wrong or run.text()[-1500:]}", **tally}
            if not begun:
                remount(disk, "rw")
                run = bench.start(disk / "w")
                run.until(lambda: steps(disk / "w" / "stage_0" / "checkpoints")[-1:] >= [rng.randrange(4, 20)])
                run.send(signal.SIGTERM)
                run.wait()
                remount(disk, "ro")
        remount(disk, "rw")
        return {"failed": bench.finish(disk / "w", straight), **tally}


def damaged_file(bench: Bench, rng: random.Random, kind: str, number: int) -> dict:
    """File `number` of the newest checkpoint, or of the workdir, is damaged; the same command goes on."""
    straight = bench.straight("digits")
    whole = _near_the_end(bench)
    workdir = bench.place() / "w"
    shutil.copytree(whole, workdir)
    files = [path for path in checkpoint_files(workdir) if path.stat().st_size]
    path = files[number % len(files)]
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if kind == "bit flip":
        content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content[:at] if kind == "truncation" else content)
    if kind == "missing file":
        path.unlink()
    failed = bench.finish(workdir, straight)
    aside = list(workdir.glob("stage_*/damaged/*"))
    outcome = "the step before" if aside else "harmless"
    return {"failed": failed, f"{kind} in a file of a checkpoint, {outcome}": 1, "file": name_of(path)}


def checkpoint_files(workdir: Path) -> list[Path]:
    """All files of the newest checkpoint."""
    place = workdir / "stage_1" / "checkpoints"
    return sorted(path for path in (place / str(steps(place)[-1])).rglob("*") if path.is_file())


def name_of(path: Path) -> str:
    """Its part of a checkpoint, without the random names of data files."""
    parts = path.parts[path.parts.index("checkpoints") + 2 :]
    return "/".join("*" if len(part) == 32 else part for part in parts)


def _near_the_end(bench):
    """The workdir of a run that was stopped 4 steps before its end, with three checkpoints."""
    place = bench.scratch / "near_the_end"
    if not place.exists():
        scratch = bench.scratch / "stopping"
        shutil.rmtree(scratch, ignore_errors=True)
        run = bench.start(scratch)
        run.until(lambda: newest(scratch) >= ("second", STEPS - 6))
        run.send(signal.SIGTERM)
        if run.wait() or "which is saved" not in run.text():
            raise RuntimeError(run.text())
        scratch.rename(place)
    return place
