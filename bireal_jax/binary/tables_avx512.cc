#include "tables.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#endif
#define native_lanes 16
constexpr int at_once = 8, at_once_wide = 8;
#include "tables.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const tables::Kernels* tables::avx512() {
  __builtin_cpu_init();
  const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has ? &kernels : nullptr;
}
#else
const tables::Kernels* tables::avx512() { return nullptr; }
#endif
