"""What a run knew: the config and the data set that its weights were trained with, as its workdir has them.

Arrays alone mean nothing. The rule for whoever uses those of a run stands here:

- The network (NETWORK) is the one that is asked for, or it is refused.
- The classes are the same, in the same order, or it is refused; an evaluation may have some of them alone, by their
  names. A packed file has those of the run, whatever folder lies there now. A training that starts from the weights may
  learn other classes: another number of them by a new head, as many by the head that is there, or by a new one
  (config.new_head). It is refused where that would be a surprise: where a class that both know has another number, for
  then the head says one thing and the labels another, and where classes that the head knows would be lost with it.
- What the weights answer to (MEANT, and the normalization of the images) is the run's wherever the network is used as
  it is: evaluated, packed, as a teacher, as a supernet. A training that starts from it may change it, as stages do; a
  line says so.
- A training that starts from the weights sees images normalized as they were there, unless config.data.mean and
  config.data.std say otherwise; a line says what is taken where the data set's own are others.
- How an evaluation looks at the network (AGAIN) is what the command line says, or else what the run had.
- An .npz that `importers` wrote of a run has this in it (`written`). Other files of arrays have none; a line says so.
"""

import dataclasses
import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from bireal_jax import config as config_lib
from bireal_jax import places
from bireal_jax.data import Source
from bireal_jax.data.stored import Npz
from bireal_jax.errors import BadInput, first_line, some
from bireal_jax.running import checkpoint, described, settings

NETWORK = ("model.name", "model.decoder")
MEANT = ("model.act", "model.weight", "model.blocks", "model.widths", "model.decoder", "arch")
AGAIN = (
    *settings.FREE, "batch_size", "deterministic", "accumulate", "model.dtype", "data.name", "data.image_size",
    "data.resize", "data.held_out", "data.val_share", "data.val_seed", "data.depth.unit", "data.depth.crop",
)  # fmt: skip
SEEN = ("model.", "arch", "data.", "batch_size", "loss")  # what an evaluation depends on
KNOWN = "bireal_jax"  # in an .npz of weights, beside their arrays: what is known of them
LONGEST = 1 << 22  # bytes of that


