"""The real-valued network that Bi-Real Net 18 is the 1-bit form of, on ImageNet, with ReLU.

    python -m bireal_jax.main --config=configs/real_r18.py --config.data.dir=DIR
    python -m bireal_jax.main --config=configs/real_r18.py --config.data.dir=DIR --config.model.act=clip

The same convolutions and shortcuts, ReLU (or the clip) in the place of the sign; in which order the authors' real-
valued network has its layers is not known. SGD 0.1, batch 256, 90 epochs, a tenth at epochs 30 and 60, weight decay
1e-4, the usual recipe of ResNet. With --config.model.name=res18 or plain18 a shortcut around every two convolutions,
or none. Ours: not run.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.act = "relu"
    c.model.weight = "real"
    c.model.latent_init = "he"
    c.batch_size = 256
    c.total_epochs = 90.0
    c.label_smoothing = 0.0
    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.schedule = "steps"
    c.optim.milestones = (30, 60)
    c.optim.weight_decay = 1e-4
    return c
