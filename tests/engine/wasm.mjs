// What test_wasm.py asks of web/bireal.mjs, under Node: node wasm.mjs VERB FILES... Numbers come out as raw files.
import { readFileSync, writeFileSync } from "node:fs";
import { BadInput, load } from "../../web/bireal.mjs";
import { pixels } from "../../web/photo.mjs";

const raw = (array) => new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
const size = (net) => net.imageShape.reduce((a, b) => a * b);
const room = { maxMemory: 2 ** 30 };

const verbs = {
  // NET IMAGES OUT PRECISION
  async run(file, images, out, precision) {
    const net = await load(readFileSync(file), { precision });
    writeFileSync(out, raw(net.run(new Uint8Array(readFileSync(images)))));
    console.log(JSON.stringify({ memory: net.memory, float: net.floatBytes, top: net.top(new Uint8Array(readFileSync(images)).slice(0, size(net))) }));
  },
  // NET IMAGE OUT: all tensors, one behind the other
  async tensors(file, image, out) {
    const net = await load(readFileSync(file), { unfused: true, ...room });
    writeFileSync(out, Buffer.concat(net.tensors(new Uint8Array(readFileSync(image))).map(raw)));
  },
  // CORPUS: files, each behind its length in 32 bits. A line for each: its logits, or why it was refused.
  async corpus(file) {
    const data = readFileSync(file);
    for (let at = 0; at < data.length; ) {
      const length = data.readUInt32LE(at), bytes = new Uint8Array(data.subarray(at + 4, (at += 4 + length)));
      try {
        const net = await load(bytes);
        const logits = net.work < 4e6 ? net.run(new Uint8Array(size(net)).map((_, i) => (i * 37) & 255)) : [];
        console.log(JSON.stringify({ logits: Array.from(logits, (v) => (Number.isFinite(v) ? v : null)) }));
      } catch (error) {
        console.log(JSON.stringify(error instanceof BadInput ? { refused: error.message } : { fault: String(error) }));
      }
    }
  },
  // NET: what is wrong with images and options, and that a network goes on after it
  async wrong(file) {
    const data = readFileSync(file), net = await load(data);
    const image = new Uint8Array(size(net)), before = net.run(image);
    const attempts = {
      size: () => net.run(new Uint8Array(3)), none: () => net.run(new Uint8Array(0)), type: () => net.run([1, 2]),
      nan: () => net.run(new Float32Array(size(net)).fill(NaN)), far: () => net.run(new Float32Array(size(net)).fill(255)),
      fused: () => net.tensors(image), several: () => net.top(new Uint8Array(2 * size(net))),
      precision: () => load(data, { precision: "int4" }), memory: () => load(data, { maxMemory: 1000 }),
      absurd: () => load(data, { maxMemory: -1 }), nothing: () => load(undefined), empty: () => load(new Uint8Array(0)),
      missing: () => load(new URL("none.safetensors", import.meta.url)),
    };
    const said = {};
    for (const [name, attempt] of Object.entries(attempts))
      for (let i = 0; i < 50; i++) // often: the stack of the engine is left as it was
        try {
          await attempt();
          said[name] = "nothing";
        } catch (error) {
          said[name] = error instanceof BadInput ? error.message : `fault: ${error}`;
        }
    said.same = net.run(image).every((v, i) => v === before[i]);
    console.log(JSON.stringify(said));
  },
  // NET: bytes that the process has after 20 and after 220 rounds of a load, a run and a damaged file
  async growth(file) {
    const data = new Uint8Array(readFileSync(file)), damaged = data.slice(), image = new Uint8Array(1e6);
    damaged[damaged.length - 3] ^= 1;
    const kept = await load(data), sizes = [];
    for (let i = 0; i < 220; i++) {
      kept.run(image.subarray(0, size(kept)));
      await load(damaged).catch(() => {});
      (await load(data)).run(image.subarray(0, size(kept)));
      if (i % 200 === 19) globalThis.gc(), await new Promise((done) => setTimeout(done, 50)), globalThis.gc(), sizes.push(process.memoryUsage());
    }
    console.log(JSON.stringify(sizes));
  },
  // WIDTH HEIGHT RGBA SIDE CHANNELS RESIZE OUT
  async photo(width, height, rgba, side, channels, resize, out) {
    const data = new Uint8ClampedArray(readFileSync(rgba)), net = { imageShape: [+side, +side, +channels], resize: +resize };
    writeFileSync(out, pixels({ data, width: +width, height: +height }, net));
  },
};

await verbs[process.argv[2]](...process.argv.slice(3));
