#include "kernels.h"

#if defined(__x86_64__) || defined(BIREAL_SIMDE)
#define VPOPCNT
#include "kernels_avx512.inc"

namespace bireal {
namespace {

inline void dot_into(IntLanes& sum, IntLanes x, IntLanes y) {
#if defined(BIREAL_SIMDE)
  sum = _mm512_dpwssd_epi32(sum, x, y);
#else
  asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
#endif
}

}  // namespace

#define OWN_BINARY
#include "kernels.inc"

// Binary convolution by counting the bits of activation xor weight, 64 channels of 8 filters at once. A window is `steps`
// words, one or more for each tap; what is not there is zero in activations and weights.
//
// Words are counted in pairs. A full adder makes of a running parity s, x = a ^ w and x' = a' ^ w' the parity
// s' = s ^ x ^ x' and a carry that counts two: s where s' differs from s, else x. Parities of activations and of weights
// can be taken apart, s' = A' ^ W' with A' = a_0 ^ ... ^ a' and W' likewise, so they are prepared: a' and w' are never
// needed themselves. A pair takes two exclusive ors, a carry, a count and an addition, five operations instead of six.
namespace {

constexpr int TILE = 4, LINE = 8;  // pixels of a register tile; pixels side by side in memory
constexpr int FULL_ADDER_CARRY = 0xd4;  // (x, s, s') -> s ^ s' ? s : x

inline int word_channels(const Conv& c, int word) { return c.cg - 64 * word < 64 ? c.cg - 64 * word : 64; }
inline size_t group_words(const Conv& c) { return size_t(c.band * c.wo / LINE + 2) * LINE * c.steps; }
// Where the window of a pixel begins, in what was prepared from row `from` on.
inline size_t window_at(const Conv& c, int from, size_t point) {
  return (point / LINE - size_t(from) * c.wo / LINE) * c.steps * LINE + point % LINE;
}

void binary_plan(Conv& c) {
  c.n4 = (c.cg + 63) / 64;
  c.steps = c.kh * c.kw * c.n4;
  c.blocks = (c.og + unit - 1) / unit;
  c.packed = size_t(c.groups) * c.blocks * c.steps * unit * 8;
  c.scratch = c.groups * group_words(c) * 8;
}

// Takes the words of a window in turn and puts them at out[0], out[stride], ...: every second one as the parity of all up
// to it, so that the last one is a parity.
struct Pairs {
  uint64_t* out;
  size_t stride;
  bool whole;
  uint64_t parity = 0;
  Pairs(uint64_t* out, size_t stride, int words) : out(out), stride(stride), whole(words % 2 == 0) {}
  void put(uint64_t word) {
    parity ^= word;
    *out = whole ? word : parity;
    out += stride;
    whole = !whole;
  }
};

// uint64 [group][block][word][filter].
void binary_pack(const Conv& c, const uint8_t* bits, void* weight) {
  uint64_t* out = static_cast<uint64_t*>(weight);
  const int bytes = (c.cg + 7) / 8;
  for (int g = 0; g < c.groups; g++)
    for (int b = 0; b < c.blocks; b++, out += size_t(c.steps) * unit)
      for (int f = 0; f < unit; f++) {
        const int o = b * unit + f;
        Pairs pairs(out + f, unit, c.steps);
        for (int tap = 0; tap < c.kh * c.kw; tap++)
          for (int n = 0; n < c.n4; n++) {
            const int channels = word_channels(c, n);
            uint64_t v = 0;
            if (o < c.og) {
              const uint8_t* from = bits + (size_t(g * c.og + o) * c.kh * c.kw + tap) * bytes + 8 * n;
              for (int i = 0; i < (channels + 7) / 8; i++) v |= uint64_t(from[i]) << 8 * i;
              v &= ~uint64_t(0) >> (64 - channels);
            }
            pairs.put(v);
          }
      }
}

// `count` channels of a pixel, 1 to 64, beginning with `channel`.
inline uint64_t channels_at(const uint8_t* pixel, int channel, int count) {
  const int shift = channel % 64;
  uint64_t v, next;
  __builtin_memcpy(&v, pixel + channel / 64 * 8, 8);
  v >>= shift;
  if (shift + count > 64) {
    __builtin_memcpy(&next, pixel + channel / 64 * 8 + 8, 8);
    v |= next << (64 - shift);
  }
  return v & ~uint64_t(0) >> (64 - count);
}

// The windows of LINE pixels of row y, one word a tap.
inline void prepare_line(const Conv& c, const uint8_t* bits, int y, int x, uint64_t* out) {
  const uint64_t channels = ~uint64_t(0) >> (64 - c.cg);
  const __m512i valid = _mm512_set1_epi64(int64_t(channels)), border = _mm512_set1_epi64(c.pad > 0 ? int64_t(channels) : 0);
  __m512i parity = _mm512_setzero_si512();
  bool whole = c.steps % 2 == 0;
  for (int ky = 0; ky < c.kh; ky++) {
    const int iy = y * c.sh + ky - c.top, first = iy >= 0 && iy < c.h ? 0 : LINE;
    const uint8_t* row = bits + size_t(first ? 0 : iy) * c.w * 8;
    for (int kx = 0; kx < c.kw; kx++, out += LINE, whole = !whole) {
      const int ix = x + kx - c.left;
      const int from = ix < 0 ? -ix : first, to = c.w - ix < LINE ? c.w - ix : LINE;
      const __mmask8 there = from < LINE && first < LINE && to > from ? __mmask8((0xff << from) & (0xff >> (LINE - to))) : 0;
      __m512i v = border;
      if (there) v = _mm512_mask_and_epi64(border, there, _mm512_maskz_loadu_epi64(there, row + ptrdiff_t(ix) * 8), valid);
      parity = _mm512_xor_si512(parity, v);
      _mm512_store_si512(out, whole ? v : parity);
    }
  }
}

// Rows and columns exchanged.
inline void transpose(__m512i (&m)[8]) {
  __m512i t[8];
  UNROLL for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_epi64(m[i], m[i + 1]);  // [01][0], [01][2], ...
    t[i + 1] = _mm512_unpackhi_epi64(m[i], m[i + 1]);
  }
  const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 4, 5, 12, 13), high = _mm512_setr_epi64(2, 3, 10, 11, 6, 7, 14, 15);
  UNROLL for (int i = 0; i < 8; i += 4)
    UNROLL for (int k = 0; k < 2; k++) {  // rows 0 to 3 of columns k and k + 4, then of k + 2 and k + 6
      m[i + k] = _mm512_permutex2var_epi64(t[i + k], low, t[i + 2 + k]);
      m[i + 2 + k] = _mm512_permutex2var_epi64(t[i + k], high, t[i + 2 + k]);
    }
  UNROLL for (int k = 0; k < 4; k++) {
    t[k] = _mm512_shuffle_i64x2(m[k], m[4 + k], 0x44);
    t[4 + k] = _mm512_shuffle_i64x2(m[k], m[4 + k], 0xee);
  }
  UNROLL for (int k = 0; k < 8; k++) m[k] = t[k];
}

