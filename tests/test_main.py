"""The command line: what it prints for mistakes, and how fast."""

import os
import subprocess
import sys
import time

import pytest

from bireal_jax import config as config_lib
from bireal_jax import main
from bireal_jax.errors import BadInput

DIGITS = "--config=configs/digits.py"


@pytest.fixture(autouse=True)
def at_the_root(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


def command(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "bireal_jax.main", *arguments], capture_output=True, text=True, timeout=300, **options
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing; for a first run: --config=configs/digits.py"),
        (["--workdir=runs/x", "--mode=evl"], "unknown mode 'evl'; did you mean eval? known: compare, cost"),
        (["--config="], "--config is empty; for a first run: --config=configs/digits.py"),
        (["--config"], "--config is empty"),
        ([DIGITS, "--config.optim.lr="], "config.optim.lr=: could not convert"),
        ([DIGITS, "--config.batch_size="], "config.batch_size=: invalid literal"),
        ([DIGITS, "--config.batch_size=" + "9" * 5000], "config.batch_size=999"),
        ([DIGITS, "--mode=cost", "--config.optim.lr=1e400"], "config.optim.lr is inf; it must be above 0 and finite"),
        ([DIGITS, "--mode=cost", "--config.optim.lr=1e-45"], "config.optim.lr is 1e-45; float32 holds"),
        ([DIGITS, "--mode=cost", "--config.batch_size=1000000000000"], "config.batch_size is 1000000000000; its size"),
        (["--config=configs/digit.py"], "no recipe configs/digit.py; did you mean configs/digits.py?"),
        (["--config=finetun"], "no recipe finetun; did you mean finetune.py?"),
        (["--config=nowhere/x.py"], "no recipe nowhere/x.py; recipes there: none"),
        ([DIGITS, "--config.optim.rl=0.1"], "no field config.optim.rl; did you mean config.optim.lr?"),
        ([DIGITS, "--config.lr=0.1"], "no field config.lr; did you mean config.optim.lr?"),
        ([DIGITS, "--config.total_steps=many"], "config.total_steps"),
        ([DIGITS, "--config.batch_size=1.5"], "config.batch_size"),
        (["--confg=configs/digits.py"], "Unknown command line flag 'confg'; did you mean --config?"),
        (["--workdri=x", "--mode=eval", "--config.optim.lr=1"], "'workdri'; did you mean --workdir?"),
        (["--num_processes=x"], "flag --num_processes=x: invalid literal"),
        ([DIGITS, "--workdri=x"], "Unknown command line flag 'workdri'; did you mean --workdir?"),
        ([DIGITS, "--lr=0.1"], "Unknown command line flag 'lr'; did you mean --config.optim.lr?"),
        ([DIGITS, "--confg.optim.rl=1"], "; did you mean --config.optim.lr?"),
        (
            [DIGITS, "--config.num_classes=5"],
            "no field config.num_classes; the classes are those of the data set: config.da",
        ),
        ([DIGITS, "--config.epochs=5"], "no field config.epochs; did you mean config.total_epochs?"),
        ([DIGITS, "--config.model.pretrained=x"], "did you mean config.init_from?"),
        ([DIGITS, "--mode=trian"], "unknown mode 'trian'; did you mean train? known: compare, cost"),
        ([DIGITS, "--mode=cost", "--format=Onyx"], "--format=Onyx is nothing that --mode=cost writes"),
        ([DIGITS, "--mode=trian"], "mode"),
        ([DIGITS, "extra"], "unexpected argument 'extra'; write --FLAG=VALUE"),
        (["configs", DIGITS, "--mode=data"], "unexpected argument 'configs'; write --config.data.dir=configs"),
        (["configs", "--mode=data"], "unexpected argument 'configs'; write --config.data.dir=configs"),
        (["--workdir=confgs", "--mode=eval"], "(did you mean configs?)\nname the folder of a run, or a recipe"),
        ([f"{DIGITS}:x"], "configs/digits.py has no variants; leave out :x"),
        (["--config=configs/bop_r18.py:third_order"], "; did you mean second_order? known: second_order"),
    ],
)
def test_mistakes_are_named_in_three_lines(arguments, message):
    with pytest.raises(BadInput) as error:
        main.main(["main", *arguments])
    assert message in str(error.value) and len(str(error.value).splitlines()) <= 3 and len(str(error.value)) < 500


def test_modes_and_formats_in_whatever_letters(capsys):
    main.main(["main", DIGITS, "--mode=Cost", "--format=CSV"])
    assert capsys.readouterr().out.startswith("layer,kind,")
    assert main.chosen_format("export", "C") == "c"


def test_every_word_of_others_is_a_field_of_ours():
    for word, field in config_lib.CALLED.items():
        config_lib.check_field(field, config_lib.default())
        with pytest.raises(BadInput, match=rf"no field config.x.{word}; did you mean config.{field}\?"):
            config_lib.check_field(f"x.{word}", config_lib.default())


