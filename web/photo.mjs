// From a picture to the pixels that a network saw in training: Pillow's bilinear resize, to the bit, but for very high
// pictures, of which Pillow takes the columns first, to 1. What browsers do by themselves differs by half a pixel, and
// changes answers.
import { BadInput } from "./bireal.mjs";

const BITS = 22; // of a weight behind the point, as in Pillow

// For each output the first input and the weights, whole numbers. A triangle as wide as what is averaged over.
function weights(from, to, begin, end) {
  const scale = from / to, support = Math.max(scale, 1), rows = [];
  for (let i = begin; i < end; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5)), last = Math.min(from, Math.trunc(centre + support + 0.5));
    const row = [];
    for (let k = first; k < last; k++) row.push(Math.max(0, 1 - Math.abs((k - centre + 0.5) * (1 / support))));
    const sum = row.reduce((a, b) => a + b, 0);
    rows.push([first, row.map((w) => Math.trunc((w / sum) * 2 ** BITS + 0.5))]);
  }
  return rows;
}

const rounded = (sum) => Math.min(255, Math.max(0, Math.floor((sum + 2 ** (BITS - 1)) / 2 ** BITS)));
const toEven = (x) => (x % 1 === 0.5 || x % 1 === -0.5 ? 2 * Math.round(x / 2) : Math.round(x)); // as Python

/** ImageData, or what has its fields, as the network takes it, Uint8Array [h, w, c]. */
export function pixels({ data, width, height }, net) {
  const [size, columns, channels] = net.imageShape;
  if (size !== columns || (channels !== 1 && channels !== 3))
    throw new BadInput(`the network takes images of ${net.imageShape.join("x")}, and not a square of grey or colour`);
  let image = new Uint8Array(width * height * channels);
  for (let p = 0; p < width * height; p++) {
    const [r, g, b] = data.subarray(4 * p, 4 * p + 3);
    if (channels === 3) image.set([r, g, b], 3 * p);
    else image[p] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
  }
  const resize = Math.max(net.resize, size), short = Math.min(width, height);
  const wide = Math.trunc((resize * width) / short), high = Math.trunc((resize * height) / short);
  const left = toEven((wide - size) / 2), top = toEven((high - size) / 2);
  if (wide !== width) {
    const across = weights(width, wide, left, left + size), out = new Uint8Array(size * height * channels);
    for (let y = 0; y < height; y++)
      across.forEach(([first, row], x) => {
        for (let c = 0; c < channels; c++) {
          let sum = 0;
          for (let k = 0; k < row.length; k++) sum += row[k] * image[(y * width + first + k) * channels + c];
          out[(y * size + x) * channels + c] = rounded(sum);
        }
      });
    image = out;
  } else {
    const out = new Uint8Array(size * height * channels);
    for (let y = 0; y < height; y++)
      out.set(image.subarray((y * width + left) * channels, (y * width + left + size) * channels), y * size * channels);
    image = out;
  }
  if (high === height) return image.slice(top * size * channels, (top + size) * size * channels);
  const out = new Uint8Array(size * size * channels), line = size * channels;
  weights(height, high, top, top + size).forEach(([first, row], y) => {
    for (let i = 0; i < line; i++) {
      let sum = 0;
      for (let k = 0; k < row.length; k++) sum += row[k] * image[(first + k) * line + i];
      out[y * line + i] = rounded(sum);
    }
  });
  return out;
}

/** A file or blob, decoded by the browser, as the network takes it. Orientation in EXIF is ignored, as in training. */
export async function photo(file, net) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "none", premultiplyAlpha: "none", colorSpaceConversion: "none" });
  } catch {
    throw new BadInput(`${file.name ?? "the file"} is no picture that this browser reads, or is damaged`);
  }
  if (bitmap.width * bitmap.height > 1 << 27) throw new BadInput("the picture has more than 134 million pixels");
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return pixels(context.getImageData(0, 0, canvas.width, canvas.height), net);
}
