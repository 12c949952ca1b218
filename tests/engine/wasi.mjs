// Runs a program compiled for WebAssembly: node wasi.mjs PROGRAM ARGUMENTS...
import { readFileSync } from "node:fs";
import { WASI } from "node:wasi";

const wasi = new WASI({ version: "preview1", args: process.argv.slice(2), env: {}, returnOnExit: true });
const fail = (place) => {
  throw new Error(`thrown, at ${place}`);
};
const { instance } = await WebAssembly.instantiate(readFileSync(process.argv[2]), { ...wasi.getImportObject(), env: { fail } });
process.exitCode = wasi.start(instance);
