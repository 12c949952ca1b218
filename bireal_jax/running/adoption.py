"""Trained variables where another network, or the same one for other classes, starts from them.

Nothing is dropped or drawn unsaid: a line names what has no place, and what is drawn anew.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from bireal_jax.data import Source
from bireal_jax.errors import BadInput
from bireal_jax.running import checkpoint, parallel, progress


def adopt(
    found: Any, shapes: Any, what: str, fresh: Callable[[], Any] | None = None,
    network: nn.Module | None = None, source: Source | None = None, new_head: bool = False,
) -> Any:  # fmt: skip
    """`found` if it has the shapes wanted; of a classifier, where they are a `MapNet`'s, its body as the encoder.

    A classifier of another number of classes keeps its body and gets a new head, where something may be drawn.

    Args:
      found: variables.
      shapes: of the variables wanted.
      what: where `found` is from, for messages.
      fresh: draws all variables wanted; None where nothing may be drawn.
      network, source: what is trained, and on what; None where the head must be that of `found`.
      new_head: the head is drawn anew, whatever `found` has.

    Raises:
      BadInput: any leaf of the body is missing, too many or of another shape; the message shows both sides.
    """
    if "encoder" in shapes["params"] and "encoder" not in found["params"]:
        return _as_encoder(found, shapes, what, fresh)
    if fresh and network and source and not source.depth_range:
        found = _with_head(found, shapes, what, fresh, network, source, new_head)
    return checkpoint.merge(found, shapes, what)


def _as_encoder(found, shapes, what, fresh):
    if fresh is None:
        raise BadInput(
            f"{what} is a classifier; its weights start the training of a network with a decoder, but there is none to "
            "evaluate\nleave config.init_from empty for the best checkpoint of the workdir"
        )
    params = {name: tree for name, tree in found["params"].items() if name != "head"}
    body = {"params": params, "batch_stats": found["batch_stats"]}
    wanted = {name: shapes[name]["encoder"] for name in body}
    body = checkpoint.merge(body, wanted, f"{what}, its body,")
    drawn = parallel.fetch(fresh())
    taken, there, all_ = (len(jax.tree.leaves(tree)) for tree in (body, found, shapes))
    progress.say(
        f"encoder from {what}: {taken} of its {there} arrays; left there: {there - taken} of its head; "
        f"drawn anew: {all_ - taken}, the decoder"
    )
    return {name: {**drawn[name], "encoder": body[name]} for name in body}


def _with_head(found, shapes, what, fresh, network, source, new_head):
    """`found` with a head drawn anew, where its own is for another number of classes, or `new_head` says so.

    The head is whatever changes its shape with the number of classes. Of another network nothing is changed.
    """
    there, wanted = traverse_util.flatten_dict(found), traverse_util.flatten_dict(shapes)
    odd = {path for path in there | wanted if _shape(there, path) != _shape(wanted, path)}
    if not odd and not new_head:
        return found
    more: Any = network.clone(num_classes=source.num_classes + 1)  # pyrefly: ignore[unexpected-keyword]
    image = jnp.zeros((1, *source.image_shape))
    more = traverse_util.flatten_dict(jax.eval_shape(more.init, jax.random.key(0), image))
    head = {path for path in wanted if _shape(more, path) != _shape(wanted, path)}
    if not odd <= head:
        return found
    drawn = traverse_util.flatten_dict(parallel.fetch(fresh()))
    names = ", ".join(sorted({path[1] for path in head}))
    progress.say(
        f"a new head for {source.num_classes} classes is drawn ({names}); kept of {what}: "
        f"{len(wanted) - len(head)} of its {len(there)} arrays, the body"
    )
    return traverse_util.unflatten_dict({path: (drawn if path in head else there)[path] for path in wanted})


def _shape(leaves, path):
    return leaves[path].shape if path in leaves else None
