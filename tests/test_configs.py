"""Every recipe: valid, buildable, short, and with a text golden of its parameters."""

import re
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from bireal_jax import config, data, models
from bireal_jax.binary import losses
from bireal_jax.data import DATASETS
from bireal_jax.errors import BadInput
from bireal_jax.main import load_recipe, parse
from bireal_jax.running import settings
from bireal_jax.training import optim

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "configs").glob("*.py"))
CLASSES = {
    "imagenet2012": 1000,
    "cifar10": 10,
    "cifar100": 100,
    "digits": 10,
    "folder": 1000,
    "depth_folder": 1,
    "nyu_depth_v2": 1,
}


# The recipe itself, and those of its variants that train another network
NETWORKS = [(path, "") for path in RECIPES]
NETWORKS += [(ROOT / "configs" / "cifar10_sgd.py", name) for name in ("r18", "vgg", "r20_teacher", "r18_teacher")]


@pytest.mark.parametrize(("path", "variant"), NETWORKS, ids=["_".join(filter(None, [p.stem, v])) for p, v in NETWORKS])
def test_recipe_is_valid_and_matches_its_golden(path, variant, request):
    assert len(path.read_text().splitlines()) <= 60
    c = load_recipe(path, variant)
    assert c.is_locked
    config.validate(c)
    text = []
    for i, stage in enumerate(config.stages(c)):
        assert stage.data.name in DATASETS and stage.loss in losses.LOSSES
        optim.schedule(stage.optim.schedule, stage.optim.lr, 100, 10.0, stage.optim.milestones)
        text += [f"# {config.stage_name(c, i)}: {stage.model.name}", *parameters(stage)]
    golden = ROOT / "tests" / "golden" / ("_".join(filter(None, [path.stem, variant])) + ".txt")
    if request.config.getoption("--update-golden"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text("\n".join(text) + "\n")
    assert golden.read_text().splitlines() == text, "the parameters changed; if on purpose, run pytest --update-golden"


def test_variants_of_the_cifar_recipe():
    """Every one is valid, differs from its network's first in what it says, and a student finds its teacher."""
    path = ROOT / "configs" / "cifar10_sgd.py"
    variants = runpy.run_path(str(path))["VARIANTS"]
    assert len(variants) == 11 and settings.to_json(load_recipe(path)) == settings.to_json(load_recipe(path, "r20"))
    for variant in variants:
        c = load_recipe(path, variant)
        config.validate(c)
        network, _, way = variant.partition("_")
        changes = {line.split()[0] for line in settings.differences(
            settings.to_json(load_recipe(path, network)), settings.to_json(c)
        )}  # fmt: skip
        assert changes == {
            "": set(), "quick": {"total_epochs"}, "distilled": {"loss", "teacher.name", "teacher.weights"},
            "teacher": {"model.name", "model.act", "model.weight", "total_epochs"},
        }[way]  # fmt: skip
        if way == "distilled":
            _, workdir, _ = parse(["", f"--config={path}:{c.teacher.weights.removeprefix('runs/cifar10_sgd_')}"])
            assert str(workdir) == c.teacher.weights
            teacher = load_recipe(path, workdir.name.removeprefix("cifar10_sgd_"))
            assert teacher.model.name == c.teacher.name and teacher.model.weight == "real"
    with pytest.raises(BadInput, match=r"unknown variant .*'r21'; did you mean r20\? known: r18"):
        load_recipe(path, "r21")


def parameters(stage):
    """path, shape, label, bits, weight decay of every parameter."""
    size = stage.data.image_size
    m = stage.model
    how = {"act": m.act, "weight": m.weight, "latent_init": m.latent_init, "decoder": m.decoder}
    model = models.build(m.name, CLASSES[stage.data.name], **how)
    image = jax.ShapeDtypeStruct((1, size, size, 1 if stage.data.name == "digits" else 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    labels = traverse_util.flatten_dict(optim.labels(params), sep="/")
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        label = labels[name]
        decay = stage.optim.weight_decay if label in stage.optim.decay_on else 0.0
        shape = "x".join(map(str, leaf.shape))
        bits = 1 if label == "binary" and m.weight != "real" else 32
        frozen = "frozen" if stage.optim.frozen and re.search(stage.optim.frozen, name) else ""
        init = stage.model.latent_init if label == "binary" else "-"
        yield f"{name:<45} {shape:<15} {label:<9} {bits:>2} bit  decay {decay:g}  init {init}  {frozen}".rstrip()


def test_the_default_is_the_released_recipe():
    c = config.default()
    assert (c.model.name, c.model.act, c.model.weight, c.model.latent_init) == (
        "bireal18",
        "approx_sign",
        "released",
        "uniform_001",
    )
    assert (c.optim.name, c.optim.lr, c.optim.schedule, c.optim.weight_decay) == ("adam", 1e-3, "linear", 0.0)
    assert (
        c.batch_size,
        c.total_epochs,
        c.label_smoothing,
        c.data.image_size,
        data.short_side(224, c.data.resize),
    ) == (
        512,
        256.0,
        0.1,
        224,
        256,
    )
    assert c.ema_decay == 0.0 and not c.model.sync_bn
    assert config.steps(c, "total", 1_281_167) == 640_584  # 256 * 1281167 / 512 = 640583.5
