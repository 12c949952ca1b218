"""A network that came with the package is a place to start from, to evaluate and to learn from, by its name."""

import json

import jax
import numpy as np
import pytest
from flax import traverse_util
from small import small

from bireal_jax import build, used
from bireal_jax.data import Source
from bireal_jax.data.source import Arrays
from bireal_jax.errors import BadInput
from bireal_jax.importers import unfold, zoo
from bireal_jax.runtime import named
from bireal_jax.shipping import export
from bireal_jax.training import evaluate, teacher, train

SHORT = {"total_steps": 4, "log_steps": 4, "eval_steps": 4, "save_steps": 4}


def leaves(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def start(config):
    source = build.source(config)
    _, shapes = build.model(config, source)
    return build.variables(config, shapes, lambda: jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), shapes), source)


@pytest.fixture
def folded(monkeypatch):
    """As if the networks of digits had come as packed files alone."""
    monkeypatch.setattr(zoo, "has_latents", lambda name: False)


@pytest.fixture
def five(tmp_path, monkeypatch):
    """A recipe for grey images of five classes without names."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez("five.npz", images=x, labels=np.arange(80) % 5)
    return lambda **fields: small(**{"data.name": "arrays", "data.dir": "five.npz", "init_from": "digits", **fields})


def test_float_weights_are_taken_with_their_normalization_and_a_new_head(five, capsys):
    found, kept = leaves(start(five())), leaves(build.pretrained("digits")[1])
    for name, leaf in found.items():
        assert (leaf == 7).all() if name.startswith("params/head/") else np.array_equal(leaf, kept[name])
    said = capsys.readouterr().out
    assert "a new head for 5 classes is drawn (head); kept of digits: " in said and "float weights" not in said
    own = zoo.source("digits")
    assert (build.source(five()).mean, build.source(five()).std) == (own.mean, own.std)
    assert (
        build.source(five(**{"data.mean": (0.25,)})).mean == (0.25,)
        and build.source(five(init_from="")).mean != own.mean
    )
    start(five(**{"data.mean": (0.25,), "model.act": "ste"}))
    assert (
        "note: from the network digits; here it is model.act approx_sign -> ste, data.mean" in capsys.readouterr().out
    )


def test_a_packed_file_becomes_what_a_training_goes_on_from(folded, capsys):
    config = small(init_from="digits")
    found, source = start(config), build.source(config)
    assert "note: digits came without float weights: latent ones begin at ±0.01, " in capsys.readouterr().out
    (packed, before), (module, _) = zoo.network("digits"), zoo.network("digits", "approx_sign", "released")
    for path, leaf in leaves(found).items():
        if path.endswith("latent"):
            np.testing.assert_array_equal(leaf, np.float32(unfold.LATENT) * leaves(before)[path])
    images = np.stack([source.eval[i]["image"] for i in range(len(source.eval))])
    images = build.prepared(images, source, np.float32)
    wanted = np.asarray(packed.apply(before, images)).argmax(-1)
    training = module.apply(found, images, train=True, mutable=["batch_stats"])[0]
    for outputs in (module.apply(found, images), training):
        assert np.mean(np.asarray(outputs).argmax(-1) == wanted) > 0.97
    stem = module.apply(found, images, capture_intermediates=True, mutable=["intermediates"])[1]["intermediates"]
    stem, statistics = np.asarray(stem["stem_conv"]["__call__"][0]), found["batch_stats"]["stem_bn"]
    np.testing.assert_allclose(statistics["mean"], stem.mean((0, 1, 2)), atol=0.05)
    np.testing.assert_allclose(statistics["var"], stem.var((0, 1, 2)), rtol=0.2)
    turned = np.asarray(module.apply(before, images, train=True, mutable=["batch_stats"])[0]).argmax(-1)
    assert np.mean(turned == wanted) < 0.5, "what is turned back alone is normalized once more"


@pytest.mark.slow
def test_a_training_from_a_packed_file_learns(folded, tmp_path):
    result = train.run(small(init_from="digits", **SHORT, **{"optim.lr": 0.02}), tmp_path / "w")
    rows = [json.loads(line) for line in (tmp_path / "w" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["flipped"] > 0.01 and result["steps"] == 4


def test_what_does_not_fit_names_what_does(five, tmp_path):
    for name, message in (
        ("digit", r"unknown run, file or network of the package 'digit'; did you mean digits\? known: .*, digits, "),
        ("digits_react", "is a network of config.model.name='react_tiny', not 'bireal_tiny'\nthat fit: digits; for 1 "),
        ("digits_react", "\nto start from it add --config.model.name=react_tiny --config.data.image_size=8$"),
        ("bireal20_cifar10", "model.name='bireal20', not .*\n.* for 1 channel .*: digits .bireal_tiny., digits_react"),
    ):
        with pytest.raises(BadInput, match=message):
            train.run(five(init_from=name), tmp_path / "w")
    tiny = five(init_from="digits", **{"model.name": "bireal18"})
    with pytest.raises(
        BadInput, match="too small for bireal18, .*\nto start from .* add --config.model.name=bireal_tiny --config.data"
    ):
        train.run(tiny, tmp_path / "w")
    coloured = five(**{"model.name": "bireal20", "init_from": "bireal20_cifar10"})
    with pytest.raises(BadInput, match="a network of images of 3 channels, and those here have 1\nthat fit: none"):
        train.run(coloured, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    (tmp_path / "digits").mkdir()  # as a workdir here that is called so, which wins
    with pytest.raises(BadInput, match="no checkpoint in digits"):
        start(five())


def test_what_is_another_here_is_said_in_words_of_a_network(five, capsys):
    start(five())
    assert "note: from the network digits; here it is " in (said := capsys.readouterr().out)
    assert "other classes (5 classes, not 10)" in said and "run" not in said and "image_size" not in said
    known = zoo.known_of("digits")
    others = Source((), (), dict, (16, 16, 1), 10, (0.5,), (0.5,), label_names=tuple("abcdefghij"))
    said = known.start(small(**{"data.image_size": 16}), others)
    assert said.endswith("\n--config.data.image_size=8 trains on images as large as there")
    with pytest.raises(BadInput) as caught:
        known.check_classes(others, known.title)
    assert "not known there: a, b, c, d, e, f, g, h, i, j\n" in str(caught.value) and " run" not in str(caught.value)
    assert str(caught.value).endswith("name and order the classes as there: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9")


@pytest.mark.parametrize("kept", [True, False])
def test_it_is_evaluated_and_packed_by_its_name(kept, tmp_path, capsys, request):
    if not kept:
        request.getfixturevalue("folded")
    config = small(init_from="digits", **{"model.act": "ste"})
    scores = train.run_eval(config, tmp_path / "none")
    assert round(scores["top1"], 2) == named.rows()["digits"].top1
    assert not (tmp_path / "none").exists(), "nothing is left of what is no run"
    assert "note: used as the network digits is, with another model.act ste -> approx_sign" in capsys.readouterr().out
    made, wanted = export.packed(used.weights(config, tmp_path / "none", pack=True)), zoo.program("digits")
    assert made.spec["ops"] == wanted.spec["ops"]
    assert all(np.array_equal(made.tensors[name], array) for name, array in wanted.tensors.items())


def test_an_evaluation_no_better_than_chance_says_so(five, capsys):
    digits = build.source(small()).eval
    fields = {"init_from": "digits", "data.dir": "all.npz", "data.val_share": 1.0}
    for by, said in ((0, False), (1, True)):
        np.savez("all.npz", images=digits.images, labels=(digits.labels + by) % 10, label_names=[*"0123456789"])
        train.run_eval(five(**fields), "none")
        assert ("no better than the answer " in capsys.readouterr().out) == said


def test_what_chance_is():
    def of(*labels, classes=2, names=("a", "b"), **fields):
        examples = Arrays(np.zeros((len(labels), 8, 8, 1), np.uint8), np.array(labels))
        return Source((), examples, dict, (8, 8, 1), classes, (0.5,), (0.5,), label_names=names, **fields)

    assert "the answer b for every image, 75.00 %;" in evaluate.chance(75.0, of(0, 1, 1, 1))
    assert evaluate.chance(75.1, of(0, 1, 1, 1)) == ""
    assert evaluate.chance(60.0, of(1, 1, 1)) == "", "nothing is known of a part of the classes"
    assert "guessing one of 3 classes, 33.33 %;" in evaluate.chance(33.3, of(1, 1, classes=3, names=()))
    from_1 = of(1, 2, 2, 3, 3, 3, 4, classes=5, names=())  # no image is of class 0
    assert "the answer 3 for every image, 42.86 %;" in evaluate.chance(30.0, from_1)
    assert evaluate.chance(0.0, of(0, 0, depth_range=(0.1, 10.0))) == ""


def test_it_teaches_by_its_name(folded):
    config = small(
        **{"loss": "distributional", "teacher.name": "bireal_tiny", "teacher.weights": "digits", "data.mean": (0.25,)}
    )
    source = build.source(config)
    module, shapes, seen = teacher.network(config, source)
    assert (seen.mean, seen.std) == (zoo.source("digits").mean, zoo.source("digits").std)
    images = build.prepared(np.stack([source.eval[i]["image"] for i in range(50)]), seen, module.dtype)
    right = np.asarray(module.apply(teacher.variables(config, shapes), images)).argmax(-1)
    assert np.mean(right == [source.eval[i]["label"] for i in range(50)]) > 0.9
