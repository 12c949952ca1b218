"""How many kernels a training step has on a GPU, from XLA's program for one, compiled without one.

    pip install --no-deps jax-cuda12-plugin==X jax-cuda12-pjrt==X nvidia-cuda-nvcc-cu12        X: the version of jax
    python -m experiments.speed.kernels --networks bireal20 prelu20 bireal18_cifar

A small network takes as long as its kernels are many. The step is that of configs/cifar10_sgd.py in calls of several
steps, as a GPU does it, in bfloat16. What is counted are the operations of the loop's body, each a kernel or more:
cuDNN may turn or pad what it is given, and is not asked here, nor is anything timed, so XLA's choices between kernels
are its guesses.
"""

import argparse
import collections
import importlib.util
import os
import re
from pathlib import Path
from typing import Any
from unittest import mock

from bireal_jax import output

# Multiprocessors, bytes of memory and of its bandwidth a second: what XLA asks of a card, of which the rest is alike.
CARDS = {"h100": (132, 85e9, 3.35e12), "h200": (132, 151e9, 4.8e12)}
CARD = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048 fpus_per_core: 128
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  cuda_compute_capability {{ major: 9 }} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  core_count: {} device_memory_size: {:.0f} memory_bandwidth: {:.0f}
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} runtime_version {{ major: 12 minor: 8 }}
"""
FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast")  # operations that are no kernels
KINDS = {  # kind -> of what is found in the name of an instruction, or of what it calls; the first that fits
    "convolutions": "conv(?!ert)",
    "matrix products": "dot|gemm",
    "sums and other reductions": "reduce",
    "copies and transposes": "copy|transpose|slice",
    "element by element": "",
}


def body(text: str) -> list[tuple[str, str]]:
    """(kind, name) of the kernels in the body of the loop of an optimized program; the longest, if it has several."""
    blocks: dict[str, str] = dict(re.findall(r"^%([\w.\-]+) \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL))
    bodies = [blocks[name] for name in re.findall(r" while\(.*?body=%([\w.\-]+)", text)]
    found = []
    for line in sorted(bodies, key=len)[-1].splitlines():
        name, operation = re.findall(r"%([\w.\-]+) = (?:\(.*?\)|\S+) ([\w\-]+)\(", line)[0]
        if operation not in FREE:
            called = f"{name} {operation} {''.join(re.findall('custom_call_target=(.*?),', line))}"
            found.append((next(kind for kind, pattern in KINDS.items() if re.search(pattern, called)), name))
    return found


def program(network: str, batch: int, size: int, card: str) -> str:
    """XLA's program for a call of some steps of a network on images in memory."""
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from bireal_jax.data import Source
    from bireal_jax.data.augment import Augment
    from bireal_jax.data.source import Arrays
    from bireal_jax.recipe import load_recipe
    from bireal_jax.running import health, parallel
    from bireal_jax.training import calls, flat
    from bireal_jax.training.step import Plan

    c = load_recipe(Path("configs/cifar10_sgd.py"))
    c.model.name, c.model.dtype, c.batch_size, c.data.image_size = network, "bfloat16", batch, size
    images = np.broadcast_to(np.uint8(0), (50_000, size, size, 3))
    train = Arrays(images, np.zeros(len(images), np.int64), Augment(pad=4, mirror=True))
    source = Source(
        train=train, eval=train, augment=lambda *_: {}, prepare=dict, image_shape=images.shape[1:], num_classes=10
    )
    with mock.patch.object(flat, "pays", lambda: True):
        plan = Plan(c, source)
    held = calls.Held(train, 10, put=lambda data: data)
    several = calls.loop(health.guard(plan.loop_step, 0), held, calls.AUTO, plan.form)

    device = topologies.get_topology_desc(
        platform="cuda", target_config=CARD.format(*CARDS[card]), topology="1x1x1"
    ).devices
    mesh, whole, apart = Mesh(np.asarray(device), (parallel.AXIS,)), PartitionSpec(), PartitionSpec(parallel.AXIS)

    def shapes(tree, spec):
        where = NamedSharding(mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=where), tree)

    def call(state, given, data):
        return several(state, jax.tree.map(lambda a: a[0], given), data)

    state = jax.eval_shape(lambda variables: plan.fresh(variables, 0), plan.shapes)
    given: Any = {"rows": np.zeros((1, calls.AUTO, batch, 6), np.int32), "count": np.zeros(1, np.int32)}
    mapped = jax.shard_map(call, mesh=mesh, in_specs=(whole, apart, whole), out_specs=whole, check_vma=False)
    lowered = jax.jit(mapped, donate_argnums=0).lower(
        shapes(state, whole), shapes(given, apart), shapes(held.data, whole)
    )
    return lowered.compile().as_text() or ""


def use_no_card():
    """Before JAX is imported: it computes on the CPU, and XLA finds the assembler and times no kernels."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    found = importlib.util.find_spec("nvidia")
    places = list(found.submodule_search_locations or []) if found else []
    homes = [Path(place) / name for place in places for name in ("cuda_nvcc", "cu13")]
    tools = [f"--xla_gpu_cuda_data_dir={home}" for home in homes if home.is_dir()][:1]
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0", *tools])


def main():
    """Prints a line a network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["bireal20", "prelu20", "bireal18_cifar"])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=32, help="pixels of the images' sides")
    parser.add_argument("--card", choices=CARDS, default="h200")
    parser.add_argument("--names", action="store_true", help="print the kernels, too, in their order")
    args = parser.parse_args()
    use_no_card()
    for network in args.networks:
        found = body(program(network, args.batch, args.size, args.card))
        counts = collections.Counter(kind for kind, _ in found)
        parts = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])
        print(
            f"{network}: {len(found)} kernels a step: {parts}",
            *(f"  {name}" for _, name in found if args.names),
            sep="\n",
        )


if __name__ == "__main__":
    with output.command():
        main()
