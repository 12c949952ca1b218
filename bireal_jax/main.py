"""The command: `python -m bireal_jax.main --config=configs/r18.py`.

Imports nothing heavy at the top, so that --help and a wrong flag answer at once.
"""

import contextlib
import ctypes
import difflib
import logging
import os
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from bireal_jax import output, places, recipe
from bireal_jax._version import __version__
from bireal_jax.config import check_field, default, nearest, unheard
from bireal_jax.errors import BadInput, first_line, lookup
from bireal_jax.recipe import load_recipe
from bireal_jax.running import preempt

# modes that need no --config where --workdir has a run
OF_A_RUN = ("eval", "export", "cost", "verify", "data", "report")

MODES = ("train", "eval", "cost", "export", "verify", "doctor", "data", "search", "report", "compare")

HELP = """1-bit convolutional networks: train, evaluate, count what they cost, pack.

  python -m bireal_jax.main --config=configs/digits.py                        a minute on a laptop, no download
  python -m bireal_jax.main --config=configs/r18.py --config.data.dir=DIR     Bi-Real Net 18 on ImageNet
  python -m bireal_jax.main --config=configs/r18.py --mode=eval               evaluates the best checkpoint
  python -m bireal_jax.main --config=configs/r18.py --mode=cost               memory and operations; needs no data
  python -m bireal_jax.main --config=configs/r18.py --mode=export             packs the best checkpoint for CPUs
  python -m bireal_jax.main --config=configs/ebn_search.py --mode=search      searches an architecture in a supernet
  python -m bireal_jax.main --config=configs/r18.py --mode=doctor             tries in a minute all that a run will do
  python -m bireal_jax.main --config=configs/r18.py --mode=data               looks for what is wrong in the data set
  python -m bireal_jax.main --config=configs/r18.py --mode=report             a page about the run: report.html
  python -m bireal_jax.main --mode=compare RUN RUN ... [--out=FILE.html]      several runs in one picture, and a CSV

  --config=FILE.py         recipe: a Python file with get_config(); FILE.py:VARIANT, where it has variants
                           digits and the like are the package's own; where --workdir has a run only training needs one
  --config.FIELD=VALUE     sets a field of the recipe (bireal_jax/config.py lists them)
  --workdir=DIR            where the run lives; default: runs/NAME_OF_THE_RECIPE, or runs/NAME_VARIANT
  --mode=train|eval|cost|export|verify|doctor|data|search|report|compare   default: train
  --format=text|csv|md     of the table that --mode=cost prints; default: text
  --format=packed|c|onnx|openvino|qonnx   of the file that --mode=export writes; default: packed
  --out=FILE               that --mode=export and report write; default: net.safetensors, report.html in the workdir
  --version                of the package

  --coordinator=HOST:PORT --num_processes=N --process_id=I   one of several processes, where no cluster is recognized

Any field of the recipe can be set: --config.optim.lr=0.01 --config.total_epochs=5.0.
The same command continues a run that was cut off.
"""


def run() -> None:
    """The console entry. Exit status: 0 done or stopped by a signal, 2 an input that cannot work, 130 interrupted."""
    sys.unraisablehook = _unraisable
    logging.getLogger("asyncio").addFilter(_is_news)
    with output.steady():
        _run()


def _run():
    try:
        main(sys.argv)
    except BadInput as error:
        # The other hosts wait for this one at its exit, and it for them: they notice soon if it leaves at once.
        if _several():
            preempt.leave(2, f"error: {error}")
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except preempt.Stopped as stopped:
        print(f"{stopped}; the same command continues", flush=True)
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from the last checkpoint, if there is one", file=sys.stderr)
        sys.exit(130)


