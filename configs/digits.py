"""A small Bi-Real net on scikit-learn's handwritten digits: the whole pipeline on real images, with no download.

python -m bireal_jax.main --config=configs/digits.py --workdir=runs/digits
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal_tiny"
    c.data.name = "digits"
    c.data.image_size = 8
    c.batch_size = 64
    c.total_epochs = 40.0
    c.label_smoothing = 0.0
    c.log_epochs = 1.0
    c.eval_epochs = 5.0
    c.save_epochs = 5.0
    return c
