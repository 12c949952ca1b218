import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint
from bireal_jax.running.checkpoint import Checkpoints, Damaged


def trees(value=0.0):
    rng = np.random.default_rng(int(value))
    rest = {"step": np.int32(value), "moments": (rng.normal(size=(40, 30)),), "signs": [np.arange(9, dtype=np.uint8)]}
    return {"variables": {"params": {"w": rng.normal(size=(50, 20)).astype(np.float32)}}, "rest": rest}


def equal(a, b):
    import jax

    jax.tree.map(np.testing.assert_array_equal, a, b)
    assert jax.tree.structure(a) == jax.tree.structure(b)


def fill(place, scores, keep_last=2):
    """Checkpoints of steps 1, 2, ...; `scores` are their top-1 or None."""
    with Checkpoints(place, keep_last) as c:
        for step, score in enumerate(scores, 1):
            c.save(step, trees(step), None if score is None else {"top1": score})
            c.wait()
        return c.steps(), c.best_step()


def biggest_file(place):
    return max((p for p in Path(place).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_keeps_the_best_and_the_last(tmp_path):
    assert fill(tmp_path / "c", [None, 5.0, 3.0, None, None]) == ([2, 4, 5], 2)
    assert fill(tmp_path / "d", [1.0, 7.0, 7.0, 2.0, 0.0, 1.0]) == ([3, 5, 6], 3), "of two equal ones the later"


def test_restores_what_was_saved_whole_or_in_part(tmp_path):
    fill(tmp_path, [1.0, 2.0])
    with Checkpoints(tmp_path) as c:
        step, found = c.restore_latest(trees())
        assert step == 2
        equal(found, trees(2))
        equal(c.restore(1, {"variables": trees()["variables"]}), {"variables": trees(1)["variables"]})
        assert c.metrics(2) == {"top1": 2.0}


def test_nothing_there(tmp_path):
    with Checkpoints(tmp_path) as c:
        assert c.restore_latest(trees()) is None and c.best_step() is None


@pytest.mark.parametrize("damage", ["flip", "truncate", "zero", "delete"])
def test_damage_is_noticed_and_the_checkpoint_before_it_used(tmp_path, damage, caplog):
    fill(tmp_path / "c", [1.0, 2.0])
    path = biggest_file(tmp_path / "c" / "2")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if damage == "flip":
        content[middle] ^= 1
    if damage == "zero":
        content[middle : middle + 400] = bytes(400)
    path.write_bytes(content[:middle] if damage == "truncate" else content)
    if damage == "delete":
        path.unlink()
    with Checkpoints(tmp_path / "c") as c, caplog.at_level(logging.WARNING, "bireal_jax"):
        step, found = c.restore_latest(trees())
        assert step == 1
        equal(found, trees(1))
        assert "damaged checkpoint" in caplog.text and (tmp_path / "damaged" / "2").is_dir()
        c.save(2, trees(2), None)  # training comes by again
        c.wait()
        assert c.steps() == [1, 2]


def test_one_flipped_bit_in_any_file_is_noticed_or_harmless(tmp_path):
    fill(tmp_path / "c", [1.0, 2.0])
    files = [p.relative_to(tmp_path / "c") for p in (tmp_path / "c" / "2").rglob("*") if p.is_file()]
    noticed = set()
    for i, name in enumerate(files):
        place = tmp_path / str(i)
        shutil.copytree(tmp_path / "c", place / "c")
        content = bytearray((place / "c" / name).read_bytes())
        if content:
            content[len(content) // 2] ^= 4
        (place / "c" / name).write_bytes(content)
        with Checkpoints(place / "c") as c:
            step, found = c.restore_latest(trees())
            equal(found, trees(step))
            noticed |= {name.parts[1]} if step == 1 else set()
    assert {"variables", "rest", "digest"} <= noticed


def test_a_reader_leaves_a_save_under_way_alone(tmp_path):
    fill(tmp_path, [1.0])
    under_way = tmp_path / "2.orbax-checkpoint-tmp"
    under_way.mkdir()
    with Checkpoints(tmp_path, read_only=True) as c:
        assert c.steps() == [1] and c.best_step() == 1
    assert under_way.is_dir()
    with Checkpoints(tmp_path / "none", read_only=True) as c:
        assert c.steps() == []
    assert not (tmp_path / "none").exists()


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path):
    fill(tmp_path / "c", [1.0])
    biggest_file(tmp_path / "c").write_bytes(b"")
    for _ in range(2):  # a restart does not begin anew, either
        with Checkpoints(tmp_path / "c") as c, pytest.raises(BadInput, match="no sound checkpoint is left"):
            c.restore_latest(trees())
    assert (tmp_path / "damaged" / "1").is_dir()


def test_a_changed_value_is_named(tmp_path, monkeypatch):
    """What Orbax itself lets pass: other bytes of the right size."""
    real = checkpoint.digest
    monkeypatch.setattr(checkpoint, "digest", lambda tree: {k: v[:-8] + "00000000" for k, v in real(tree).items()})
    fill(tmp_path, [1.0])
    monkeypatch.undo()
    with Checkpoints(tmp_path) as c, pytest.raises(Damaged, match=r"variables params/w is float32 \[50, 20\]"):
        c.restore(1, trees())


def test_another_model_or_dtype_is_refused_with_both_sides(tmp_path):
    fill(tmp_path, [1.0])
    other = trees()
    other["variables"]["params"] = {"w": np.zeros((50, 21), np.float32)}
    with Checkpoints(tmp_path) as c:
        sides = r"params/w: stored float32 \[50, 20\], wanted float32 \[50, 21\]"
        with pytest.raises(BadInput, match=rf"another model: 1 of 1 variables differ\n{sides}"):
            c.restore_latest(other)
        other["variables"]["params"] = {"w": np.zeros((50, 20), np.float16)}
        with pytest.raises(BadInput, match=r"stored float32 \[50, 20\], wanted float16"):
            c.restore_latest(other)
        assert c.steps() == [1], "a checkpoint of another model is not damaged"


def test_merge_wants_the_same_tree():
    target = {"a": np.zeros(3, np.float32), "b": np.zeros((2, 2), np.float32)}
    merged = checkpoint.merge({"a": np.ones(3), "b": np.ones((2, 2))}, target, "x")
    assert merged["a"].dtype == np.float32
    with pytest.raises(
        BadInput, match=r"x is of another model: 2 of 3 variables differ\nb: stored nothing, wanted \[2, 2\]"
    ):
        checkpoint.merge({"a": np.ones(3), "c": np.ones(1)}, target, "x")


def test_a_save_that_fails_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(BadInput, match=r"(?s)cannot save a checkpoint.*free some space"), Checkpoints(tmp_path) as c:
        c.save(1, trees(1), None)
        c.wait()

        def full(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(c._manager, "save", full)
        c.save(2, trees(2), None)
    with Checkpoints(tmp_path) as c:
        assert c.restore_latest(trees())[0] == 1


def test_weights_of_one_bit_take_one_bit_and_come_back_exactly(tmp_path):
    rng = np.random.default_rng(0)
    signs = rng.choice([-1.0, 1.0], (3, 3, 64, 101)).astype(np.float32)
    others = {"near": np.float32([1, -1, 1.0000001]), "odd": rng.normal(size=9), "ints": np.int32([1, -1])}
    tree = {"params": {"signs": signs, "double": np.float64([-1, 1, -1]), **others}}
    assert checkpoint.binary_leaves(tree) == ["params/double", "params/signs"]
    with Checkpoints(tmp_path / "c") as c:
        c.save(1, {"variables": tree}, None)
        c.save(2, {"variables": tree}, None)
        c.wait()
        found = c.restore(1, {"variables": tree})["variables"]
        equal(found, tree)
        assert all(found["params"][k].dtype == v.dtype for k, v in tree["params"].items())
    size = sum(p.stat().st_size for p in (tmp_path / "c" / "1" / "variables").rglob("*") if p.is_file())
    assert signs.size / 8 < size < signs.size, "at most a byte a weight, with all that Orbax writes beside it"
    path = biggest_file(tmp_path / "c" / "2" / "variables")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with Checkpoints(tmp_path / "c") as c:
        assert c.restore_latest({"variables": tree})[0] == 1, "one flipped weight is noticed"
