// The maximum over a normalized map, and the gradient of both in one pass: what pool.py and norm.py say in JAX, of which XLA's
// CPU backend makes a dozen maps of the size of the largest one, and takes a tenth of an ImageNet step. Windows of 3x3 at stride
// 2 with a border of 1. Threads share rows, and no sum is divided.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "conv.h"
#include "xla.h"

namespace {

constexpr int size = 3, stride = 2;  // of a window

struct Map {
  int32_t n, h, w, c, threads, newest;  // x is [n, h, w, c], the maxima [n, ho, wo, c]

  int ho() const { return (h + 2 - size) / stride + 1; }
  int wo() const { return (w + 2 - size) / stride + 1; }
};

// The largest of `count` pixels for each channel, times its sign, and which it is: the first among equals, -1 for NaN.
struct Window {
  const float* x[size * size];
  int8_t number[size * size];
  int count;
};

// Of each channel: the gradient of a normalization is (what reaches a number - mean_g - (x - mean) slope) factor.
struct Norm {
  const float *mean, *mean_g, *slope, *factor;
};

// The windows that a pixel is in.
struct Windows {
  const float* g[4];
  const int8_t* which[4];
  int8_t number[4];
  int count;
};

struct Kernels {
  void (*largest)(const Window&, const float* sign, int channels, float* seen, int8_t* which);
  void (*reaches)(const Windows&, const Norm&, const float* x, int channels, float* dx);
};

#define KERNELS "pool.inc"
#include "instructions.h"

template <class Work>
void each_row(const Team& team, int64_t rows, const Work& work) {
  std::atomic<int64_t> next{0};
  team.run([&] {
    for (int64_t row; (row = next++) < rows;) work(row);
  });
}

void forward(const Map& v, const Team& team, const float* x, const float* sign, float* seen, int8_t* which) {
  const Kernels& kernels = choose(v.newest);
  each_row(team, int64_t(v.n) * v.ho(), [&](int64_t row) {
    const int64_t image = row / v.ho();
    const int top = int(row % v.ho()) * stride - 1;
    for (int column = 0; column < v.wo(); column++) {
      Window window;
      window.count = 0;
      for (int k = 0; k < size * size; k++) {
        const int y = top + k / size, at = column * stride - 1 + k % size;
        if (y < 0 || y >= v.h || at < 0 || at >= v.w) continue;
        window.x[window.count] = x + ((image * v.h + y) * v.w + at) * v.c;
        window.number[window.count++] = int8_t(k);
      }
      const size_t to = (row * v.wo() + column) * v.c;
      kernels.largest(window, sign, v.c, seen + to, which + to);
    }
  });
}

void backward(const Map& v, const Team& team, const float* x, const float* g, const int8_t* which, const Norm& norm, float* dx) {
  const Kernels& kernels = choose(v.newest);
  each_row(team, int64_t(v.n) * v.h, [&](int64_t row) {
    const int64_t image = row / v.h;
    const int y = int(row % v.h);
    for (int column = 0; column < v.w; column++) {
      Windows windows;
      windows.count = 0;
      for (int oy = y / stride; oy <= std::min((y + 1) / stride, v.ho() - 1); oy++)
        for (int ox = column / stride; ox <= std::min((column + 1) / stride, v.wo() - 1); ox++) {
          const size_t at = ((image * v.ho() + oy) * v.wo() + ox) * v.c;
          windows.g[windows.count] = g + at, windows.which[windows.count] = which + at;
          windows.number[windows.count++] = int8_t((y + 1 - oy * stride) * size + column + 1 - ox * stride);
        }
      const size_t at = (row * v.w + column) * v.c;
      kernels.reaches(windows, norm, x + at, v.c, dx + at);
    }
  });
}

constexpr const char* no_memory = "no memory for a pooling";

}  // namespace

// Arguments: the members of Map as int32, and what the functions above have, `which` in bytes and all else in float32; the caller
// has checked all shapes.
extern "C" __attribute__((visibility("default"))) void* bireal_pool_largest(xla::Call* call) {
  return answer<Map>(call, no_memory, [&](const Map& v, const Team& team) {
    forward(v, team, xla::in<float>(call, 1), xla::in<float>(call, 2), xla::out<float>(call, 0), xla::out<int8_t>(call, 1));
  });
}
extern "C" __attribute__((visibility("default"))) void* bireal_pool_gradient(xla::Call* call) {
  return answer<Map>(call, no_memory, [&](const Map& v, const Team& team) {
    const auto in = [&](int i) { return xla::in<float>(call, i); };
    backward(v, team, in(1), in(2), xla::in<int8_t>(call, 3), {in(4), in(5), in(6), in(7)}, xla::out<float>(call, 0));
  });
}
