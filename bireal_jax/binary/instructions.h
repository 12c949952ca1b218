// Includes the file KERNELS, which defines `kernels`, once for each instruction set, in a namespace of its own and with
// `native_lanes` floats in a vector; and choose(newest), the Kernels for this CPU. What is written in vectors of GCC's and
// Clang's must be compiled so: inlined into a function for other instructions it would have been taken apart before.
#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

#if defined(__x86_64__)
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12 warns of its own header: gcc.gnu.org/PR105593
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#endif
namespace avx512 {
#define native_lanes 16
constexpr int registers = 24;  // for sums
inline __m512 fused(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }  // a b + c
#include KERNELS
#undef native_lanes
}  // namespace avx512
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
namespace avx2 {
#define native_lanes 8
constexpr int registers = 12;
inline __m256 fused(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
#include KERNELS
#undef native_lanes
}  // namespace avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace portable {
#define native_lanes 4
#if defined(__aarch64__)
constexpr int registers = 24;
inline float32x4_t fused(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
#else
constexpr int registers = 8;
template <class V>
inline V fused(V a, V b, V c) {
  return a * b + c;
}
#endif
#include KERNELS
#undef native_lanes
}  // namespace portable

inline const Kernels& choose(int newest) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (newest >= 2 && has) return avx512::kernels;
  if (newest >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels;
#endif
  (void)newest;
  return portable::kernels;
}
