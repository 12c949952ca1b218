"""1-bit ResNet-20, ResNet-18 and VGG-small on CIFAR-10 by SGD: one recipe for all three.

    python -m bireal_jax.main --config=configs/cifar10_sgd.py --config.data.dir=cifar-10-python.tar.gz
    python -m bireal_jax.main --config=configs/cifar10_sgd.py:r18 --config.data.dir=...     or vgg
    python -m bireal_jax.main --config=configs/cifar10_sgd.py:r20_quick --config.data.dir=...     100 epochs
    python -m bireal_jax.main --config=configs/cifar10_sgd.py:r20_teacher --config.data.dir=...     real-valued; then
    python -m bireal_jax.main --config=configs/cifar10_sgd.py:r20_distilled --config.data.dir=...   from it and labels

Recipe of SiMaN's code (github.com/lmbxmu/SiMaN): 400 epochs, batch 256, SGD 0.1, 5 epochs of warmup, cosine, weight
decay 5e-4 on every parameter but slopes. ResNet-20: a shortcut around every convolution, RPReLU behind every sum as in
FracBNN's code, batch norm before the head; VGG-small with PReLU. ResNet-18 is that of AdaBin's code, with the slopes of
both sides learned. Published, 300 to 2000 epochs: 86.5 to 88.1, 91.5 to 92.8 and 90.4 to 92.6 %. Targets: 86.5, 92.0,
91.0 after the last epoch. Ours, one seed: ResNet-20 86.59 %; the others not run.

Departures: their weight binarizers and gradients, for which config.model.weight and config.model.act have a part. What
the rest is worth: docs/cifar.md. In runs of 60 epochs a higher rate of the binary weights wins,
config.optim.binary_lr=3.0; over 400 it was behind in epoch 340, where that run ended. Other networks, by
config.model.name: clip20 (IR-Net), prelu20 (SiMaN), maxout20 (AdaBin), recu20, ovsw20 (with
--config.optim.gradient_floor=0.04 --config.optim.silent_decay=9e-4), bireal20 (nothing of all that), clip18_cifar,
recu_vgg. CIFAR-100: --config.data.name=cifar100. configs/cifar10_r20.py is another recipe, of Adam.
"""

from bireal_jax import config

NETWORKS = {"r20": ("rprelu20", "resnet20"), "r18": ("maxout18_cifar", "resnet18_cifar"), "vgg": ("prelu_vgg", "")}
WAYS = ("", "_quick", "_distilled", "_teacher")
VARIANTS = {network + way: (network, way) for network in NETWORKS for way in WAYS if network + way != "vgg_teacher"}


def get_config(variant="r20"):
    c, (network, way) = config.default(), VARIANTS[variant]
    c.model.name, teacher = NETWORKS[network]
    c.model.latent_init = "he"
    c.data.name = "cifar10"
    c.data.image_size = 32
    c.batch_size = 256
    c.total_epochs = 100.0 if way == "_quick" else 400.0
    c.label_smoothing = 0.0
    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.schedule = "cosine"
    c.optim.warmup_epochs = 5.0
    c.optim.weight_decay = 5e-4
    c.optim.decay_on = ("binary", "decay", "no_decay")  # all but "slope"
    c.log_epochs, c.eval_epochs, c.save_epochs = 1.0, 10.0, 10.0
    if way == "_distilled":
        c.loss, c.teacher.name = "distilled", teacher or "resnet18_cifar"
        c.teacher.weights = f"runs/cifar10_sgd_{network if teacher else 'r18'}_teacher"
    if way == "_teacher":
        c.model.name, c.model.act, c.model.weight, c.total_epochs = teacher, "relu", "real", 200.0
    return c
