"""The page in web/ in headless Chromium: a digit drawn, a photo dropped, a damaged file refused; memory stays."""

import functools
import http.server
import io
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

from bireal_jax import runtime
from bireal_jax.runtime import photos

ROOT = Path(__file__).parents[1]
NETWORKS = ROOT / "bireal_jax" / "runtime" / "networks"
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--enable-precise-memory-info", "--js-flags=--expose-gc",
]  # fmt: skip
DROP = """([selector, bytes, name]) => {
  const data = new DataTransfer();
  data.items.add(new File([new Uint8Array(bytes)], name));
  document.querySelector(selector).dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
}"""

pytestmark = pytest.mark.slow


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    """python -m http.server, in the checkout."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(ROOT)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/web/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium (Debian: chromium)")
    with playwright.sync_playwright() as tools:
        found = tools.chromium.launch(executable_path=chromium, args=FLAGS)
        yield found
        found.close()


@pytest.fixture
def page(browser, address):
    """The page, ready, of which nothing may fail unseen or ask another host."""
    page = browser.new_page()
    faults, hosts = [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: hosts.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-ready=yes]")
    yield page
    assert not faults
    assert all(url.startswith((address.removesuffix("web/"), "data:", "blob:")) for url in hosts), hosts
    page.close()


def classes(page, panel):
    """Labels and per cents of a panel."""
    page.wait_for_selector(f"#{panel} .classes li:not(.empty)")
    rows = [row.split("\n") for row in page.locator(f"#{panel} .classes li").all_inner_texts()]
    return [(label, float(share.split()[0])) for label, share in rows]


def drop(page, data, name):
    page.evaluate(DROP, ["#drop", list(data), name])


def png(seed):
    from PIL import Image

    out, rng = io.BytesIO(), np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)).resize((70, 50)).save(out, "png")
    return out.getvalue()


def stroke(page, points):
    box = page.locator("#pad").bounding_box()
    at = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*at[0])
    page.mouse.down()
    for point in at[1:]:
        page.mouse.move(*point, steps=4)
    page.mouse.up()


def test_a_drawn_digit_is_read(page):
    assert "The five likeliest" in page.locator("#digits .classes").inner_text()
    turn = np.linspace(0, 2 * np.pi, 30)
    drawn = {
        "0": [[(0.5 + 0.2 * np.sin(a), 0.5 - 0.33 * np.cos(a)) for a in turn]],
        "4": [[(0.45, 0.12), (0.25, 0.6), (0.75, 0.6)], [(0.6, 0.4), (0.6, 0.9)]],
        "3": [[(0.3, 0.15), (0.6, 0.12), (0.68, 0.3), (0.45, 0.48), (0.7, 0.62), (0.65, 0.82), (0.3, 0.86)]],
    }
    for name, strokes in drawn.items():
        for points in strokes:
            stroke(page, points)
        found = classes(page, "digits")
        assert found[0][0] == name and len(found) == 5, (name, found)
        page.click("#clear")
        assert page.locator("#digits .empty").count() == 1
    facts = page.locator("#digits .facts").inner_text()
    assert "times that" in facts and "ms" not in facts.split("Latency")[0]


def test_a_dropped_photo_gets_the_answer_of_the_runtime(page):
    for network in ("bireal20_cifar10", "bireal18_cifar10"):
        page.select_option("#network", network)
        page.wait_for_timeout(300)
        drop(page, png(4), "photo.png")
        page.wait_for_function("document.querySelector('#photos .facts').innerText.includes(' ms')")
        net = runtime.load(NETWORKS / f"{network}.safetensors", kernels=None if runtime.available() else "reference")
        logits = net(photos.read(png(4), net.image_shape, net.resize)[None])[0].astype(float)
        shares = 100 * np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        best = np.argsort(-shares)[:5]
        found = classes(page, "photos")
        assert [label for label, _ in found] == [net.labels[i] for i in best]
        np.testing.assert_allclose([share for _, share in found], shares[best], atol=0.06)


def test_what_is_damaged_is_refused_in_words_and_the_page_goes_on(page):
    network = bytearray((NETWORKS / "digits_react.safetensors").read_bytes())
    network[-9] ^= 4
    for data, name, words in [
        (png(1)[:60], "cut.png", "cut.png is no picture"), (b"nothing", "a.jpg", "a.jpg is no picture"),
        (network, "net.safetensors", "the file is damaged: its digest does not fit"),
        (b"", "e.safetensors", "too short"),
    ]:  # fmt: skip
        drop(page, data, name)
        page.wait_for_function(
            "words => document.querySelector('#photos .message').textContent.includes(words)", arg=words
        )
    drop(page, png(2), "good.png")
    assert len(classes(page, "photos")) == 5 and not page.locator("#photos .message").inner_text()


def test_a_network_of_ones_own_is_dropped(page):
    drop(page, png(3), "photo.png")
    classes(page, "photos")
    drop(page, (NETWORKS / "digits_react.safetensors").read_bytes(), "mine.safetensors")
    page.wait_for_function("document.querySelector('#photos .facts').innerText.includes('mine.safetensors')")
    page.wait_for_function("document.querySelector('#photo-seen').width === 8")


def test_a_hundred_runs_and_loads_take_no_memory(page):
    """Neither JavaScript's heap grows nor the memories of all engines that are still alive."""
    heap, engines = page.evaluate("""async () => {
      const memories = [], instantiate = WebAssembly.instantiate;
      WebAssembly.instantiate = async (...given) => {
        const made = await instantiate(...given);
        memories.push(new WeakRef(made.exports.memory));
        return made;
      };
      const taken = () => memories.reduce((sum, memory) => sum + (memory.deref()?.buffer.byteLength ?? 0), 0);
      const { load } = await import("./bireal.mjs");
      const file = await fetch("../bireal_jax/runtime/networks/bireal20_cifar10.safetensors");
      const bytes = new Uint8Array(await file.arrayBuffer());
      const damaged = bytes.slice(), image = new Uint8Array(3072), kept = await load(bytes);
      damaged[damaged.length - 1] ^= 1;
      const round = async () => {
        kept.run(image);
        await load(damaged).catch(() => {});
        (await load(bytes)).run(image);
        await new Promise((done) => setTimeout(done)); // until then a WeakRef keeps what it was made of
      };
      const settle = async () => {
        for (let i = 0; i < 3; i++) gc(), await new Promise((done) => setTimeout(done, 100));
      };
      for (let i = 0; i < 10; i++) await round();
      await settle();
      const before = [performance.memory.usedJSHeapSize, taken()];
      for (let i = 0; i < 100; i++) await round();
      await settle();
      return [performance.memory.usedJSHeapSize - before[0], taken() - before[1]];
    }""")
    assert heap < 2 << 20 and engines < 2 << 20


def test_more_networks_than_a_page_has_room_for_are_refused_in_words(page):
    said = page.evaluate("""async () => {
      const { load, BadInput } = await import("./bireal.mjs");
      const file = await fetch("../bireal_jax/runtime/networks/digits.safetensors");
      const bytes = new Uint8Array(await file.arrayBuffer()), kept = [];
      try {
        for (let i = 0; i < 500; i++) kept.push(await load(bytes));
      } catch (error) {
        return [error instanceof BadInput, error.message, kept[0].top(new Uint8Array(64)).length];
      }
    }""")
    assert said is None or (said[::2] == [True, 5] and "no room for another network" in said[1]), said