@dataclasses.dataclass(frozen=True)
class Known:
    """What the run in a workdir knew.

    Attributes:
      directory: the workdir, or the file.
      config: of the whole run; fields that are newer than the run have their defaults.
      sources: the data set of each stage, everything but the examples; () where data.json is missing.
      index: the stage whose checkpoints are used, the last one that has any.
      registered: fields that name what a recipe has registered, and the file that has its code.
      name: what it is called, if it is no run; see `title`.
      digests: by what the examples of each stage are known again, as of `described.digest`, or ().
    """

    directory: Path
    config: ConfigDict
    sources: tuple[Source, ...]
    index: int
    registered: Mapping[str, str]
    name: str = ""
    digests: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What messages call it."""
        return self.name or f"the run in {self.directory}"

    @property
    def last(self) -> ConfigDict:
        """The config of the stage whose checkpoints are used."""
        return config_lib.stage(self.config, self.index)

    @property
    def source(self) -> Source | None:
        """The data set of that stage."""
        return self.sources[self.index] if self.sources else None

    @property
    def fields(self) -> str:
        """What a command line says for a training of the same network, on images as large."""
        c = self.last.model
        said = [f"--config.model.name={c.name}"]
        said += [f"--config.model.{name}={shlex.quote(str(c[name]))}" for name in ("blocks", "widths") if c[name]]
        said += [f"--config.data.image_size={self.source.image_shape[0]}"] if self.source else []
        return " ".join(said)

    def check_network(self, config: ConfigDict, what: str, fields: str = "") -> None:
        """Raises BadInput, which calls the run `what`, if it is of another network than a config asks for.

        `fields` are what a command line lacks then, where they are others than `self.fields`.
        """
        for field in NETWORK:
            theirs, ours = config_lib.get(self.last, field), config_lib.get(config, field)
            if theirs != ours:
                raise BadInput(
                    f"{what} is of another model: it has config.{field}={theirs!r}, not {ours!r}\n"
                    f"add {fields or self.fields}"
                )

    def check_classes(self, source: Source, what: str) -> None:
        """Raises BadInput, which calls the run `what`, unless its classes are those of `source`, in the same order."""
        if (apart := self.other_classes(source)) and self.source:
            known = some(self.source.label_names) or f"{self.source.num_classes}, without names"
            raise BadInput(
                f"{what} was trained on other classes than those of the data set here: {apart}\n"
                f"set config.data.dir to the data set that it knows, or name and order the classes as there: {known}"
            )

    def other_classes(self, source: Source) -> str:
        """In what the classes of `source` and of these weights differ, or ""."""
        if not self.source or self.source.depth_range or source.depth_range:
            return ""
        theirs, ours = self.source.label_names, source.label_names
        now, then = source.num_classes, self.source.num_classes
        said = [f"{now} classes, not {then}"] if now != then else []
        if new := [name for name in ours if theirs and name not in theirs]:
            said.append(f"not known there: {some(new)}")
        elif moved := [i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b]:
            said.append(f"class {moved[0]} is {ours[moved[0]]!r}, not {theirs[moved[0]]!r}")
        return "; ".join(said)

    def meant(self, source: Source) -> Source:
        """`source` as the run saw it: with its normalization, and its classes."""
        if not self.source:
            return source
        names = ("mean", "std", "num_classes", "label_names")
        return dataclasses.replace(source, **{name: getattr(self.source, name) for name in names})

    def normalized(self, source: Source, mean: Sequence[float], std: Sequence[float]) -> Source:
        """`source` as a training from these weights sees it, but for a mean or std that the config sets."""
        own = self.source if self.source and self.source.image_shape[-1] == source.image_shape[-1] else source
        taken = {name: getattr(own, name) for name, given in (("mean", mean), ("std", std)) if not given}
        said = [f"{name} {_rounded(v)}" for name, v in taken.items() if v != getattr(source, name)]
        note = f"note: images are normalized as for {self.title}, by {', '.join(said)}" if said else ""
        return dataclasses.replace(source, **taken, normalized=note)

    def take(self, config: ConfigDict) -> list[str]:
        """Sets what the weights answer to in a config of the same network; gives what that changes."""
        pairs = {field: (config_lib.get(config, field), config_lib.get(self.last, field)) for field in MEANT}
        config.update_from_flattened_dict({field: theirs for field, (_, theirs) in pairs.items()})
        return [f"{field} {ours} -> {theirs}" for field, (ours, theirs) in pairs.items() if ours != theirs]

    def again(self, config: ConfigDict, given: Collection[str] | None = None) -> tuple[ConfigDict, str]:
        """The config to evaluate with, and a note of what is another in the one at hand, or "".

        Args:
          config: the one at hand, of a stage.
          given: its fields that were set on purpose, on the command line; None: those that are not the schema's.
        """
        last, default = self.last, config_lib.default()
        if given is None:
            given = [field for field in AGAIN if config_lib.get(config, field) != config_lib.get(default, field)]
        given = [field for field in AGAIN if field in given]
        there = [Path(c.data.dir) for c in (last, config) if c.data.dir]
        if "data.dir" not in given and len(there) == 2 and not there[0].exists() and there[1].exists():
            given.append("data.dir")  # it moved
        before = ConfigDict(last.to_dict())
        last.update_from_flattened_dict({field: config_lib.get(config, field) for field in given})
        asked = _apart(before, last)  # with what follows from it, as the resize from the size
        kept = [text for text in _apart(last, config) if text.startswith(SEEN)]
        said = [f"with {shown(kept)}".replace(" -> ", ", not ")] if kept else []
        said += [f"but for what is asked, {shown(asked)}"] if asked else []
        return last, f"note: used as {self.title} was trained, {', '.join(said)}" if said else ""

    def adopted(self, config: ConfigDict) -> tuple[ConfigDict, str]:
        """A config to evaluate what has none of its own, as `again`: what the weights answer to is set in `config`."""
        config = ConfigDict(config.to_dict())
        apart = self.take(config)
        for name in ("mean", "std") if self.source else ():
            ours, theirs = tuple(config.data[name]), getattr(self.source, name)
            if ours and ours != theirs:
                apart.append(f"data.{name} {ours} -> {theirs}")
                config.data[name] = theirs
        return config, f"note: used as {self.title} is, with another {shown(apart)}" if apart else ""

    def start(self, config: ConfigDict, source: Source) -> str:
        """What a training that starts from these weights changes, in a line, or "".

        Raises:
          BadInput: a class that both know has another number.
        """
        if self.source and not config.model.decoder and not config.new_head:
            check_order(self.source, source, f"of {self.title}")
        pairs = {field: (config_lib.get(self.last, field), config_lib.get(config, field)) for field in MEANT[:2]}
        if self.source:
            pairs |= {
                f"data.{name}": (tuple(getattr(self.source, name)), tuple(getattr(source, name)))
                for name in ("mean", "std")
            }
            pairs["data.image_size"] = (self.source.image_shape[0], source.image_shape[0])
        apart = [f"{field} {a} -> {b}" for field, (a, b) in pairs.items() if a != b]
        if (other := self.other_classes(source)) and not config.model.decoder:
            apart.append(f"other classes ({other})")
        then, now = pairs.get("data.image_size", (0, 0))
        size = f"\n--config.data.image_size={then} trains on images as large as there" if then != now else ""
        return f"note: from {self.title}; here it is {shown(apart)}{size}" if apart else ""


def _apart(before, after):
    """Fields in which two configs differ, the place of the data set included."""
    apart = settings.differences(settings.to_json(before), settings.to_json(after))
    moved = before.data.dir != after.data.dir and after.data.dir
    return apart + ([f"data.dir {before.data.dir} -> {after.data.dir}"] if moved else [])


def check_order(before: Source, after: Source, what: str) -> None:
    """Raises BadInput if a class that two data sets share has another number, which a head would carry over.

    Args:
      before, after: what the weights were trained with, and what they are trained with next.
      what: whose classes those before are, for the message.
    """
    theirs, ours = before.label_names, after.label_names
    moved = [name for i, name in enumerate(theirs) if name in ours and ours.index(name) != i]
    if moved and len(theirs) == len(ours):
        raise BadInput(
            f"class {theirs.index(moved[0])} {what} is {moved[0]!r}, which is now class {ours.index(moved[0])}\n"
            "name and order the classes as there; if it is meant, config.new_head=True draws a head anew "
            "behind what config.init_from names"
        )
    if len(theirs) != len(ours) and (both := set(theirs) & set(ours)):
        raise BadInput(
            f"{len(both)} of {len(ours)} classes here, such as {sorted(both)[0]!r}, are known, among the {len(theirs)} "
            f"{what}\nits head would be lost: --config.new_head=True draws one for the classes here; "
            f"or take all {len(theirs)} of them"
        )


def read(directory: str | Path) -> Known | None:
    """What the run in a workdir knew, or an .npz that was written of one; None where there is neither.

    Raises:
      BadInput: config.json or data.json is damaged, or has a field that there is no more.
    """
    directory = Path(directory)
    if directory.suffix == ".npz" and directory.is_file():
        return _of_file(directory)
    path = directory / "config.json"
    if not path.exists():
        return None
    config = settings.filled(_json(path), str(path))
    count = max(1, len(config.stages))
    sources: tuple[Source, ...] = ()
    digests: tuple[str, ...] = ()
    if (path := directory / "data.json").exists():
        try:
            data = _json(path)
            sources = tuple(described.restored(row) for row in data["stages"])
            digests = tuple(row.get("files", "") for row in data["stages"])
            config = described.located(config, data.get("began_in", ""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error) from None
        if len(sources) != count:
            raise _damaged(path, ValueError(f"{len(sources)} stages, config.json has {count}"))
    there = {index: place for index, place in checkpoint.directories(directory).items() if index < count}
    begun = [index for index, place in there.items() if any(p.name.isdecimal() and p.is_dir() for p in place.iterdir())]
    path = directory / "registered.json"
    registered = _json(path) if path.exists() else {}
    return Known(directory, config, sources, begun[-1] if begun else count - 1, registered, digests=digests)


def written(run: Known) -> dict[str, np.ndarray]:
    """What goes into an .npz of the weights of a run, beside them, for `read`; nothing where data.json is missing.

    No path of this machine is in it: such files are passed on.
    """
    if not run.source:
        return {}
    fields = {field: config_lib.get(run.last, field) for field in (*NETWORK, *MEANT)}
    files = {field: Path(file).name for field, file in run.registered.items()}
    return {KNOWN: np.array(json.dumps({"fields": fields, "data": described.row(run.source), "registered": files}))}


def _of_file(path):
    try:
        with Npz(path) as stored:
            claim = stored.claims.get(KNOWN)
            if claim is None or claim.shape or claim.dtype.kind != "U" or claim.dtype.itemsize > LONGEST:
                return None
            text = str(stored.read(KNOWN))
    except Exception:  # whoever reads the arrays says what is wrong with the file
        return None
    try:
        found, config = json.loads(text), config_lib.default()
        config.update_from_flattened_dict(found["fields"])
        source, files = described.restored(found["data"]), dict(found["registered"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path}: {KNOWN}, which says what its weights are, is damaged: {first_line(error)}") from None
    return Known(path, config, (source,), 0, files, f"the file {path}")


def best_variables(directory: str | Path, shapes: Any, newest: bool = False) -> tuple[Any, str]:
    """The variables of the best checkpoint of the last stage that a workdir has, and where they come from, in words.

    With `newest` it is the last checkpoint: what evaluations say of a supernet means little.

    Raises:
      BadInput: there is none, it is damaged, or it is not of this model.
    """
    for place in reversed(checkpoint.directories(Path(directory)).values()):
        with checkpoint.Checkpoints(place, read_only=True) as checkpoints:
            if checkpoints.steps():
                best = None if newest else checkpoints.best_step()
                step = best or checkpoints.steps()[-1]
                try:
                    found = checkpoints.restore(step, {"variables": shapes})["variables"]
                    return found, f"{place.parent}, step {step}" + (", the best of its evaluations" if best else "")
                except checkpoint.Damaged as error:
                    raise BadInput(
                        f"damaged checkpoint: {error}\n--mode=verify tells which ones are sound; without "
                        f"{place / str(step)} the best of the others is taken"
                    ) from None
    stage = next((p for p in (Path(directory), *Path(directory).parents) if p.name.startswith("stage_")), None)
    if stage and (run := stage.parent) and (run / "config.json").exists():
        raise BadInput(f"{directory} is a part of the run in {run}, of which the best checkpoint is taken: name {run}")
    raise BadInput(f"no checkpoint in {directory}; train first (--mode=train), or set --config.init_from=WEIGHTS")


def shown(apart: Sequence[str]) -> str:
    """Some differences, and how many more there are."""
    return (", ".join(apart[:3]) + (f" and {len(apart) - 3} more" if len(apart) > 3 else ""))[:600]


def _rounded(values):
    return f"({', '.join(f'{value:.4g}' for value in values)})"


def _json(path):
    try:
        return places.read_json(path)
    except (ValueError, OSError) as error:
        raise _damaged(path, error) from None


def _damaged(path, error):
    reason = f"no {error}" if isinstance(error, KeyError) else first_line(error)
    return BadInput(f"{path} is damaged ({reason}); delete it: the training command writes it anew")
