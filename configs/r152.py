"""Bi-Real Net 152 on ImageNet: the blocks of Bi-Real Net 50 in the layout of ResNet-152.

    python -m bireal_jax.main --config=configs/r152.py --config.data.dir=DIR

The journal paper reports 64.5 % top-1. No code for it was released and what its two-step training does is not
specified by what we have; our choice is the recipe of configs/r50.py. Ours: not run.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal152"
    c.batch_size = 256
    c.optim.lr = 5e-4
    return c
