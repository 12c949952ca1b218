"""The programs of docs/processes.md, as they stand there: a network from threads, processes and servers."""

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import packed
import pytest
from PIL import Image

from bireal_jax import runtime

pytestmark = pytest.mark.skipif(not runtime.available(), reason="needs the compiled engine")
ROOT = Path(__file__).parents[1]
HEAD, *SECTIONS = (ROOT / "docs" / "processes.md").read_text().split("\n## ")
PROGRAMS = {
    text.splitlines()[0]: block for text in SECTIONS for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
}
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def place(tmp_path):
    """A folder as the page has it: a network and some photos."""
    (tmp_path / "net.safetensors").write_bytes(packed.written("bireal_tiny").read_bytes())
    (tmp_path / "photos").mkdir()
    for i in range(6):
        image = np.random.default_rng(i).integers(0, 256, (9 + i, 12, 3)).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def expected(place):
    net = runtime.load(place / "net.safetensors")
    return [net.top(runtime.photo(path, net)[None])[0] for path in sorted((place / "photos").iterdir())]


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name != "A server"])
def test_the_programs_give_the_answers_of_one_thread(name, place):
    if "joblib" in PROGRAMS[name] and find_spec("joblib") is None:
        pytest.skip("needs joblib")
    (place / "program.py").write_text(PROGRAMS[name])
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=place, capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == " ".join(best[0].label for best in expected(place)) + "\n"


def ask(port, body):
    for _ in range(200):  # until it listens
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("POST", "/", body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except ConnectionError:
            time.sleep(0.1)
        finally:
            connection.close()
    raise AssertionError("nobody listens")


@pytest.mark.skipif(find_spec("gunicorn") is None, reason="needs gunicorn (pip install gunicorn)")
@pytest.mark.parametrize("options", [["--preload"], []], ids=["preload", "each"])
def test_gunicorn_with_two_workers(options, place):
    (place / "serve.py").write_text(PROGRAMS["A server"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["-m", "gunicorn", *options, "--workers=2", "--threads=4", f"--bind=127.0.0.1:{port}", "serve:app"]
    server = subprocess.Popen([sys.executable, *command], cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        photos = [path.read_bytes() for path in sorted((place / "photos").iterdir())]
        right, found = [best[0].label for best in expected(place)], [[] for _ in range(4)]

        def client(number):
            found[number] += [ask(port, photo) for photo in photos]

        clients = [threading.Thread(target=client, args=(number,)) for number in range(4)]
        for one in clients:
            one.start()
        for one in clients:
            one.join()
        for answers in found:
            assert [json.loads(body)[0]["label"] for status, body in answers if status == 200] == right
        status, body = ask(port, b"no photo")
        assert status == 400 and b"cannot be decoded" in body
        assert ask(port, photos[0])[0] == 200, "and goes on"
    finally:
        server.terminate()
        said = server.communicate(timeout=30)[1]
    assert server.returncode == 0 and "Traceback" not in said, said[-2000:]
