"""A training that starts from weights for other classes keeps the body, draws a head, and says so."""

import jax
import numpy as np
import pytest
from flax import traverse_util
from small import small

from bireal_jax import build, importers
from bireal_jax.data import Source
from bireal_jax.errors import BadInput
from bireal_jax.main import load_recipe
from bireal_jax.running import adoption
from bireal_jax.training import train

SHORT = {"total_steps": 2, "log_steps": 2, "eval_steps": 2, "save_steps": 2}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on the ten digits."""
    place = tmp_path_factory.mktemp("digits")
    train.run(small(**SHORT), place)
    return place


@pytest.fixture
def five(tmp_path):
    """A config whose data set has five classes, as large as the digits."""
    x = np.random.default_rng(0).integers(0, 256, (80, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "five.npz", images=x, labels=np.arange(80) % 5)
    return lambda **fields: small(**{"data.name": "arrays", "data.dir": str(tmp_path / "five.npz"), **SHORT, **fields})


def leaves(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def start(config):
    source = build.source(config)
    _, shapes = build.model(config, source)
    fresh = lambda: jax.tree.map(lambda s: np.full(s.shape, 7, s.dtype), shapes)
    return leaves(build.variables(config, shapes, fresh, source))


@pytest.mark.parametrize("kind", ["run", "file"])
def test_the_body_is_kept_and_a_head_is_drawn(digits, five, kind, tmp_path, capsys):
    before, place = build.trained(digits)[1], digits
    if kind == "file":
        place = tmp_path / "weights.npz"
        importers.save(before, place)
    capsys.readouterr()
    found, before = start(five(init_from=str(place))), leaves(before)
    assert f"a new head for 5 classes is drawn (head); kept of {place}: " in capsys.readouterr().out
    assert {name for name in found if name.startswith("params/head/")} == {
        "params/head/linear/kernel", "params/head/linear/bias"}  # fmt: skip
    for name, leaf in found.items():
        if name.startswith("params/head/"):
            assert (leaf == 7).all() and leaf.shape[-1] == 5
        else:
            np.testing.assert_array_equal(leaf, before[name])
    if kind == "run":
        assert train.run(five(init_from=str(place)), tmp_path / "run")["steps"] == 2
        assert build.trained(tmp_path / "run")[0].num_classes == 5


def test_as_many_classes_keep_the_head_unless_a_field_says_otherwise(digits, capsys):
    same = start(small(init_from=str(digits)))
    assert not any((leaf == 7).all() for leaf in same.values()) and "new head" not in capsys.readouterr().out
    anew = start(small(init_from=str(digits), new_head=True))
    assert {name for name, leaf in anew.items() if (leaf == 7).all()} == {
        "params/head/linear/kernel", "params/head/linear/bias"}  # fmt: skip
    assert "a new head for 10 classes is drawn" in capsys.readouterr().out


def test_a_head_that_knows_some_of_the_classes_is_not_lost_unsaid(digits, five, tmp_path):
    config = five(init_from=str(digits))
    with np.load(config.data.dir) as stored:
        np.savez(config.data.dir, **stored, label_names=np.array([*"012", "a", "b"]))
    with pytest.raises(BadInput, match="3 of 5 classes here, such as '0', are known, .*\n.*config.new_head=True"):
        train.run(config, tmp_path / "w")
    assert not (tmp_path / "w").exists()
    config.new_head = True
    assert (start(config)["params/head/linear/bias"] == 7).all()


def test_nothing_is_drawn_where_another_network_is_meant_or_for_an_evaluation(digits, five, tmp_path):
    importers.save(build.trained(digits)[1], tmp_path / "tiny.npz")
    config = five(init_from=str(tmp_path / "tiny.npz"))
    with pytest.raises(BadInput, match=r"of another model: 2 of .*\n.*head/linear/bias: stored \[10\], wanted \[5\]"):
        train.run_eval(config, tmp_path / "none")
    source = build.source(config)
    module, shapes = build.model(config, source)
    wide = build.model(five(**{"model.name": "plain_tiny"}), source)[1]
    with pytest.raises(BadInput, match="is of another model"):
        adoption.adopt(jax.tree.map(lambda s: np.zeros(s.shape), wide), shapes, "x", dict, module, source)


@pytest.mark.parametrize("name", ["binarynet", "binary_alexnet", "xnor_alexnet", "vgg_small", "ebn_tiny", "react_tiny"])
def test_the_head_is_what_depends_on_the_number_of_classes(name):
    size = 224 if "alexnet" in name else 32
    sources = [Source((), (), dict, (size, size, 3), classes) for classes in (10, 5)]
    (_, before), (module, shapes) = (build.model(small(**{"model.name": name}), source) for source in sources)
    zeros, sevens = (
        jax.tree.map(lambda s, v=v: np.full(s.shape, v, s.dtype), t) for v, t in ((0, before), (7, shapes))
    )
    found = leaves(adoption.adopt(zeros, shapes, "x", lambda: sevens, module, sources[1]))
    drawn = {path for path, leaf in found.items() if (leaf == 7).all()}
    assert drawn == {path for path, leaf in leaves(shapes).items() if leaf.shape[-1:] == (5,)}


@pytest.mark.slow
def test_finetuning_freezes_the_body_first(digits, five, request, tmp_path, capsys):
    given = load_recipe(request.config.rootpath / "configs" / "finetune.py")
    config = five(init_from=str(digits), batch_size=16)
    config.stages = tuple(
        {**stage, "total_epochs": 1.0} | {k: 2 for k in SHORT if k != "total_steps"} for stage in given.stages
    )
    config.total_steps = 0
    assert [stage["name"] for stage in config.stages] == ["head", "all"]
    train.run(config, tmp_path / "w")
    assert capsys.readouterr().out.count("a new head") == 1
    before = leaves(build.trained(digits)[1])
    (tmp_path / "w" / "stage_1").rename(tmp_path / "w" / "moved")
    first = leaves(build.trained(tmp_path / "w")[1])
    kept = {name: np.array_equal(leaf, before[name]) for name, leaf in first.items() if name.startswith("params/")}
    assert {name for name, same in kept.items() if not same} == {
        "params/head/linear/kernel", "params/head/linear/bias"}  # fmt: skip
    (tmp_path / "w" / "moved").rename(tmp_path / "w" / "stage_1")
    last = leaves(build.trained(tmp_path / "w")[1])
    assert not any(np.array_equal(last[name], first[name]) for name in kept)


@pytest.mark.slow
def test_a_later_stage_of_other_classes_gets_a_head_too(tmp_path, five, capsys):
    config = five(stages=({"name": "ten", "data.name": "digits", "data.dir": ""}, {"name": "five"}))
    train.run(config, tmp_path / "w")
    assert (
        "a new head for 5 classes is drawn (head); kept of stage 'five': the network of the" in capsys.readouterr().out
    )
