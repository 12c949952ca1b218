import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from small import small

from bireal_jax.errors import BadInput
from bireal_jax.running import parallel
from bireal_jax.training import seeds, train


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
