#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include <immintrin.h>

namespace bireal {
namespace {

struct F16 {
  __m256 a, b;
};
inline F16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F16 v) { _mm256_storeu_ps(p, v.a), _mm256_storeu_ps(p + 8, v.b); }
inline F16 set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F16 fma(F16 x, F16 y, F16 z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F16 add(F16 x, F16 y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F16 sub(F16 x, F16 y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F16 mul(F16 x, F16 y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F16 vmax(F16 x, F16 y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F16 vmin(F16 x, F16 y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline __m256 nonnegative(__m256 x) { return _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_GE_OQ); }
inline F16 where_nonnegative(F16 x, F16 y, F16 z) {
  return {_mm256_blendv_ps(z.a, y.a, nonnegative(x.a)), _mm256_blendv_ps(z.b, y.b, nonnegative(x.b))};
}
inline uint16_t nonnegative_mask(F16 x) {
  return uint16_t(_mm256_movemask_ps(nonnegative(x.a)) | _mm256_movemask_ps(nonnegative(x.b)) << 8);
}
inline __m256 from_count(const uint16_t* n, __m256i base) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(n)));
  return _mm256_cvtepi32_ps(_mm256_sub_epi32(base, _mm256_add_epi32(wide, wide)));
}
inline F16 from_counts(const uint16_t* low, const uint16_t* high, int base) {
  const __m256i b = _mm256_set1_epi32(base);
  return {from_count(low, b), from_count(high, b)};
}

constexpr int LW = 32, PAIRS = 2, FILTERS = 2, PIXELS = 6, TILES = 6;
using Bytes = __m256i;
inline Bytes zero_bytes() { return _mm256_setzero_si256(); }
inline Bytes load_bytes(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline Bytes table_bytes(const uint8_t* p) {
  return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}
inline Bytes shuffle(Bytes table, Bytes index) { return _mm256_shuffle_epi8(table, index); }
inline void add_into(Bytes& sum, Bytes x) { asm("vpaddb %1, %0, %0" : "+x"(sum) : "x"(x)); }
// A shift of 16 bits: it brings the low nibble of an odd byte into the even one below, 16 times. Sums of that are taken
// off when all is added up (`settled`), which is cheaper than a mask each time.
inline Bytes high_nibbles(Bytes x) { return _mm256_srli_epi16(x, 4); }
inline Bytes low_of_pair(Bytes raw, Bytes high);
inline Bytes settled(Bytes raw, Bytes high) {
  const Bytes odd = low_of_pair(raw, high);  // right in odd bytes, where `high` is
  return _mm256_sub_epi8(high, _mm256_and_si256(_mm256_srli_epi16(odd, 4), _mm256_set1_epi16(0xf0)));
}
inline Bytes low_of_pair(Bytes raw, Bytes high) {  // raw - 16 high, modulo 256
  return _mm256_sub_epi8(raw, _mm256_slli_epi16(_mm256_and_si256(high, _mm256_set1_epi8(15)), 4));
}
inline void widen_add(uint16_t* counts, Bytes x) {
  __m256i* c = reinterpret_cast<__m256i*>(counts);
  c[0] = _mm256_add_epi16(c[0], _mm256_unpacklo_epi8(x, zero_bytes()));
  c[1] = _mm256_add_epi16(c[1], _mm256_unpackhi_epi8(x, zero_bytes()));
}

constexpr int NV = 2;
using Lanes = __m256;
inline Lanes zero_lanes() { return _mm256_setzero_ps(); }
inline Lanes load_lanes(const float* p) { return _mm256_load_ps(p); }
inline Lanes broadcast(const float* p) { return _mm256_broadcast_ss(p); }
inline void fma_into(Lanes& sum, Lanes x, Lanes y) { asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(x), "x"(y)); }
inline F16 joined(const Lanes* v) { return {v[0], v[1]}; }

using IntLanes = __m256i;
inline IntLanes zero_int() { return _mm256_setzero_si256(); }
inline IntLanes load_pairs(const int16_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }
inline IntLanes broadcast_pair(const int16_t* p) {
  int pair;
  __builtin_memcpy(&pair, p, 4);
  return _mm256_set1_epi32(pair);
}
inline void dot_into(IntLanes& sum, IntLanes x, IntLanes y) {
  const IntLanes products = _mm256_madd_epi16(x, y);
  asm("vpaddd %1, %0, %0" : "+x"(sum) : "x"(products));
}
inline F16 joined(const IntLanes* v) { return {_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])}; }

}  // namespace

#include "kernels.inc"

const Kernels* avx2_kernels() {
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return nullptr;
  static const bool once = (fill_tables(), true);
  (void)once;
  static const Kernels kernels = {"avx2", binary_plan, binary_pack, binary_prepare, binary_rows,
                                  real_rows, int16_rows, quantize, real_transform, int16_transform, real_winograd,
                                  int16_winograd, depthwise_row, max_pool_row, avg_pool_row, map};
  return &kernels;
}

}  // namespace bireal
#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
const bireal::Kernels* bireal::avx2_kernels() { return nullptr; }
#endif
