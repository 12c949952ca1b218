"""1-bit depth estimation on rendered rooms of 64 pixels, on a laptop.

    python -m experiments.depth.render rooms
    python -m bireal_jax.main --config=configs/depth_tiny.py --config.data.dir=rooms
    python -m bireal_jax.main --config=configs/depth_tiny.py --config.data.dir=rooms --mode=eval

The evaluation writes pictures to runs/depth_tiny/depth. With --config.model.act=relu --config.model.weight=real
--config.model.latent_init=he its real-valued twin. Our choice throughout; experiments/depth has what was measured.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "react_tiny"
    c.model.decoder = "up_projection"
    c.data.name = "depth_folder"
    c.data.image_size = 64
    c.data.depth.zoom = 1.0  # brightness tells depth in these rooms, and zooming leaves it as it is
    c.batch_size = 16
    c.total_epochs = 20.0
    c.label_smoothing = 0.0
    c.loss = "l1"
    c.optim.lr = 2e-3
    c.log_epochs = 1.0
    c.eval_epochs = 5.0
    c.save_epochs = 5.0
    return c
