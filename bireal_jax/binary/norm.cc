// What batch normalization sums up over a map, each number read once. XLA's CPU backend writes what it adds up to memory
// first: an activation less its mean, to be squared, is a map more to write and one more to read.
//
// What is added up of a block of rows is away from the mean of the blocks before, of the first block from its own, so that
// nothing cancels; blocks are joined by Chan's formula (Chan, Golub and LeVeque, 1979), in double. Which numbers are a block,
// and in what order blocks are joined, depends on the shape alone: the bits are those of every number of threads, and of all
// instruction sets.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <vector>

#include "conv.h"
#include "xla.h"

#if defined(__x86_64__)
#define AVX2 __attribute__((target("avx2")))
#define AVX512 __attribute__((target("avx512f")))
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int lanes = 16, most = 64;  // numbers that are added up side by side, in registers
constexpr int block = 8192;           // numbers of a block: 32 KB
constexpr int slices = 64;            // of the rows, each the work of one thread

struct Map {
  int32_t rows, c, threads, newest;  // x is [rows, c]

  int side() const {  // rows that are added up side by side
    int rows_of = 1;
    while (c < most && (rows_of * c < most || rows_of * c % lanes)) rows_of++;
    return rows_of;
  }
  int width() const { return side() * c; }
};

// Two sums over `count` rows of `width` numbers, column by column: of a term's `first`, and of its `second`.
struct Away {  // what is away from a column's centre, and its square
  const float *x, *centre;
  INLINE float first(size_t at, int column) const { return x[at] - centre[column]; }
  INLINE float second(size_t at, int column) const { return first(at, column) * first(at, column); }
};
struct Back {  // a gradient, and its product with what is away
  const float *x, *centre, *g;
  INLINE float first(size_t at, int) const { return g[at]; }
  INLINE float second(size_t at, int column) const { return (x[at] - centre[column]) * g[at]; }
};

template <int wide, class Term>
INLINE int strip(const Term& term, int count, int width, int from, float* first, float* second) {
  for (; from + wide <= width; from += wide) {
    float a[wide] = {}, b[wide] = {};
    for (int row = 0; row < count; row++)
      for (int l = 0; l < wide; l++) {
        a[l] += term.first(size_t(row) * width + from + l, from + l);
        b[l] += term.second(size_t(row) * width + from + l, from + l);
      }
    std::memcpy(first + from, a, sizeof a), std::memcpy(second + from, b, sizeof b);
  }
  return from;
}

template <class Term>
INLINE void columns(const Term& term, int count, int width, float* first, float* second) {
  int from = strip<most>(term, count, width, 0, first, second);
  from = strip<lanes>(term, count, width, from, first, second);
  strip<1>(term, count, width, from, first, second);
}

struct Kernels {
  void (*away)(const Away&, int, int, float*, float*);
  void (*back)(const Back&, int, int, float*, float*);
};

#define KERNELS(name, target)                                                                                           \
  target void name##_away(const Away& t, int count, int width, float* a, float* b) { columns(t, count, width, a, b); }  \
  target void name##_back(const Back& t, int count, int width, float* a, float* b) { columns(t, count, width, a, b); }  \
  constexpr Kernels name = {name##_away, name##_back};

KERNELS(plain, )
#if defined(__x86_64__)
KERNELS(avx2, AVX2)
KERNELS(avx512, AVX512)
#endif

const Kernels& choose(const Map& v) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (v.newest >= 2 && __builtin_cpu_supports("avx512f")) return avx512;
  if (v.newest >= 1 && __builtin_cpu_supports("avx2")) return avx2;
#endif
  (void)v;
  return plain;
}

// Columns of rows side by side into channels.
void fold(const Map& v, int side, const float* sums, double* to) {
  std::fill(to, to + v.c, 0.0);
  for (int s = 0; s < side; s++)
    for (int c = 0; c < v.c; c++) to[c] += sums[s * v.c + c];
}

void spread(const Map& v, const float* of_channels, float* to) {
  for (int s = 0; s < v.side(); s++) std::memcpy(to + s * v.c, of_channels, v.c * sizeof(float));
}

// Runs `work(first, count, side)` over the blocks of a slice: `count` times `side` rows; the last ones by themselves.
template <class Work>
void blocks_of(const Map& v, int slice, const Work& work) {
  const int64_t all = v.rows / v.side(), first = all * slice / slices, end = all * (slice + 1) / slices;
  const int64_t at_once = std::max(1, block / v.width());
  for (int64_t at = first; at < end; at += at_once) work(at * v.side(), int(std::min(at_once, end - at)), v.side());
  const int rest = v.rows % v.side();
  if (slice == slices - 1 && rest) work(all * v.side(), rest, 1);
}

