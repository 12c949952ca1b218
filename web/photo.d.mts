import type { Network } from "./bireal.mjs";

/** A picture as the network takes it, bytes [h, w, c]: resized, the middle cut out, grey where c is 1; as Pillow does it. */
export function pixels(image: { data: Uint8ClampedArray; width: number; height: number }, net: Network): Uint8Array;
/** A file or blob, decoded by the browser, as the network takes it. Rejects with BadInput where it is no picture. */
export function photo(file: Blob, net: Network): Promise<Uint8Array>;
