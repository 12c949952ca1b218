"""From a Source to batches. The stream is a pure function of (seed, step): the same for any number of workers."""

import functools
import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from absl import flags

from bireal_jax.data.augment import ROW
from bireal_jax.data.source import Arrays, Source, check_labels
from bireal_jax.errors import BadInput

Batch = dict[str, np.ndarray]


class _Augment(grain.transforms.RandomMap):
    def __init__(self, augment):
        self.augment = augment

    def random_map(self, element: Any, rng: np.random.Generator) -> Any:
        return self.augment(element, rng)


def train_batches(
    source: Source, batch_size: int, seed: int, start: int, *,
    devices: int, process: int = 0, processes: int = 1, threads: int = 4, workers: int = 0,
) -> Iterator[Batch]:  # fmt: skip
    """Endless training batches of this process, from step `start` on.

    Every epoch is a fresh permutation of the training examples, and epochs follow each other without a gap, so no
    example is dropped. The random numbers of the augmentation belong to the position in the stream, not to a worker.
    A batch lies on the devices of one process after those of the other: in that order it is the same for any number.

    Args:
      source: the data set.
      batch_size: images per step over all processes.
      seed: of order and augmentation.
      start: the first step wanted; batches before it are not computed.
      devices: local devices over which a batch is divided.
      process, processes: which of how many processes this is.
      threads, workers: decoding threads, and processes beside this one.

    Yields:
      image uint8 [devices, n, h, w, c], label int32 [devices, n], mask bool [devices, n], all True. Of a data set with
      depth the label is float32 [devices, n, H, W], in metres, 0 where there is none.

    Raises:
      BadInput: batch_size is not divisible; a label out of range; an image that cannot be decoded.
    """
    check_divisible(batch_size, devices * processes)
    make = _memory_batches if isinstance(source.train, Arrays) else _grain_batches
    for batch in make(source, batch_size, seed, start, process, processes, threads, workers):
        yield _finish(batch, source, batch_size // processes, devices)


def _grain_batches(source, batch_size, seed, start, process, processes, threads, workers):
    stream = grain.MapDataset.source(source.train).seed(seed).shuffle().repeat().random_map(_Augment(source.augment))
    size = batch_size // processes
    # Grain counts batches in floating point, and of a stream of single images one too many for Python
    batches = (stream.batch(size) if size > 1 else stream.map(_batch_of_one))[process::processes][start:]
    return _decoded(batches, threads, workers)


def _decoded(batches, threads, workers):
    """Iterates over a MapDataset with so many threads, or in worker processes.

    Raises:
      BadInput: worker processes, which import the program that started them, would run it again.
    """
    iterable = batches.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 2)))
    if not workers:
        return iterable
    program = sys.modules["__main__"]
    file, spec = getattr(program, "__file__", None), getattr(program, "__spec__", None)
    if file and not (spec and spec.name.endswith("__main__")):  # not in a notebook, nor of `python -m PACKAGE`
        try:
            guarded = "__name__" in Path(file).read_text(errors="replace")
        except OSError:
            guarded = not file.startswith("<")  # standard input, which cannot be read again
        if not guarded:
            raise BadInput(
                f"config.data.workers is {workers}, and worker processes import {file} again, which would train anew\n"
                'put what it does below `if __name__ == "__main__":` in a file, or leave the workers at 0'
            )
    if not flags.FLAGS.is_parsed():  # Grain asks a flag of absl's, which programs without absl never parse
        flags.FLAGS.mark_as_parsed()
    return iterable.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), end_with_the_parent)


def _batch_of_one(example):
    return {name: np.asarray(value)[None] for name, value in example.items()}


