"""1-bit networks on CIFAR-10 with the SGD recipe of the literature: ResNet-20 and -18 in Bi-Real style, VGG-small.

    python -m bireal_jax.main --config=configs/cifar10_sgd.py --config.data.dir=cifar10.npz
    python -m bireal_jax.main --config=configs/cifar10_sgd.py --config.data.dir=cifar10.npz \\
        --config.model.name=bireal18_cifar --workdir=runs/cifar10_r18           or vgg_small

SGD 0.1, 5 epochs of warmup, cosine, 400 epochs, batch 256, weight decay 1e-4 on every parameter, crop with padding 4
and flip. Published, by the code of the papers (ours: not run):

    top-1, %                       IR-Net  RBNN   ReCU   SiMaN  ReSTE
    ResNet-20, our bireal20        86.5    87.8   87.5   87.4   87.92   a shortcut around every convolution
    ResNet-18, bireal18_cifar      91.5    92.2   92.8   92.5   92.63   mostly around every two
    VGG-small, vgg_small           90.4    91.3   92.2   92.5   92.55

at 300 to 2000 epochs; ReSTE's VGG has another order of layers. The gradient estimators of these papers, without what
else they do (rotation of the weights, learned scales, normalized activations): --config.model.act=tanh (IR-Net),
triangle (RBNN), power (ReSTE); --config.model.weight=standardized (IR-Net), clamped (ReCU). configs/cifar10_r20.py is
another recipe, of Adam.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal20"
    c.model.latent_init = "he"
    c.data.name = "cifar10"
    c.data.image_size = 32
    c.batch_size = 256
    c.total_epochs = 400.0
    c.label_smoothing = 0.0
    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.schedule = "cosine"
    c.optim.warmup_epochs = 5.0
    c.optim.weight_decay = 1e-4
    c.optim.decay_on = ("binary", "decay", "no_decay")
    return c
