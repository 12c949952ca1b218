// Convolutions of ±1 with ±1 for training on CPUs, 64 multiplications in a word: packed into bits, products are exclusive
// ors, and the mismatches are counted. Weights may be 0, too, as where groups are masks. The results are whole numbers, so
// they equal any other way exactly.
//
// A pixel fills whole words. Where that leaves many bits empty, as with 16 or 32 channels, the taps of a row of the window
// follow each other bit by bit instead: each window then has rows of its own.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

#include "conv.h"
#include "xla.h"

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own header: gcc.gnu.org/PR105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#define POPCNT __attribute__((target("popcnt")))
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vpopcntdq")))
#else
#define POPCNT
#endif

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

struct Weights {
  Classes rows, columns;
  std::vector<uint64_t> positive, nonzero;  // bits [block][ky][word of the window's row][filter]; nonzero is empty if all are
  std::vector<int32_t> base;                // [block][class of rows][class of columns][filter]: the sum less twice the mismatches
};

// The signs of `pixels` rows, a byte each, into bits, the first in the lowest, each row in whole words.
void plain_signs(const uint8_t* x, int pixels, int channels, uint64_t* to) {
  for (int p = 0; p < pixels; p++)
    for (int left = channels; left > 0; left -= word, to++) {
      const int count = std::min(left, word);
      uint64_t bits = 0;
      for (int i = 0; i < count; i++) bits |= uint64_t(x[i]) << i;
      *to = bits, x += count;
    }
}

// `channels` rows of weights, `pitch` floats apart, channel i in bit i: two words for each of `count` filters.
void plain_column(const float* w, size_t pitch, int channels, int count, uint64_t* positive, uint64_t* nonzero) {
  for (int i = 0; i < channels; i++, w += pitch)
    for (int f = 0; f < count; f++) {
      positive[f] |= uint64_t(w[f] > 0) << i;
      nonzero[f] |= uint64_t(w[f] != 0) << i;
    }
}

// Mismatches of `pixels` windows, `step` words apart, with the filters of a block: counts [pixels][filters]. mask: which
// weights count, null for all.
POPCNT void plain_tile(const Sizes& v, const uint64_t* window, int step, int pixels, const uint64_t* w,
                       const uint64_t* mask, int32_t* counts) {
  const int row = v.pitch(), length = v.length();
  for (int p = 0; p < pixels; p++, window += step, counts += filters) {
    uint64_t sums[filters] = {};
    for (int ky = 0, at = 0; ky < v.kh; ky++)
      for (int k = 0; k < length; k++, at += filters)
        for (int f = 0; f < filters; f++) {
          const uint64_t differ = window[ky * row + k] ^ w[at + f];
          sums[f] += uint64_t(__builtin_popcountll(mask ? differ & mask[at + f] : differ));
        }
    for (int f = 0; f < filters; f++) counts[f] = int32_t(sums[f]);
  }
}

constexpr int tile = 6;  // pixels that share what is loaded of the weights

#if defined(__x86_64__)
AVX512 void avx512_signs(const uint8_t* x, int pixels, int channels, uint64_t* to) {
  for (int p = 0; p < pixels; p++)
    for (int left = channels; left > 0; left -= word, to++) {
      const int count = std::min(left, word);
      const __mmask64 there = count < word ? (__mmask64(1) << count) - 1 : ~__mmask64(0);
      const __m512i bytes = _mm512_maskz_loadu_epi8(there, x);
      *to = _mm512_test_epi8_mask(bytes, bytes), x += count;
    }
}

AVX512 void avx512_column(const float* w, size_t pitch, int channels, int count, uint64_t* positive,
                          uint64_t* nonzero) {
  if (count < filters) return plain_column(w, pitch, channels, count, positive, nonzero);
  __m512i words[4] = {};
  for (int i = 0; i < channels; i++, w += pitch) {
    const __m512i bit = _mm512_set1_epi64(int64_t(uint64_t(1) << i));
    const __m512 row = _mm512_loadu_ps(w);
    const __mmask16 above = _mm512_cmp_ps_mask(row, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __mmask16 there = _mm512_cmp_ps_mask(row, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    words[0] = _mm512_mask_or_epi64(words[0], __mmask8(above), words[0], bit);
    words[1] = _mm512_mask_or_epi64(words[1], __mmask8(above >> 8), words[1], bit);
    words[2] = _mm512_mask_or_epi64(words[2], __mmask8(there), words[2], bit);
    words[3] = _mm512_mask_or_epi64(words[3], __mmask8(there >> 8), words[3], bit);
  }
  for (int i = 0; i < 4; i++) _mm512_storeu_si512((i < 2 ? positive : nonzero) + i % 2 * 8, words[i]);
}

template <int P, bool masked>
AVX512 void avx512_pixels(const Sizes& v, const uint64_t* window, int step, const uint64_t* w, const uint64_t* mask,
                          int32_t* counts) {
  constexpr int differ_and_count = 0x28;  // (a, w, mask) -> (a ^ w) & mask
  const int row = v.pitch(), length = v.length();
  __m512i sums[P][2];
  for (int p = 0; p < P; p++) sums[p][0] = sums[p][1] = _mm512_setzero_si512();
  for (int ky = 0, at = 0; ky < v.kh; ky++)
    for (int k = 0; k < length; k++, at += filters) {
      const uint64_t* a = window + ky * row + k;
      __m512i weights[2], counting[2];
      for (int half = 0; half < 2; half++) {
        weights[half] = _mm512_loadu_si512(w + at + 8 * half);
        if (masked) counting[half] = _mm512_loadu_si512(mask + at + 8 * half);
      }
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const __m512i bits = _mm512_set1_epi64(int64_t(a[p * step]));
        for (int half = 0; half < 2; half++) {
          const __m512i differ =
              masked ? _mm512_ternarylogic_epi64(bits, weights[half], counting[half], differ_and_count)
                     : _mm512_xor_si512(bits, weights[half]);
          sums[p][half] = _mm512_add_epi64(sums[p][half], _mm512_popcnt_epi64(differ));
        }
      }
    }
  for (int p = 0; p < P; p++)
    for (int half = 0; half < 2; half++)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(counts + p * filters + 8 * half),
                          _mm512_cvtepi64_epi32(sums[p][half]));
}

