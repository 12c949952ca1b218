// Times networks in turn, on one thread, in browsers and under Node: node wasm.mjs ROUNDS NET.safetensors TWIN.onnx [FOLDER of
// node_modules] prints JSON, milliseconds of each round by name, and versions. See wasm.py.
import { load } from "../../web/bireal.mjs";

// Milliseconds of each round by name. Of files, bytes; ort is onnxruntime-web, null for ours alone.
export async function times(rounds, network, twin, ort) {
  const peers = {}, size = [224, 224, 3].reduce((a, b) => a * b);
  const image = new Uint8Array(size).map((_, i) => (i * 7919 + (i >> 5) * 31) & 255);
  for (const precision of ["float32", "int16"]) {
    const net = await load(network, { precision });
    if (net.imageShape.join() !== "224,224,3") throw new Error("made for images of 224 px");
    peers[`ours, ${precision}`] = () => net.run(image);
  }
  if (ort) {
    ort.env.wasm.numThreads = 1;
    const session = await ort.InferenceSession.create(twin, { executionProviders: ["wasm"] });
    const floats = new ort.Tensor("float32", Float32Array.from(image, (v) => v / 128 - 1), [1, 3, 224, 224]);
    peers["onnxruntime-web, ResNet-18, float32"] = () => session.run({ [session.inputNames[0]]: floats });
  }
  for (const run of Object.values(peers)) for (let i = 0; i < 40; i++) await run(); // by then V8 has optimized all of it
  const found = Object.fromEntries(Object.keys(peers).map((name) => [name, []]));
  for (let round = 0; round < rounds; round++)
    for (const [name, run] of Object.entries(peers)) {
      const each = [];
      for (let i = 0; i < 3; i++) {
        const begin = performance.now();
        await run();
        each.push(performance.now() - begin);
      }
      found[name].push(each.sort((a, b) => a - b)[1]);
    }
  return found;
}

if (globalThis.process?.versions?.node) {
  const { readFileSync } = await import("node:fs");
  const { createRequire } = await import("node:module");
  const [rounds, network, twin, modules] = process.argv.slice(2), versions = { node: process.version };
  const ort = modules ? createRequire(`${modules}/x.js`)("onnxruntime-web") : null;
  const found = await times(+rounds, readFileSync(network), ort && readFileSync(twin), ort);
  console.log(JSON.stringify({ versions, times: found }));
}
