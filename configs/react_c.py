"""ReActNet-C on ImageNet: configs/react_a.py, the channel-doubling 1x1 convolutions real-valued.

    python -m bireal_jax.main --config=configs/react_c.py --config.data.dir=DIR --config.teacher.weights=FILE

2.136e8 OPs. Expect 71.4 % (a review of the paper). How its training differs from A's is not specified by what we have.
Ours: not run.
"""

from pathlib import Path

from bireal_jax.main import load_recipe


def get_config():
    c = load_recipe(Path(__file__).with_name("react_a.py"))
    c.model.name = "react_c"
    return c