def end_with_the_parent(*_) -> None:
    """In a worker process: ends it within a second after the training was killed, or its memory is not given back."""
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def stage_seed(seed: int, stage: int) -> int:
    """The seed of the batches of one stage of a run."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1)[0])


def _memory_batches(source, batch_size, seed, start, process, processes, threads, workers):
    """A stream for examples in memory, a whole batch at a time: Grain spends 240 us on each digit, this 3."""
    return map(source.train.gathered, _rows(source.train, batch_size, seed, start, process, processes))


def train_rows(
    examples: Arrays, batch_size: int, seed: int, start: int, *, devices: int, process: int = 0, processes: int = 1
) -> Iterator[np.ndarray]:
    """What `augment.gather` takes for the batches of `train_batches`, of examples that lie where it gathers.

    Yields:
      int32 [devices, n, len(augment.ROW)].

    Raises:
      BadInput: batch_size is not divisible.
    """
    check_divisible(batch_size, devices * processes)
    for rows in _rows(examples, batch_size, seed, start, process, processes):
        yield rows.reshape(devices, -1, rows.shape[-1])


def _rows(examples, batch_size, seed, start, process, processes):
    count = len(examples)
    order = functools.lru_cache(2)(lambda epoch: np.random.default_rng([seed, 1, epoch]).permutation(count))
    for step in itertools.count(start):
        places = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs = range(places[0] // count, places[-1] // count + 1)
        indices = np.concatenate([order(e)[places[places // count == e] - e * count] for e in epochs])
        rows = examples.rows(indices, np.random.default_rng([seed, 2, step]))
        yield np.array_split(rows, processes)[process]


def eval_batches(
    source: Source, batch_size: int, start: int = 0, *,
    devices: int, process: int = 0, processes: int = 1, threads: int = 4, workers: int = 0,
) -> Iterator[Batch]:  # fmt: skip
    """Every evaluation example once, in order; the last batches are filled up with rows whose mask is False.

    All processes yield the same number of batches, which collectives need. Arguments and batches as `train_batches`,
    but any batch size will do.
    """
    per_process = -(-batch_size // (devices * processes)) * devices
    rounds = -(-len(source.eval) // (per_process * processes))
    examples = grain.MapDataset.source(source.eval).map(source.prepare)
    shares = examples.batch(per_process, drop_remainder=False)[process::processes][start:]
    batches = iter(_decoded(shares, threads, workers))
    empty = {"image": np.zeros((0, *source.image_shape), np.uint8), "label": np.zeros((0, *source.label_shape))}
    for _ in range(start, rounds):
        yield _finish(next(batches, empty), source, per_process, devices)


def eval_rows(examples: Arrays, batch_size: int, *, devices: int, process: int = 0, processes: int = 1) -> np.ndarray:
    """What `augment.gather` takes for the batches of `eval_batches`: int32 [rounds, devices, n, len(augment.ROW)]."""
    per_process = -(-batch_size // (devices * processes)) * devices
    rounds = -(-len(examples) // (per_process * processes))
    rows = np.zeros((rounds * processes * per_process, len(ROW)), np.int32)
    rows[:, 0] = np.arange(len(rows))
    rows[len(examples) :, 0] = -1
    return rows.reshape(rounds, processes, devices, -1, len(ROW))[:, process]


def check_divisible(batch_size: int, devices: int) -> None:
    """Raises BadInput, with the next sizes that work, unless `devices` divides `batch_size`."""
    if batch_size % devices:
        below, above = batch_size // devices * devices, -(-batch_size // devices) * devices
        better = f"{below} or {above}" if below else f"{above}"
        raise BadInput(f"batch_size {batch_size} is not divisible by {devices} devices; use {better}")


def _finish(batch, source, size, devices):
    """Checks labels, fills up to `size` rows and divides them over devices."""
    images, labels = (
        np.asarray(batch["image"]),
        np.asarray(batch["label"], np.float32 if source.depth_range else np.int32),
    )
    if not source.depth_range:
        check_labels(labels, source.num_classes, "the data set")
    if images.shape[1:] != source.image_shape:
        raise BadInput(f"the data set yields images of shape {images.shape[1:]}, not {source.image_shape}")
    missing = size - len(labels)
    if missing:
        images = np.concatenate([images, np.zeros((missing, *images.shape[1:]), images.dtype)])
        labels = np.concatenate([labels, np.zeros((missing, *labels.shape[1:]), labels.dtype)])
    mask = np.arange(size) < size - missing
    batch = {"image": images, "label": labels, "mask": mask}
    return {name: a.reshape(devices, size // devices, *a.shape[1:]) for name, a in batch.items()}
