"""Images that are damaged, and processes that decode them and die."""

import contextlib
import os
import random
import shutil
import signal
import time
from pathlib import Path

from experiments.faults.bench import SMALL, Bench, message, write_folder


def damaged_image(bench: Bench, rng: random.Random, kind: str, workers: int) -> dict:
    """One file of a folder is damaged; mended, the same command goes on."""
    place = bench.place()
    straight = bench.straight("folder", bench.folder())
    shutil.copytree(bench.scratch / "folder", place / "data")
    arguments = ["--config.data.name=folder", f"--config.data.dir={place / 'data'}", *SMALL]
    arguments += [f"--config.data.workers={workers}"]
    path = rng.choice(sorted((place / "data").rglob("*.jpg")))
    whole = path.read_bytes()
    path.write_bytes(damage(whole, kind, rng))
    run = bench.start(place / "w", arguments)
    status = run.wait()
    what = f"{kind} of a JPEG file"
    path.write_bytes(whole)
    if status == 0:  # a JPEG file has no checksum: it decodes, to other pixels or the same
        return {"failed": "", f"{what}, decodes": 1}
    wrong = message(run) or (str(path) not in run.text() and f"not named: {run.text()[-1500:]}")
    return {"failed": wrong or bench.finish(place / "w", straight, arguments), f"{what}, named": 1}


def damage(data: bytes, kind: str, rng: random.Random) -> bytes:
    """Bytes of a file, damaged at random."""
    if kind == "zero length":
        return b""
    at = rng.randrange(len(data))
    if kind == "truncation":
        return data[:at]
    flipped = bytearray(data)
    for _ in range(8):
        flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


def damaged_record(bench: Bench, rng: random.Random, kind: str) -> dict:
    """The file of a split in the array_record format is damaged; mended, the same command goes on."""
    place = bench.place()
    whole = bench.scratch / "records"
    if not whole.exists():
        write_records(whole)
    arguments = ["--config.data.name=imagenet2012", *SMALL]
    straight = bench.straight("records", [*arguments, f"--config.data.dir={whole}"])
    shutil.copytree(whole, place / "data")
    arguments += [f"--config.data.dir={place / 'data'}"]
    path = rng.choice(sorted((place / "data").rglob("*array_record*")))
    content = path.read_bytes()
    path.write_bytes(damage(content, kind, rng))
    run = bench.start(place / "w", arguments)
    status = run.wait()
    path.write_bytes(content)
    what = f"{kind} of an array_record file"
    if status == 0:
        return {"failed": bench.finish(place / "w", straight, arguments), f"{what}, harmless": 1}
    return {"failed": message(run) or bench.finish(place / "w", straight, arguments), f"{what}, named": 1}


def write_records(place: Path) -> None:
    """The folder of digits in the layout of ImageNet, by our own preparation."""
    import io
    import tarfile

    import tensorflow_datasets as tfds
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    from bireal_jax.data import prepare

    scratch = place.with_name("records_tars")
    shutil.rmtree(scratch, ignore_errors=True)
    write_folder(scratch / "folder")
    synsets = Path(imagenet_common.label_names_file())
    names = (synsets if synsets.exists() else tfds.core.tfds_path(str(synsets))).read_text().split()
    with tarfile.open(scratch / prepare.TRAIN, "w") as outer:
        for folder in sorted((scratch / "folder" / "train").iterdir()):
            inner, synset = io.BytesIO(), names[int(folder.name)]
            with tarfile.open(fileobj=inner, mode="w") as tar:
                for path in sorted(folder.iterdir()):
                    tar.add(path, f"{synset}_{path.stem}.JPEG")
            member = tarfile.TarInfo(f"{synset}.tar")
            member.size = inner.tell()
            inner.seek(0)
            outer.addfile(member, inner)
    with tarfile.open(scratch / prepare.VAL, "w") as tar:
        for i, path in enumerate(sorted((scratch / "folder" / "val").rglob("*.jpg")), 1):
            tar.add(path, f"ILSVRC2012_val_{i:08d}.JPEG")
    prepare.imagenet2012(scratch, place)


def killed_worker(bench: Bench, rng: random.Random) -> dict:
    """SIGKILL to one of two data workers, as the kernel does when memory is short."""
    place, straight = bench.place(), bench.straight("folder", bench.folder())
    arguments = [*bench.folder(), "--config.data.workers=2"]
    run = bench.start(place / "w", arguments)
    run.until(lambda: len(run.children()) >= 2)
    time.sleep(rng.uniform(0, 6))
    workers = run.children()
    if not workers:
        run.wait()
        return {"failed": "", "killed data worker, too late": 1}
    with contextlib.suppress(ProcessLookupError):  # the training may have ended by now
        os.kill(rng.choice(workers), signal.SIGKILL)
    status = run.wait()
    if status == 0:
        return {"failed": bench.finish(place / "w", straight, arguments), "killed data worker, not needed any more": 1}
    wrong = message(run) or ("a data worker process was killed" not in run.text() and run.text()[-1500:])
    return {"failed": wrong or bench.finish(place / "w", straight, arguments), "killed data worker, named": 1}
