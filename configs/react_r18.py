"""ReActNet's form of ResNet-18 on ImageNet, in the two steps of configs/react_a.py.

    python -m bireal_jax.main --config=configs/react_r18.py --config.data.dir=DIR --config.teacher.weights=FILE

The released recipe: Adam 2.5e-3 on batches of 512, 128 epochs a step. Expect 65.5 % (paper), 65.9 % (authors' README,
since step 2 inherits the weights). A better documented replication has 67.6, then 66.1 %: Adam 1e-3, linear by the
iteration, 256 epochs a step. Ours: not run. Departures and reinit_step2: see configs/react_a.py.
"""

from pathlib import Path

from bireal_jax.main import load_recipe


def get_config():
    c = load_recipe(Path(__file__).with_name("react_a.py"))
    c.model.name = "react_r18"
    c.batch_size = 512
    c.optim.lr = 2.5e-3
    return c
