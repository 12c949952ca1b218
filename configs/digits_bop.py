"""x"""

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
