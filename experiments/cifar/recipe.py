"""What the campaign trains beside the recipes of configs: baselines of ResNet-18, and ImageNet's recipes on CIFAR-10.

    python -m bireal_jax.main --config=experiments/cifar/recipe.py:xnor --config.data.dir=cifar10.npz

    xnor    XNOR-Net's order of layers and weight rule; plain: no shortcuts. By configs/cifar10_sgd.py, as its r18
    react   ReActNet's ResNet-18 in two steps from a teacher: 256 epochs each, Adam 1e-3, decay 5e-6 then 0 (A&B BNN)
    step    configs/r18_step.py, at the resolution of CIFAR-10
    ebn_..., prune_...   the three steps of EBN and MetaPruning, networks for 224 pixels on images of 32

Ours: not run. The budgets of the searches have the share of the largest network that those for ImageNet have.
"""

from functools import partial
from pathlib import Path

from bireal_jax.main import load_recipe
from bireal_jax.models import MODELS
from bireal_jax.models.bireal import BIREAL, BiRealNet

CONFIGS = Path(__file__).parents[2] / "configs"
STEM = BIREAL["bireal18_cifar"]
MODELS |= {
    "xnor18_cifar": partial(BiRealNet, **STEM, convs_per_shortcut=2, norm_first=True),
    "plain18_cifar": partial(BiRealNet, **STEM, convs_per_shortcut=0),
    "react_r18_cifar": partial(BiRealNet, **STEM, react=True),
}
SEARCHED = {"data.held_out": 500, "batch_size": 256}
# variant -> (recipe, its variant, fields)
VARIANTS = {
    "xnor": ("cifar10_sgd", "r18", {"model.name": "xnor18_cifar", "model.weight": "through_scale", "model.act": "ste"}),
    "plain": ("cifar10_sgd", "r18", {"model.name": "plain18_cifar"}),
    "react": ("react_r18", "", {
        "model.name": "react_r18_cifar", "batch_size": 256, "total_epochs": 256.0, "optim.lr": 1e-3,
        "optim.schedule": "linear", "teacher.name": "resnet18_cifar",
    }),
    "step": ("r18_step", "", {"model.name": "bireal18_cifar"}),
    "ebn_supernet": ("ebn_supernet", "", SEARCHED),
    "ebn_search": ("ebn_search", "", SEARCHED | {"search.max_cost": 0.74}),
    "ebn_retrain": ("ebn_retrain", "", {}),
    "prune_train": ("metaprune_train", "mbv1", SEARCHED),
    "prune_search": ("metaprune_search", "mbv1", SEARCHED | {"search.max_cost": 6.7}),
    "prune_retrain": ("metaprune_retrain", "mbv1", {"batch_size": 256, "optim.lr": 0.125}),
}  # fmt: skip


def get_config(variant="xnor"):
    """The recipe of a variant."""
    recipe, theirs, fields = VARIANTS[variant]
    c = load_recipe(CONFIGS / f"{recipe}.py", theirs)
    c.update_from_flattened_dict({"data.name": "cifar10", "data.image_size": 32, **fields})
    if variant == "react":
        c.stages = ({**c.stages[0], "optim.weight_decay": 5e-6}, *c.stages[1:])
    return c
