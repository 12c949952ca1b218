#include "kernels.h"

#if defined(__x86_64__) || defined(BIREAL_SIMDE)
#if defined(BIREAL_SIMDE)
#include "emulated.h"
#else
#if defined(__clang__)
#pragma clang attribute push(                                                                       \
    __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512vnni"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vpopcntdq,avx512vnni")
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own header: gcc.gnu.org/PR105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif

#include "kernels_avx512.inc"

namespace bireal {
namespace {

inline void dot_into(IntLanes& sum, IntLanes x, IntLanes y) { sum = _mm512_dpwssd_epi32(sum, x, y); }

}  // namespace

#define OWN_BINARY
#include "kernels.inc"

// Binary convolution by counting the bits of activation xor weight: 64 channels of 8 filters at once. A pixel of a
// group is n4 words; what is not there is zero in activations and weights.
namespace {

constexpr int POINTS = 4;  // times 4 registers of filters: 16 sums, 4 weights, and room for what is under way

inline int block_filters(const Conv& c) { return c.og > unit ? 2 * unit : unit; }
inline int word_channels(const Conv& c, int word) { return c.cg - 64 * word < 64 ? c.cg - 64 * word : 64; }

void binary_plan(Conv& c) {
  c.n4 = (c.cg + 63) / 64;
  c.steps = c.kw * c.n4;
  const int filters = block_filters(c);
  c.blocks = (c.og + filters - 1) / filters;
  c.packed = size_t(c.groups) * c.blocks * c.kh * c.steps * filters * 8;
  c.ph = (c.ho - 1) * c.sh + c.kh;
  c.pw = (c.wo - 1) * c.sw + c.kw;
  c.scratch = size_t(c.ph) * c.groups * c.pw * c.n4 * 8;
}

// uint64 [group][block][ky][kx][word][filter], and the set bits of each tap.
void binary_pack(const Conv& c, const uint8_t* bits, void* weight, uint16_t* tap_counts) {
  uint64_t* out = static_cast<uint64_t*>(weight);
  const int filters = block_filters(c), bytes = (c.cg + 7) / 8;
  for (int g = 0; g < c.groups; g++)
    for (int b = 0; b < c.blocks; b++)
      for (int tap = 0; tap < c.kh * c.kw; tap++)
        for (int n = 0; n < c.n4; n++)
          for (int f = 0; f < filters; f++) {
            const int o = b * filters + f, number = g * c.og + o, channels = word_channels(c, n);
            uint64_t v = 0;
            if (o < c.og) {
              const uint8_t* from = bits + (size_t(number) * c.kh * c.kw + tap) * bytes + 8 * n;
              for (int i = 0; i < (channels + 7) / 8; i++) v |= uint64_t(from[i]) << 8 * i;
              v &= ~uint64_t(0) >> (64 - channels);
              uint16_t& total = tap_counts[tap * pitch_of(c.co) + number];
              total = uint16_t((n ? total : 0) + __builtin_popcountll(v));
            }
            *out++ = v;
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

// uint64 [ph][groups][pw][n4], so that a row of a window is contiguous.
void binary_prepare(const Conv& c, const uint8_t* bits, void* scratch, int y0, int y1) {
  const size_t pitch = bits_pitch(c.c);
  uint64_t* out = static_cast<uint64_t*>(scratch) + size_t(y0) * c.groups * c.pw * c.n4;
  for (int y = y0; y < y1; y++)
    for (int g = 0; g < c.groups; g++)
      for (int x = 0; x < c.pw; x++) {
        const int iy = y - c.top, ix = x - c.left;
        const bool border = iy < 0 || iy >= c.h || ix < 0 || ix >= c.w;
        const uint8_t* pixel = border ? nullptr : bits + (size_t(iy) * c.w + ix) * pitch;
        for (int n = 0; n < c.n4; n++) {
          const int count = word_channels(c, n);
          const uint64_t ones = c.pad > 0 ? ~uint64_t(0) >> (64 - count) : 0;
          *out++ = border ? ones : channels_at(pixel, g * c.cg + 64 * n, count);
        }
      }
}

// Padding of 0 was counted as -1: takes that back. Returns the products that there are.
inline int without_border(const Conv& c, int y, int x, int first, int filters, int32_t* counts) {
  const int iy = y * c.sh - c.top, ix = x * c.sw - c.left;
  if (c.pad != 0 || (iy >= 0 && iy + c.kh <= c.h && ix >= 0 && ix + c.kw <= c.w)) return c.kh * c.kw * c.cg;
  int inside = 0;
  for (int tap = 0; tap < c.kh * c.kw; tap++) {
    const int ty = iy + tap / c.kw, tx = ix + tap % c.kw;
    if (ty >= 0 && ty < c.h && tx >= 0 && tx < c.w) {
      inside++;
      continue;
    }
    const uint16_t* set_bits = c.tap_counts + tap * pitch_of(c.co) + first;
    for (int i = 0; i < filters; i++) counts[i] -= set_bits[i];
  }
  return inside * c.cg;
}

// P pixels times Z registers of eight filters.
template <int P, int Z>
inline void binary_tile(const Conv& c, const uint64_t* const* pixels, const uint64_t* w, int32_t* counts) {
  const size_t down = size_t(c.groups) * c.pw * c.n4;
  __m512i sum[P][Z];
  UNROLL for (int p = 0; p < P; p++)
    UNROLL for (int z = 0; z < Z; z++) sum[p][z] = _mm512_setzero_si512();
  for (int ky = 0; ky < c.kh; ky++) {
    const uint64_t* a[P];
    UNROLL for (int p = 0; p < P; p++) a[p] = pixels[p] + ky * down;
    for (int s = 0; s < c.steps; s++, w += 8 * Z) {
      __m512i b[Z];
      UNROLL for (int z = 0; z < Z; z++) b[z] = _mm512_load_si512(w + 8 * z);
      UNROLL for (int p = 0; p < P; p++) {
        const __m512i x = _mm512_set1_epi64(int64_t(a[p][s]));
        UNROLL for (int z = 0; z < Z; z++)
          sum[p][z] = _mm512_add_epi64(sum[p][z], _mm512_popcnt_epi64(_mm512_xor_si512(x, b[z])));
      }
    }
  }
  UNROLL for (int p = 0; p < P; p++)
    UNROLL for (int z = 0; z < Z; z++)
      _mm256_store_si256(reinterpret_cast<__m256i*>(counts + (p * Z + z) * 8), _mm512_cvtepi64_epi32(sum[p][z]));
}

template <int P, int Z>
void binary_points(const Conv& c, const uint64_t* input, const uint64_t* w, int group, int first, int count, int point,
                   const Epilogue& e) {
  const uint64_t* pixels[P];
  for (int p = 0; p < P; p++) {
    const size_t y = (point + p) / c.wo, x = (point + p) % c.wo;
    pixels[p] = input + ((y * c.sh * c.groups + group) * c.pw + x * c.sw) * c.n4;
  }
  alignas(64) int32_t counts[P * Z * 8];
  binary_tile<P, Z>(c, pixels, w, counts);
  const bool units = first % unit == 0 && (count % unit == 0 || first + count == c.co);
  for (int p = 0; p < P; p++) {
    int32_t* found = counts + p * Z * 8;
    const int base = without_border(c, (point + p) / c.wo, (point + p) % c.wo, first, count, found);
    for (int channel = 0; channel < count; channel += unit) {
      const F16 s = floats(_mm512_load_si512(found + channel), base);
      if (units) {
        finish(e, scaled(e, s, first + channel), point + p, first + channel);
      } else {  // a group whose filters do not fill units: the engine runs these without an epilogue
        float sums[unit];
        store(sums, s);
        for (int i = 0; i < unit && channel + i < count; i++)
          e.out[(point + p) * e.pitch + first + channel + i] = sums[i];
      }
    }
  }
}

template <int Z>
void binary_block(const Conv& c, const void* scratch, int block, int y0, int y1, const Epilogue& e) {
  const int group = block / c.blocks, b = block % c.blocks, filters = Z * 8;
  const uint64_t* w = static_cast<const uint64_t*>(c.weight) + size_t(block) * c.kh * c.steps * filters;
  const int first = group * c.og + b * filters, rest = c.og - b * filters, count = rest < filters ? rest : filters;
  const uint64_t* input = static_cast<const uint64_t*>(scratch);
  int point = y0 * c.wo;
  const int end = y1 * c.wo;
  for (; point + POINTS <= end; point += POINTS)
    binary_points<POINTS, Z>(c, input, w, group, first, count, point, e);
  for (; point < end; point++) binary_points<1, Z>(c, input, w, group, first, count, point, e);
}

void binary_rows(const Conv& c, const void* scratch, int block, int y0, int y1, const Epilogue& e) {
  if (block_filters(c) > unit) binary_block<4>(c, scratch, block, y0, y1, e);
  else binary_block<2>(c, scratch, block, y0, y1, e);
}

}  // namespace

const Kernels* avx512_vpopcnt_kernels() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
      !__builtin_cpu_supports("avx512vpopcntdq") || !__builtin_cpu_supports("avx512vnni"))
    return nullptr;
  static const Kernels kernels = {"avx512_vpopcnt", binary_plan, binary_pack,  binary_prepare, binary_rows,
                                  real_rows,        int16_rows,  max_pool_row, avg_pool_row,   map};
  return &kernels;
}

}  // namespace bireal
#if defined(__clang__) && !defined(BIREAL_SIMDE)
#pragma clang attribute pop
#endif
#else
const bireal::Kernels* bireal::avx512_vpopcnt_kernels() { return nullptr; }
#endif
