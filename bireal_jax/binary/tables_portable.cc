#include "tables.h"

#define native_lanes 4
constexpr int at_once = 2, at_once_wide = 1;  // 8 of the 16 registers of SSE
#include "tables.inc"

const tables::Kernels* tables::portable() { return &kernels; }
