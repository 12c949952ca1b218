"""Images on the devices, several steps in one call: what equals what, and where a call ends."""

import json
import os
import signal
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import build, config, data
from bireal_jax.data import batching
from bireal_jax.data.augment import Augment, gather
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.running import health, parallel, preempt, progress
from bireal_jax.training import calls, train


def before(images, pad, mirror, cover, fill, rng):
    """The augmentation as it was written at first, an array of images at a time."""
    if pad:
        size, (top, left) = images.shape[1:3], rng.integers(0, 2 * pad + 1, (2, len(images)))
        padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, size, (1, 2))
        images = windows[np.arange(len(images)), top, left].transpose(0, 2, 3, 1)
    if mirror:
        images = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, images[:, :, ::-1], images)
    if cover:
        rows, columns = (
            (np.arange(n) >= start[:, None]) & (np.arange(n) < start[:, None] + cover)
            for n in images.shape[1:3]
            for start in [rng.integers(0, n, len(images)) - cover // 2]
        )
        images = np.where((rows[:, :, None] & columns[:, None, :])[..., None], fill, images)
    return images


@pytest.mark.parametrize(
    ("pad", "mirror", "cover"), [(4, True, 0), (1, False, 0), (0, True, 3), (2, True, 5), (9, False, 8), (0, False, 0)]
)
def test_devices_and_numpy_give_what_they_gave(pad, mirror, cover):
    """Bit for bit, of odd sizes, crops that miss the image included; rows of no example give zeros, masked."""
    rng = np.random.default_rng(1)
    images, labels = rng.integers(0, 256, (50, 9, 8, 3), np.uint8), rng.integers(0, 10, 50)
    fill = np.array([7, 8, 9], np.uint8)
    arrays = Arrays(images, labels, Augment(pad, mirror, cover, (7, 8, 9)))
    indices = rng.permutation(50)[:32]
    expected = before(images[indices], pad, mirror, cover, fill, np.random.default_rng(5))
    rows = arrays.rows(indices, np.random.default_rng(5))
    on_device = jax.jit(lambda d, r: gather(d, r, arrays.augment))({"image": images, "label": labels}, rows)
    for found in (arrays.batch(indices, np.random.default_rng(5)), on_device):
        np.testing.assert_array_equal(found["image"], expected)
        np.testing.assert_array_equal(found["label"], labels[indices])
    plain = gather({"image": images, "label": labels}, jnp.array([[3] + [0] * 5, [-1] + [0] * 5]), None)
    assert np.array_equal(plain["image"][0], images[3]) and not plain["image"][1].any()
    assert plain["mask"].tolist() == [True, False] and plain["label"][1] == 0


@pytest.mark.parametrize("process", [0, 1])
def test_rows_give_the_batches_that_the_host_makes(process):
    """Training and evaluation, of two processes of two devices; at 7 images the last batches are padded."""
    source = build.source(small(**{"data.cutout": 2}))
    held, where = calls.hold(source), {"devices": 2, "process": process, "processes": 2}
    rows = batching.train_rows(source.train, 16, 3, 88, **where)  # over the end of an epoch
    batches = batching.train_batches(source, 16, 3, 88, **where)
    pairs = [("train", next(rows), next(batches)) for _ in range(3)]
    rounds = batching.eval_rows(source.eval, 7, **where)
    whole = list(batching.eval_batches(source, 7, **where))
    pairs += [("eval", *pair) for pair in zip(rounds, whole, strict=True)]
    for name, row, batch in pairs:
        found = jax.vmap(held[name].batch, (None, 0))(held[name].data, row)
        for key, expected in batch.items():
            np.testing.assert_array_equal(found[key], expected)
            assert found[key].dtype == expected.dtype


def test_calls_end_where_the_config_says():
    def stops(start, *every):
        return list(calls.ends(start, 20, *every))

    assert stops(0, 8, 6, 0, 5) == [5, 6, 8, 10, 12, 15, 16, 18, 20]
    assert stops(0, 100, 0, 0, 0) == [20] and stops(20, 3) == [] and stops(0, 1) == list(range(1, 21))
    for cut in range(20):  # wherever a run was cut off
        assert stops(cut, 8, 6, 5) == [s for s in stops(0, 8, 6, 5) if s > cut]


def lines(place):
    return [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]


def ask_at(monkeypatch, step):
    real = progress.Bar.advance

    def advance(self, done):
        real(self, done)
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress.Bar, "advance", advance)


ODD = {"total_steps": 11, "log_steps": 5, "save_steps": 3, "eval_steps": 6, "ema_decay": 0.9, "seed": 3}