@pytest.mark.parametrize("mode", ["train", "doctor"])
def test_a_device_that_is_not_there(mode, tmp_path):
    arguments = [DIGITS, f"--workdir={tmp_path / 'w'}", f"--mode={mode}"]
    result = command(*arguments, env=os.environ | {"JAX_PLATFORMS": "nonsense"})
    assert result.returncode == 2 and "error: JAX finds no device for JAX_PLATFORMS='nonsense'" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "w").exists()


def test_a_recipe_that_fails_is_named_with_its_line(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from bireal_jax import config\n\ndef get_config():\n"
        "    c = config.default()\n    c.optim.rl = 0.1\n    return c\n"
    )
    with pytest.raises(BadInput, match=r"mine.py, line 5: no field config.optim.rl; did you mean config.optim.lr\?$"):
        main.main(["main", f"--config={recipe}"])
    for line, said in (
        ("c.totl_epochs = 3.0", r"no field config.totl_epochs; did you mean config.total_epochs\?"),
        (
            "c.update_from_flattened_dict({'data.size': 3})",
            r"no field config.data.size; did you mean config.data.image_",
        ),
        ("print(c.optim.bop.gama)", r"no field config.optim.bop.gama; did you mean config.optim.bop.gamma\?"),
        ("{}['optim']", "'optim'"),
    ):
        recipe.write_text(f"from bireal_jax import config\n\ndef get_config():\n    c = config.default()\n    {line}\n")
        with pytest.raises(BadInput, match=f"mine.py, line 5: .*{said}"):
            main.main(["main", f"--config={recipe}"])
    recipe.write_text("def get_config(:\n")
    with pytest.raises(BadInput, match=r"mine.py, line 1: "):
        main.main(["main", f"--config={recipe}"])
    recipe.write_text("x = 1\n")
    with pytest.raises(BadInput, match=r"mine.py has no get_config"):
        main.main(["main", f"--config={recipe}"])
    recipe.write_text("def get_config():\n    return None\n")
    with pytest.raises(
        BadInput, match=r"mine.py: get_config\(\) must return the config .*another recipe; it returns nothing"
    ):
        main.main(["main", f"--config={recipe}"])


def test_overrides_and_default_workdir():
    config, workdir, mode = main.parse(["main", DIGITS, "--config.optim.lr=0.5", "--config.model.sync_bn=True"])
    assert config.optim.lr == 0.5 and config.model.sync_bn
    assert (str(workdir), mode) == ("runs/digits", "train")


def test_a_field_that_the_stages_of_a_recipe_set_is_not_lost_unsaid(capsys):
    finetune = ["main", "--config=configs/finetune.py"]
    config, *_ = main.parse([*finetune, "--config.total_epochs=8.0"])
    assert [stage.total_epochs for stage in config_lib.stages(config)] == [2.0, 6.0] and not capsys.readouterr().err
    main.parse([*finetune, "--config.optim.lr=0.01"])
    assert (
        "note: config.optim.lr=0.01 leaves out the stages that have their own ('all' 0.0002)" in capsys.readouterr().err
    )
    with pytest.raises(BadInput, match="total_epochs=8.0 would do nothing: every stage .*'relu' 15.0, 'leaky' 5.0"):
        main.parse(["main", "--config=configs/digits_step.py", "--config.total_epochs=8.0"])


def test_compiled_steps_are_kept_unless_the_user_says_where(monkeypatch, tmp_path):
    for name, value in (("XDG_CACHE_HOME", str(tmp_path)), ("JAX_COMPILATION_CACHE_DIR", "mine")):
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
        monkeypatch.setenv(name, value)
        main.cache_compilations()
        expected = "mine" if value == "mine" else str(tmp_path / "bireal_jax" / "compiled")
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == expected


def test_help_is_quick():
    began = time.monotonic()
    result = command("--help")
    assert result.returncode == 0 and "--config=configs/digits.py" in result.stdout
    assert time.monotonic() - began < 2


def test_a_mistake_ends_with_status_2_and_no_traceback(tmp_path):
    for arguments in (["--config=configs/r18.py", "--config.optim.lr=-1.0"], ["--config=configs/r18.py"]):
        result = command(*arguments, f"--workdir={tmp_path / 'w'}")
        assert result.returncode == 2 and result.stderr.startswith("error: ") and "Traceback" not in result.stderr
        assert len(result.stderr.strip().splitlines()) <= 3
        assert not (tmp_path / "w").exists()


def test_of_a_failed_save_only_the_message_is_seen():
    program = """
import asyncio, sys
from bireal_jax import main
from bireal_jax.errors import BadInput
def fails(argv):
    loop = asyncio.new_event_loop()
    forgotten = loop.create_future()
    forgotten.set_exception(ValueError("RESOURCE_EXHAUSTED"))
    if len(argv) > 1:  # told after the message, not before
        sys.keep = forgotten
    raise BadInput("no space left\\nfree some")
main.main = fails
main.run()
"""
    for late in ([], ["late"]):
        result = subprocess.run([sys.executable, "-c", program, *late], capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (2, "error: no space left\nfree some\n")
