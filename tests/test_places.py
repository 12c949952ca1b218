"""Paths and file systems: what can be none is said before anything is begun, and what is merely odd works."""

import errno
import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from small import small

from bireal_jax import build, config, main, places
from bireal_jax.data.source import open_tfds
from bireal_jax.errors import BadInput
from bireal_jax.models import arch
from bireal_jax.running import checkpoint, known, parallel, workdir
from bireal_jax.search import record
from bireal_jax.training import train
from bireal_jax.training.step import Plan

DIGITS = f"--config={Path(__file__).parents[1] / 'configs' / 'digits.py'}"
BAD = [
    ("gs://bucket/x", "=gs://bucket/x is a URL.*\nmount it"),
    ("gs:/bucket/x", "is a URL"),
    ("file:///x", "is a URL"),
    ("", "is empty; name a path"),
    ("  ", "is empty"),
    ("x" * 256, "is too long: a name has at most 255 bytes"),
    ("ü" * 130, "is too long"),
    ("x/" * 2000, "is too long"),
    ("~nobody_of_that_name/x", "there is no home directory here, or no such user"),
    ("a\0b", "can be no path"),
    ("a\ud800b", "can be no path"),
    ("nowhere/x ", "begins or ends with a space"),
    ("file/x", "file/x cannot be reached: Not a directory"),
    ("dangling", "dangling is a link to gone, which is not there"),
    ("dangling/x", "dangling is a link to gone, which is not there"),
]


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("dangling").symlink_to("gone")


@pytest.mark.parametrize(("named", "said"), BAD)
def test_what_can_be_no_path_is_refused_wherever_it_is_named(named, said):
    with pytest.raises(BadInput, match=said):
        places.local(named, "x")
    asked = [["--workdir=" + named], ["--mode=export", "--out=" + named]]
    asked += [[f"--config.{field}={named}"] for field in (*config.PATHS, "arch") if named]
    for arguments in asked:
        with pytest.raises(BadInput) as error:
            main.main(["main", DIGITS, "--mode=train", "--config.loss=distributional", *arguments])
        flag = arguments[-1].split("=")[0]
        assert str(error.value).lstrip("'").startswith((flag, flag[2:])), error.value
        assert len(str(error.value).splitlines()) <= 3
    assert sorted(os.listdir()) == ["dangling", "file"]


def test_a_workdir_is_a_folder_whose_path_means_the_same_to_all(monkeypatch):
    for named, said in (("file", "is a file; it must be a folder"), ("a[1]", r"with a \["), ("a\udcfc", "not UTF-8")):
        with pytest.raises(BadInput, match=said):
            main.main(["main", DIGITS, f"--workdir={named}"])
        with pytest.raises(BadInput, match=said):
            train.run(small(), Path(named))
    with pytest.raises(BadInput, match="is a folder; it must be a file"):
        places.local(".", "--out", "file")
    assert places.local("lat\udcfc/ein", "config.data.dir") == Path("lat\udcfc/ein"), "images may lie there"


def test_the_home_directory_is_meant_where_no_shell_expands_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    Path("mine.py").write_text(Path(DIGITS.partition("=")[2]).read_text())
    for flag in (["--config=~/mine.py"], ["--config", "~/mine.py"]):
        c, directory, _ = main.parse(["main", *flag, "--workdir=~/w", "--config.data.dir=~/data"])
        assert directory == tmp_path / "w" and build.stages(c)[0].data.dir == str(tmp_path / "data")
    c = small(stages=({"data.dir": "~/a"},))
    assert config.stage(c, 0).data.dir == str(tmp_path / "a")


@pytest.mark.parametrize("home", ["", "/proc/nowhere"])
def test_without_a_home_nothing_is_kept_and_all_goes_on(home, monkeypatch):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    if not home:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 123456789)  # of a container: without an entry in passwd
    main.cache_compilations()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_file_system_without_locks_is_no_other_process(tmp_path, monkeypatch, capsys):
    def fails(number):
        def flock(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)

    sources = [build.source(small())]
    for number in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
        fails(number)
        with workdir.claim(tmp_path / "w", small(), sources):
            assert "has no locks" in capsys.readouterr().out
    for number, said in ((errno.EWOULDBLOCK, "another process trains"), (errno.EIO, "cannot write to")):
        fails(number)
        with pytest.raises(BadInput, match=said), workdir.claim(tmp_path / "w", small(), sources):
            pass


