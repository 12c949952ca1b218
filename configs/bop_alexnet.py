"""Binary AlexNet on ImageNet with Bop: every weight is ±1, in the first and the last layer, too.

    python -m bireal_jax.main --config=configs/bop_alexnet.py --config.data.dir=DIR

Helwegen et al., NeurIPS 2019, section 5.3: batch 1024, 150 epochs, threshold 1e-8, gamma from 1e-4 to 1e-6, Adam from
2.5e-3 to 5e-6 for batch norm. Published: 41.1 %. Ours: not run; hours not known.
Departures: bilinear crops (theirs bicubic); weights start as random signs, where the authors take the first step with
a real-valued draw.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "binary_alexnet"
    c.model.act = "ste"
    c.model.weight = "direct"
    c.model.latent_init = "signs"
    c.batch_size = 1024
    c.total_epochs = 150.0
    c.label_smoothing = 0.0
    c.optim.lr = 2.5e-3
    c.optim.lr_end = 5e-6
    c.optim.binary = "bop"
    c.optim.bop.gamma = ("linear", 1e-4, 1e-6)
    c.optim.bop.threshold = ("constant", 1e-8)
    return c
