"""Binary MobileNet, 2 of 3: evolution of the group numbers, on the supernet of configs/ebn_supernet.py.

    python -m bireal_jax.main --config=configs/ebn_search.py --config.data.dir=DIR --mode=search

Writes best_arch.json, candidates.csv and candidates.png into runs/ebn_search; killed at any candidate, the same command
continues. The loop is MetaPruning's, by the same group: what EBN's is, is not known. The budget is ours: 37 M OPs
(FLOPs + BOPs / 64) are what 4 groups everywhere cost; 22.4 M is the least, 87.1 M the most. Ours: not run.
"""

from bireal_jax import config

DIGITS = {
    "model.name": "ebn_tiny_supernet", "data.name": "digits", "data.image_size": 8, "batch_size": 64,
    "init_from": "runs/ebn_supernet_digits", "search.max_cost": 0.0075, "search.generations": 6,
    "search.population": 20, "search.mutations": 10, "search.crossovers": 10, "search.bn_batches": 20,
}  # fmt: skip
VARIANTS = {"": {}, "digits": DIGITS}


def get_config(variant=""):
    c = config.default()
    c.model.name = "ebn_supernet"
    c.data.held_out = 50
    c.batch_size = 256
    c.init_from = "runs/ebn_supernet"
    c.search.max_cost = 37.0
    c.update_from_flattened_dict(VARIANTS[variant])
    return c
