#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace bireal {
namespace {

struct F16 {
  float32x4_t v[4];
};
template <class Function>
inline F16 each(Function f) {
  return {{f(0), f(1), f(2), f(3)}};
}
inline F16 load(const float* p) { return each([&](int i) { return vld1q_f32(p + 4 * i); }); }
inline void store(float* p, const F16& x) {
  for (int i = 0; i < 4; i++) vst1q_f32(p + 4 * i, x.v[i]);
}
inline F16 set(float x) { return each([&](int) { return vdupq_n_f32(x); }); }
inline F16 zero() { return set(0); }
inline F16 fma(const F16& x, const F16& y, const F16& z) {
  return each([&](int i) { return vfmaq_f32(z.v[i], x.v[i], y.v[i]); });
}
inline F16 add(const F16& x, const F16& y) { return each([&](int i) { return vaddq_f32(x.v[i], y.v[i]); }); }
inline F16 sub(const F16& x, const F16& y) { return each([&](int i) { return vsubq_f32(x.v[i], y.v[i]); }); }
inline F16 mul(const F16& x, const F16& y) { return each([&](int i) { return vmulq_f32(x.v[i], y.v[i]); }); }
inline F16 vmax(const F16& x, const F16& y) { return each([&](int i) { return vmaxq_f32(x.v[i], y.v[i]); }); }
inline F16 vmin(const F16& x, const F16& y) { return each([&](int i) { return vminq_f32(x.v[i], y.v[i]); }); }
inline F16 where_nonnegative(const F16& x, const F16& y, const F16& z) {
  return each([&](int i) { return vbslq_f32(vcgezq_f32(x.v[i]), y.v[i], z.v[i]); });
}
inline uint16_t nonnegative_mask(const F16& x) {
  const auto eight = [&](int i) {
    return vcombine_u16(vmovn_u32(vcgezq_f32(x.v[i])), vmovn_u32(vcgezq_f32(x.v[i + 1])));
  };
  static const uint16_t weights[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  const uint16x8_t w = vld1q_u16(weights);
  return uint16_t(vaddvq_u16(vandq_u16(eight(0), w)) | vaddvq_u16(vandq_u16(eight(2), w)) << 8);
}
inline F16 from_counts(const uint16_t* low, const uint16_t* high, int base) {
  return each([&](int i) {
    const uint16x4_t n = vld1_u16((i < 2 ? low : high) + i % 2 * 4);
    return vcvtq_f32_s32(vsubq_s32(vdupq_n_s32(base), vreinterpretq_s32_u32(vshll_n_u16(n, 1))));
  });
}

constexpr int LW = 16, PAIRS = 3, FILTERS = 2;  // 12 sums, 6 weights, 3 tables: with 4 pairs GCC spills
using Bytes = uint8x16_t;
inline Bytes zero_bytes() { return vdupq_n_u8(0); }
inline Bytes load_bytes(const uint8_t* p) { return vld1q_u8(p); }
inline Bytes table_bytes(const uint8_t* p) { return vld1q_u8(p); }
inline Bytes shuffle(Bytes table, Bytes index) { return vqtbl1q_u8(table, index); }
inline void add_into(Bytes& sum, Bytes x) { sum = vaddq_u8(sum, x); }
inline Bytes high_nibbles(Bytes x) { return vshrq_n_u8(x, 4); }
inline Bytes settled(Bytes, Bytes high) { return high; }
inline Bytes low_of_pair(Bytes raw, Bytes high) { return vsubq_u8(raw, vshlq_n_u8(high, 4)); }
inline void widen_add(uint16_t* counts, Bytes x) {
  vst1q_u16(counts, vaddw_u8(vld1q_u16(counts), vget_low_u8(x)));
  vst1q_u16(counts + 8, vaddw_high_u8(vld1q_u16(counts + 8), x));
}

constexpr int NV = 4, PIXELS = 4, TILES = 4;  // 16 sums: 4 cycles of latency on four units
using Lanes = float32x4_t;
inline Lanes zero_lanes() { return vdupq_n_f32(0); }
inline Lanes load_lanes(const float* p) { return vld1q_f32(p); }
inline Lanes broadcast(const float* p) { return vld1q_dup_f32(p); }
inline void fma_into(Lanes& sum, Lanes x, Lanes y) { sum = vfmaq_f32(sum, x, y); }
inline F16 joined(const Lanes* v) { return {{v[0], v[1], v[2], v[3]}}; }

// Pairs of weights with the first numbers in the low half, the second ones in the high half.
using IntLanes = int32x4_t;
inline IntLanes zero_int() { return vdupq_n_s32(0); }
inline IntLanes load_pairs(const int16_t* p) {
  const int16x4x2_t pairs = vld2_s16(p);
  return vreinterpretq_s32_s16(vcombine_s16(pairs.val[0], pairs.val[1]));
}
inline IntLanes broadcast_pair(const int16_t* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, 4);
  return vdupq_n_s32(pair);
}
inline void dot_into(IntLanes& sum, IntLanes x, IntLanes y) {
  const int16x8_t a = vreinterpretq_s16_s32(x), b = vreinterpretq_s16_s32(y);
  sum = vmlal_high_laneq_s16(vmlal_laneq_s16(sum, vget_low_s16(b), a, 0), b, a, 1);
}
inline F16 joined(const IntLanes* v) {
  return each([&](int i) { return vcvtq_f32_s32(v[i]); });
}

}  // namespace

#include "kernels.inc"

const Kernels* neon_kernels() {
  static const bool once = (fill_tables(), true);
  (void)once;
  static const Kernels kernels = {"neon", binary_plan, binary_pack, binary_prepare, binary_rows,
                                  real_rows, int16_rows, quantize, real_transform, int16_transform, real_winograd,
                                  int16_winograd, depthwise_row, max_pool_row, avg_pool_row, map};
  return &kernels;
}

}  // namespace bireal
#else
const bireal::Kernels* bireal::neon_kernels() { return nullptr; }
#endif
