"""Depth on NYU Depth v2: 1-bit Bi-Real Net 50 as encoder, a 1-bit decoder of up-projections.

    python -m bireal_jax.main --config=configs/depth_r50.py --config.data.dir=DIR --config.init_from=runs/r50
    python -m bireal_jax.main --config=configs/depth_r50.py --config.data.dir=DIR --mode=eval

runs/r50 is the workdir of configs/r50.py on ImageNet; without init_from the encoder starts untrained. The journal
version of Bi-Real Net (IJCV 2020) reports that a 50-layer Bi-Real net is 0.3 % less accurate in depth estimation than a
real-valued network; its data set, decoder, losses and metric are not known to us. All here is our choice: the decoder
(models/depth.py), L1, Adam 5e-4 linear to 0, batch 32, 20 epochs, zoom and flip. Evaluation is big_vision's: rows 54 to
479, columns 41 to 600, 1e-3 to 10 m, means over images. Ours: not run; configs/depth_tiny.py is the same in minutes.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.model.name = "bireal50"
    c.model.decoder = "up_projection"
    c.data.name = "nyu_depth_v2"
    c.data.depth.unit = 1.0
    c.data.depth.crop = (54, 480, 41, 601)
    c.batch_size = 32
    c.total_epochs = 20.0
    c.label_smoothing = 0.0
    c.loss = "l1"
    c.optim.lr = 5e-4
    return c
