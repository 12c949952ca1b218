// The page: a drawn digit or a dropped photo, the five likeliest classes, how long it took and what the file takes.
import { BadInput, load } from "./bireal.mjs";
import { photo } from "./photo.mjs";

const NETWORKS = "../bireal_jax/runtime/networks/"; // those that come with the package
const REPEATS = 9;
const size = (bytes) => (bytes < 1e6 ? `${Math.round(bytes / 1e3)} KB` : `${(bytes / 1e6).toFixed(1)} MB`);
const milliseconds = (ms) => `${ms.toFixed(ms < 10 ? 2 : 1)} ms`;

// One half of the page: its network, and where its answers stand.
class Panel {
  constructor(id) {
    this.root = document.getElementById(id);
    this.clear();
  }
  find(selector) {
    return this.root.querySelector(selector);
  }
  say(message) {
    this.find(".message").textContent = message;
  }
  clear() {
    const empty = document.createElement("li");
    empty.className = "empty";
    empty.textContent = "The five likeliest classes";
    this.find(".classes").replaceChildren(empty);
  }
  async load(source, name) {
    this.net = await load(source);
    this.name = name;
    this.facts();
  }
  facts(latency) {
    const { net } = this, times = Math.round(net.floatBytes / net.fileBytes);
    const rows = [
      ["Network", this.name], ["Latency", latency === undefined ? "-" : milliseconds(latency)], ["File", size(net.fileBytes)],
      ["In float32", `${size(net.floatBytes)}, ${times} times that`], ["Multiply-adds", `${(net.work / 1e6).toFixed(1)} million`],
    ];
    this.find(".facts").replaceChildren(
      ...rows.flatMap((row) => row.map((text, i) => Object.assign(document.createElement(i ? "dd" : "dt"), { textContent: text }))),
    );
  }
  show(image) {
    const times = [];
    let top;
    for (let i = 0; i < REPEATS; i++) {
      const begin = performance.now();
      top = this.net.top(image, 5);
      times.push(performance.now() - begin);
    }
    this.find(".classes").replaceChildren(
      ...top.map(({ label, probability }) => {
        const row = document.createElement("li"), share = `${(100 * probability).toFixed(1)} %`;
        row.style.setProperty("--share", share.replace(" ", ""));
        for (const textContent of [label, share]) row.append(Object.assign(document.createElement("span"), { textContent }));
        return row;
      }),
    );
    this.facts(times.sort((a, b) => a - b)[REPEATS >> 1]);
  }
  // Whatever is wrong is said, and the page goes on.
  async attempt(action) {
    this.say("");
    try {
      await action();
    } catch (error) {
      this.say(error instanceof BadInput ? error.message : `${error}`);
    }
  }
}

// Bytes [h, w, 1 or 3] on a small canvas.
function paint(canvas, bytes, [height, width, channels], invert) {
  canvas.width = width, canvas.height = height, canvas.hidden = false;
  const picture = new ImageData(width, height);
  for (let p = 0; p < width * height; p++)
    for (let c = 0; c < 4; c++) {
      const value = bytes[p * channels + (channels === 3 ? c : 0)];
      picture.data[4 * p + c] = c === 3 ? 255 : invert ? 255 - value : value;
    }
  canvas.getContext("2d").putImageData(picture, 0, 0);
}

// ---------------------------------------------------------------------------------------------------------------- digits

const digits = new Panel("digits"), pad = document.getElementById("pad"), pen = pad.getContext("2d", { willReadFrequently: true });
let last = null;

// As the digits of the data set were made: the drawing fills the height of 32 x 32 black or white pixels, and squares of
// 4 x 4 of them are counted, 0 to 16. Null where nothing is drawn.
function digit() {
  const { data } = pen.getImageData(0, 0, pad.width, pad.height);
  let left = pad.width, right = -1, top = pad.height, bottom = -1;
  for (let y = 0; y < pad.height; y++)
    for (let x = 0; x < pad.width; x++)
      if (data[4 * (y * pad.width + x) + 3] > 127)
        left = Math.min(left, x), right = Math.max(right, x), top = Math.min(top, y), bottom = Math.max(bottom, y);
  if (right < 0) return null;
  const width = right - left + 1, height = bottom - top + 1, scale = Math.min(32 / height, 26 / width);
  const small = new OffscreenCanvas(32, 32).getContext("2d");
  small.imageSmoothingQuality = "high";
  small.drawImage(pad, left, top, width, height, (32 - scale * width) / 2, (32 - scale * height) / 2, scale * width, scale * height);
  const bitmap = small.getImageData(0, 0, 32, 32).data, counts = new Uint8Array(64);
  for (let p = 0; p < 1024; p++) counts[(p >> 7) * 8 + ((p & 31) >> 2)] += bitmap[4 * p + 3] > 127;
  return counts.map((count) => Math.round((count * 255) / 16));
}

function answer() {
  const image = digit(), seen = document.getElementById("digit-seen");
  paint(seen, image ?? new Uint8Array(64), [8, 8, 1], !matchMedia("(prefers-color-scheme: dark)").matches);
  if (!image) return digits.clear();
  if (digits.net) digits.attempt(() => digits.show(image));
}

function draw(event) {
  const box = pad.getBoundingClientRect(), scale = pad.width / box.width;
  const to = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  pen.strokeStyle = getComputedStyle(pad).color;
  pen.lineWidth = 26, pen.lineCap = pen.lineJoin = "round";
  pen.beginPath();
  pen.moveTo(...(last ?? to));
  pen.lineTo(...to);
  pen.stroke();
  last = to;
}
pad.addEventListener("pointerdown", (event) => {
  pad.setPointerCapture(event.pointerId);
  draw(event);
});
pad.addEventListener("pointermove", (event) => {
  if (last) draw(event);
});
for (const end of ["pointerup", "pointercancel"])
  pad.addEventListener(end, () => {
    last = null;
    answer();
  });
document.getElementById("clear").addEventListener("click", () => {
  pen.clearRect(0, 0, pad.width, pad.height);
  answer();
});

// ---------------------------------------------------------------------------------------------------------------- photos

const photos = new Panel("photos"), drop = document.getElementById("drop"), choice = document.getElementById("network");
let current = null;

async function look(file) {
  const image = await photo(file, photos.net);
  paint(document.getElementById("photo-seen"), image, photos.net.imageShape, false);
  document.getElementById("hint").hidden = true;
  photos.show(image);
  current = file;
}

function take(file) {
  if (!file) return;
  photos.attempt(async () => {
    if (!file.name.endsWith(".safetensors")) return look(file);
    await photos.load(await file.arrayBuffer(), file.name);
    choice.append(new Option(file.name, "", true, true));
    photos.clear();
    if (current) await look(current);
  });
}

drop.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  take(event.dataTransfer.files[0]);
});
document.getElementById("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = "";
});
choice.addEventListener("change", () =>
  photos.attempt(async () => {
    const { value, text } = choice.selectedOptions[0];
    if (!value) return;
    await photos.load(`${NETWORKS}${value}.safetensors`, text);
    if (current) await look(current);
  }),
);

await Promise.all([
  digits.attempt(() => digits.load(`${NETWORKS}digits.safetensors`, "Bi-Real Net, 8 x 8")),
  photos.attempt(() => photos.load(`${NETWORKS}${choice.value}.safetensors`, choice.selectedOptions[0].text)),
]);
answer();
document.documentElement.dataset.ready = "yes"; // for tests
