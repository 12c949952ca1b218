// Convolutions of ±1 with ±1 for training on CPUs, 64 multiplications in a word: packed into bits, products are exclusive
// ors, and the mismatches are counted. Weights may be 0, too, as where groups are masks. The sums are whole numbers, so they
// equal any other way exactly; each is multiplied by the scale of its filter, and its bias is added, before it is written.
//
// A pixel fills whole words. Where that leaves many bits empty, as with 16 or 32 channels, the taps of a row of the window
// follow each other bit by bit instead: each window then has rows of its own.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "conv.h"
#include "xla.h"

namespace {

constexpr int filters = 16, word = 64;  // filters of a block; channels of a word

constexpr int words_of(int64_t bits) { return int((bits + word - 1) / word); }

struct Sizes : Conv {
  int words() const { return words_of(c); }  // of a pixel
  int blocks() const { return (co + filters - 1) / filters; }
  bool joined() const { return words_of(int64_t(kw) * c) < kw * words(); }  // taps in a row, bit by bit
  int parts() const { return joined() ? 1 : kw; }                           // of a window's row, each in whole words
  int depth() const { return joined() ? kw * c : c; }                       // bits of a part
  int length() const { return parts() * words_of(depth()); }                // words of a window's row
  int step() const { return joined() ? length() : sw * words(); }           // words from a window to the next
  int pitch() const { return joined() ? wo * length() : columns() * words(); }  // words from a row to the next
};

// Where, along one axis, which taps are inside: outputs of a class have the same ones.
struct Classes {
  std::vector<int> of, first, end;  // class of each output; taps of each class

  Classes(int outputs, int stride, int before, int taps, int size) {
    for (int o = 0; o < outputs; o++) {
      const int64_t at = int64_t(o) * stride - before;
      const int low = int(std::min<int64_t>(taps, std::max<int64_t>(0, -at)));
      const int high = std::max(low, int(std::min<int64_t>(taps, size - at)));
      size_t k = 0;
      while (k < first.size() && (first[k] != low || end[k] != high)) k++;
      if (k == first.size()) first.push_back(low), end.push_back(high);
      of.push_back(int(k));
    }
  }
  int count() const { return int(first.size()); }
};

struct Affine {
  const float *scale, *bias;  // [co]
};

struct Weights {
  Classes rows, columns;
  std::vector<uint64_t> positive, nonzero;  // bits [block][ky][word of the window's row][filter]; nonzero is empty if all are
  std::vector<int32_t> base;                // [block][class of rows][class of columns][filter]: the sum less twice the mismatches
};

}  // namespace

#include "packed.inc"

