/** What is wrong with a file, an image or an option, in words for its user. */
export class BadInput extends Error {}

export interface Options {
  /** "int16": the first convolution, on bytes, and 1x1 convolutions of maps in 16 bits. */
  precision?: "float32" | "int16";
  /** Every operation alone, slow, so that `tensors` can show each. */
  unfused?: boolean;
  /** Bytes that the network may take, at most 2^30; 0: 4 times the file and 64 MB. */
  maxMemory?: number;
}

export interface Class {
  index: number;
  label: string;
  probability: number;
}

/** Loads and checks a packed network: its bytes, or where to fetch them. Rejects with BadInput. */
export function load(source: Uint8Array | ArrayBuffer | URL | string, options?: Options): Promise<Network>;

export interface Network {
  /** What the file's header says. */
  readonly spec: Record<string, unknown>;
  readonly imageShape: [height: number, width: number, channels: number];
  readonly outputShape: [height: number, width: number, channels: number];
  readonly numOutputs: number;
  readonly labels: string[];
  /** Short side in pixels before the centre crop, 0 for none. */
  readonly resize: number;
  /** Bytes of weights and of the maps of one image. */
  readonly memory: number;
  /** Multiply-adds of one image. */
  readonly work: number;
  readonly fileBytes: number;
  /** What the same weights take as float32. */
  readonly floatBytes: number;
  /** The logits of n images [n, h, w, c]: bytes as in a photo, or floats, normalized as in training. */
  run(images: Uint8Array | Uint8ClampedArray | Float32Array): Float32Array;
  /** The likeliest classes of one image, best first. */
  top(image: Uint8Array | Uint8ClampedArray | Float32Array, count?: number): Class[];
  /** [h, w, c] of a tensor: 0 is the image, i + 1 what operation i gives. */
  shape(number: number): [number, number, number];
  /** Every tensor for one image of bytes, of a network loaded with `unfused`. */
  tensors(image: Uint8Array | Uint8ClampedArray): Float32Array[];
  /** Milliseconds of each operation; what is fused into another has 0. */
  profile(image: Uint8Array | Uint8ClampedArray, repeats?: number): number[];
}
