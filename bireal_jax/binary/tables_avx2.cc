#include "tables.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#define native_lanes 8
constexpr int at_once = 4, at_once_wide = 2;
#include "tables.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif

const tables::Kernels* tables::avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") ? &kernels : nullptr;
}
#else
const tables::Kernels* tables::avx2() { return nullptr; }
#endif
