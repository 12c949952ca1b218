"""The plain 1-bit ResNet-18 on ImageNet, BinaryNet's rules: sign, clipped straight-through gradients, no scale.

    python -m bireal_jax.main --config=configs/bnn_r18.py --config.data.dir=DIR

A shortcut around every two convolutions. BinaryNet (Courbariaux et al., 2016) has no ImageNet recipe; this is that of
configs/r18.py with BinaryNet's limit of latent weights to [-1, 1]. Literature: 42.2 % (not checked against its source).
Ours: not run. Without shortcuts at all: --config.model.name=plain18.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "res18"
    c.model.act = "ste"
    c.model.weight = "sign"
    c.optim.latent_clip = 1.0
    return c
