"""Bi-Real Net 34 on ImageNet: the recipe of configs/r18.py with another network, as in the released code.

    python -m bireal_jax.main --config=configs/r34.py --config.data.dir=DIR

Expect 62.2 % top-1 (the authors), 62.5 to 62.7 % in independent reproductions. Ours: not run.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal34"
    return c
