"""Bi-Real Net 18 on ImageNet in two steps: first binary activations alone, then binary weights as well.

    python -m bireal_jax.main --config=configs/r18_two_step.py --config.data.dir=DIR

What the two steps of the journal version (IJCV 2020) are is not known to us. This is the scheme of ReActNet, by the
same authors, on the network and the losses of configs/r18.py: 256 epochs each of Adam 1e-3 on batches of 512, weight
decay 1e-5 in the first step and none in the second. Departures from ReActNet: labels instead of a teacher, the head
decays as well, and the real-valued weights of the first step start where the binary ones of configs/r18.py do. Ours:
not run; configs/digits_two_step.py is the same in two minutes.
"""

from bireal_jax import config


def get_config():
    c = config.default()
    c.stages = (
        {"name": "activations", "model.weight": "real", "optim.weight_decay": 1e-5},
        {"name": "weights", "model.weight": "released"},
    )
    return c
