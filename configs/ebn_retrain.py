"""Binary MobileNet, 3 of 3: the network that configs/ebn_search.py found, trained from scratch.

    python -m bireal_jax.main --config=configs/ebn_retrain.py --config.data.dir=DIR
    python -m bireal_jax.main --config=configs/ebn_retrain.py --config.arch=OTHER/best_arch.json ...

On all training images, tested on the evaluation set. "In a usual manner", says the abstract; Adam 5e-4 linear to 0 and
256 epochs are our choice, usual in ReActNet's time. Published: 60.09 %. Ours: not run. With --mode=cost and
--mode=export as any network.
"""

from bireal_jax import config

DIGITS = {
    "model.name": "ebn_tiny", "data.name": "digits", "data.image_size": 8, "batch_size": 64, "total_epochs": 40.0,
    "optim.lr": 2e-3, "log_epochs": 5.0, "eval_epochs": 10.0, "save_epochs": 10.0,
    "arch": "runs/ebn_search_digits/best_arch.json",
}  # fmt: skip
VARIANTS = {"": {}, "digits": DIGITS}


def get_config(variant=""):
    c = config.default()
    c.model.name = "ebn"
    c.batch_size = 256
    c.total_epochs = 256.0
    c.label_smoothing = 0.0
    c.optim.lr = 5e-4
    c.arch = "runs/ebn_search/best_arch.json"
    c.update_from_flattened_dict(VARIANTS[variant])
    return c
