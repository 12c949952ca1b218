#include "tables.h"

#if defined(__aarch64__)  // every one has NEON
#define native_lanes 4
constexpr int at_once = 4, at_once_wide = 2;  // 16 of 32 registers
#include "tables.inc"

const tables::Kernels* tables::neon() { return &kernels; }
#else
const tables::Kernels* tables::neon() { return nullptr; }
#endif
