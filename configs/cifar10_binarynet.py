"""BinaryNet on CIFAR-10, every weight binary, with latent weights: the baseline of the Bop paper.

    python -m bireal_jax.main --config=configs/cifar10_binarynet.py --config.data.dir=cifar10.npz

Helwegen et al., NeurIPS 2019, section 5: Adam 5e-3, batch 256, 100 epochs, latent weights kept within [-1, 1],
clipped straight-through gradients, no scale. The paper's accuracy for this setting is not known to us. Ours: not run.
Images are scaled to [-1, 1]. Departure: the schedule is not known to us (linear to 0 here). With Bop:
configs/bop_binarynet.py.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "binarynet"
    c.model.act = "ste"
    c.model.weight = "sign"
    c.model.latent_init = "glorot"
    c.data.name = "cifar10"
    c.data.image_size = 32
    c.data.mean = c.data.std = (0.5, 0.5, 0.5)
    c.batch_size = 256
    c.total_epochs = 100.0
    c.label_smoothing = 0.0
    c.log_epochs = 1.0
    c.optim.lr = 5e-3
    c.optim.latent_clip = 1.0
    return c
