// What the engine asks of an instruction set. Each kernels_*.cc gives one table of these functions; all of them are
// made from kernels.inc, over a handful of vector operations. Plain structs only: these files are compiled for newer
// instructions than the rest, so nothing of the standard library that others could share may be instantiated there.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace bireal {

// A real-valued map is [h * w, pitch] floats with pitch = channels rounded up to unit; what is beyond the channels is
// never read for anything that counts. A map of bits is [h * w, bits_pitch(c)] bytes, channel k in bit k % 8 of byte
// k / 8, +1 set; bits beyond the channels are arbitrary.
constexpr int unit = 16;
inline size_t pitch_of(size_t channels) { return (channels + unit - 1) / unit * unit; }
inline size_t bits_pitch(size_t channels) { return (channels + 63) / 64 * 8; }

constexpr int input_limit = 4095;

enum class Act { none, clip, rprelu, sign };

// What happens to a sum before it is stored: y = act(sum * scale + offset + residual); y and sign(y) are kept. All
// arrays have the pitch of the output.
struct Epilogue {
  const float *scale = nullptr, *offset = nullptr;  // both or none
  const float* residual = nullptr;                  // map
  Act act = Act::none;
  float low = 0, high = 0, leak = 0;
  const float *shift_in = nullptr, *slope = nullptr, *shift_out = nullptr;
  float* out = nullptr;                                        // map, or none
  uint8_t* bits = nullptr;                                     // map, or none
  const float *sign_scale = nullptr, *sign_offset = nullptr;   // sign(y * scale + offset); both or none
  size_t pitch = 0, bits_pitch = 0;
};

// A convolution with all sizes settled. Weights are packed by the kernels' own pack function.
struct Conv {
  int h, w, c, ho, wo, co;  // input and output
  int kh, kw, sh, sw, top, left, groups, pad;
  int cg, og;               // channels and filters of a group

  // Real-valued: [group][ky][kx][ci][unit filters], blocks of unit filters; ws floats in a row of the padded input.
  int blocks;               // of a group
  size_t packed;            // bytes of the packed weight
  size_t scratch;           // bytes of the prepared input
  int ph, pw;               // the prepared input's rows and columns
  int band;                 // binary: output rows that are prepared and computed together
  int steps;                // binary: of one ky; int16: pairs of one ky
  int n4;                   // binary: nibbles, or words, of a pixel and group
  const void* weight;
  // vpopcnt: half of what a sum would be without mismatches, [groups * blocks][class][unit], and the class of each output
  // pixel, which says what taps lie within the input.
  const float* middle;
  const uint16_t* pixel_class;
  int classes;
  // int16: the offset depends on which taps lie within the image. [class][pitch], class of a row and of a column.
  const float* offsets;
  const uint8_t *row_class, *col_class;
  int col_classes;
  const float* input_scales;  // int16: what one unit of a pixel is worth, where that differs; of one long row
  int points;  // Winograd's algorithm: 6 or 7, 0 for none
  int depth;   // sw times channels; in 16 bits made even
  int tiles;   // of four outputs
  int last;    // of depth, at the last point: the highest tap alone, which not all phases have
  bool halved; // not the outputs, but the maxima of every second three of them are kept, the first centred on the first
};

// Winograd's algorithm: values of an input row with its border, of which 8 are to spare; of a transformed row at one point,
// made whole vectors; and of a lane.
inline size_t winograd_row(const Conv& c) { return size_t(4) * (c.tiles + 1) * c.sw * c.cg + 8; }
inline size_t winograd_pitch(const Conv& c) { return (size_t(c.tiles) * c.depth + 31) / 32 * 32; }
inline size_t winograd_lane(const Conv& c) { return winograd_pitch(c) + c.depth + 8; }

struct Kernels {
  const char* name;

  // Sizes of a binary convolution: fills blocks, packed, pw, steps, n4, and scratch for conv.band rows.
  void (*binary_plan)(Conv& conv);
  // bits: [cout, kh, kw, ceil(cg / 8)]. weight: conv.packed bytes, 64-byte aligned.
  void (*binary_pack)(const Conv& conv, const uint8_t* bits, void* weight);
  // The input of output rows [y0, y1), at most conv.band.
  void (*binary_prepare)(const Conv& conv, const uint8_t* bits, void* scratch, int y0, int y1);
  // Block `block` of all groups * blocks, output rows [y0, y1) of those that were prepared from row `from` on.
  void (*binary_rows)(const Conv& conv, const void* scratch, int from, int block, int y0, int y1, const Epilogue& e);

  // Real-valued convolution: input with its border, row by row [ph][pw * c]; output row y, all blocks from b0 to b1.
  // The epilogue's maps begin at `pixel` for the first pixel of row y0.
  void (*real_rows)(const Conv& conv, const float* input, int b0, int b1, int y0, int y1, size_t pixel,
                    const Epilogue& e);
  void (*int16_rows)(const Conv& conv, const int16_t* input, int b0, int b1, int y0, int y1, size_t pixel,
                     const Epilogue& e);

  // A pixel of a map in 16 bits, at most input_limit; returns what one is worth.
  float (*quantize)(const float* x, int channels, int pitch, int16_t* out);

  // The same along rows by Winograd's algorithm, for convolutions with `points`; winograd.inc has the layouts.
  void (*real_transform)(const Conv& conv, const float* row, float* lanes, float* out);
  void (*int16_transform)(const Conv& conv, const int16_t* row, int16_t* lanes, int16_t* out);
  void (*real_winograd)(const Conv& conv, const float* const* rows, int b0, int b1, int y, size_t pixel,
                        const Epilogue& e);
  void (*int16_winograd)(const Conv& conv, const int16_t* const* rows, int b0, int b1, int y, size_t pixel,
                         const Epilogue& e);

  // One row of a convolution of each channel by itself; rows as below, weight [kh * kw][pitch].
  void (*depthwise_row)(const float* const* rows, const float* weight, int kh, int kw, int sw, int left, int w, int wo,
                        int pitch, size_t pixel, const Epilogue& e);
  // One row of a pooled map: rows[i], i < kh, are rows of the input or null beyond the border.
  void (*max_pool_row)(const float* const* rows, int kh, int kw, int sw, int left, int w, int wo, int pitch,
                       size_t pixel, const Epilogue& e);
  void (*avg_pool_row)(const float* const* rows, int size, int wo, int pitch, size_t pixel, const Epilogue& e);
  // Pixels [p0, p1) of a map through the epilogue.
  void (*map)(const float* input, size_t p0, size_t p1, const Epilogue& e);
};

// Null where the compiler does not know the instructions; usable: whether this CPU has them.
const Kernels* avx512_vpopcnt_kernels();
const Kernels* avx512_kernels();
const Kernels* avx2_kernels();
const Kernels* neon_kernels();
const Kernels* wasm_kernels();
const Kernels* portable_kernels();

}  // namespace bireal
