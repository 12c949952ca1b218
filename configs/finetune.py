"""Your own classes, from a network that was trained on others: its head alone first, then all of it.

    python -m bireal_jax.main --config=configs/finetune.py --config.data.dir=PHOTOS --config.init_from=WEIGHTS

PHOTOS holds CLASS/*.jpg, of which a fifth is held out, or train/CLASS/*.jpg and val/CLASS/*.jpg. WEIGHTS is the workdir
of a run, a file that `importers` reads, or a network that came with the package, of the network config.model.name. Its
body is kept and a head for your classes is drawn. The stages are data: another one is another dict, and
config.optim.frozen a regular expression that is found in the paths of the parameters that are not trained. Statistics
of batch norm always are.

The small network of the CIFAR-10 recipe, on photos of 32 pixels, takes minutes on a laptop:

    --config.model.name=bireal20 --config.data.image_size=32 --config.init_from=bireal20_cifar10

Photos of ImageNet at 224 pixels: not run.
"""

from bireal_jax import config

BODY = "^(?!head/)"  # all but the head


def get_config():
    """Adam, no label smoothing; a fifth of the rate once the body is trained, too."""
    c = config.default()
    c.data.name = "folder"
    c.batch_size = 32
    c.label_smoothing = 0.0
    c.total_epochs = 40.0
    c.log_epochs = 1.0
    c.stages = (
        {"name": "head", "share": 0.25, "optim.frozen": BODY},
        {"name": "all", "share": 0.75, "optim.lr": 2e-4},
    )
    return c
