import itertools
import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from small import small

from bireal_jax.binary import conv
from bireal_jax.errors import BadInput
from bireal_jax.running import parallel
from bireal_jax.training import calls, seeds, train
from bireal_jax.training.step import Plan


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_seeds_trained_at_once_are_the_runs_one_by_one(count, tmp_path, x64):
    """Two stages, a scheduled estimator, flips: every number of metrics.jsonl, for the last seed.

    The runs divide their batch over eight devices, hence the cross-replica batch norm.
    """
    c = small(**{"model.dtype": "float64", "optim.name": "sgd", "optim.lr": 0.05, "model.sync_bn": True})
    c.model.latent_init = "he"
    c.stages = (
        {"name": "real", "model.act": "clip", "model.weight": "real", "total_steps": 4},
        {"name": "binary", "model.act": "tanh", "model.weight": "released", "total_steps": 7},
    )
    chosen = list(range(5, 5 + count))
    _, records = seeds.train(c, chosen)
    assert all(("flipped" in r) == (r["stage"] == 1) for r in records if r["split"] == "train"), (
        "real weights do not flip"
    )
    c.seed = chosen[-1]
    train.run(c, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for line, record in zip(lines, records, strict=True):
        assert line.keys() == record.keys()
        for name, value in line.items():
            ours = record[name][-1] if isinstance(record[name], np.ndarray) else record[name]
            assert ours == (value if isinstance(value, str) else pytest.approx(value, rel=1e-8, abs=1e-10)), name


def test_networks_lie_on_as_many_devices_as_help():
    assert jax.local_device_count() == 8
    layouts = {n: parallel.layout(n) for n in (1, 5, 8, 9, 11, 16, 17)}
    assert layouts == {1: (1, 1), 5: (5, 5), 8: (8, 8), 9: (5, 10), 11: (6, 12), 16: (8, 16), 17: (6, 18)}


@pytest.mark.slow
def test_nine_networks_on_eight_devices_are_nine_of_their_own():
    c = small(total_steps=3, **{"model.dtype": "float32"})
    variables, records = seeds.train(c, range(9))
    assert {leaf.shape[0] for leaf in jax.tree.leaves(variables)} == {9} and records[-1]["top1"].shape == (9,)
    alone, expected = seeds.train(c, [8])
    np.testing.assert_allclose(records[-1]["loss"][8], expected[-1]["loss"][0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(ours[8], theirs[0], rtol=1e-3, atol=1e-5)


def test_batch_norm_is_retrained_with_frozen_convolutions():
    """The last stage of the step-by-step training: weights of ±1 without scale, nothing moves but norms and head."""
    c = small(total_steps=2, **{"optim.name": "sgd", "model.latent_init": "he", "optim.lr": 0.1, "log_steps": 1})
    before, first = seeds.train(c, [0])
    c.update_from_flattened_dict({"model.weight": "sign", "optim.frozen": "conv"})
    after, second = seeds.train(c, [0], before)
    flat = [traverse_util.flatten_dict(v["params"], sep="/") for v in (before, after)]
    for name, old in flat[0].items():
        assert np.array_equal(old, flat[1][name]) == ("conv" in name), name
    assert first[0]["flipped"] > 0 and second[0]["flipped"] == 0
    old, new = (v["batch_stats"]["stage1_block1"]["bn"]["var"] for v in (before, after))
    assert new.mean() > 5 * old.mean(), "the running variance takes up the scale that is gone"
    with pytest.raises(BadInput, match="networks of the stage before"):
        seeds.train(c, [0, 1, 2], before)


@pytest.mark.parametrize("call_steps", ["4", pytest.param("1", marks=pytest.mark.slow)])
def test_a_network_that_diverges_stays_alone_and_a_training_that_was_cut_off_goes_on_to_the_same_bits(
    tmp_path, monkeypatch, call_steps
):
    c = small(
        call_steps=call_steps, total_steps=8, log_steps=2, eval_steps=8, save_steps=3, **{"model.latent_init": "he"}
    )
    straight, records = seeds.train(c, [3, 4])
    start = seeds._start(c, seeds.Plan(c), 0, [3, 4], None)
    start["params"]["stem_conv"]["kernel"][1] = np.nan
    note = seeds._Stage._note

    def cut(self, step, *rest):
        if step == 6:
            raise KeyboardInterrupt
        note(self, step, *rest)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(seeds._Stage, "_note", cut)
        seeds.train(c, [3, 4], start, tmp_path / "w")
    steps = []
    monkeypatch.setattr(seeds._Stage, "_note", lambda self, step, *rest: (steps.append(step), note(self, step, *rest)))
    variables, found = seeds.train(c, [3, 4], start, tmp_path / "w")
    assert steps == [4, 6, 8, 8], "from the checkpoint of step 3 on"
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(straight), strict=True):
        assert ours[0].tobytes() == theirs[0].tobytes()
    assert np.isnan(jax.tree.leaves(variables["params"]["head"])[0][1]).all() and np.isnan(found[-1]["loss"][1])
    for ours, theirs in zip(found, records, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert np.ravel(ours[name])[0] == np.ravel(value)[0], name
    del steps[:]
    again, same = seeds.train(c, [3, 4], start, tmp_path / "w")
    assert not steps and len(same) == len(found) and same[-1]["top1"].dtype == np.float64
    assert [leaf.tobytes() for leaf in jax.tree.leaves(again)] == [
        leaf.tobytes() for leaf in jax.tree.leaves(variables)
    ]
    with pytest.raises(BadInput, match="holds seeds .3, 4., not .3, 5."):
        seeds.train(c, [3, 5], start, tmp_path / "w")
    with pytest.raises(BadInput, match="started from other weights"):
        seeds.train(c, [3, 4], None, tmp_path / "w")


@pytest.mark.parametrize("call_steps", ["1", "4"])
def test_networks_see_the_batches_that_the_host_makes(call_steps):
    """Gathered on the devices, three networks on three of eight, from step 86 on, which ends an epoch."""
    plan, each = Plan(small(call_steps=call_steps)), [5, 6, 7]
    programs = seeds.Programs(plan, 3)
    assert programs.train and programs.most == int(call_steps)
    inputs = programs.inputs(each, 86, calls.ends(86, 94, programs.most))
    batches = seeds._batches(plan, each, 86)
    for given in itertools.islice(inputs, 2):
        count = given.get("count", 1)
        steps = (
            [programs._gather(programs.train.data, given["rows"][:, i]) for i in range(count)] if count > 1 else [given]
        )
        for found in steps:
            for name, expected in next(batches).items():
                np.testing.assert_array_equal(found[name], expected)
    inputs.close()


@pytest.mark.slow
def test_networks_are_evaluated_on_all_images_by_one_call_or_by_many_or_from_the_host(monkeypatch):
    """One call may round otherwise."""
    c = small(total_steps=4, log_steps=4, eval_steps=4, batch_size=50)
    _, records = seeds.train(c, [3, 4])
    c.call_steps = "4"
    _, at_once = seeds.train(c, [3, 4])
    monkeypatch.setattr(calls, "hold", lambda *_: {})
    _, streamed = seeds.train(c, [3, 4])
    for ours, more, theirs in zip(records, at_once, streamed, strict=True):
        for name, value in theirs.items():
            assert np.array_equal(ours[name], value), name
            if isinstance(value, np.ndarray):
                np.testing.assert_allclose(more[name], value, rtol=1e-4)


@pytest.mark.parametrize("platform", ["cuda", "rocm", "cpu"])
def test_convolutions_of_several_networks_are_no_grouped_ones(platform):
    def loss(x, w):
        return conv.conv(x, w, (1, 1), ((1, 1), (1, 1))).sum()

    step = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))
    shapes = (jax.ShapeDtypeStruct(shape, np.float32) for shape in ((3, 2, 8, 8, 4), (3, 3, 3, 4, 5)))
    text = step.trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
    lines = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(lines) == {"cpu": 3, "cuda": 6, "rocm": 6}[platform], "two gradients a network; unfolded on CPUs"
    assert all("feature_group_count = 1 " in line and "batch_group_count = 1 " in line for line in lines)
