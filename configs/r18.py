"""Bi-Real Net 18 on ImageNet, the recipe of the authors' released PyTorch code.

Paper: Liu et al., ECCV 2018 (arXiv 1808.00278) and IJCV 2020 (arXiv 1811.01335).

    python -m bireal_jax.main --config=configs/r18.py --config.data.dir=DIR

Adam 1e-3 on batches of 512 for 256 epochs, linear to 0, label smoothing 0.1, no weight decay, random resized crop and
flip; evaluation on the centre 224 of the image with its short side at 256.

Expect 56.4 % top-1 (the authors), 56.5 to 57.5 % in independent reproductions. Ours: not run. The last 16 epochs bring
nearly 3 points, so a run that is cut short looks worse than it is. For another batch size scale the rate linearly.

Departures from the released code: the rate falls every step instead of every epoch (`optim.schedule = "linear_epoch"`
is theirs, whose last epoch runs at 0); sign(0) is +1, not 0; the colour jitter of theirs, which changes nothing, is
left out. The weight gradient is theirs ("released"), not the paper's ("magnitude_aware"); under Adam they are the same.
"""

from bireal_jax import config


def get_config():
    return config.default()  # the defaults are this recipe
