#include "kernels.h"

#if defined(__x86_64__) || defined(BIREAL_SIMDE)
#include "kernels_avx512.inc"

namespace bireal {
namespace {

inline F16 from_counts(const uint16_t* low, const uint16_t* high, int base) {
  const __m256i low8 = _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(low)));
  const __m128i high8 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(high));
  return floats(_mm512_cvtepu16_epi32(_mm256_inserti128_si256(low8, high8, 1)), base);
}

constexpr int LW = 64, PAIRS = 3, FILTERS = 2;  // 12 sums, 6 weights, 3 tables: with 4 pairs GCC spills
using Bytes = __m512i;
inline Bytes zero_bytes() { return _mm512_setzero_si512(); }
inline Bytes load_bytes(const uint8_t* p) { return _mm512_load_si512(p); }
inline Bytes table_bytes(const uint8_t* p) {
  return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes shuffle(Bytes table, Bytes index) { return _mm512_shuffle_epi8(table, index); }
inline void add_into(Bytes& sum, Bytes x) { sum = _mm512_add_epi8(sum, x); }
// A shift of 16 bits: it brings the low nibble of an odd byte into the even one below, 16 times. Sums of that are taken
// off when all is added up (`settled`), which is cheaper than a mask each time.
inline Bytes high_nibbles(Bytes x) { return _mm512_srli_epi16(x, 4); }
inline Bytes low_of_pair(Bytes raw, Bytes high);
inline Bytes settled(Bytes raw, Bytes high) {
  const Bytes odd = low_of_pair(raw, high);  // right in odd bytes, where `high` is
  return _mm512_sub_epi8(high, _mm512_and_si512(_mm512_srli_epi16(odd, 4), _mm512_set1_epi16(0xf0)));
}
inline Bytes low_of_pair(Bytes raw, Bytes high) {  // raw - 16 high, modulo 256
  return _mm512_sub_epi8(raw, _mm512_slli_epi16(_mm512_and_si512(high, _mm512_set1_epi8(15)), 4));
}
inline void widen_add(uint16_t* counts, Bytes x) {
  __m512i* c = reinterpret_cast<__m512i*>(counts);
  c[0] = _mm512_add_epi16(c[0], _mm512_unpacklo_epi8(x, zero_bytes()));
  c[1] = _mm512_add_epi16(c[1], _mm512_unpackhi_epi8(x, zero_bytes()));
}
inline void dot_into(IntLanes& sum, IntLanes x, IntLanes y) { sum = _mm512_add_epi32(sum, _mm512_madd_epi16(x, y)); }

}  // namespace

#include "kernels.inc"

const Kernels* avx512_kernels() {
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq"))
    return nullptr;
  static const bool once = (fill_tables(), true);
  (void)once;
  static const Kernels kernels = {"avx512", binary_plan, binary_pack, binary_prepare, binary_rows,
                                  real_rows, int16_rows, quantize, real_transform, int16_transform, real_winograd,
                                  int16_winograd, depthwise_row, max_pool_row, avg_pool_row, map};
  return &kernels;
}

}  // namespace bireal
#if defined(__clang__) && !defined(BIREAL_SIMDE)
#pragma clang attribute pop
#endif
#else
const bireal::Kernels* bireal::avx512_kernels() { return nullptr; }
#endif
