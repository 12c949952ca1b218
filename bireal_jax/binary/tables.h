// What differs by instruction set in tables.cc. All give the same bits: a lane's additions have one order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace tables {

constexpr int lanes = 16;          // floats of a vector
constexpr int rows = 16;           // of a table: a sum for each choice of four signs
constexpr int table = rows * lanes;
constexpr int most = 16;           // tables that are summed up before anything is stored; 16 KB
constexpr int second = most * table;  // of two vectors' tables those of the second are so far behind those of the first
constexpr int tile = 8;            // channels are filled up to a multiple of this
constexpr int index_step = 8;      // rows are numbered 0, 8, 16 ...: times 8 that is bytes

// One table, its place in bytes, and the first of the bytes that pick its rows: one for each channel.
struct Term {
  uint32_t table, picks;
};

// Vectors of `width` (1 or 2) times 16 lanes: the second half of sums is `half` floats further on.
struct Kernels {
  // sums[channel] += the rows that the terms pick, added up.
  void (*add)(const float* tables, const uint8_t* picks, const Term* terms, int count, int channels, int width,
              float* sums, size_t half);
  // The 16 signed sums of x[0] to x[3]; bit j of the row is set where x[j] is added. nothing += 0 x, NaN where x is not finite.
  void (*fill)(const float* const* x, int width, float* table, float* nothing);
  // Four tables of 16 channels times their scale, each [lane] -> [channel]: four channels a table, or eight tables of two channels, each -1, 0 or
  // 1 times, row 3 b + a. `step`: floats from a table to the next.
  void (*fill_channels)(const float* const* x, const float* scale, bool zeros, float* tables, size_t step);
  // to[lane][channel] from sums [channel][lane], 16 x 16.
  void (*transpose)(const float* sums, float* const* to);
  // Which of four are 1, in four bits: a row's number.
  void (*pick)(const uint8_t* const* x, size_t count, uint8_t* picks);
};

// Null where the CPU, or the compiler, has no such instructions.
const Kernels* portable();
const Kernels* avx2();
const Kernels* avx512();
const Kernels* neon();

}  // namespace tables