template <class Work>
void each_slice(const Team& team, const Work& work) {
  std::atomic<int> next{0};
  team.run([&] {
    for (int slice; (slice = next++) < slices;) work(slice);
  });
}

// Mean, and sum of the squares of what is away from it, of some numbers of each channel.
struct Moments {
  std::vector<double> mean, squares;
  double count = 0;

  explicit Moments(int c) : mean(c), squares(c) {}

  void join(const double* other_mean, const double* other_squares, double other_count) {
    if (!other_count) return;
    const double total = count + other_count, share = other_count / total, both = count * share;
    for (size_t c = 0; c < mean.size(); c++) {
      const double apart = other_mean[c] - mean[c];
      mean[c] += apart * share;
      squares[c] += other_squares[c] + apart * apart * both;
    }
    count = total;
  }
};

// Mean and variance of each channel of x.
void moments(const Map& v, const Team& team, const float* x, float* mean, float* variance) {
  const Kernels& kernels = choose(v);
  std::vector<Moments> parts(slices, Moments(v.c));
  each_slice(team, [&](int slice) {
    std::vector<float> away(v.width()), squared(v.width()), near(v.c), centre(v.width());
    std::vector<double> off(v.c), squares(v.c);
    Moments& part = parts[slice];
    blocks_of(v, slice, [&](int64_t first, int count, int side) {
      const float* from = x + first * v.c;
      const double numbers = double(count) * side;
      const auto sum = [&] {
        kernels.away({from, centre.data()}, count, side * v.c, away.data(), squared.data());
        fold(v, side, away.data(), off.data());
      };
      if (!part.count) {
        sum();
        for (int c = 0; c < v.c; c++) near[c] = float(off[c] / numbers);
      } else {
        for (int c = 0; c < v.c; c++) near[c] = float(part.mean[c]);
      }
      spread(v, near.data(), centre.data());
      sum();
      fold(v, side, squared.data(), squares.data());
      for (int c = 0; c < v.c; c++) {
        off[c] /= numbers, squares[c] -= numbers * off[c] * off[c], off[c] += near[c];
        if (squares[c] < 0) squares[c] = 0;  // not max(), which would clean a NaN
      }
      part.join(off.data(), squares.data(), numbers);
    });
  });
  Moments all(v.c);
  for (const Moments& part : parts) all.join(part.mean.data(), part.squares.data(), part.count);
  for (int c = 0; c < v.c; c++) mean[c] = float(all.mean[c]), variance[c] = float(all.squares[c] / all.count);
}

// Sums of g, and of g times x less its mean, of each channel.
void gradients(const Map& v, const Team& team, const float* x, const float* g, const float* mean, float* of_g, float* of_products) {
  const Kernels& kernels = choose(v);
  std::vector<double> parts(size_t(slices) * 2 * v.c);
  std::vector<float> centre(v.width());
  spread(v, mean, centre.data());
  each_slice(team, [&](int slice) {
    std::vector<float> sums(v.width()), products(v.width());
    std::vector<double> folded(v.c);
    double* total = parts.data() + size_t(slice) * 2 * v.c;
    blocks_of(v, slice, [&](int64_t first, int count, int side) {
      kernels.back({x + first * v.c, centre.data(), g + first * v.c}, count, side * v.c, sums.data(), products.data());
      fold(v, side, sums.data(), folded.data());
      for (int c = 0; c < v.c; c++) total[c] += folded[c];
      fold(v, side, products.data(), folded.data());
      for (int c = 0; c < v.c; c++) total[v.c + c] += folded[c];
    });
  });
  for (int c = 0; c < v.c; c++) {
    double sum = 0, products = 0;
    for (int slice = 0; slice < slices; slice++)
      sum += parts[size_t(slice) * 2 * v.c + c], products += parts[(size_t(slice) * 2 + 1) * v.c + c];
    of_g[c] = float(sum), of_products[c] = float(products);
  }
}

constexpr const char* no_memory = "no memory for the sums of a batch norm";

}  // namespace

// Arguments: the members of Map as int32, and float32 as the functions above have them; the caller has checked all shapes.
extern "C" __attribute__((visibility("default"))) void* bireal_norm_moments(xla::Call* call) {
  return answer<Map>(call, no_memory, [&](const Map& v, const Team& team) {
    moments(v, team, xla::in<float>(call, 1), xla::out<float>(call, 0), xla::out<float>(call, 1));
  });
}
extern "C" __attribute__((visibility("default"))) void* bireal_norm_gradients(xla::Call* call) {
  return answer<Map>(call, no_memory, [&](const Map& v, const Team& team) {
    gradients(v, team, xla::in<float>(call, 1), xla::in<float>(call, 2), xla::in<float>(call, 3), xla::out<float>(call, 0),
              xla::out<float>(call, 1));
  });
}
