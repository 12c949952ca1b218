"""ResNet-34 on ImageNet, real-valued: the teacher of the ReActNet recipes.

    python -m bireal_jax.main --config=configs/resnet34.py --config.data.dir=DIR

torchvision's architecture and initialization, the usual recipe: SGD 0.1, batch 256, 90 epochs, a tenth at epochs 30 and
60, weight decay 1e-4 on every parameter. Its workdir is a --config.teacher.weights. Ours: not run. A trained one:

    python -m bireal_jax.importers --model=resnet34 resnet34.pth resnet34.npz
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "resnet34"
    c.model.act = "relu"
    c.model.weight = "real"
    c.batch_size = 256
    c.total_epochs = 90.0
    c.label_smoothing = 0.0
    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.schedule = "steps"
    c.optim.milestones = (30, 60)
    c.optim.weight_decay = 1e-4
    c.optim.decay_on = ("binary", "decay", "no_decay")
    return c