namespace {

// The bits of a block of weights, and its base. Whether none is 0.
POPCNT bool pack_block(const Sizes& v, const Kernels& kernels, const float* w, int block, Weights& packed) {
  const int words = words_of(v.depth()), first = block * filters, count = std::min(v.co - first, filters);
  std::vector<int32_t> inside(v.taps() * filters), outside(v.taps() * filters);  // what a tap gives, here and beyond the border
  bool all = true;
  for (int part = 0; part < v.kh * v.parts(); part++)
    for (int k = 0; k < words; k++) {
      const size_t to = ((size_t(block) * v.kh * v.parts() + part) * words + k) * filters;
      uint64_t *positive = &packed.positive[to], *nonzero = &packed.nonzero[to];
      const int channels = std::min(v.depth() - k * word, word);
      kernels.column(w + (size_t(part) * v.depth() + k * word) * v.co + first, v.co, channels, count, positive, nonzero);
      for (int low = 0, high; low < channels; low = high) {  // bits of one tap
        const int tap = part * v.depth() / v.c + (k * word + low) / v.c;
        high = std::min(channels, ((k * word + low) / v.c + 1) * v.c - k * word);
        const uint64_t mask = (high - low == word ? 0 : uint64_t(1) << (high - low)) - 1;
        for (int f = 0; f < count; f++) {
          const int there = __builtin_popcountll(nonzero[f] >> low & mask);
          inside[tap * filters + f] += there;
          outside[tap * filters + f] += 2 * __builtin_popcountll(positive[f] >> low & mask);
          all = all && there == high - low;
        }
      }
    }
  int32_t* base = &packed.base[size_t(block) * packed.rows.count() * packed.columns.count() * filters];
  for (int r = 0; r < packed.rows.count(); r++)
    for (int c = 0; c < packed.columns.count(); c++, base += filters)
      for (int tap = 0; tap < v.taps(); tap++) {
        const int y = tap / v.kw, x = tap % v.kw;
        const bool here = y >= packed.rows.first[r] && y < packed.rows.end[r] && x >= packed.columns.first[c] && x < packed.columns.end[c];
        for (int f = 0; f < filters; f++) base[f] += (here ? inside : outside)[tap * filters + f];
      }
  return all;
}

Weights pack_weights(const Sizes& v, const Team& team, const Kernels& kernels, const float* w) {
  Weights packed = {Classes(v.ho, v.sh, v.top, v.kh, v.h), Classes(v.wo, v.sw, v.left, v.kw, v.w), {}, {}, {}};
  const size_t bits = size_t(v.blocks()) * v.kh * v.length() * filters;
  packed.positive.resize(bits), packed.nonzero.resize(bits);
  packed.base.resize(size_t(v.blocks()) * packed.rows.count() * packed.columns.count() * filters);
  std::atomic<int> next{0};
  std::atomic<bool> all{true};
  team.run([&] {
    for (int block; (block = next++) < v.blocks();)
      if (!pack_block(v, kernels, w, block, packed)) all = false;
  });
  if (all) packed.nonzero.clear();
  return packed;
}

// An output row of a block of filters from `bits`, an image with its border.
void conv_row(const Sizes& v, const Kernels& kernels, const uint64_t* bits, const Weights& weights, const Affine& affine,
              int block, int y, float* out) {
  const size_t from = size_t(block) * v.kh * v.length() * filters;
  const uint64_t* mask = weights.nonzero.empty() ? nullptr : weights.nonzero.data() + from;
  const size_t row = size_t(block) * weights.rows.count() + weights.rows.of[y];
  const int32_t* bases = weights.base.data() + row * weights.columns.count() * filters;
  const int first = block * filters, count = std::min(v.co - first, filters);
  float scale[filters] = {}, bias[filters] = {};
  std::memcpy(scale, affine.scale + first, count * sizeof(float));
  std::memcpy(bias, affine.bias + first, count * sizeof(float));
  int32_t found[tile * filters];
  for (int x = 0; x < v.wo; x += tile) {
    const int pixels = std::min(v.wo - x, tile);
    const uint64_t* window = bits + size_t(y) * v.sh * v.pitch() + size_t(x) * v.step();
    kernels.tile(v, window, v.step(), pixels, weights.positive.data() + from, mask, found);
    kernels.finish({bases, &weights.columns.of[x], scale, bias, count}, found, pixels, out + (size_t(y) * v.wo + x) * v.co + first, v.co);
  }
}

// Taps of a row, one after the other, for each window of the row.
void join(const Sizes& v, const uint64_t* line, uint64_t* to) {
  const int words = v.words(), length = v.length();
  std::memset(to, 0, size_t(v.wo) * length * sizeof(uint64_t));
  for (int kx = 0; kx < v.kw; kx++)
    for (int k = 0; k < words; k++) {
      const uint64_t* bits = line + size_t(kx) * words + k;
      const int at = (kx * v.c + k * word) / word, shift = (kx * v.c + k * word) % word;
      const size_t step = size_t(v.sw) * words;
      for (int x = 0; x < v.wo; x++) to[size_t(x) * length + at] |= bits[x * step] << shift;
      if (!shift || at + 1 == length) continue;
      for (int x = 0; x < v.wo; x++) to[size_t(x) * length + at + 1] |= bits[x * step] >> (word - shift);
    }
}

// room: a row of pixels, then the image with its border, all zeros where there are no pixels.
void conv_image(const Sizes& v, const Kernels& kernels, const uint8_t* x, const Weights& weights, const Affine& affine,
                uint64_t* room, float* out) {
  constexpr int cached = 2048;  // words of weights that stay in the first-level cache
  uint64_t* const bits = room + size_t(v.columns()) * v.words();
  const int first = std::max(0, v.left), end = std::min(v.columns(), v.left + v.w);
  for (int y = std::max(0, v.top); y < std::min(v.rows(), v.top + v.h) && first < end; y++) {
    uint64_t* const row = bits + size_t(y) * v.pitch();
    uint64_t* const line = v.joined() ? room : row;
    const uint8_t* pixels = x + (size_t(y - v.top) * v.w + first - v.left) * v.c;
    kernels.signs(pixels, end - first, v.c, line + size_t(first) * v.words());
    if (v.joined()) join(v, line, row);
  }
  const int together = std::max(1, cached / (v.kh * v.length() * filters));
  for (int from = 0; from < v.blocks(); from += together)
    for (int y = 0; y < v.ho; y++)
      for (int block = from; block < std::min(from + together, v.blocks()); block++)
        conv_row(v, kernels, bits, weights, affine, block, y, out);
}

void convolve(const Sizes& v, const Team& team, const uint8_t* x, const float* w, const Affine& affine, float* out) {
  const Kernels kernels = v.newest >= 2 && has_avx512() ? Kernels{avx512_signs, avx512_column, avx512_any_tile, avx512_finish}
                          : v.newest >= 1 && has_avx2() ? Kernels{avx2_signs, plain_column, avx2_tile, avx2_finish}
                                       : Kernels{plain_signs, plain_column, plain_tile, plain_finish};
  const Weights weights = pack_weights(v, team, kernels, w);
  std::atomic<int64_t> next{0};
  team.run([&] {
    std::vector<uint64_t> bits(size_t(v.columns()) * v.words() + size_t(v.rows()) * v.pitch());
    for (int64_t i; (i = next++) < v.n;)
      conv_image(v, kernels, x + size_t(i) * v.h * v.w * v.c, weights, affine, bits.data(),
                 out + size_t(i) * v.ho * v.wo * v.co);
  });
}

}  // namespace

// Arguments: the members of Conv as int32; x, a byte each, 1 for +1; w; scale; bias; result: out. float32; the
// caller has checked all shapes.
extern "C" __attribute__((visibility("default"))) void* bireal_packed_conv(xla::Call* call) {
  return answer<Sizes>(call, "no memory for a 1-bit convolution", [&](const Sizes& v, const Team& team) {
    const auto in = [&](int i) { return xla::in<float>(call, i); };
    convolve(v, team, xla::in<uint8_t>(call, 1), in(2), {in(3), in(4)}, xla::out<float>(call, 0));
  });
}
