"""The losses that ask a teacher, the frozen teacher, and training in two steps."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import build, config
from bireal_jax.binary import losses
from bireal_jax.data import batching
from bireal_jax.data.normalize import normalize
from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint, progress
from bireal_jax.training import optim, seeds, train
from bireal_jax.training.step import Plan, teacher_arguments

STAGES = (
    {"name": "step1", "model.weight": "real", "model.latent_init": "torch", "optim.weight_decay": 1e-5},
    {"name": "step2", "model.weight": "released"},
)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """The workdir of a teacher that has seen a few images."""
    place = tmp_path_factory.mktemp("teacher")
    train.run(small(**{"model.name": "resnet_tiny", "eval_steps": 12}), place)
    return place


def student(place, **fields):
    c = small(**{
        "model.name": "react_tiny", "loss": "distributional", "teacher.name": "resnet_tiny",
        "teacher.weights": str(place), **fields,
    })  # fmt: skip
    c.stages = STAGES
    return c


def latents(variables):
    return [np.asarray(w) for w in optim.latents(variables["params"])]


def test_distributional_loss_and_its_gradient_against_numpy(x64):
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 3, (6, 7)), rng.normal(0, 3, (6, 7))
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (theirs, ours))
    np.testing.assert_allclose(losses.distributional(ours, theirs), (p * np.log(p / q)).sum(1), rtol=1e-10)
    np.testing.assert_allclose(losses.distributional(ours, ours), 0, atol=1e-14)
    slope = jax.grad(lambda a, b: losses.distributional(a, b).sum(), argnums=(0, 1))(ours, theirs)
    np.testing.assert_allclose(slope[0], q - p, rtol=1e-8, atol=1e-12)
    assert not np.any(slope[1]), "the teacher is frozen"
    assert losses.distributional(jnp.zeros((2, 3), jnp.bfloat16), jnp.ones((2, 3))).dtype == jnp.float32


def test_labels_and_teacher_mixed_against_numpy(x64):
    rng = np.random.default_rng(0)
    ours, theirs, labels = rng.normal(0, 3, (6, 7)), rng.normal(0, 3, (6, 7)), rng.integers(0, 7, 6)
    log = lambda z: z - np.log(np.exp(z).sum(1, keepdims=True))
    p, q, y = np.exp(log(theirs / 3)), np.exp(log(ours / 3)), 0.9 * np.eye(7)[labels] + 0.1 / 7
    expected = 0.3 * -(y * log(ours)).sum(1) + 0.7 * 9 * (p * np.log(p / q)).sum(1)
    loss = losses.get("distilled", 0.1, temperature=3.0, share=0.7)
    np.testing.assert_allclose(loss(ours, theirs, labels), expected, rtol=1e-10)
    slope = jax.grad(lambda a, b: loss(a, b, labels).sum(), argnums=(0, 1))(ours, theirs)
    np.testing.assert_allclose(slope[0], 0.3 * (np.exp(log(ours)) - y) + 0.7 * 3 * (q - p), rtol=1e-8, atol=1e-12)
    assert not np.any(slope[1]), "the teacher is frozen"
    np.testing.assert_allclose(
        losses.get("distilled", share=0.0)(ours, theirs, labels), losses.cross_entropy(ours, labels)
    )
    np.testing.assert_array_equal(losses.evaluation("distilled")(ours, labels), losses.cross_entropy(ours, labels))


def test_the_mixed_loss_is_trained_by_and_logged(taught, tmp_path):
    c = small(**{
        "loss": "distilled", "teacher.name": "resnet_tiny", "teacher.weights": str(taught), "total_steps": 1,
        "log_steps": 1, "eval_steps": 1, "model.latent_init": "he", "teacher.temperature": 2.0, "teacher.share": 0.25,
        "model.sync_bn": True,
    })  # fmt: skip
    train.run(c, tmp_path)
    found = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    plan = Plan(next(config.stages(c)))
    batch = next(batching.train_batches(plan.source, c.batch_size, batching.stage_seed(c.seed, 0), 0, devices=1))
    images = normalize(jnp.asarray(batch["image"][0]), plan.source, jnp.float32)
    model = plan.model.clone(bn_over=None)  # one device has them all here
    ours, _ = model.apply(plan.initial(c.seed), images, train=True, mutable=["batch_stats"])
    theirs = plan.teacher.apply(teacher_arguments([plan])[0], images)
    expected = losses.distilled(ours, theirs, jnp.asarray(batch["label"][0]), temperature=2.0, share=0.25)
    np.testing.assert_allclose(found, np.mean(expected), rtol=1e-3)


@pytest.mark.slow
@pytest.mark.campaign
def test_two_steps_resume_bit_for_bit_with_a_teacher_that_stays(taught, tmp_path, monkeypatch):
    """Cut in either step. The first loss is the KL by hand; the teacher is unchanged, and in no checkpoint."""
    c = student(taught, total_steps=2, save_steps=1, log_steps=1, eval_steps=2)
    before = {p: p.read_bytes() for p in taught.rglob("*") if p.is_file()}
    train.run(c, tmp_path / "straight")
    real = progress.Bar.advance
    for stage, at in (("step1", 2), ("step2", 2)):

        def cut(self, step, stage=stage, at=at):
            real(self, step)
            if (self.name, step) == (stage, at):
                raise KeyboardInterrupt

        monkeypatch.setattr(progress.Bar, "advance", cut)
        with pytest.raises(KeyboardInterrupt):
            train.run(c, tmp_path / "cut")
    monkeypatch.undo()
    train.run(c, tmp_path / "cut")
    for name in ("metrics.jsonl", "result.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes(), name
    assert {p: p.read_bytes() for p in taught.rglob("*") if p.is_file()} == before
    plans = [Plan(stage) for stage in build.stages(c)]
    ends = []
    for i, plan in enumerate(plans):
        place = tmp_path / "straight" / f"stage_{i}" / "checkpoints"
        with checkpoint.Checkpoints(place, read_only=True) as checkpoints:
            stored = checkpoints._record(2)["leaves"]
            ends.append(checkpoints.restore(2, {"variables": plan.shapes})["variables"])
        assert set(stored["variables"]) == set(checkpoint.shapes(plan.shapes))
        assert not [leaf for tree in stored.values() for leaf in tree if "stage1_block1" in leaf], "teacher's names"
    lines = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    shares = [line["flipped"] for line in lines if line["stage"] == 1 and "flipped" in line]
    assert shares[0] < 0.2, "the signs of step 2 are those of step 1, but for one update"


def test_step_2_starts_from_step_1_or_anew(taught, tmp_path):
    c = student(taught, total_steps=2)
    first, second = (train.Stage(i, f"step{i + 1}", stage, tmp_path, 0) for i, stage in enumerate(build.stages(c)))
    variables = jax.tree.map(np.asarray, first.initial(3))
    old = latents(variables)
    assert all(0.2 < np.mean(w >= 0) < 0.8 for w in old), "PyTorch's initialization is symmetric"
    inherited = latents(second._initial(variables))
    assert all(np.array_equal(a >= 0, b >= 0) for a, b in zip(old, inherited, strict=True))
    c.reinit_step2 = True
    second = train.Stage(1, "step2", list(build.stages(c))[1], tmp_path, 0)
    again = second._initial(variables)
    assert all(np.all((w >= 0) & (w < 1e-3)) for w in latents(again)), "the released code: every sign restarts at +1"
    np.testing.assert_array_equal(
        again["params"]["head"]["linear"]["kernel"], variables["params"]["head"]["linear"]["kernel"]
    )


@pytest.mark.slow
def test_seeds_share_the_teacher(taught):
    """The last of two networks is the one trained alone."""
    c = student(taught, total_steps=2, log_steps=1, eval_steps=2, reinit_step2=True)
    (_, both), (_, alone) = seeds.train(c, [4, 5]), seeds.train(c, [5])
    for a, b in zip(both, alone, strict=True):
        np.testing.assert_allclose(a["loss"][1], b["loss"][0], rtol=1e-4)


def test_a_teacher_that_cannot_teach_is_named_before_the_training(taught, tmp_path):
    for fields, message in (
        ({"teacher.weights": ""}, "needs a teacher\nset config.teacher.weights to weights of resnet_tiny"),
        ({"teacher.weights": str(tmp_path / "typo.npz")}, "config.teacher.weights=.*typo.npz, of resnet_tiny: no such"),
        ({"teacher.weights": str(tmp_path)}, "config.teacher.weights=.*no checkpoint in"),
        ({"teacher.weights": "", "teacher.name": "resnet34"}, "needs a teacher\nset .* weights of resnet34"),
        ({"loss": "cross_entropy"}, "and the loss 'cross_entropy' asks no teacher\nset config.loss=distributional"),
        ({"teacher.name": "bireal_tiny"}, "of bireal_tiny: .* is of another model"),
        ({"teacher.name": "resnet35"}, "unknown model 'resnet35'"),
        ({"teacher.dtype": "int8"}, "config.teacher.dtype is int8; it must be auto, float32"),
        ({"label_smoothing": 0.1}, "has no labels to smooth\nset it to 0.0"),
    ):
        with pytest.raises(BadInput, match=message):
            train.run(student(taught, **fields), tmp_path / "w")
        assert not (tmp_path / "w").exists()
    with pytest.raises(BadInput, match="reinit_step2 is True, and there is no second stage"):
        config.validate(small(reinit_step2=True))
    other = np.savez(tmp_path / "few.npz", **{
        "/".join(k.key for k in path): np.ones([3 if n == 10 else n for n in leaf.shape], np.float32)
        for path, leaf in jax.tree_util.tree_leaves_with_path(build.model(small(**{"model.name": "resnet_tiny"}),
                                                                         build.source(small()))[1])
    })  # fmt: skip
    assert other is None
    with pytest.raises(BadInput, match=r"head/linear/bias: stored .*\[3\], wanted .*\[10\]"):
        train.run(student(tmp_path / "few.npz"), tmp_path / "w")


def test_16_bit_teacher_leaves_the_loss_as_it_is(taught):
    """To 1e-3 nats, for a student close to its teacher. Relative to such a small loss the change is larger."""
    c = small(**{"model.name": "resnet_tiny"})
    module, variables, prepare = build.trained(taught)
    images = build.source(c).eval.images[:128]
    wide = module.apply(variables, prepare(images))
    narrow = module.clone(dtype=jnp.bfloat16).apply(variables, jnp.asarray(prepare(images), jnp.bfloat16))
    ours = wide + jax.random.normal(jax.random.key(0), wide.shape)
    a, b = (losses.distributional(ours, z).mean() for z in (wide, narrow))
    assert abs(a - b) < 1e-3 and narrow.dtype == jnp.float32
