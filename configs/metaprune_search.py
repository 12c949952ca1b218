"""MetaPruning, 2 of 3: evolution of the widths, on the PruningNet of configs/metaprune_train.py.

    python -m bireal_jax.main --config=configs/metaprune_search.py:mbv1 --config.data.dir=DIR --mode=search

Variants as there. Writes best_arch.json, candidates.csv and candidates.png into runs/metaprune_search_mbv1; killed at
any candidate, the same command continues. The numbers are the authors': 20 generations of 50, batch norm calibrated on
100 batches of 1000 for each candidate, FLOPs as they count (with batch norms; --config.search.cost=macs counts
convolutions and head alone), at most 330 M for the MobileNets and 1950 to 2050 M for ResNet-50. Other points of their
tables: --config.search.max_cost=45.0. A table of latencies instead: --config.search.latency=FILE.yaml. Ours: not run.

Departures: networks over budget are changed until they are within it, theirs discarded (--config.search.repair=False).
"""

from bireal_jax import config

DIGITS = {
    "data.name": "digits", "data.image_size": 8, "batch_size": 64, "search.max_cost": 0.1, "search.generations": 6,
    "search.population": 20, "search.mutations": 10, "search.crossovers": 10, "search.bn_batches": 20,
}  # fmt: skip
VARIANTS = {
    "mbv1": ("mbv1", {}), "mbv2": ("mbv2", {}),
    "r50": ("r50", {"search.max_cost": 2050.0, "search.min_cost": 1950.0}), "digits": ("mbv1_tiny", DIGITS),
}  # fmt: skip


def get_config(variant="mbv1"):
    c = config.default()
    network, fields = VARIANTS[variant]
    c.model.name = f"metaprune_{network}_supernet"
    c.model.act, c.model.weight = "relu", "real"
    c.data.held_out = 50
    c.batch_size = 1000
    c.init_from = f"runs/metaprune_train_{variant}"
    c.search.max_cost = 330.0
    c.update_from_flattened_dict(fields)
    return c
