"""Architectures that a search found: `config.arch` names one, as a best_arch.json or as "SPACE GENE GENE ...".

The first form is for people. The command turns it into the second before it goes on, so that config.json of a workdir
has the genes and the run does not depend on a file elsewhere.
"""

import json
import re
from collections.abc import Sequence

from bireal_jax import places
from bireal_jax.errors import BadInput

INLINE = re.compile(r"\w+( \d+)+")
DIGITS = 9  # of a gene that are read; none has so many


def inline(text: str) -> str:
    """The second form of either one, "" for "". Raises as `read`."""
    if not text:
        return ""
    space, genes = read(text)
    return " ".join([space, *map(str, genes)])


def read(text: str) -> tuple[str, tuple[int, ...]]:
    """The space and the genes of either form.

    Raises:
      BadInput: no such file, or it is none of a search.
    """
    if INLINE.fullmatch(text):
        space, *genes = text.split()
        return space, tuple(int(gene[:DIGITS]) for gene in genes)
    path = places.local(text, "config.arch", "file")
    try:
        stored = places.read_json(path)
        space, genes = stored["space"], stored["genes"]
        if not isinstance(space, str) or not isinstance(genes, list):
            raise TypeError(f"a name and a list of whole numbers, not {space!r} and {genes!r}"[:200])
        for i, gene in enumerate(genes):
            if type(gene) is not int:  # True is an int to Python, and int(1.5) is 1
                raise TypeError(f"gene {i} is {json.dumps(gene)[:100]}, no whole number")
        return space, tuple(genes)
    except OSError as error:
        raise BadInput(f"no architecture at {path}: {error.strerror}; a search writes best_arch.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} is no best_arch.json, which has a space and genes ({error})") from None


def load(text: str, space: str, sizes: Sequence[int]) -> tuple[int, ...]:
    """The genes of either form.

    Args:
      text: a path, or "SPACE GENE GENE ...".
      space: name of the space that they must be of.
      sizes: how many values each gene has there.

    Raises:
      BadInput: as `read`, or not of this space.
    """
    name, genes = read(text)
    if name != space:
        raise BadInput(f"{text} is of the space {name!r}, the model takes one of {space!r}; search in that space")
    if len(genes) != len(sizes):
        raise BadInput(f"{text} has {len(genes)} genes, {space} has {len(sizes)}; search anew")
    for i, (gene, size) in enumerate(zip(genes, sizes, strict=True)):
        if not 0 <= gene < size:
            raise BadInput(f"{text}: gene {i} is {gene}, it must be in 0..{size - 1}")
    return genes