// The windows of LINE pixels, which may lie in several rows. A row of a window is contiguous where the only group has
// whole words.
inline void prepare_pixels(const Conv& c, const uint8_t* bits, int point, uint64_t* out) {
  const int64_t* rows[LINE];
  int ys[LINE];
  uint64_t there[LINE];  // words of a row of the window that lie within the input
  const int run = c.kw * c.n4;
  for (int p = 0, y = point / c.wo, x = point % c.wo; p < LINE; p++) {
    const int ix = x * c.sw - c.left, from = ix < 0 ? -ix : 0, to = c.w - ix < c.kw ? c.w - ix : c.kw;
    ys[p] = y * c.sh - c.top;
    rows[p] = reinterpret_cast<const int64_t*>(bits) + (int64_t(ys[p]) * c.w + ix) * c.n4;
    there[p] = y < c.ho && from < to ? ~uint64_t(0) >> (64 - (to - from) * c.n4) << from * c.n4 : 0;
    if (++x == c.wo) x = 0, y++;
  }
  const __m512i border = _mm512_set1_epi64(c.pad > 0 ? -1 : 0);
  __m512i parity = _mm512_setzero_si512();
  bool whole = c.steps % 2 == 0;
  for (int ky = 0; ky < c.kh; ky++)
    for (int i = 0; i < run; i += 8) {
      __m512i words[8];
      UNROLL for (int p = 0; p < LINE; p++) {
        const bool inside = ys[p] + ky >= 0 && ys[p] + ky < c.h;
        words[p] = _mm512_mask_loadu_epi64(border, inside ? __mmask8(there[p] >> i) : __mmask8(0),
                                           rows[p] + int64_t(ky) * c.w * c.n4 + i);
      }
      transpose(words);
      UNROLL for (int n = 0; n < 8; n++) {
        if (i + n >= run) break;
        parity = _mm512_xor_si512(parity, words[n]);
        _mm512_store_si512(out, whole ? words[n] : parity);
        out += LINE, whole = !whole;
      }
    }
}

