"""The real-valued twin of configs/depth_r50.py: the same network with ReLU and real-valued weights.

    python -m bireal_jax.main --config=configs/real_r18.py --config.model.name=bireal50 --config.data.dir=IMAGENET \\
        --workdir=runs/real_r50
    python -m bireal_jax.main --config=configs/depth_real_r50.py --config.data.dir=DIR --config.init_from=runs/real_r50

All is our choice, as there. Ours: not run.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal50"
    c.model.decoder = "up_projection"
    c.model.act = "relu"
    c.model.weight = "real"
    c.model.latent_init = "he"
    c.data.name = "nyu_depth_v2"
    c.data.depth.unit = 1.0
    c.data.depth.crop = (54, 480, 41, 601)
    c.batch_size = 32
    c.total_epochs = 20.0
    c.label_smoothing = 0.0
    c.loss = "l1"
    c.optim.lr = 5e-4
    return c
