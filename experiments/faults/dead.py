"""Two hosts that train one network, of which one dies or gets stuck."""

import contextlib
import os
import random
import signal
import socket
import time
from functools import partial

from experiments.faults.bench import NOISE, Bench, Clock

WATCHDOG = 10.0  # seconds


class Void(Exception):
    """The run ended before it was harmed."""


def fall_asleep(step: int) -> None:
    """From that step on the main thread of this process sleeps; its other threads do not."""
    from bireal_jax.running import progress

    advance = progress.Bar.advance

    def sleep(self, done):
        advance(self, done)
        if done == step:
            time.sleep(3600)

    progress.Bar.advance = sleep  # pyrefly: ignore[bad-assignment]


def hosts(bench: Bench, rng: random.Random, fault: str) -> dict:
    """Both processes end within the watchdog's time and 15 s, and one that is alive names the cause."""
    place = bench.place()
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    arguments = [
        *bench.folder(), f"--coordinator=localhost:{port}", "--num_processes=2",
        "--config.eval_steps=0", "--config.stages=()", "--config.total_steps=2000",
        f"--config.watchdog_seconds={WATCHDOG}",
        f"--config.data.workers={int(fault == 'killed data worker')}",
    ]  # fmt: skip
    step = rng.randrange(5, 30)
    prepare = [None, partial(fall_asleep, step) if fault == "sleeping main thread" else None]
    runs = [
        bench.start(place / f"{i}", [*arguments, f"--process_id={i}", f"--workdir={place / 'w'}"], prepare[i])
        for i in range(2)
    ]
    if not runs[0].until(lambda: f" {step}/2000" in runs[0].text()):
        raise Void  # a machine that was suspended for longer than JAX's heartbeat
    if fault == "SIGKILL of process 0":
        runs[0].send(signal.SIGKILL)
    elif fault == "SIGKILL of process 1":
        runs[1].send(signal.SIGKILL)
    elif fault == "SIGSTOP of process 1":
        runs[1].send(signal.SIGSTOP)
    elif fault == "killed data worker":
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(runs[1].children()), signal.SIGKILL)
    clock = Clock()
    watched = runs[:1] if fault == "SIGSTOP of process 1" else runs  # nothing but its machine can end the other
    while any(run.process.is_alive() for run in watched) and clock.seconds < WATCHDOG + 15:
        clock.sleep()
    late = [i for i, run in enumerate(watched) if run.process.is_alive()]
    for run in runs:
        if run.process.exitcode is None:
            run.send(signal.SIGKILL, group=True)
            run.process.join()
    texts = [run.text() for run in runs]
    named = any(line in text for text in texts for line in CAUSES[fault])
    noise = [word for word in NOISE for text in texts if word in text]
    failed = f"processes {late} did not end" if late else "" if named else "the cause is not named"
    detail = "\n----\n".join(text[-1500:] for text in texts) if failed or noise else ""
    return {
        "failed": failed,
        f"{fault}, of two processes": 1,
        "longest until all ended": round(clock.seconds, 1),
        "detail": detail,
    }


CAUSES = {
    "SIGKILL of process 0": ("host 0 (",),
    "SIGKILL of process 1": ("host 1 (",),
    "SIGSTOP of process 1": ("host 1 (",),
    "sleeping main thread": ("host 1 (",),
    "killed data worker": ("a data worker process was killed",),
}
