"""Bi-Real Net 18 on ImageNet, step by step as the paper trains it: ReLU, leaky clip, clip, binary, batch norm.

Paper: Liu et al., ECCV 2018 (arXiv 1808.00278) and IJCV 2020 (arXiv 1811.01335); the numbers are those of the README
of the authors' Caffe code.

    python -m bireal_jax.main --config=configs/r18_step.py --config.data.dir=DIR

1 relu   real-valued network from scratch, "with the hyper-parameters of ResNet": SGD 0.1, batch 256, weight decay 1e-4
2 leaky  its ReLUs replaced by the leaky clip, finetuned     } length and rate are given nowhere; ours: 20 epochs each,
3 clip   by the clip, finetuned                              } rate 0.01, a tenth at epochs 10 and 15
4 binary SGD 0.01, batch 128, 20 epochs, a tenth at epochs 10 and 15, no weight decay
5 bn     weights fixed to +1 and -1 without scale, all convolutions frozen, one epoch in which batch norm takes up the
         scale; the rate of the rest is given nowhere, ours is 1e-4

Expect 56.4 % top-1 (the authors). Ours: not run; configs/digits_step.py is the same in minutes.

The weight rule is "identity", which their Caffe code applies, not the formula of the paper ("magnitude_aware"), which
in front of a batch norm is no other than the plain straight-through estimator (experiments/estimators). Departures
from their code: random resized crop instead of a random crop of 224 from 256, no bias in stem and shortcut
convolutions, batch norm in the shortcut, sign(0) of +1, images divided by their deviation.
"""

from bireal_jax import config

FINETUNE = {"optim.lr": 0.01, "total_epochs": 20.0, "optim.milestones": (10, 15)}


def get_config():
    c = config.default()
    c.model.weight = "real"
    c.model.latent_init = "he"
    c.batch_size = 256
    c.label_smoothing = 0.0
    c.optim.name = "sgd"
    c.optim.schedule = "steps"
    c.optim.weight_decay = 1e-4
    binary = {"model.act": "approx_sign", "batch_size": 128, "optim.weight_decay": 0.0}
    c.stages = (
        {"name": "relu", "model.act": "relu", "optim.lr": 0.1, "total_epochs": 90.0, "optim.milestones": (30, 60)},
        {"name": "leaky", "model.act": "leaky_clip", **FINETUNE},
        {"name": "clip", "model.act": "clip", **FINETUNE},
        {"name": "binary", "model.weight": "identity", **binary, **FINETUNE},
        {   # "sign": no scale; the latent weights stay as they are. "conv": stem, binary and shortcut convolutions
            "name": "bn", "model.weight": "sign", **binary, "total_epochs": 1.0, "optim.schedule": "constant",
            "optim.lr": 1e-4, "optim.frozen": "conv",
        },
    )  # fmt: skip
    return c
