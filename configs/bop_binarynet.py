"""BinaryNet on CIFAR-10 with Bop: every weight is ±1 and trained as such, in the first and the last layer, too.

    python -m bireal_jax.main --config=configs/bop_binarynet.py --config.data.dir=cifar10.npz
    python -m bireal_jax.main --config=configs/bop_binarynet.py:second_order --workdir=runs/bop2_binarynet ...

Helwegen et al., NeurIPS 2019, section 5.2: batch 50, 500 epochs, gamma 1e-4 and a tenth of it every 100 epochs,
threshold 1e-8, Adam 1e-2 for the biases of batch norm, images scaled to [-1, 1]. Published: 91.3 %. The variant
second_order is Suarez-Ramirez et al., CVPR workshops 2021: 91.9 %; and unbiased: 91.4 %. Ours: not run; hours not
known. The latent-weight baseline is configs/cifar10_binarynet.py. Departures: weights start as random signs, where the
authors take the first step with a real-valued draw; crops are padded with black.
"""

from bireal_jax import config

SECOND_ORDER = {
    "optim.binary": "bop2",
    "optim.bop.gamma": ("linear", 1e-2, 1e-5),
    "optim.bop.threshold": ("linear", 1e-5, 1e-8),
    "optim.bop.sigma": ("linear", 1e-7, 1e-2),
    "optim.schedule": "linear",
    "optim.lr_end": 1e-3,
}
VARIANTS = {"": {}, "second_order": SECOND_ORDER, "unbiased": SECOND_ORDER | {"optim.binary": "bop2_unbiased"}}


def get_config(variant=""):
    c = config.default()
    c.model.name = "binarynet"
    c.model.act = "ste"
    c.model.weight = "direct"
    c.model.latent_init = "signs"
    c.data.name = "cifar10"
    c.data.image_size = 32
    c.data.mean = c.data.std = (0.5, 0.5, 0.5)
    c.batch_size = 50
    c.total_epochs = 500.0
    c.label_smoothing = 0.0
    c.log_epochs = 1.0
    c.optim.lr = 1e-2
    c.optim.schedule = "constant"
    c.optim.binary = "bop"
    c.optim.bop.gamma = ("tenth", 1e-4, 100.0)
    c.optim.bop.threshold = ("constant", 1e-8)
    c.update_from_flattened_dict(VARIANTS[variant])
    return c
