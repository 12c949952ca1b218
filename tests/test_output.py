"""Standard output that breaks, was never there, or has another encoding, ends nothing."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bireal_jax import output
from bireal_jax.errors import BadInput
from bireal_jax.running import preempt, progress

ROOT = Path(__file__).parents[1]


def python(script, redirections="", **options):
    """A script of Python's standard library and of what is light here, in a shell: (status, stdout, stderr)."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 60} | options
    end = subprocess.run(
        ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {redirections}', sys.executable, script], **options
    )
    return end.returncode, end.stdout, end.stderr


def broken():
    """A text stream to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return open(writer, "w")


def closed():
    """A text stream that was closed."""
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [broken, closed, lambda: open("/dev/full", "w"), lambda: None])
def test_a_line_that_nobody_can_read_is_no_error(make, monkeypatch):
    stream = make()
    monkeypatch.setattr(sys, "stdout", stream)
    progress.say("x")
    progress.say("x")
    bar = progress.Bar("train", 0, 9)
    with bar:
        bar.advance(1)
        bar.line(1, "train", {"loss": 1.0})
    with contextlib.suppress(OSError, AttributeError):  # what it could not write, now and not when it is forgotten
        stream.close()


def test_what_an_encoding_lacks_is_escaped(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    progress.say("läuft \udcfc")
    assert stream.buffer.getvalue() == b"l\\xe4uft \\udcfc\n"


def test_a_result_that_is_lost_is_an_error_and_one_that_nobody_wants_is_none(monkeypatch):
    for stream, wanted in ((broken(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stdout", stream)
        with output.steady():
            assert output.deliver("x") == wanted
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with output.steady(), pytest.raises(BadInput, match="cannot be written: No space left"):
            output.deliver("x")


COMMAND = """
import sys
from bireal_jax import output
with output.command():
    for number in range(20000):
        print("line", number)
    print("done", file=sys.stderr)
    for name in sys.argv[1:]:
        with open(name, "w") as file:
            file.write("whole")
"""


@pytest.mark.parametrize(
    ("redirections", "out"),
    [("| head -n 1", "line 0\n"), (">&-", ""), (">&- <&-", ""), ("2>&1 | head -n 1", "line 0\n")],
)
def test_a_command_goes_on_to_its_end_quietly(tmp_path, redirections, out):
    """A file that is opened where standard output was closed does not get what is printed."""
    arguments = f"{tmp_path / 'file'} {redirections}"
    assert python(COMMAND, arguments) == (0, out, "" if "2>&1" in redirections else "done\n")
    assert (tmp_path / "file").read_text() == "whole"
    assert python(
        "import sys\nfrom bireal_jax import main\nmain.main = lambda argv: print('x\\n' * 99999)\nmain.run()",
        redirections,
    )[::2] == (0, "")


def test_the_end_of_a_run_needs_no_reader():
    script = """
import sys, threading, time
from bireal_jax.running import preempt
threading.Thread(target=preempt.leave, args=(1, "host 1 is stuck")).start()
time.sleep(30)
"""
    assert python(script, "2>&1 | true")[0] == 1


@pytest.mark.parametrize(("ignored", "asked"), [(False, True), (True, False)])
def test_a_closed_terminal_asks_to_save_but_not_under_nohup(ignored, asked):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with preempt.Signals() as signals:
            signals.disposable = False
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.asked == asked
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.campaign
def test_a_training_that_nobody_watches_is_finished_and_saved(tmp_path):
    command = "-m bireal_jax.main --config=configs/digits.py --config.total_steps=30 --config.log_steps=1"
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "JAX_PLATFORMS": "cpu"}
    for name, redirections in (
        ("ü", "| head -n 1"),
        ("closed", ">&-"),
        ("all", ">&- 2>&- <&-"),
        ("full", "> /dev/full"),
    ):
        place = tmp_path / name
        line = f'set -o pipefail; "$0" {command} --workdir={place} {redirections}'
        end = subprocess.run(["bash", "-c", line, sys.executable], cwd=ROOT, env=environment, capture_output=True)
        assert (end.returncode, end.stderr) == (0, b""), end
        assert (place / "result.json").exists() and not (place / "lock").read_text()
