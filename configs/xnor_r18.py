"""XNOR-Net with ResNet-18 on ImageNet: batch norm before the sign, a scale per channel and the gradient through it.

    python -m bireal_jax.main --config=configs/xnor_r18.py --config.data.dir=DIR

Rastegari et al., ECCV 2016. A shortcut around every two convolutions, real-valued 1x1 convolutions where the size
changes, the training recipe of configs/r18.py (our choices, and that the scale of the activations is left out).
Literature: 51.2 % (README of the Bi-Real Net authors). Ours: not run.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "xnor18"
    c.model.act = "ste"
    c.model.weight = "through_scale"
    return c