def litter(place):
    """What people and programs leave beside the stages and checkpoints of a workdir."""
    for name in ("stage_0_backup", "stage_x", "stage_", "stage_007", "stage_²", "stage_1 (copy)"):
        (place / name / "checkpoints" / "5").mkdir(parents=True)
    (place / "stage_2").mkdir()
    (place / "stage_2" / "checkpoints").write_text("")
    (place / "stage_3").write_text("")
    for name in ("180.bak", "tmp", "007", "1_backup", "-3", "²"):
        (place / "stage_0" / "checkpoints" / name).mkdir()
    for name in ("7", "notes.txt", ".DS_Store"):
        (place / "stage_0" / "checkpoints" / name).write_text("")


def test_debris_beside_checkpoints_is_not_looked_at(tmp_path):
    tree = {"variables": {"params": {"w": np.arange(5.0)}}}
    with checkpoint.Checkpoints(tmp_path / "stage_0" / "checkpoints") as c:
        c.save(1, tree, {"top1": 1.0})
    litter(tmp_path)
    assert list(checkpoint.directories(tmp_path)) == [0]
    assert known.best_variables(tmp_path, tree["variables"])[1].endswith("stage_0, step 1, the best of its evaluations")
    with checkpoint.Checkpoints(tmp_path / "stage_0" / "checkpoints") as c:
        c.save(2, tree, None)
        c.wait()
        assert c.steps() == [1, 2] and c.restore_latest(tree)[0] == 2


def test_the_newest_version_of_a_prepared_data_set_is_taken_and_copies_of_it_are_not(monkeypatch):
    import tensorflow_datasets as tfds

    for name in ("9.0.0", "10.0.0", "10.0.0_old", "10.0.0.incompleteAB", "tmp"):
        place = Path("imagenet2012", name)
        place.mkdir(parents=True)
        (place / "dataset_info.json").write_text("{}")

    def opened(place):
        raise ValueError(Path(place).name)

    monkeypatch.setattr(tfds, "builder_from_directory", opened)
    with pytest.raises(BadInput, match="imagenet2012/10.0.0 cannot be read: 10.0.0\n"):
        open_tfds(".", "imagenet2012", "how")


def test_a_run_that_cannot_be_written_to_can_be_evaluated(tmp_path, monkeypatch, capsys):
    scores, plan = {"loss": 1.0, "top1": 50.0, "top5": 90.0}, Plan(small())
    monkeypatch.setattr(train.calls, "Evaluation", lambda *_, **__: lambda variables: scores)
    with checkpoint.Checkpoints(tmp_path / "stage_0" / "checkpoints") as c:
        c.save(1, {"variables": parallel.fetch(plan.initial(0))}, scores)
    litter(tmp_path)
    (tmp_path / "eval.json").mkdir()  # root may write anywhere else
    assert train.run_eval(small(), tmp_path) == scores
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("test top-1") and second.startswith("note: cannot write to") and "Is a directory" in second


def test_an_architecture_is_read_from_a_path_that_can_be_one():
    with pytest.raises(BadInput, match="config.arch=gs://b/best_arch.json is a URL"):
        arch.inline("gs://b/best_arch.json")


@pytest.mark.parametrize("damage", ["[" * 99999, "null", "\udc80", None], ids=["deep", "null", "no UTF-8", "folder"])
def test_files_of_a_run_that_hold_anything_are_named(tmp_path, damage):
    for path in (tmp_path / name for name in ("config.json", "result.json", record.STATE, "best_arch.json")):
        if damage is None:
            path.mkdir()
        else:
            path.write_text(damage, errors="surrogateescape")
        use = {record.STATE: record.load, "best_arch.json": lambda path: arch.read(str(path))}
        with pytest.raises(BadInput, match=path.name):
            use.get(path.name, lambda path: workdir.finished(path.parent, small()))(path)
        shutil.rmtree(path) if damage is None else path.unlink()
