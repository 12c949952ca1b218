"""ReActNet-A with the training of AdamBNN: longer than configs/react_a.py, and half the weight decay.

Paper: Liu et al., ICML 2021 (arXiv 2106.11309).

    python -m bireal_jax.main --config=configs/adam_bnn_a.py --config.data.dir=DIR --config.teacher.weights=FILE

Adam 1.25e-3 on batches of 256, 256 epochs a step, weight decay 5e-6, then 0: by the paper, decay trades the stability
of signs against dependence on where they start, and has its place in step 1 alone. Its code inherits the weights of
step 1, of the best checkpoint; here it is the last. Expect 71.4 %, then 70.5 % (the authors). Ours: not run. Other
departures: see configs/react_a.py.
"""

from pathlib import Path

from bireal_jax.main import load_recipe


def get_config():
    c = load_recipe(Path(__file__).with_name("react_a.py"))
    c.total_epochs = 256.0
    step1, step2 = c.stages
    c.stages = ({**step1, "optim.weight_decay": 5e-6}, step2)
    return c
