"""Bi-Real Net 50 on ImageNet, bottleneck blocks with two streams, the recipe of the authors' released PyTorch code.

    python -m bireal_jax.main --config=configs/r50.py --config.data.dir=DIR

As configs/r18.py, but Adam 5e-4 on batches of 256. Expect 62.6 % top-1 (the authors' README). Ours: not run.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal50"
    c.batch_size = 256
    c.optim.lr = 5e-4
    return c
