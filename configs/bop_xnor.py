"""XNOR-Net, the AlexNet form, on ImageNet with Bop: ±1 weights without latent ones and without scale.

    python -m bireal_jax.main --config=configs/bop_xnor.py --config.data.dir=DIR
    python -m bireal_jax.main --config=configs/bop_xnor.py:second_order --workdir=runs/bop2_xnor --config.data.dir=DIR

Helwegen et al., NeurIPS 2019, section 5.3: batch 1024, 100 epochs, threshold 1e-8, gamma from 1e-4 to 1e-6, Adam from
2.5e-3 to 5e-6 for the real-valued parameters, L2 5e-7 (as weight decay twice that) on the first convolution and the
last layer. Published: 45.9 %. The variant second_order is Suarez-Ramirez et al., CVPR workshops 2021: 46.9 %.
Ours: not run; hours not known. Departures: bilinear crops (theirs bicubic); weights start as random signs, where the
authors take the first step with a real-valued draw.
"""

from bireal_jax import config

SECOND_ORDER = {
    "optim.binary": "bop2",
    "optim.bop.gamma": ("linear", 1e-4, 1e-9),
    "optim.bop.threshold": ("linear", 1e-8, 1e-5),
    "optim.bop.sigma": ("linear", 1e-5, 1e-2),
}
VARIANTS = {"": {}, "second_order": SECOND_ORDER}


def get_config(variant=""):
    c = config.default()
    c.model.name = "xnor_alexnet"
    c.model.act = "ste"
    c.model.weight = "direct"
    c.model.latent_init = "signs"
    c.batch_size = 1024
    c.total_epochs = 100.0
    c.label_smoothing = 0.0
    c.optim.lr = 2.5e-3
    c.optim.lr_end = 5e-6
    c.optim.weight_decay = 1e-6
    c.optim.decay_on = ("decay",)
    c.optim.binary = "bop"
    c.optim.bop.gamma = ("linear", 1e-4, 1e-6)
    c.optim.bop.threshold = ("constant", 1e-8)
    c.update_from_flattened_dict(VARIANTS[variant])
    return c
