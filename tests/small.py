"""A recipe for tests that train."""

from bireal_jax import config


def small(**fields):
    """The digits recipe, cut to seconds."""
    c = config.default()
    c.update_from_flattened_dict({
        "model.name": "bireal_tiny", "data.name": "digits", "data.image_size": 8, "batch_size": 16,
        "label_smoothing": 0.0, "total_steps": 12, "log_steps": 3, "eval_steps": 6, "save_steps": 4, **fields,
    })  # fmt: skip
    return c
