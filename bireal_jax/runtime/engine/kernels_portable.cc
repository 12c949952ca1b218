#include "kernels.h"

#if !defined(__wasm_simd128__)  // which is all that the engine runs on there

namespace bireal {
namespace {

struct F16 {
  float v[16];
};
template <class Function>
inline F16 each(Function f) {
  F16 r;
  for (int i = 0; i < 16; i++) r.v[i] = f(i);
  return r;
}
inline F16 load(const float* p) { return each([&](int i) { return p[i]; }); }
inline void store(float* p, const F16& x) { __builtin_memcpy(p, x.v, sizeof x.v); }
inline F16 set(float x) { return each([&](int) { return x; }); }
inline F16 zero() { return set(0); }
inline F16 fma(const F16& x, const F16& y, const F16& z) {
  return each([&](int i) { return x.v[i] * y.v[i] + z.v[i]; });
}
inline F16 add(const F16& x, const F16& y) { return each([&](int i) { return x.v[i] + y.v[i]; }); }
inline F16 sub(const F16& x, const F16& y) { return each([&](int i) { return x.v[i] - y.v[i]; }); }
inline F16 mul(const F16& x, const F16& y) { return each([&](int i) { return x.v[i] * y.v[i]; }); }
// As the instructions of x86: the second where one is not a number.
inline F16 vmax(const F16& x, const F16& y) { return each([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; }); }
inline F16 vmin(const F16& x, const F16& y) { return each([&](int i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; }); }
inline F16 where_nonnegative(const F16& x, const F16& y, const F16& z) {
  return each([&](int i) { return x.v[i] >= 0 ? y.v[i] : z.v[i]; });
}
inline uint16_t nonnegative_mask(const F16& x) {
  unsigned mask = 0;
  for (int i = 0; i < 16; i++) mask |= unsigned(x.v[i] >= 0) << i;
  return uint16_t(mask);
}
inline F16 from_counts(const uint16_t* low, const uint16_t* high, int base) {
  return each([&](int i) { return float(base - 2 * int(i < 8 ? low[i] : high[i - 8])); });
}

constexpr int LW = 16, PAIRS = 1, FILTERS = 1, PIXELS = 4, TILES = 4;
struct Bytes {
  uint8_t v[LW];
};
template <class Function>
inline Bytes bytes(Function f) {
  Bytes r;
  for (int i = 0; i < LW; i++) r.v[i] = uint8_t(f(i));
  return r;
}
inline Bytes zero_bytes() { return bytes([](int) { return 0; }); }
inline Bytes load_bytes(const uint8_t* p) { return bytes([&](int i) { return p[i]; }); }
inline Bytes table_bytes(const uint8_t* p) { return load_bytes(p); }
inline Bytes shuffle(const Bytes& table, const Bytes& index) {
  return bytes([&](int i) { return index.v[i] & 0x80 ? 0 : table.v[index.v[i] & 15]; });
}
inline void add_into(Bytes& sum, const Bytes& x) { sum = bytes([&](int i) { return sum.v[i] + x.v[i]; }); }
inline Bytes high_nibbles(const Bytes& x) { return bytes([&](int i) { return x.v[i] >> 4; }); }
inline Bytes settled(const Bytes&, const Bytes& high) { return high; }
inline Bytes low_of_pair(const Bytes& raw, const Bytes& high) {
  return bytes([&](int i) { return raw.v[i] - 16 * high.v[i]; });
}
inline void widen_add(uint16_t* counts, const Bytes& x) {
  for (int i = 0; i < LW; i++) counts[i] = uint16_t(counts[i] + x.v[i]);
}

constexpr int NV = 1;
using Lanes = F16;
inline Lanes zero_lanes() { return zero(); }
inline Lanes load_lanes(const float* p) { return load(p); }
inline Lanes broadcast(const float* p) { return set(*p); }
inline void fma_into(Lanes& sum, const Lanes& x, const Lanes& y) {
  for (int i = 0; i < 16; i++) sum.v[i] += x.v[i] * y.v[i];
}
inline F16 joined(const Lanes* v) { return *v; }

struct IntLanes {
  int32_t v[32];
};
inline IntLanes zero_int() { return {}; }
inline IntLanes load_pairs(const int16_t* p) {
  IntLanes r;
  for (int i = 0; i < 32; i++) r.v[i] = p[i];
  return r;
}
inline IntLanes broadcast_pair(const int16_t* p) {
  IntLanes r;
  for (int i = 0; i < 32; i++) r.v[i] = p[i % 2];
  return r;
}
inline void dot_into(IntLanes& sum, const IntLanes& x, const IntLanes& y) {
  for (int i = 0; i < 16; i++) sum.v[i] += x.v[2 * i] * y.v[2 * i] + x.v[2 * i + 1] * y.v[2 * i + 1];
}
inline F16 joined(const IntLanes* x) {
  return each([&](int i) { return float(x->v[i]); });
}

}  // namespace

#include "kernels.inc"

const Kernels* portable_kernels() {
  static const bool once = (fill_tables(), true);
  (void)once;
  static const Kernels kernels = {"portable", binary_plan, binary_pack, binary_prepare, binary_rows,
                                  real_rows, int16_rows, quantize, real_transform, int16_transform, real_winograd,
                                  int16_winograd, depthwise_row, max_pool_row, avg_pool_row, map};
  return &kernels;
}

}  // namespace bireal
#else
const bireal::Kernels* bireal::portable_kernels() { return nullptr; }
#endif
