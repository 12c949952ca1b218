"""Bi-Real Net 18 on ImageNet with Bop: ±1 weights without latent ones and without scale.

    python -m bireal_jax.main --config=configs/bop_r18.py --config.data.dir=DIR
    python -m bireal_jax.main --config=configs/bop_r18.py:second_order --workdir=runs/bop2_r18 --config.data.dir=DIR

Helwegen et al., NeurIPS 2019, section 5.3: batch 1024, 300 epochs, threshold 1e-8, gamma from 1e-4 to 1e-6, Adam from
2.5e-3 to 5e-6 for the real-valued parameters, no distillation. Published: 56.6 %. The variant second_order is
Suarez-Ramirez et al., CVPR workshops 2021, 150 epochs: 57.2 %. Ours: not run; hours not known.
Departures: batch norm keeps 0.9 of its running statistics at a step (theirs 0.8) and has epsilon 1e-5; bilinear
crops (theirs bicubic); weights start as random signs, where the authors take the first step with a real-valued draw.
"""

from bireal_jax import config

SECOND_ORDER = {
    "optim.binary": "bop2",
    "optim.bop.gamma": ("linear", 1e-4, 1e-9),
    "optim.bop.threshold": ("linear", 1e-8, 1e-5),
    "optim.bop.sigma": ("linear", 1e-5, 1e-2),
    "total_epochs": 150.0,
}
VARIANTS = {"": {}, "second_order": SECOND_ORDER}


def get_config(variant=""):
    c = config.default()
    c.model.weight = "direct"
    c.model.latent_init = "signs"
    c.batch_size = 1024
    c.total_epochs = 300.0
    c.label_smoothing = 0.0
    c.optim.lr = 2.5e-3
    c.optim.lr_end = 5e-6
    c.optim.binary = "bop"
    c.optim.bop.gamma = ("linear", 1e-4, 1e-6)
    c.optim.bop.threshold = ("constant", 1e-8)
    c.update_from_flattened_dict(VARIANTS[variant])
    return c
