"""The same bits on a GPU: deterministic kernels alone, and the same ones again when a run goes on.

By default neither compiling nor computing repeats there: XLA times several kernels and takes the fastest, and some add
in any order. A flag leaves these out, and what was chosen is kept in the workdir, beside the checkpoints.
"""

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from bireal_jax import places
from bireal_jax.errors import BadInput

# Not xla_gpu_deterministic_ops, with which .at[].set gave wrong numbers (github.com/jax-ml/jax/issues/27796).
FLAG = "--xla_gpu_exclude_nondeterministic_ops"
KEPT = "autotune.textproto"  # of the last checkpoint
NEW = "autotune.new.textproto"  # as XLA writes it, while it compiles


def ask(directory: Path | None) -> None:
    """Sets XLA's flags for a deterministic run on NVIDIA GPUs, which it reads when JAX starts.

    Args:
      directory: the workdir, made where it is missing; None: what is chosen is not kept, as where several processes
        would write one file.
    """
    flags = [FLAG + "=true"]
    if directory is not None and int(os.environ.get("SLURM_NTASKS") or 1) == 1:
        with contextlib.suppress(OSError):  # who claims the workdir says so
            directory.mkdir(parents=True, exist_ok=True)
            flags.append(f"--xla_gpu_dump_autotune_results_to={directory.absolute() / NEW}")
            if (directory / KEPT).exists():
                flags.append(f"--xla_gpu_load_autotune_results_from={directory.absolute() / KEPT}")
    there = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = " ".join([there, *(flag for flag in flags if flag.split("=")[0] not in there)]).strip()


def wanted() -> bool:
    """Whether JAX will find an NVIDIA GPU; asked before it is started."""
    return Path("/dev/nvidia0").exists() and os.environ.get("JAX_PLATFORMS", "") != "cpu"


def keep(directory: Path) -> None:
    """What XLA has chosen so far is of this checkpoint, too. A file that is cut off is never loaded."""
    new = directory / NEW
    if new.exists():
        places.write(directory / KEPT, new.read_bytes())


def platform() -> str:
    """For which JAX compiles: "cpu", "tpu", "cuda" or "rocm"."""
    found = jax.default_backend()
    return found if found != "gpu" else "rocm" if "rocm" in jax.devices()[0].client.platform_version else "cuda"


def check(function: Callable, *shapes: Any) -> None:
    """Raises BadInput, before anything is compiled, where a GPU has no deterministic kernel for what a function does.

    Args:
      function: traced alone, for the platform that JAX has found; on CPUs and TPUs all is deterministic.
      *shapes: of its arguments, trees of jax.ShapeDtypeStruct.
    """
    target = platform()
    if target not in ("cuda", "rocm"):
        return
    if FLAG not in os.environ.get("XLA_FLAGS", ""):
        raise BadInput(
            f"config.deterministic on a GPU takes XLA_FLAGS={FLAG}=true, which XLA reads when JAX starts\n"
            "python -m bireal_jax.main sets it; in a program of your own set os.environ before JAX is imported"
        )
    if found := unordered(jax.jit(function).trace(*shapes).lower(lowering_platforms=(target,))):
        others = f", and {len(found) - 1} more" if len(found) > 1 else ""
        raise BadInput(
            f"config.deterministic: a GPU adds in any order in {found[0]}{others}\n"
            "use another layer there, such as bireal_jax's max_pool, or leave config.deterministic off"
        )


OPERATION = re.compile(r'"stablehlo\.(select_and_scatter|scatter)"\(.*?\n\s*\}\) : [^\n]*?loc\((#loc\d*)\)', re.DOTALL)
PLACE = re.compile(r'^(#loc\d*) = loc\("([^"]*)"', re.MULTILINE)


def unordered(lowered: Any) -> list[str]:
    """Operations of a lowered program that a GPU does in any order, each as "operation of path": scatters, but those
    that promise that no index comes twice, and the gradients of reduce_window."""
    text = lowered.as_text(debug_info=True)
    places = dict(PLACE.findall(text))
    found = []
    for match in OPERATION.finditer(text):
        if "unique_indices = true" not in match[0]:
            found.append(f"{match[1]} of {places.get(match[2], 'the step')}")
    return found