template <bool masked>
AVX512 void avx512_tile(const Sizes& v, const uint64_t* window, int step, int pixels, const uint64_t* w,
                        const uint64_t* mask, int32_t* counts) {
  switch (pixels) {
    case 6: return avx512_pixels<6, masked>(v, window, step, w, mask, counts);
    case 5: return avx512_pixels<5, masked>(v, window, step, w, mask, counts);
    case 4: return avx512_pixels<4, masked>(v, window, step, w, mask, counts);
    case 3: return avx512_pixels<3, masked>(v, window, step, w, mask, counts);
    case 2: return avx512_pixels<2, masked>(v, window, step, w, mask, counts);
    default: return avx512_pixels<1, masked>(v, window, step, w, mask, counts);
  }
}

AVX512 void avx512_any_tile(const Sizes& v, const uint64_t* window, int step, int pixels, const uint64_t* w,
                            const uint64_t* mask, int32_t* counts) {
  if (mask) avx512_tile<true>(v, window, step, pixels, w, mask, counts);
  else avx512_tile<false>(v, window, step, pixels, w, mask, counts);
}

AVX2 void avx2_signs(const uint8_t* x, int pixels, int channels, uint64_t* to) {
  for (int p = 0; p < pixels; p++)
    for (int left = channels; left > 0; left -= word, to++) {
      const int count = std::min(left, word);
      uint64_t bits = 0;
      int i = 0;
      for (; i + 16 <= count; i += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + i));
        bits |= uint64_t(_mm_movemask_epi8(_mm_slli_epi16(bytes, 7))) << i;
      }
      for (; i < count; i++) bits |= uint64_t(x[i]) << i;
      *to = bits, x += count;
    }
}

AVX2 inline __m256i bytes_of(__m256i bits) {  // how many bits of each byte are set
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(bits, nibble));
  return _mm256_add_epi8(low, _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble)));
}

// One pixel; counts fill bytes for a while, then words of 64 bits.
AVX2 void avx2_pixel(const Sizes& v, const uint64_t* window, const uint64_t* w, const uint64_t* mask, int32_t* counts) {
  constexpr int quarter = filters / 4, fill = 255 / 8;
  const int row = v.pitch(), length = v.length();
  __m256i sums[4] = {};
  for (int ky = 0, at = 0; ky < v.kh; ky++)
    for (int k = 0; k < length;) {
      __m256i bytes[4] = {};
      for (int end = length - k < fill ? length : k + fill; k < end; k++, at += filters) {
        const __m256i a = _mm256_set1_epi64x(int64_t(window[ky * row + k]));
        for (int i = 0; i < 4; i++) {
          const auto load = [&](const uint64_t* from) AVX2 {
            return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + at + quarter * i));
          };
          __m256i differ = _mm256_xor_si256(a, load(w));
          if (mask) differ = _mm256_and_si256(differ, load(mask));
          bytes[i] = _mm256_add_epi8(bytes[i], bytes_of(differ));
        }
      }
      for (int i = 0; i < 4; i++)
        sums[i] = _mm256_add_epi64(sums[i], _mm256_sad_epu8(bytes[i], _mm256_setzero_si256()));
    }
  for (int i = 0; i < 4; i++) {
    uint64_t found[quarter];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(found), sums[i]);
    for (int f = 0; f < quarter; f++) counts[quarter * i + f] = int32_t(found[f]);
  }
}

AVX2 void avx2_tile(const Sizes& v, const uint64_t* window, int step, int pixels, const uint64_t* w,
                    const uint64_t* mask, int32_t* counts) {
  for (int p = 0; p < pixels; p++) avx2_pixel(v, window + p * step, w, mask, counts + p * filters);
}

bool has_avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2");
}