def test_several_steps_a_call_cut_anywhere_give_the_same_bits(tmp_path, monkeypatch):
    """Calls of 4 steps, logs and saves at odd ones, and signals in the middle of calls, which their ends answer."""
    c = small(call_steps="4", **ODD)
    train.run(c, tmp_path / "straight")
    assert [(w["split"], w["step"]) for w in lines(tmp_path / "straight")] == [
        ("train", 5), ("eval", 6), ("train", 10), ("train", 11), ("eval", 11)
    ]  # fmt: skip
    for step in (4, 8):
        with monkeypatch.context() as patch, preempt.Signals() as signals:
            ask_at(patch, step)
            with pytest.raises(preempt.Stopped, match=f"stopped at step {step} of 11"):
                train.run(c, tmp_path / "cut", signals)
    train.run(c, tmp_path / "cut")
    for name in ("metrics.jsonl", "result.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.campaign
def test_what_calls_of_several_lengths_have_in_common(tmp_path):
    """One program does calls of any number of steps, so those of 4 and of 5 are equal. Single steps are another one."""
    for call_steps in ("4", "5", "1"):
        train.run(small(call_steps=call_steps, **ODD), tmp_path / call_steps)
    four, five, one = (lines(tmp_path / call_steps) for call_steps in ("4", "5", "1"))
    assert four == five
    assert [(w["split"], w["step"]) for w in four] == [(w["split"], w["step"]) for w in one]
    np.testing.assert_allclose(four[0]["loss"], one[0]["loss"], rtol=1e-4)


def test_images_that_do_not_fit_stream_to_the_same_bits(tmp_path, monkeypatch, capsys):
    train.run(small(total_steps=5), tmp_path / "held")

    class Card:
        def memory_stats(self):
            return {"bytes_limit": 400_000}  # the images take 115,008 bytes

    hold = calls.hold

    def on_a_card(source):
        with monkeypatch.context() as patch:
            patch.setattr(jax, "local_devices", lambda: [Card()])
            return hold(source)

    monkeypatch.setattr(calls, "hold", on_a_card)
    train.run(small(total_steps=5), tmp_path / "streams")
    said = capsys.readouterr().out
    assert said.count("they come from the host, a step a call") == 1
    assert (tmp_path / "held/metrics.jsonl").read_bytes() == (tmp_path / "streams/metrics.jsonl").read_bytes()


def test_a_step_in_the_middle_of_a_call_that_is_not_finite_is_named(tmp_path):
    fields = {"log_steps": 6, "save_steps": 0, "save_epochs": 0.0, "optim.lr": 1e30}
    with pytest.raises(BadInput) as error:
        train.run(small(call_steps="6", **fields), tmp_path)
    said = str(error.value).splitlines()
    assert said[0].startswith("train, step 2: the loss or an update is not finite (nan or inf), first in the output of")
    assert said[1].endswith("the last checkpoint is of step 0")


def test_what_guards_the_leaves_of_a_step_is_computed_once_in_a_loop_too():
    """XLA's CPU backend had computed it for each leaf: the loop of bireal20 took six times as long to compile."""
    state = {str(i): jnp.ones(3 + i) for i in range(12)}
    held = types.SimpleNamespace(batch=lambda data, rows: {"image": data[rows]})

    def step(state, batch):
        after = jax.tree.map(lambda v: jnp.exp(v) + batch["image"], state)
        ok = health.sound(after)
        return jax.tree.map(lambda a, b: jnp.where(ok, a, b), after, state), (ok, jnp.zeros((), jnp.int32))

    given, data = {"rows": jnp.array([0, 1, 0, 1, 0]), "count": jnp.int32(4)}, jnp.array([1.0, jnp.nan])
    loop = jax.jit(calls.loop(step, held, 5)).lower(state, given, data).compile()
    assert loop.as_text().count(" and(") <= 3 * len(state)
    after, (fine, _) = loop(state, given, data)
    assert fine.tolist() == [True, False, True, False, True] and all(np.isfinite(leaf).all() for leaf in after.values())


@pytest.mark.parametrize("value", ["0", "-3", "10001", "many", "1.5", ""])
def test_calls_that_cannot_be_are_refused(value):
    with pytest.raises(BadInput, match="config.call_steps is .*; it must be 'auto' or '1' to '10000'"):
        config.validate(small(call_steps=value))


def test_what_a_call_is():
    assert calls.longest(small()) == 1 and calls.longest(small(call_steps="7")) == 7
    assert calls.longest(small(deterministic=True)) == 1
    with pytest.raises(BadInput, match="config.call_steps is '7', and config.deterministic"):
        calls.longest(small(deterministic=True, call_steps="7"))


# ------------------------------------------------------------------------------------------------------------- thread


def fetching():
    return [t for t in threading.enumerate() if t.name.startswith("input")]


def test_batches_are_fetched_in_a_thread_that_ends_with_them():
    seen = []

    def batches():
        for i in range(100):
            seen.append((i, threading.current_thread().name))
            yield {"image": np.full((8, 1), i)}

    stream = parallel.prefetch(batches())
    assert [int(next(stream)["image"][0, 0]) for _ in range(3)] == [0, 1, 2]
    assert fetching()
    stream.close()
    assert not fetching() and len(seen) <= 6 and all(name.startswith("input") for _, name in seen)
    assert len(list(parallel.prefetch(iter([np.zeros((8, 1))] * 5)))) == 5 and not fetching()


def test_an_error_of_that_thread_comes_in_its_place():
    def batches():
        yield np.zeros((8, 1))
        raise BadInput("photo.jpg cannot be decoded")

    stream = parallel.prefetch(batches())
    next(stream)
    with pytest.raises(BadInput, match=r"photo.jpg cannot be decoded"):
        next(stream)
    assert not fetching()


def test_the_next_batch_is_fetched_while_one_is_used():
    def slow():
        for _ in range(4):
            time.sleep(0.1)
            yield np.zeros((8, 1))

    stream, waited = parallel.prefetch(slow()), []
    for _ in range(4):
        began = time.monotonic()
        next(stream)
        waited.append(time.monotonic() - began)
        time.sleep(0.3)
    assert max(waited[1:]) < 0.05


def test_labels_are_checked_before_anything_is_computed():
    source = data.build("digits", image_size=8)
    with pytest.raises(BadInput, match="the data set: label 10 is not in 0..9"):
        calls.Held(Arrays(source.train.images, source.train.labels + 1), 10)
