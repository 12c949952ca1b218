// Packed 1-bit networks in browsers and Node: the engine of bireal_jax as WebAssembly.
//
//   import { load } from "./bireal.mjs";
//   const net = await load("net.safetensors");
//   const logits = net.run(pixels);   // Uint8Array [n, h, w, channels] -> Float32Array [n, outputs]
//
// Each network is an instance of its own: what it takes of memory goes with it, also after a file that was refused.

export class BadInput extends Error {
  name = "BadInput";
}

const OPTIONS = 20, ERROR_SIZE = 512; // bytes, as in bireal.h with 32 bits
const FAR = 10; // times the largest normalized pixel: that is no normalized image
const LARGEST_FILE = 256 << 20;
const PRECISIONS = ["float32", "int16"];
let engine = null;

async function bytesOf(url, what) {
  if (url.protocol === "file:" && globalThis.process?.versions?.node) {
    const { readFile } = await import("node:fs/promises");
    return readFile(url).catch((error) => {
      throw new BadInput(`${what} cannot be read: ${error.code}`);
    });
  }
  const response = await fetch(url).catch((error) => {
    throw new BadInput(`${what} cannot be fetched: ${error.message}`);
  });
  if (!response.ok) throw new BadInput(`${what} cannot be fetched: ${response.status} ${response.statusText}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function compile() {
  const bytes = await bytesOf(new URL("bireal.wasm", import.meta.url), "the engine, bireal.wasm,");
  try {
    return await WebAssembly.compile(bytes);
  } catch (error) {
    throw new BadInput(`the engine cannot run here, it needs WebAssembly with SIMD: ${error.message}`);
  }
}

/** Loads and checks a packed network: its bytes, or where to fetch them. */
export async function load(source, { precision = "float32", unfused = false, maxMemory = 0 } = {}) {
  if (!PRECISIONS.includes(precision)) throw new BadInput(`precision is ${precision}; known: ${PRECISIONS.join(", ")}`);
  if (!Number.isInteger(maxMemory) || maxMemory < 0 || maxMemory > 2 ** 30)
    throw new BadInput(`maxMemory is ${maxMemory}; use 0 to ${2 ** 30}`);
  if (source instanceof ArrayBuffer) source = new Uint8Array(source);
  if (typeof source === "string" || source instanceof URL) {
    const base = globalThis.document?.baseURI ?? import.meta.url;
    source = await bytesOf(new URL(source, base), String(source));
  }
  if (!(source instanceof Uint8Array)) throw new BadInput("a network is loaded from a Uint8Array, an ArrayBuffer or a URL");
  if (source.length > LARGEST_FILE) throw new BadInput("the file has more than 256 MB, which no packed network has");
  engine ??= compile();
  let module;
  try {
    module = await engine;
  } catch (error) {
    engine = null; // the next call tries again
    throw error;
  }
  const imports = {
    env: {
      fail(what) {
        throw new BadInput(text(instance.exports.memory, what));
      },
    },
    wasi_snapshot_preview1: {
      clock_time_get(_clock, _precision, place) {
        const now = BigInt(Math.round(performance.now() * 1e6));
        new DataView(instance.exports.memory.buffer).setBigUint64(place, now, true);
        return 0;
      },
    },
  };
  // Each takes gigabytes of addresses, though few of memory: Chromium has them for about a hundred at a time.
  const instance = await WebAssembly.instantiate(module, imports).catch((error) => {
    throw new BadInput(`there is no room for another network; drop those that are not needed: ${error.message}`);
  });
  return new Network(instance.exports, source, precision, unfused, maxMemory);
}

function text(memory, place) {
  const bytes = new Uint8Array(memory.buffer, place);
  return new TextDecoder().decode(bytes.slice(0, Math.min(bytes.indexOf(0), ERROR_SIZE)));
}

class Network {
  #engine;
  #handle = 0;
  #room = {}; // in the engine's memory: name -> [place, bytes]
  #far;

  constructor(exports, bytes, precision, unfused, maxMemory) {
    this.#engine = exports;
    this.#guarded(() => {
      exports._initialize();
      const file = this.#place("file", bytes.length), options = this.#place("options", OPTIONS);
      this.#put(file, bytes);
      this.#put(options, new Uint32Array([1, PRECISIONS.indexOf(precision), unfused ? 1 : 0, 0, maxMemory]));
      this.#handle = exports.bireal_load_memory(file, bytes.length, options, 0);
      exports.free(file);
      delete this.#room.file;
    });
    // The engine has checked the header, but for what it does not need itself.
    const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
    const spec = JSON.parse(header.__metadata__.bireal_jax), { mean, std } = spec.image;
    this.spec = spec;
    this.imageShape = spec.image.shape;
    this.outputShape = spec.ops.at(-1).shape;
    this.numOutputs = this.outputShape.reduce((a, b) => a * b);
    this.labels = spec.labels;
    this.resize = spec.image.resize;
    if (!Number.isInteger(this.resize) || this.resize < 0 || this.resize > 65536)
      throw new BadInput(`resize is ${String(this.resize).slice(0, 40)}, not an integer from 0 to 65536`);
    this.memory = exports.bireal_memory(this.#handle);
    this.work = exports.bireal_work(this.#handle);
    this.fileBytes = bytes.length;
    // Every number of a weight as a float32.
    this.floatBytes = Object.entries(header).reduce((sum, [name, { dtype, shape }]) => {
      if (name === "__metadata__") return sum;
      const op = spec.ops[parseInt(name)], channels = this.shape(op.inputs[0])[2] / (op.groups ?? 1);
      const count = dtype === "U8" ? shape[0] * shape[1] * shape[2] * channels : shape.reduce((a, b) => a * b, 1);
      return sum + 4 * count;
    }, 0);
    this.#far = FAR * Math.max(...mean.map((m, i) => Math.max(m, 1 - m) / std[i]));
  }

  /** [h, w, c] of a tensor: 0 is the image, i + 1 what operation i gives. */
  shape(number) {
    return number ? this.spec.ops[number - 1].shape : this.spec.image.shape;
  }

  /** The logits of n images [n, h, w, c]: bytes as in a photo, or floats, normalized as in training. */
  run(images) {
    const [n, suffix] = this.#checked(images);
    const inputs = this.#place("images", images.byteLength), logits = this.#place("logits", 4 * n * this.numOutputs);
    this.#put(inputs, images);
    this.#guarded(() => this.#engine[`bireal_run_${suffix}`](this.#handle, inputs, n, logits, 0));
    return new Float32Array(this.#engine.memory.buffer, logits, n * this.numOutputs).slice();
  }

  /** The likeliest classes of one image, best first. */
  top(image, count = 5) {
    const logits = this.run(image);
    if (logits.length !== this.outputShape[2]) throw new BadInput("this network gives a map, or several images were given");
    const most = Math.max(...logits), shares = Array.from(logits, (v) => Math.exp(v - most));
    const sum = shares.reduce((a, b) => a + b);
    return shares
      .map((share, index) => ({ index, label: this.labels[index] ?? String(index), probability: share / sum }))
      .sort((a, b) => b.probability - a.probability)
      .slice(0, count);
  }

  /** Every tensor for one image of bytes, the normalized image first; of a network loaded with unfused: true. */
  tensors(image) {
    if (this.#checked(image)[1] !== "u8") throw new BadInput("tensors are shown of an image of bytes");
    const sizes = [0, ...this.spec.ops].map((_, i) => this.shape(i).reduce((a, b) => a * b));
    const input = this.#place("images", image.length);
    const values = this.#place("values", 4 * sizes.reduce((a, b) => a + b)), table = this.#place("table", 4 * sizes.length);
    this.#put(input, image);
    let end = values;
    const places = sizes.map((size) => (end += 4 * size) - 4 * size);
    this.#put(table, new Uint32Array(places));
    this.#guarded(() => this.#engine.bireal_tensors_u8(this.#handle, input, table, 0));
    return places.map((place, i) => new Float32Array(this.#engine.memory.buffer, place, sizes[i]).slice());
  }

  /** Milliseconds of each operation, the median of so many runs of one image of bytes; what is fused into another has 0. */
  profile(image, repeats = 20) {
    if (this.#checked(image)[1] !== "u8") throw new BadInput("a network is profiled on an image of bytes");
    const count = this.spec.ops.length;
    const input = this.#place("images", image.length), seconds = this.#place("seconds", 8 * count);
    this.#put(input, image);
    this.#guarded(() => this.#engine.bireal_profile(this.#handle, input, repeats, seconds, 0));
    return Array.from(new Float64Array(this.#engine.memory.buffer, seconds, count), (s) => 1e3 * s);
  }

  #checked(images) {
    const size = this.imageShape.reduce((a, b) => a * b), bytes = images instanceof Uint8Array || images instanceof Uint8ClampedArray;
    if (!bytes && !(images instanceof Float32Array))
      throw new BadInput("images are neither Uint8Array nor Uint8ClampedArray nor Float32Array");
    if (!images.length || images.length % size)
      throw new BadInput(`images have ${images.length} values; this network takes [n, ${this.imageShape.join(", ")}], ${size} each`);
    if (!bytes) {
      const most = images.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
      if (!Number.isFinite(most)) throw new BadInput("an image has NaN or infinity; mend the input");
      if (most > this.#far)
        throw new BadInput(`float images have values up to ${most}; give bytes, or (x / 255 - mean) / std as in training`);
    }
    return [images.length / size, bytes ? "u8" : "f32"];
  }

  // So many bytes, kept for the next call.
  #place(name, bytes) {
    const old = this.#room[name];
    if (old && old[1] >= bytes) return old[0];
    if (old) this.#engine.free(old[0]);
    delete this.#room[name];
    const place = this.#engine.malloc(bytes + 16);
    if (!place) throw new BadInput("not enough memory");
    this.#room[name] = [place, bytes];
    return place;
  }

  #put(place, array) {
    new Uint8Array(this.#engine.memory.buffer, place, array.byteLength).set(
      new Uint8Array(array.buffer, array.byteOffset, array.byteLength),
    );
  }

  // A call of the engine. What it throws leaves its stack as it was then.
  #guarded(call) {
    const stack = this.#engine.__stack_pointer.value;
    try {
      return call();
    } catch (error) {
      this.#engine.__stack_pointer.value = stack;
      if (error instanceof BadInput) throw error;
      throw new Error(`the engine has a fault, please report it: ${error.message}`, { cause: error });
    }
  }
}
