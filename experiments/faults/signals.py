"""A run that is killed or asked to stop, again and again, and then left to finish."""

import random
import signal
import time
from pathlib import Path

from experiments.faults.bench import SERVER, Bench, Run, following, newest, steps
from experiments.faults.damage import same, trees


def kills(bench: Bench, rng: random.Random) -> dict:
    """Ten SIGKILLs of one run, eight of them aimed into a save."""
    workdir, straight = bench.place() / "w", bench.straight("digits")
    tally = {"SIGKILL": 0, "SIGKILL in a save": 0, "most steps lost": 0}
    aims = [True] * 8 + [False] * 2
    rng.shuffle(aims)
    for aimed in aims:
        before = newest(workdir)
        run = bench.start(workdir)
        if aimed:
            _wait_for_a_save(run, workdir, before, rng.randrange(3))
            time.sleep(rng.uniform(0, 0.1))
        else:
            time.sleep(rng.uniform(0, 6))
        run.send(signal.SIGKILL)
        status = run.wait()
        if status not in (0, -signal.SIGKILL):
            return {"failed": f"status {status}: {run.text()[-1500:]}", **tally}
        if wrong := continued(run, before):
            return {"failed": wrong, **tally}
        if status == 0:
            break
        tally["SIGKILL in a save" if _unfinished(workdir) else "SIGKILL"] += 1
        tally["most steps lost"] = max(tally["most steps lost"], _lost(workdir))
    return {"failed": bench.finish(workdir, straight), **tally}


def _wait_for_a_save(run, workdir, before, number):
    """Until save `number` of this start is under way, or the run has ended."""
    if run.until(lambda: run.first_step() is not None) and run.until(lambda: _saves_since(workdir, before) >= number):
        run.until(lambda: _unfinished(workdir))


def save_without_end(place: Path) -> None:
    """Restores the newest checkpoint, says in a file whether it is what was saved, and saves one after the other."""
    from bireal_jax.running.checkpoint import Checkpoints

    with Checkpoints(place / "c") as checkpoints:
        step, restored = checkpoints.restore_latest(trees(0)) or (0, trees(0))
        (place / "restored").write_text(f"{step} {same(restored, trees(step))}")
        while True:
            step += 1
            checkpoints.save(step, trees(step), {"top1": step * 7919 % 100})


def kills_of_saves(bench: Bench, rng: random.Random) -> dict:
    """SIGKILLs of a process that does nothing but save: 25 of them."""
    place, tally = (
        bench.place(),
        {
            "SIGKILL of a process that only saves, between saves": 0,
            "SIGKILL of a process that only saves, in a save": 0,
        },
    )
    for _ in range(25):
        before = max(steps(place / "c"), default=0)
        (place / "restored").unlink(missing_ok=True)
        # pyrefly: ignore[bad-argument-type]
        process = SERVER.Process(target=save_without_end, args=(place,))
        process.start()
        until, unfinished = before + rng.randrange(4), lambda: any((place / "c").glob("*tmp*"))
        while process.is_alive() and not (
            (place / "restored").exists() and max(steps(place / "c"), default=0) >= until and unfinished()
        ):
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        if process.exitcode != -signal.SIGKILL or (place / "restored").read_text() != f"{before} True":
            said = (place / "restored").read_text()
            return {"failed": f"status {process.exitcode}, {before} was saved, restored {said}", **tally}
        tally[
            "SIGKILL of a process that only saves, in a save"
            if unfinished()
            else "SIGKILL of a process that only saves, between saves"
        ] += 1
    return {"failed": "", **tally}


def continued(run: Run, before: tuple[str, int]) -> str:
    """ "" if a run went on from the newest checkpoint there was, as far as it got, or else what is wrong."""
    first = run.first_step()
    if first and first != following(*before):
        return f"went on with {first} after {before}"
    return f"noise: {run.text()[-1500:]}" if "Traceback" in run.text() else ""


def _saves_since(workdir, before):
    name, step = newest(workdir)
    return (step - before[1] if name == before[0] else step) // 2


def _lost(workdir):
    """Steps that were logged since the newest checkpoint."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines() if (workdir / "metrics.jsonl").exists() else []
    name, step = newest(workdir)
    stage = ("first", "second").index(name)
    return sum(f'"stage": {stage}, ' in line and '"train"' in line for line in lines) - step if lines else 0


def _unfinished(workdir: Path) -> bool:
    """Whether a save is under way, or was when the run was killed."""
    return any(workdir.glob("stage_*/checkpoints/*tmp*"))


def stops(bench: Bench, rng: random.Random, group: bool, workers: int) -> dict:
    """Five SIGTERMs to the process or to its group, four out of five of them after the first step."""
    workdir = bench.place() / "w"
    arguments = [*bench.folder(), f"--config.data.workers={workers}"]
    straight = bench.straight("folder", bench.folder())
    what = f"SIGTERM to the {'group' if group else 'process'}, {workers} workers"
    tally = {what: 0, "longest exit": 0.0}
    for _ in range(5):
        before = newest(workdir)
        run = bench.start(workdir, arguments)
        if rng.random() < 0.8:  # in training or in an evaluation
            run.until(lambda run=run: run.first_step() is not None)
            time.sleep(rng.uniform(0, 0.5))
        else:
            time.sleep(rng.uniform(0, 6))
        run.send(signal.SIGTERM, group)
        began = time.monotonic()
        status = run.wait()
        tally["longest exit"] = max(tally["longest exit"], round(time.monotonic() - began, 1))
        text = run.text()
        if status == 0 and "test top-1" in text:
            break
        if status or "the same command continues" not in text or (wrong := continued(run, before)):
            return {"failed": f"status {status}: {wrong or text[-1500:]}", **tally}
        tally[what] += 1
    return {"failed": bench.finish(workdir, straight, arguments), **tally}
