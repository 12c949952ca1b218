"""Networks, estimators and data sets of one's own: fields, rows, modules, as docs/your-network.md has them."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import small

from bireal_jax import build, data, main, models, registered, runtime, used
from bireal_jax.binary import binarize, losses
from bireal_jax.errors import BadInput
from bireal_jax.training import train

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "your-network.md").read_text()
RECIPES = dict(
    re.findall(r"`(\w+\.py)`[^`]*?:\n\n```python\n(.*?)```", PAGE, re.DOTALL)  # the file's name stands before its text
)
SHORT = {"batch_size": 16, "total_steps": 2, "eval_steps": 2, "log_steps": 2, "save_steps": 2}
TABLES = (
    models.MODELS, models.SUPERNETS, binarize.DERIVATIVES, binarize.REAL, binarize.WEIGHTS, models.LATENT_INITS,
    models.DECODERS, data.DATASETS,
)  # fmt: skip


@pytest.fixture
def rows(monkeypatch):
    """The tables, which forget what a test registers."""
    before = [dict(table) for table in TABLES]
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    yield
    for table, old in zip(TABLES, before, strict=True):
        table.clear()
        table.update(old)


def test_width_and_depth_are_fields(tmp_path):
    config = small(**{"model.blocks": (2, 2, 2), "model.widths": (8, 16, 24)}, **SHORT)
    module, shapes = build.model(config, build.source(config))
    assert (module.blocks, module.widths, module.total_stride) == ((2, 2, 2), (8, 16, 24), 4)
    assert shapes["params"]["stage3_block2"]["binary_conv"]["latent"].shape == (3, 3, 24, 24)
    narrow = models.build("resnet18", 5, widths=(8, 16, 24, 32))
    assert narrow.widths == (8, 16, 24, 32) and narrow.blocks == (2, 2, 2, 2)
    train.run(config, tmp_path)
    assert build.trained(tmp_path)[0].widths == (8, 16, 24), "known from the run"
    assert used.weights(small(), tmp_path, given=()).model.blocks == (2, 2, 2)


def test_sizes_that_cannot_be_are_named():
    for name, sizes, message in (
        (
            "bireal18",
            {"blocks": (4, 4)},
            r"blocks \(4, 4\) and widths \(64, .*\) are of 2 and 4 stages\nset config.model.b",
        ),
        ("binarynet", {"widths": (8, 8)}, "binarynet is no network in stages; widths are of bireal152, bireal18"),
        ("res18", {"blocks": (4, 3, 4, 4)}, "has a shortcut around every 2 convolutions"),
    ):
        with pytest.raises(BadInput, match=message):
            models.build(name, 10, **sizes)
    with pytest.raises(
        BadInput, match=r"config.model.widths is \(8, 0\); it must be whole numbers above 0, one for each"
    ):
        build.stages(small(**{"model.widths": (8, 0)}))


def test_the_page_has_its_recipes():
    assert list(RECIPES) == ["soft.py", "own.py", "blobs.py"]


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_the_page_train_and_are_exported(name, rows, tmp_path, capsys):
    recipe, run = tmp_path / name, tmp_path / "run"
    recipe.write_text(RECIPES[name])
    given = [f"--config.{field}={value}" for field, value in SHORT.items()]
    common = ["main", f"--config={recipe}", f"--workdir={run}"]
    main.main([*common, *given])
    main.main([*common, "--mode=export"])
    assert "times the same class" in capsys.readouterr().out
    assert runtime.load(run / "net.safetensors", kernels="reference")(np.zeros((1, 8, 8, 1), np.uint8)).shape[0] == 1
    field = {"soft.py": "model.name", "own.py": "model.name", "blobs.py": "data.name"}[name]
    assert json.loads((run / "registered.json").read_text()) == {field: str(recipe)}
    table = data.DATASETS if name == "blobs.py" else models.MODELS
    del table[{"soft.py": "soft", "own.py": "growing", "blobs.py": "blobs"}[name]]
    if name != "blobs.py":  # a trained network needs no data set
        with pytest.raises(BadInput, match=rf"registered by {recipe}\nrun that first"):
            build.trained(run)
    model, variables, prepare = build.trained(run, recipe=recipe)
    assert model.apply(variables, prepare(np.zeros((1, 8, 8, 1), np.uint8))).shape[0] == 1


@pytest.mark.slow
def test_a_derivative_or_weight_rule_of_another_run_names_its_recipe(rows, tmp_path):
    recipe = tmp_path / "rules.py"
    recipe.write_text(
        "import jax.numpy as jnp\nfrom bireal_jax.binary import binarize\n\n\n"
        "def wide(x):\n    return jnp.ones_like(x)\n\n\n"
        "def halved(w):\n    b, alpha = binarize.released(w)\n    return b, alpha / 2\n\n\n"
        "binarize.DERIVATIVES['wide'] = wide\nbinarize.WEIGHTS['halved'] = halved\n"
    )
    runpy.run_path(str(recipe))
    run = tmp_path / "run"
    train.run(small(**{"model.act": "wide", "model.weight": "halved"}, **SHORT), run)
    assert set(json.loads((run / "registered.json").read_text()).values()) == {str(recipe)}
    for table, name, field in ((binarize.WEIGHTS, "halved", "weight"), (binarize.DERIVATIVES, "wide", "act")):
        del table[name]
        with pytest.raises(BadInput, match=rf"config.model.{field}='{name}', which is registered by {recipe}"):
            build.trained(run)
    build.trained(run, recipe=recipe)


@pytest.mark.parametrize("field", registered.TABLES)
def test_a_recipe_overwrites_no_row_of_the_package(field, rows):
    for table in TABLES:
        for name in [name for name, row in table.items() if registered.TABLES[field]().get(name) is row]:
            before, table[name] = table[name], object()
            with pytest.raises(
                BadInput, match=rf"config.{field}='{name}' is a row of the package, and a rec"
            ) as caught:
                data.build(name) if field == "data.name" else models.build(
                    **{"name": "bireal_tiny", field.split(".")[1]: name}
                )
            assert f"\nregister it under a name of its own, such as 'my_{name}': " in str(caught.value)
            table[name] = before


def test_a_run_with_an_overwritten_row_is_refused_before_it_begins(rows, tmp_path):
    recipe, run = tmp_path / "mine.py", tmp_path / "run"
    recipe.write_text(RECIPES["soft.py"].replace('"soft"', '"bireal_tiny"'))
    for mode in ("train", "cost", "eval"):
        with pytest.raises(BadInput, match="config.model.name='bireal_tiny' is a row of the package"):
            main.main(["main", f"--config={recipe}", f"--workdir={run}", f"--mode={mode}"])
    assert not run.exists()


@pytest.mark.slow
def test_an_own_network_that_was_changed_since_is_said_to_be(rows, tmp_path):
    recipe, run = tmp_path / "mine.py", tmp_path / "run"
    recipe.write_text(RECIPES["soft.py"])
    common = ["main", f"--config={recipe}", f"--workdir={run}", *(f"--config.{f}={v}" for f, v in SHORT.items())]
    main.main(common)
    recipe.write_text(RECIPES["soft.py"].replace("(32, 64)", "(16, 64)"))
    (run / "result.json").unlink()  # goes on
    said = rf"differ\nthe network is a row that {recipe} registers: it is another now than when the run was .*\nbring"
    for mode in ("eval", "train", "export"):
        with pytest.raises(BadInput, match=said):
            main.main([*common, f"--mode={mode}"])


class Bent(nn.Module):
    slope: float = 0.5

    @nn.compact
    def __call__(self, x):
        return jnp.where(x > 0, x, self.slope * x)


class Other:
    def __call__(self, x):
        return x


class Precise(Bent):
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32


def test_a_layer_of_ones_own_behind_every_sum(rows):
    source = build.source(small())
    for kind in (Precise, partial(Precise, slope=0.1), lambda x: jnp.where(x > 0, x, 0.5 * x)):
        models.MODELS["bent"] = partial(models.MODELS["bireal_tiny"], nonlinearity=kind)
        build.model(small(**{"model.name": "bent"}), source)
    for kind, said in (
        (Bent, "Bent has no dtype and no param_dtype\n"),
        (Other, "Other has no dtype and no param_dtype and no name\n"),
    ):
        models.MODELS["bent"] = partial(models.MODELS["bireal_tiny"], nonlinearity=kind)
        with pytest.raises(BadInput, match=f"the nonlinearity {said}") as caught:
            build.model(small(**{"model.name": "bent"}), source)
        assert len(str(caught.value).splitlines()) <= 3


def plain_jax(w):
    return w + jax.lax.stop_gradient(binarize.sign(w) - w), jnp.ones(w.shape[-1])


def test_the_weight_rule_of_the_page_is_one(rows, tmp_path):
    recipe = tmp_path / "slowly.py"
    page = (ROOT / "docs" / "estimators.md").read_text()
    recipe.write_text(next(b for b in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def slowly" in b))
    config = main.parse(["main", f"--config={recipe}"])[0]
    module = build.model(config, build.source(config))[0]
    w = jnp.array([0.5, -1.5]).reshape(1, 1, 1, 2)
    b, alpha = module.weight(w)
    assert b.ravel().tolist() == [1.0, -1.0] and alpha.tolist() == [0.5, 1.5]
    straight = models.build("bireal_tiny", 10, weight=plain_jax).weight(w)[0]
    assert straight.tolist() == b.tolist()


def test_nor_a_loss(monkeypatch):
    monkeypatch.setitem(losses.LOSSES, "cross_entropy", lambda outputs, labels: 0.0)
    with pytest.raises(BadInput, match="config.loss='cross_entropy' is a row of the package"):
        losses.evaluation("cross_entropy")


def test_what_has_no_code_of_its_own_is_registered_too(rows):
    binarize.DERIVATIVES["ones"] = jnp.ones_like
    c = small(**{"model.act": "ones"})
    assert registered.fields([c], "/a/mine.py") == {"model.act": "/a/mine.py"} and registered.fields([small()]) == {}


def test_an_estimator_is_a_recipes_also_where_it_was_added_before_networks_were_loaded():
    """As by `python -m bireal_jax.main`, which loads them after the recipe."""
    code = (
        "import sys; from bireal_jax.binary import binarize; assert 'bireal_jax.models' not in sys.modules\n"
        "binarize.DERIVATIVES['mine'] = lambda x: 0 * x + 1\n"
        "binarize.WEIGHTS['sign'] = lambda w: (w, None)\n"
        "from bireal_jax import config, models, registered\n"
        "c = config.default(); c.model.act = 'mine'\n"
        "assert registered.fields([c], '/mine.py') == {'model.act': '/mine.py'}\n"
        "try: models.build('bireal_tiny', 10, weight='sign')\n"
        "except Exception as error: assert 'is a row of the package' in str(error), error\n"
        "else: raise AssertionError('overwritten')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})


def summed(x):
    return jnp.sum(x, -1)


def of_two(x, slope):
    return x * slope


def undecided(x):
    return x if x > 0 else 0 * x


def mistaken(x):
    return x / (0 // 0)


RULES = {
    "a sum": (
        {"act": summed},
        r"the result of summed is an array, float32 \(2, 3, 4\); it must be real and of the shape \(2, 3, 4, 5",
    ),
    "a number": ({"act": lambda x: 1.0}, r"is an array, float32 \(\); .*\na constant is jnp.ones_like"),
    "two arguments": (
        {"act": of_two},
        r"the derivative of_two takes \(x, slope\); it must take \(x\), or \(x, progress\)",
    ),
    "none": ({"act": lambda: 1.0}, r"takes \(\); it must take"),
    "a branch": (
        {"act": undecided},
        r"test_own_network.py, line \d+: the derivative undecided fails on an array of \(2, 3, 4, 5\): .*\n.*jnp.where",
    ),
    "numpy": ({"act": lambda x: np.asarray(x) * 2.0}, "line .*\nJAX traces it: .*; jnp computes, not numpy"),
    "math": ({"act": lambda x: math.exp(-x)}, "line .*\nJAX traces it: .*; jnp computes, not numpy or math"),
    "a mistake": (
        {"act": mistaken},
        rf"^{re.escape(__file__)}, line {mistaken.__code__.co_firstlineno + 1}: .* by zero$",
    ),
    "no return": ({"act": lambda x: None}, "returns nothing; did you forget `return`"),
    "no return of a weight rule": ({"weight": lambda w: None}, "returns nothing; did you forget `return`"),
    "three": ({"weight": lambda w: (w, None, w)}, "gives 3 values; it must give two"),
    "an array": ({"act": np.ones(3)}, "no function"),
    "b alone": ({"weight": binarize.sign}, r"gives an array, float32 \(3, 3, 4, 5\); it must give two: \(b, alpha\)"),
    "alpha of inputs": (
        {"weight": lambda w: (w, jnp.mean(w, (0, 1, 3)))},
        r"alpha of .* is an array, float32 \(4,\); .* \(5,\)",
    ),
    "two of w": ({"weight": of_two}, "the weight rule of_two takes"),
}


@pytest.mark.parametrize("what", RULES)
def test_a_rule_of_a_wrong_shape_or_number_of_arguments_is_refused(what):
    given, message = RULES[what]
    with pytest.raises(BadInput, match=message) as caught:
        models.build("bireal_tiny", 10, **given)
    assert len(str(caught.value).splitlines()) <= 3


def test_rules_that_can_be_are_taken():
    for act in (lambda x: jnp.abs(x) <= 1, lambda x, progress: x * progress, lambda x, width=2.0: x / width, jnp.tanh):
        module = models.build("bireal_tiny", 10, act=act)
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    for rule in (lambda w: (w, None), lambda w, progress: (binarize.sign(w), jnp.ones(w.shape[-1]))):
        models.build("bireal_tiny", 10, weight=rule)
