"""ResNet-20 in Bi-Real style on CIFAR-10: one binary convolution and one option-A shortcut a block.

    python -m bireal_jax.main --config=configs/cifar10_r20.py --config.data.dir=cifar10.npz

The recipe of a public reproduction (github.com/ShuaiZ1037/bnn-xnor-bireal): Adam 0.01, weight decay 1e-4 on every
parameter, a tenth at epochs 90, 140, 180 and 220 of 256, batch 256, crop with padding 4 and flip. It reports 83.17 %.
Ours: not trained to the end; the reproduction's weights, imported, score 83.18 % here (--mode=eval
--config.init_from=bireal20_cifar10.npz). The initialization of its latent weights is not known to us; he_normal is our
choice.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal20"
    c.model.latent_init = "he"
    c.data.name = "cifar10"
    c.data.image_size = 32
    c.batch_size = 256
    c.label_smoothing = 0.0
    c.log_epochs = 1.0
    c.optim.lr = 1e-2
    c.optim.schedule = "steps"
    c.optim.milestones = (90, 140, 180, 220)
    c.optim.weight_decay = 1e-4
    c.optim.decay_on = ("binary", "decay", "no_decay")
    return c
