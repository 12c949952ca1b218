"""Latency as the cost of a network: the sum over its operations of what a table says, which the user has measured.

The table is a YAML file, one operation a line, in whatever unit the budget is in:

    conv 3x3/2 224x224x3 112x112x32: 0.021
    depthwise 3x3/1 112x112x32 112x112x32: 0.034
    binary 3x3/1 112x112x32 112x112x32 groups 4: 0.005
    dense 1024 1000: 0.012

Kernel and stride, then input and output; batch norm and activation belong to the convolution in front of them.
"""

import math
from collections.abc import Callable
from pathlib import Path

import yaml

from bireal_jax.errors import BadInput, first_line
from bireal_jax.search.evolve import Genes
from bireal_jax.search.spaces import Groups, Widths


def cost(space: Widths | Groups, path: Path) -> Callable[[Genes], float]:
    """The latency of a network, by genes.

    Raises:
      BadInput: no such file, it is no table, or it lacks an operation that some network of the space has.
    """
    table = load(path)
    wanted = sorted(space.all_operations())
    missing = [name for name in wanted if name not in table]
    if missing:
        raise BadInput(
            f"{path} lacks {len(missing):,} of the {len(wanted):,} operations of the space, {missing[0]!r} for one\n"
            "measure and add them; spaces.of(SPACE, IMAGE_SHAPE, CLASSES).all_operations() has all"
        )
    return lambda genes: sum(table[name] for name in space.operations(space.values(genes)))


def load(path: Path) -> dict[str, float]:
    """The table of a file.

    Raises:
      BadInput: no such file, or something in it is no operation with a latency.
    """
    try:
        table = yaml.safe_load(path.read_text())
    except OSError as error:
        raise BadInput(f"no latency table at {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no YAML: {first_line(error)}") from None
    if not isinstance(table, dict):
        raise BadInput(f"{path} must have lines of the form OPERATION: LATENCY")
    for name, value in table.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise BadInput(f"{path}: the latency of {name!r} is {value!r}; it must be a number of at least 0")
    return table