bool has_avx512() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vpopcntdq");
}
#else
bool has_avx2() { return false; }
bool has_avx512() { return false; }
constexpr auto avx2_tile = plain_tile;
constexpr auto avx2_signs = plain_signs;
constexpr auto avx512_signs = plain_signs;
constexpr auto avx512_column = plain_column;
constexpr auto avx512_any_tile = plain_tile;
#endif

struct Kernels {
  decltype(&plain_signs) signs;
  decltype(&plain_column) column;
  decltype(&plain_tile) tile;
};

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

Weights pack_weights(const Sizes& v, const Kernels& kernels, const float* w) {
  Weights packed = {Classes(v.ho, v.sh, v.top, v.kh, v.h), Classes(v.wo, v.sw, v.left, v.kw, v.w), {}, {}, {}};
  const size_t bits = size_t(v.blocks()) * v.kh * v.length() * filters;
  packed.positive.resize(bits), packed.nonzero.resize(bits);
  packed.base.resize(size_t(v.blocks()) * packed.rows.count() * packed.columns.count() * filters);
  std::atomic<int> next{0};
  std::atomic<bool> all{true};
  together(v.threads, [&] {
    for (int block; (block = next++) < v.blocks();)
      if (!pack_block(v, kernels, w, block, packed)) all = false;
  });
  if (all) packed.nonzero.clear();
  return packed;
}

// An output row of a block of filters from `bits`, an image with its border.
void conv_row(const Sizes& v, const Kernels& kernels, const uint64_t* bits, const Weights& weights, int block, int y,
              float* out) {
  const size_t from = size_t(block) * v.kh * v.length() * filters;
  const uint64_t* mask = weights.nonzero.empty() ? nullptr : weights.nonzero.data() + from;
  const size_t row = size_t(block) * weights.rows.count() + weights.rows.of[y];
  const int32_t* bases = weights.base.data() + row * weights.columns.count() * filters;
  const int first = block * filters, count = std::min(v.co - first, filters);
  int32_t found[tile * filters];
  for (int x = 0; x < v.wo; x += tile) {
    const int pixels = std::min(v.wo - x, tile);
    const uint64_t* window = bits + size_t(y) * v.sh * v.pitch() + size_t(x) * v.step();
    kernels.tile(v, window, v.step(), pixels, weights.positive.data() + from, mask, found);
    for (int p = 0; p < pixels; p++) {
      const int32_t *base = bases + weights.columns.of[x + p] * filters, *mismatches = found + p * filters;
      float sums[filters], *to = out + (size_t(y) * v.wo + x + p) * v.co + first;
      for (int f = 0; f < filters; f++) sums[f] = float(base[f] - 2 * mismatches[f]);
      if (count == filters) std::memcpy(to, sums, sizeof sums);
      else std::memcpy(to, sums, count * sizeof(float));
    }
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
void conv_image(const Sizes& v, const Kernels& kernels, const uint8_t* x, const Weights& weights, uint64_t* room,
                float* out) {
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
        conv_row(v, kernels, bits, weights, block, y, out);
}

void convolve(const Sizes& v, const uint8_t* x, const float* w, float* out) {
  const Kernels kernels = v.newest >= 2 && has_avx512() ? Kernels{avx512_signs, avx512_column, avx512_any_tile}
                          : v.newest >= 1 && has_avx2() ? Kernels{avx2_signs, plain_column, avx2_tile}
                                       : Kernels{plain_signs, plain_column, plain_tile};
  const Weights weights = pack_weights(v, kernels, w);
  const int parts = v.threads < v.n ? (v.threads < 1 ? 1 : v.threads) : v.n;
  std::vector<std::vector<uint64_t>> bits(parts);
  for (auto& part : bits) part.resize(size_t(v.columns()) * v.words() + size_t(v.rows()) * v.pitch());
  std::atomic<int> next{0};
  together(parts, [&] {
    for (int part; (part = next++) < parts;)
      for (int64_t i = int64_t(v.n) * part / parts, end = int64_t(v.n) * (part + 1) / parts; i < end; i++)
        conv_image(v, kernels, x + size_t(i) * v.h * v.w * v.c, weights, bits[part].data(), out + size_t(i) * v.ho * v.wo * v.co);
  });
}

}  // namespace

// Arguments: the members of Conv as int32; x, a byte each, 1 for +1; w; result: out. float32; the caller has checked all shapes.
extern "C" __attribute__((visibility("default"))) void* bireal_packed_conv(xla::Call* call) {
  if (xla::answered(call)) return nullptr;
  xla::Buffer** in = call->arguments.items;
  Sizes conv;
  std::memcpy(&conv, in[0]->data, sizeof conv);
  try {
    convolve(conv, static_cast<const uint8_t*>(in[1]->data), static_cast<const float*>(in[2]->data),
             static_cast<float*>(call->results.items[0]->data));
    return nullptr;
  } catch (const std::exception&) {
    return xla::out_of_resources(call, "no memory for a 1-bit convolution");
  }
}