// The window of one pixel.
inline void prepare_window(const Conv& c, const uint8_t* bits, int group, int y, int x, uint64_t* out) {
  const size_t pitch = bits_pitch(c.c);
  const int iy = y * c.sh - c.top, ix = x * c.sw - c.left;
  Pairs pairs(out, LINE, c.steps);
  for (int ky = 0; ky < c.kh; ky++)
    for (int kx = 0; kx < c.kw; kx++)
      for (int n = 0; n < c.n4; n++) {
        const int count = word_channels(c, n);
        const bool outside = iy + ky < 0 || iy + ky >= c.h || ix + kx < 0 || ix + kx >= c.w;
        if (outside) pairs.put(c.pad > 0 ? ~uint64_t(0) >> (64 - count) : 0);
        else pairs.put(channels_at(bits + (size_t(iy + ky) * c.w + ix + kx) * pitch, group * c.cg + 64 * n, count));
      }
}

// uint64 [group][pixels / LINE][word][LINE]: the window of each output pixel, from the line of the first one on.
void binary_prepare(const Conv& c, const uint8_t* bits, void* scratch, int y0, int y1) {
  const bool lines = c.groups == 1 && c.n4 == 1 && c.sw == 1 && c.wo % LINE == 0;
  const bool runs = c.groups == 1 && c.cg % 64 == 0 && c.kw * c.n4 <= 64;
  const int end = y1 * c.wo;
  for (int g = 0; g < c.groups; g++) {
    uint64_t* out = static_cast<uint64_t*>(scratch) + g * group_words(c);
    const int step = lines || runs ? LINE : 1;
    for (int point = y0 * c.wo / step * step; point < end; point += step) {
      uint64_t* window = out + window_at(c, y0, point);
      if (lines) prepare_line(c, bits, point / c.wo, point % c.wo, window);
      else if (runs) prepare_pixels(c, bits, point, window);
      else prepare_window(c, bits, g, point / c.wo, point % c.wo, window);
    }
  }
}

// Counts one pair of words of one pixel and eight filters; returns the new parity. In assembly so that no register is
// copied: compilers copy the parity.
inline __m512i count_pair(__m512i& carries, __m512i parity, __m512i word, __m512i parities, const uint64_t* a) {
  __m512i next, x;
#if defined(BIREAL_SIMDE)
  next = _mm512_xor_si512(parities, _mm512_set1_epi64(int64_t(a[LINE])));
  x = _mm512_xor_si512(word, _mm512_set1_epi64(int64_t(a[0])));
  x = _mm512_ternarylogic_epi64(x, parity, next, FULL_ADDER_CARRY);
  carries = _mm512_add_epi64(carries, _mm512_popcnt_epi64(x));
#else
  asm("vpxorq %[a]%{1to8%}, %[word], %[x]\n\t"
      "vpxorq %[b]%{1to8%}, %[parities], %[next]\n\t"
      "vpternlogq %[carry], %[next], %[parity], %[x]\n\t"
      "vpopcntq %[x], %[x]\n\t"
      "vpaddq %[x], %[carries], %[carries]"
      : [x] "=&v"(x), [next] "=&v"(next), [carries] "+v"(carries)
      : [a] "m"(a[0]), [b] "m"(a[LINE]), [word] "v"(word), [parities] "v"(parities), [parity] "v"(parity),
        [carry] "i"(FULL_ADDER_CARRY));
#endif
  return next;
}

// The next pair of P pixels and sixteen filters.
template <int P>
inline void count_pairs(__m512i (&carries)[P][2], __m512i (&parity)[P][2], const uint64_t*& a, const uint64_t*& w) {
  UNROLL for (int z = 0; z < 2; z++) {
    const __m512i word = _mm512_load_si512(w + 8 * z), parities = _mm512_load_si512(w + unit + 8 * z);
    UNROLL for (int p = 0; p < P; p++) parity[p][z] = count_pair(carries[p][z], parity[p][z], word, parities, a + p);
  }
  a += 2 * LINE, w += 2 * unit;
}

// Bits that differ, for P pixels and sixteen filters.
template <int P>
inline void binary_tile(int words, const uint64_t* a, const uint64_t* w, __m512i* counts) {
  __m512i carries[P][2], parity[P][2];
  UNROLL for (int p = 0; p < P; p++)
    UNROLL for (int z = 0; z < 2; z++) carries[p][z] = parity[p][z] = _mm512_setzero_si512();
  if (words % 2) {
    UNROLL for (int z = 0; z < 2; z++)
      UNROLL for (int p = 0; p < P; p++)
        parity[p][z] = _mm512_xor_si512(_mm512_load_si512(w + 8 * z), _mm512_set1_epi64(int64_t(a[p])));
    a += LINE, w += unit;
  }
  int pairs = words / 2;
  for (; pairs >= 2; pairs -= 2) {
    count_pairs<P>(carries, parity, a, w);
    count_pairs<P>(carries, parity, a, w);
  }
  if (pairs) count_pairs<P>(carries, parity, a, w);
  const __m512i low = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  UNROLL for (int p = 0; p < P; p++) {
    const __m512i twos = _mm512_permutex2var_epi32(carries[p][0], low, carries[p][1]);
    const __m512i ones = _mm512_permutex2var_epi32(_mm512_popcnt_epi64(parity[p][0]), low, _mm512_popcnt_epi64(parity[p][1]));
    counts[p] = _mm512_add_epi32(_mm512_add_epi32(twos, twos), ones);
  }
}

