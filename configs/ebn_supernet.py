"""Binary MobileNet, 1 of 3: a supernet of all its group numbers (EBN, Phan et al., CVPR 2020, arXiv 2005.06305).

    python -m bireal_jax.main --config=configs/ebn_supernet.py --config.data.dir=DIR
    python -m bireal_jax.main --config=configs/ebn_search.py --config.data.dir=DIR --mode=search
    python -m bireal_jax.main --config=configs/ebn_retrain.py --config.data.dir=DIR

Every batch trains another network, whose 3x3 convolutions have uniformly drawn numbers of groups. 50 images of each
class are held out for the search. The evaluation at the end is of one network whose batch norms have the statistics of
all: it says next to nothing. Published for the network that was found and trained anew: 60.09 %. Ours: not run.

The paper has no code and its body was not at hand: what is known stands in bireal_jax/models/ebn.py. Our choice are the
optimizer and its rate (those of ReActNet's time), batch size and epochs, the numbers to choose from (1 to 32), and the
network. In minutes on digits: add ":digits" to each of the three recipes.
"""

from bireal_jax import config

DIGITS = {
    "model.name": "ebn_tiny_supernet", "data.name": "digits", "data.image_size": 8, "batch_size": 64,
    "total_epochs": 60.0, "optim.lr": 2e-3, "log_epochs": 5.0, "save_epochs": 20.0,
}  # fmt: skip
VARIANTS = {"": {}, "digits": DIGITS}


def get_config(variant=""):
    c = config.default()
    c.model.name = "ebn_supernet"
    c.data.held_out = 50
    c.batch_size = 256
    c.total_epochs = 128.0
    c.label_smoothing = 0.0
    c.optim.lr = 5e-4
    c.eval_epochs = 0.0  # at the end only
    c.update_from_flattened_dict(VARIANTS[variant])
    return c
