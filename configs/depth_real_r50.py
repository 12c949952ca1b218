"""The real-valued twin of configs/depth_r50.py: the same network with ReLU and real-valued weights.

    python -m bireal_jax.main --config=configs/real_r18.py --config.model.name=bireal50 --config.data.dir=IMAGENET \\
        --workdir=runs/real_r50
    python -m bireal_jax.main --config=configs/depth_real_r50.py --config.data.dir=DIR --config.init_from=runs/real_r50

All is our choice, as there. Ours: not run.
"""

from pathlib import Path

from bireal_jax.main import load_recipe


def get_config():
    c = load_recipe(Path(__file__).with_name("depth_r50.py"))
    c.model.act = "relu"
    c.model.weight = "real"
    c.model.latent_init = "he"
    return c