// How a block's sums end. plain: scale, offset and shortcut, both the sum and its sign kept, as in most layers.
enum class End { plain, any, ragged };

// The next P pixels of one block of filters. `middle` holds for each class of pixel what a sum is less its mismatches, by
// two: with padding of 0, which was counted as -1, that depends on the taps beyond the border.
template <int P, End end>
inline void points(const Conv& c, const Epilogue& e, const uint64_t* input, int from, const uint64_t* weight,
                   const float* middle, int first, int count, size_t point) {
  __m512i counts[P];
  binary_tile<P>(c.steps, input + window_at(c, from, point), weight, counts);
  const F16 scale = end == End::plain ? mul(load(e.scale + first), set(-2.f)) : set(-2.f);
  UNROLL for (int p = 0; p < P; p++) {
    const size_t pixel = point + p;
    const F16 half = sub(_mm512_cvtepi32_ps(counts[p]), load(middle + c.pixel_class[pixel] * unit));
    if (end == End::plain) {
      const size_t at = pixel * e.pitch + first;
      const F16 y = add(fma(half, scale, load(e.offset + first)), load(e.residual + at));
      store(e.out + at, y);
      const uint16_t mask = nonnegative_mask(y);
      __builtin_memcpy(e.bits + pixel * e.bits_pitch + first / 8, &mask, 2);
    } else if (end == End::any) {
      finish(e, scaled(e, mul(half, scale), first), pixel, first);
    } else {  // a group whose filters do not fill units: the engine runs these without an epilogue
      float sums[unit];
      store(sums, mul(half, scale));
      for (int i = 0; i < count; i++) e.out[pixel * e.pitch + first + i] = sums[i];
    }
  }
}

template <End end>
void block_rows(const Conv& conv, const void* scratch, int from, int block, int y0, int y1, const Epilogue& epilogue) {
  const Conv c = conv;  // copies that no store can change
  const Epilogue e = epilogue;
  const int group = block / c.blocks, b = block % c.blocks;
  const int first = group * c.og + b * unit, rest = c.og - b * unit, count = rest < unit ? rest : unit;
  const uint64_t* input = static_cast<const uint64_t*>(scratch) + group * group_words(c);
  const uint64_t* weight = static_cast<const uint64_t*>(c.weight) + size_t(block) * c.steps * unit;
  const float* middle = c.middle + size_t(block) * c.classes * unit;
  size_t point = size_t(y0) * c.wo;
  const size_t last = size_t(y1) * c.wo;
  while (point < last && point % TILE) points<1, end>(c, e, input, from, weight, middle, first, count, point++);
  for (; point + TILE <= last; point += TILE) points<TILE, end>(c, e, input, from, weight, middle, first, count, point);
  while (point < last) points<1, end>(c, e, input, from, weight, middle, first, count, point++);
}

void binary_rows(const Conv& c, const void* scratch, int from, int block, int y0, int y1, const Epilogue& e) {
  const int rest = c.og - block % c.blocks * unit;
  const int first = block / c.blocks * c.og + block % c.blocks * unit;
  if (first % unit || (rest < unit && first + rest != c.co)) block_rows<End::ragged>(c, scratch, from, block, y0, y1, e);
  else if (e.scale && e.residual && e.act == Act::none && e.out && e.bits && !e.sign_scale)
    block_rows<End::plain>(c, scratch, from, block, y0, y1, e);
  else block_rows<End::any>(c, scratch, from, block, y0, y1, e);
}

}  // namespace

const Kernels* avx512_vpopcnt_kernels() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vpopcntdq") || !__builtin_cpu_supports("avx512vnni"))
    return nullptr;
  static const Kernels kernels = {"avx512_vpopcnt", binary_plan, binary_pack, binary_prepare, binary_rows,
                                  real_rows, int16_rows, quantize, real_transform, int16_transform, real_winograd,
                                  int16_winograd, depthwise_row, max_pool_row, avg_pool_row, map};
  return &kernels;
}

}  // namespace bireal
#if defined(__clang__) && !defined(BIREAL_SIMDE)
#pragma clang attribute pop
#endif
#else
const bireal::Kernels* bireal::avx512_vpopcnt_kernels() { return nullptr; }
#endif
