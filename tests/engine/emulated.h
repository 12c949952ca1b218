// AVX-512 in plain C++, for CPUs without it: SIMDe, and what its version 0.7.4 lacks.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

#define __builtin_cpu_supports(name) 1

inline __m512i emulated_cvtepu16_epi32(__m256i x) {
  uint16_t from[16];
  int32_t to[16];
  __builtin_memcpy(from, &x, sizeof from);
  for (int i = 0; i < 16; i++) to[i] = from[i];
  return _mm512_loadu_si512(to);
}
#undef _mm512_cvtepu16_epi32
#define _mm512_cvtepu16_epi32 emulated_cvtepu16_epi32

inline __m512 emulated_cvtepi32_ps(__m512i x) {
  int32_t from[16];
  float to[16];
  _mm512_storeu_si512(from, x);
  for (int i = 0; i < 16; i++) to[i] = float(from[i]);
  return _mm512_loadu_ps(to);
}
#undef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps emulated_cvtepi32_ps

#undef _mm512_madd_epi16  // that version gives the name to the masked one
#define _mm512_madd_epi16 simde_mm512_madd_epi16
