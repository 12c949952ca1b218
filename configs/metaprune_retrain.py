"""MetaPruning, 3 of 3: the network that configs/metaprune_search.py found, trained from scratch at its own widths.

    python -m bireal_jax.main --config=configs/metaprune_retrain.py:mbv1 --config.data.dir=DIR
    python -m bireal_jax.main --config=configs/metaprune_retrain.py:mbv1 --config.arch=OTHER/best_arch.json ...

Variants as there. On all training images, tested on the evaluation set; the numbers are the authors'. Published:
MobileNetV1 70.9 % at 316 M, 66.1 % at 142 M, 57.2 % at 41 M FLOPs; MobileNetV2 72.7 % at 303 M, 68.2 % at 140 M, 58.3 %
at 43 M; ResNet-50 75.4 % at 2.0 G, 73.4 % at 1.0 G. Ours: not run. With --mode=cost and --mode=export as any network.

Departures: RGB, mean and deviation, as in the authors' repository, where the published models had BGR in 0 to 255; no
PCA lighting noise; all kernels decay but depthwise ones (theirs: nor the projections of mbv2 and shortcuts of r50).
"""

from bireal_jax import config

RESNET = {
    "batch_size": 512, "total_epochs": 128.0, "optim.lr": 0.2, "optim.schedule": "steps",
    "optim.milestones": (32, 64, 96), "optim.weight_decay": 1e-4,
}  # fmt: skip
DIGITS = {
    "data.name": "digits", "data.image_size": 8, "batch_size": 64, "total_epochs": 40.0, "optim.lr": 0.05,
    "label_smoothing": 0.0, "log_epochs": 5.0, "eval_epochs": 10.0, "save_epochs": 10.0,
}  # fmt: skip
VARIANTS = {"mbv1": ("mbv1", {}), "mbv2": ("mbv2", {}), "r50": ("r50", RESNET), "digits": ("mbv1_tiny", DIGITS)}


def get_config(variant="mbv1"):
    c = config.default()
    network, fields = VARIANTS[variant]
    c.model.name = f"metaprune_{network}"
    c.model.act, c.model.weight = "relu", "real"
    c.arch = f"runs/metaprune_search_{variant}/best_arch.json"
    c.batch_size = 1024
    c.total_epochs = 256.0
    c.optim.name = "sgd"
    c.optim.lr = 0.5
    c.optim.weight_decay = 4e-5
    c.update_from_flattened_dict(fields)
    return c