def _several():
    """Whether there are other hosts; without an import of JAX, which a wrong flag does not wait for."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1


def _unraisable(hook):
    """Drops what TensorStore's callbacks print after a save or a restore that failed and was reported."""
    if str(hook.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(hook)


def _is_news(record):
    """Not the other failures of a save that failed and was reported, of which asyncio tells when it forgets them."""
    return "exception was never retrieved" not in record.getMessage()


def main(argv: list[str]) -> None:
    """Parses the command line and does what it says.

    Raises:
      BadInput: something the user gave cannot work.
    """
    if any(arg in ("--help", "-h", "-help", "--helpfull") for arg in argv[1:]):
        print(HELP)
        return
    if "--version" in argv[1:]:
        print(f"bireal_jax {__version__}")
        return
    cache_compilations()  # before the recipe, which may import jax
    if "--mode=compare" in argv[1:]:
        from bireal_jax.checks import compare  # heavy, hence here

        compare.main([arg for arg in argv[1:] if arg != "--mode=compare"])
        return
    values = flags.FlagValues()
    style_flag = flags.DEFINE_string("format", "", "", flag_values=values)
    out = flags.DEFINE_string("out", None, "", flag_values=values)
    coordinator = flags.DEFINE_string("coordinator", "", "", flag_values=values)
    num_processes = flags.DEFINE_integer("num_processes", 0, "", flag_values=values)
    process_id = flags.DEFINE_integer("process_id", -1, "", flag_values=values)
    config, workdir, mode = parse(argv, values)
    style = chosen_format(mode, style_flag.value)
    if mode == "cost":
        print_cost(config, style)
        return
    keep_freed_memory()
    if mode in ("train", "eval", "doctor"):
        repeat(config, workdir if mode == "train" and not coordinator.value else None)
    if mode not in ("train", "eval"):  # these join the other hosts before JAX looks for devices
        find_devices()
    if mode in ("export", "report"):
        from bireal_jax.checks import report
        from bireal_jax.shipping import export

        file = None if out.value is None else places.local(out.value, "--out", "file")
        options = {"style": style} if mode == "export" else {}
        (export if options else report).run(config, workdir, file, given=overridden(argv), **options)
        return
    if mode in ("verify", "doctor", "data"):
        from bireal_jax.checks import doctor, scan, verify

        found = {"verify": verify.run, "doctor": doctor.run, "data": lambda config, _: scan.run(config)}[mode]
        count = found(config, workdir)
        if mode == "verify":
            return
        sys.exit(count > 0)
    with preempt.Signals(preempt.BEGIN[mode]) if mode in preempt.BEGIN else contextlib.nullcontext() as signals:
        if mode == "search":  # what it has scored is on the disk
            from bireal_jax.search import run as search

            search.run(config, workdir)
            return
        from bireal_jax.running import hosts  # heavy, hence here
        from bireal_jax.training import train  # heavy, hence here

        if hosts.join(coordinator.value, num_processes.value, process_id.value) and signals:
            signals.disposable = False
        find_devices()
        if mode == "eval":
            train.run_eval(config, workdir, given=overridden(argv))
        else:
            train.run(config, workdir, signals, recipe.named(argv)[1])


def chosen_format(mode: str, style: str) -> str:
    """The format of a mode: `style`, in small letters, or the default where that is "".

    Raises:
      BadInput: the mode has no such format.
    """
    if not style:
        return {"cost": "text", "export": "packed"}.get(mode, "")
    from bireal_jax.shipping import cost, formats  # heavy, hence here

    known = {"cost": [*cost.FORMATS], "export": ["packed", *formats.FORMATS]}
    if style.lower() not in known.get(mode, ()):
        others = " and ".join(f"--mode={name}: {', '.join(styles)}" for name, styles in known.items())
        raise BadInput(f"--format={style} is nothing that --mode={mode} writes\nformats of {others}")
    return style.lower()


def print_cost(config: ConfigDict, style: str) -> None:
    """Prints what the network of the last stage costs, as a key of `cost.FORMATS` says. The data set may be missing.

    Raises:
      BadInput: an unknown name in the config, or images of a size that the model cannot take.
    """
    import jax

    from bireal_jax import build
    from bireal_jax.shipping import cost

    jax.config.update("jax_platforms", "cpu")  # counting leaves an accelerator to the training that may run on it
    last = build.stages(config)[-1]
    source, there = build.counted(last)
    if not there:  # not into the table, which a program may read
        print(f"no classes at config.data.dir={last.data.dir!r}; counted for {source.num_classes}", file=sys.stderr)
    module, shapes = build.model(last, source)
    rows = cost.rows(module, shapes, source.image_shape)
    for note in cost.notes(rows):
        print(note, file=sys.stderr)
    output.deliver(cost.FORMATS[style](rows).removesuffix("\n"))


def parse(argv: list[str], values: flags.FlagValues | None = None) -> tuple[ConfigDict, Path, str]:
    """The config with its overrides, the workdir and the mode.

    Args:
      argv: the command line.
      values: holds flags of single modes, which the caller has defined there.

    Raises:
      BadInput: no recipe, a recipe that fails, an unknown flag or field, a value of another type.
    """
    values = flags.FlagValues() if values is None else values  # of this call alone
    options = {"flag_values": values}
    rest, file, variant = recipe.named(argv)
    workdir = flags.DEFINE_string(
        "workdir", str(Path("runs") / "_".join([Path(file).stem, *filter(None, [variant])])), "", **options
    )
    mode = flags.DEFINE_string("mode", "train", "", **options)
    said = default()
    try:
        if not file:  # a --config that is missing may be mistyped
            words = values([arg for arg in rest if not arg.lstrip("-").removeprefix("no").startswith("config.")])
            recipe.check_rest([word for word in words if Path(word).is_dir()])
        said = load_recipe(Path(file), variant) if file else _of_workdir(rest)
        for field in overridden(rest):
            check_field(field, said)
        config = config_flags.DEFINE_config_dict("config", said, "", lock_config=True, sys_argv=rest, **options)
        recipe.check_rest(values(rest)[1:])
        if config.value.arch:
            from bireal_jax.models import arch  # with Flax

            config.value.arch = arch.inline(config.value.arch)
        for note in unheard(config.value, overridden(rest)):
            print(note, file=sys.stderr)
        return config.value, places.workdir(workdir.value), chosen_mode(mode.value)
    except flags.UnrecognizedFlagError as error:
        raise BadInput(_unknown(error.flagname, said)) from None
    except (flags.Error, TypeError, AttributeError, KeyError) as error:
        raise BadInput(" ".join(str(error).split())[:300]) from None


def chosen_mode(name: str) -> str:
    """A key of MODES, in whatever letters. Raises BadInput for another one."""
    return lookup({mode: mode for mode in MODES}, name.lower(), "mode")


FLAGS = ("config", "workdir", "mode", "format", "out", "coordinator", "num_processes", "process_id", "version", "help")


def _unknown(flag, config):
    """What is said of a flag that there is not: a mistyped one, or a field of the recipe without its --config."""
    field = nearest(flag.partition(".")[2] or flag, config)
    close = difflib.get_close_matches(flag, FLAGS, 1) or ([f"config.{field}"] if field else [])
    hint = f"; did you mean --{close[0]}?" if close else ""
    return f"Unknown command line flag {flag!r}{hint}\nflags: --config.FIELD, " + ", ".join(f"--{f}" for f in FLAGS)


def _of_workdir(argv):
    """The config of the run in --workdir, for what looks at a run."""
    values = flags.FlagValues()
    workdir = flags.DEFINE_string("workdir", "", "", flag_values=values)
    mode = flags.DEFINE_string("mode", "train", "", flag_values=values)
    with contextlib.suppress(flags.Error):  # said when all flags are known
        values(argv, known_only=True)
    if chosen_mode(mode.value) not in OF_A_RUN or not workdir.value:
        raise recipe.missing(overridden(argv), workdir.value)
    from bireal_jax import registered  # with JAX
    from bireal_jax.running import known

    run = known.read(places.workdir(workdir.value))
    if run is None:
        place = places.missing(workdir.value, "--workdir")
        raise BadInput(f"--config is missing, and there is no run in {place}\nname the folder of a run, or a recipe")
    registered.check(run)
    return run.config


def overridden(argv: list[str]) -> list[str]:
    """Fields of the recipe that a command line sets, as "optim.lr"."""
    names = (arg.lstrip("-").split("=")[0].removeprefix("no") for arg in argv[1:])
    return [name.removeprefix("config.") for name in names if name.startswith("config.")]


def cache_compilations():
    """Compiled steps are kept on disk, so that a run that was cut off continues in seconds."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        try:
            cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bireal_jax" / "compiled"
            cache.mkdir(parents=True, exist_ok=True)
            if os.access(cache, os.W_OK):
                os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
        except (RuntimeError, OSError):
            pass  # no home, or none to write to, as in a container of another user: every start compiles
    # Whatever took time is kept; JAX's own limit is a second, below which a start spends one on many small programs.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")


def repeat(config: ConfigDict, directory: Path | None) -> None:
    """Tells XLA to compute the same bits on GPUs, if the config asks it; `directory` is as of `bits.ask`."""
    from bireal_jax import build  # heavy, hence here
    from bireal_jax.running import bits  # heavy, hence here

    if bits.wanted() and any(stage.deterministic for stage in build.stages(config)):
        bits.ask(directory)


def find_devices() -> None:
    """Starts JAX. Raises BadInput where it finds none of the devices that the environment asks for."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where the plugin is not even installed
        asked = os.environ.get("JAX_PLATFORMS", "")
        raise BadInput(
            f"JAX finds no device for JAX_PLATFORMS={asked!r}: {first_line(error)}\n"
            "leave it out, or set it to cpu; for GPUs pip install -e '.[cuda]', and nvidia-smi must list them"
        ) from None


def keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next step instead of returning it to the system.

    A training step allocates and frees gigabytes; fetched anew from the system, page by page, they cost a fifth of the
    time of a CPU training step, and more where page faults are slow. To be called before JAX starts its threads: they
    take memory pools of their own, which no longer obey. Does nothing on other C libraries, and where there is an
    accelerator.
    """
    accelerator = entry_points(group="jax_plugins") or find_spec("libtpu")  # JAX itself is not asked: it would start
    if accelerator and os.environ.get("JAX_PLATFORMS") != "cpu":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        trim_threshold, mmap_max, arena_max = -1, -4, -8  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of malloc.h
        for option, value in ((arena_max, 1), (mmap_max, 0), (trim_threshold, 2**31 - 1)):
            mallopt(option, value)


if __name__ == "__main__":
    run()
