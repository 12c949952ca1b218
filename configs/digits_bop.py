"""A small Bi-Real net on handwritten digits with Bop: configs/digits.py without latent weights, in a minute.

    python -m bireal_jax.main --config=configs/digits_bop.py

Of the Bop paper is the rule; gamma, threshold and Adam's rate are chosen for this network. 99.0 % (3 seeds: 98.6, 99.2,
99.2). In the last epoch 0.002 to 0.008 % of the weights change sign, in the first 49 %; log(flips / n + e^-9) of a step
falls from -3.6 to -9.0.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal_tiny"
    c.model.weight = "direct"
    c.model.latent_init = "signs"
    c.data.name = "digits"
    c.data.image_size = 8
    c.batch_size = 64
    c.total_epochs = 40.0
    c.label_smoothing = 0.0
    c.log_epochs = 1.0
    c.eval_epochs = 5.0
    c.save_epochs = 5.0
    c.optim.binary = "bop"
    c.optim.bop.gamma = ("linear", 1e-2, 1e-4)
    c.optim.bop.threshold = ("constant", 1e-6)
    return c
