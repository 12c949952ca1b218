// Times networks under Node, in turn, one thread: node wasm.mjs ROUNDS NET.safetensors TWIN.onnx [FOLDER of node_modules]
// Prints JSON: milliseconds of each round by name, and versions. See wasm.py.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { load } from "../../web/bireal.mjs";

const [rounds, file, twin, modules] = process.argv.slice(2), peers = {}, versions = { node: process.version };
const data = readFileSync(file), size = [224, 224, 3].reduce((a, b) => a * b);
const image = new Uint8Array(size).map((_, i) => (i * 7919 + (i >> 5) * 31) & 255);
for (const precision of ["float32", "int16"]) {
  const net = await load(data, { precision });
  if (net.imageShape.join() !== "224,224,3") throw new Error("made for images of 224 px");
  peers[`ours, ${precision}`] = () => net.run(image);
}
if (modules) {
  const require = createRequire(pathToFileURL(`${modules}/x.js`));
  const ort = require("onnxruntime-web");
  ort.env.wasm.numThreads = 1;
  versions["onnxruntime-web"] = JSON.parse(readFileSync(`${modules}/onnxruntime-web/package.json`)).version;
  const session = await ort.InferenceSession.create(readFileSync(twin), { executionProviders: ["wasm"] });
  const floats = new ort.Tensor("float32", Float32Array.from(image, (v) => v / 128 - 1), [1, 3, 224, 224]);
  peers["onnxruntime-web, ResNet-18, float32"] = () => session.run({ [session.inputNames[0]]: floats });
}
for (const run of Object.values(peers)) for (let i = 0; i < 40; i++) await run(); // by then V8 has optimized all of it
const times = Object.fromEntries(Object.keys(peers).map((name) => [name, []]));
for (let round = 0; round < rounds; round++)
  for (const [name, run] of Object.entries(peers)) {
    const each = [];
    for (let i = 0; i < 3; i++) {
      const begin = performance.now();
      await run();
      each.push(performance.now() - begin);
    }
    times[name].push(each.sort((a, b) => a - b)[1]);
  }
console.log(JSON.stringify({ versions, times }));
