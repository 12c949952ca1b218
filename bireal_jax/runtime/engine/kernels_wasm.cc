#include "kernels.h"

#if defined(__wasm_simd128__)
#include <wasm_simd128.h>

namespace bireal {
namespace {

struct F16 {
  v128_t v[4];
};
template <class Function>
inline F16 each(Function f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline F16 load(const float* p) { return each([&](int i) { return wasm_v128_load(p + 4 * i); }); }
inline void store(float* p, const F16& x) {
  for (int i = 0; i < 4; i++) wasm_v128_store(p + 4 * i, x.v[i]);
}
inline F16 set(float x) { return each([&](int) { return wasm_f32x4_splat(x); }); }
inline F16 zero() { return set(0); }
inline F16 add(const F16& x, const F16& y) { return each([&](int i) { return wasm_f32x4_add(x.v[i], y.v[i]); }); }
inline F16 sub(const F16& x, const F16& y) { return each([&](int i) { return wasm_f32x4_sub(x.v[i], y.v[i]); }); }
inline F16 mul(const F16& x, const F16& y) { return each([&](int i) { return wasm_f32x4_mul(x.v[i], y.v[i]); }); }
inline F16 fma(const F16& x, const F16& y, const F16& z) { return add(mul(x, y), z); }  // no fused one outside relaxed SIMD
// As the instructions of x86: the second where one is not a number.
inline F16 vmax(const F16& x, const F16& y) { return each([&](int i) { return wasm_f32x4_pmax(y.v[i], x.v[i]); }); }
inline F16 vmin(const F16& x, const F16& y) { return each([&](int i) { return wasm_f32x4_pmin(y.v[i], x.v[i]); }); }
inline v128_t nonnegative(v128_t x) { return wasm_f32x4_ge(x, wasm_f32x4_const_splat(0)); }
inline F16 where_nonnegative(const F16& x, const F16& y, const F16& z) {
  return each([&](int i) { return wasm_v128_bitselect(y.v[i], z.v[i], nonnegative(x.v[i])); });
}
inline uint16_t nonnegative_mask(const F16& x) {
  const auto eight = [&](int i) { return wasm_i16x8_narrow_i32x4(nonnegative(x.v[i]), nonnegative(x.v[i + 1])); };
  return uint16_t(wasm_i8x16_bitmask(wasm_i8x16_narrow_i16x8(eight(0), eight(2))));
}
inline F16 from_counts(const uint16_t* low, const uint16_t* high, int base) {
  return each([&](int i) {
    const v128_t n = wasm_u32x4_load16x4((i < 2 ? low : high) + i % 2 * 4);
    return wasm_f32x4_convert_i32x4(wasm_i32x4_sub(wasm_i32x4_splat(base), wasm_i32x4_shl(n, 1)));
  });
}

// Engines for x86 have sixteen registers, and a swizzle takes two instructions there.
constexpr int LW = 16, PAIRS = 2, FILTERS = 2;
using Bytes = v128_t;
inline Bytes zero_bytes() { return wasm_i8x16_const_splat(0); }
inline Bytes load_bytes(const uint8_t* p) { return wasm_v128_load(p); }
inline Bytes table_bytes(const uint8_t* p) { return wasm_v128_load(p); }
inline Bytes shuffle(Bytes table, Bytes index) { return wasm_i8x16_swizzle(table, index); }
inline void add_into(Bytes& sum, Bytes x) { sum = wasm_i8x16_add(sum, x); }
// A shift of 16 bits, as for AVX2: what it brings down from an odd byte is taken off when all is added up.
inline Bytes high_nibbles(Bytes x) { return wasm_u16x8_shr(x, 4); }
inline Bytes low_of_pair(Bytes raw, Bytes high) {  // raw - 16 high, modulo 256
  return wasm_i8x16_sub(raw, wasm_i16x8_shl(wasm_v128_and(high, wasm_i8x16_const_splat(15)), 4));
}
inline Bytes settled(Bytes raw, Bytes high) {
  const Bytes odd = low_of_pair(raw, high);  // right in odd bytes, where `high` is
  return wasm_i8x16_sub(high, wasm_v128_and(wasm_u16x8_shr(odd, 4), wasm_i16x8_const_splat(0xf0)));
}
inline void widen_add(uint16_t* counts, Bytes x) {
  wasm_v128_store(counts, wasm_i16x8_add(wasm_v128_load(counts), wasm_u16x8_extend_low_u8x16(x)));
  wasm_v128_store(counts + 8, wasm_i16x8_add(wasm_v128_load(counts + 8), wasm_u16x8_extend_high_u8x16(x)));
}

constexpr int NV = 4, PIXELS = 2, TILES = 2;
using Lanes = v128_t;
inline Lanes zero_lanes() { return wasm_f32x4_const_splat(0); }
inline Lanes load_lanes(const float* p) { return wasm_v128_load(p); }
inline Lanes broadcast(const float* p) { return wasm_v128_load32_splat(p); }
inline void fma_into(Lanes& sum, Lanes x, Lanes y) { sum = wasm_f32x4_add(sum, wasm_f32x4_mul(x, y)); }
inline F16 joined(const Lanes* v) { return {{v[0], v[1], v[2], v[3]}}; }

struct IntLanes {
  v128_t v;
};
inline IntLanes zero_int() { return {wasm_i32x4_const_splat(0)}; }
inline IntLanes load_pairs(const int16_t* p) { return {wasm_v128_load(p)}; }
inline IntLanes broadcast_pair(const int16_t* p) { return {wasm_v128_load32_splat(p)}; }
inline void dot_into(IntLanes& sum, IntLanes x, IntLanes y) {
  sum.v = wasm_i32x4_add(sum.v, wasm_i32x4_dot_i16x8(x.v, y.v));
}
inline F16 joined(const IntLanes* x) {
  return each([&](int i) { return wasm_f32x4_convert_i32x4(x[i].v); });
}

}  // namespace

#include "kernels.inc"

const Kernels* wasm_kernels() {
  static const bool once = (fill_tables(), true);
  (void)once;
  static const Kernels kernels = {"wasm", binary_plan, binary_pack, binary_prepare, binary_rows,
                                  real_rows, int16_rows, quantize, real_transform, int16_transform, real_winograd,
                                  int16_winograd, depthwise_row, max_pool_row, avg_pool_row, map};
  return &kernels;
}

}  // namespace bireal
#else
const bireal::Kernels* bireal::wasm_kernels() { return nullptr; }
#endif
