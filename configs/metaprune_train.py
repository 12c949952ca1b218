"""MetaPruning, 1 of 3: a PruningNet, which generates the weights of every pruned network (Liu et al., ICCV 2019).

    python -m bireal_jax.main --config=configs/metaprune_train.py:mbv1 --config.data.dir=DIR
    python -m bireal_jax.main --config=configs/metaprune_search.py:mbv1 --config.data.dir=DIR --mode=search
    python -m bireal_jax.main --config=configs/metaprune_retrain.py:mbv1 --config.data.dir=DIR

Variants: mbv1 and mbv2 (MobileNetV1, MobileNetV2 at 1.4x), r50 (ResNet-50), digits (minutes on a laptop). The numbers
are those of the authors' code: a quarter of the epochs of a normal training, weight decay on generators (their biases
too) and head, none in mbv2. 50 images of each class are held out for the search. Expect 40 to 50 % top-1 on training
batches; the evaluation at the end is of one network with the statistics of none, and says next to nothing. Ours: not
run. The PruningNet of r50 has 776 M parameters: 9.3 GB with momentum and gradients.

Departures: no PCA lighting noise on the colours; the rate falls with every step, theirs by epoch.
"""

from bireal_jax import config

RESNET = {
    "batch_size": 256, "total_epochs": 32.0, "optim.lr": 0.1, "optim.schedule": "steps",
    "optim.milestones": (8, 16, 24), "optim.weight_decay": 1e-4,
}  # fmt: skip
DIGITS = {
    "data.name": "digits", "data.image_size": 8, "batch_size": 64, "total_epochs": 60.0, "optim.lr": 0.05,
    "label_smoothing": 0.0, "log_epochs": 5.0, "save_epochs": 20.0,
}  # fmt: skip
VARIANTS = {
    "mbv1": ("mbv1", {"optim.weight_decay": 4e-5}), "mbv2": ("mbv2", {}), "r50": ("r50", RESNET),
    "digits": ("mbv1_tiny", DIGITS),
}  # fmt: skip


def get_config(variant="mbv1"):
    c = config.default()
    network, fields = VARIANTS[variant]
    c.model.name = f"metaprune_{network}_supernet"
    c.model.act, c.model.weight = "relu", "real"
    c.data.held_out = 50
    c.batch_size = 512
    c.total_epochs = 64.0
    c.optim.name = "sgd"
    c.optim.lr = 0.25
    c.eval_epochs = 0.0  # at the end only
    c.update_from_flattened_dict(fields)
    return c
