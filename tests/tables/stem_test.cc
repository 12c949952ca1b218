// The first convolution and the pooling behind it, of many shapes, against plain loops, through the call that XLA makes.
//
//   stem_test NEWEST     prints how many shapes were wrong
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "call.h"
#include "conv.h"

extern "C" void* bireal_stem_conv(xla::Call*);
extern "C" void* bireal_stem_by_kernel(xla::Call*);
extern "C" void* bireal_pool_largest(xla::Call*);
extern "C" void* bireal_pool_gradient(xla::Call*);

static uint64_t state = 1;
static int random_to(int count) {  // 0 .. count - 1
  state = state * 6364136223846793005u + 1442695040888963407u;
  return int((state >> 33) % uint64_t(count));
}

static std::vector<float> numbers(size_t count, int of) {  // whole ones, so that sums are exact and maxima equal
  std::vector<float> found(count);
  for (auto& f : found) f = float(random_to(of) - of / 2);
  return found;
}

static bool stem(int newest) {
  Conv v = {};
  v.n = 1 + random_to(4), v.h = 1 + random_to(12), v.w = 1 + random_to(20), v.c = 1 + random_to(4), v.co = 1 + random_to(70);
  v.sh = 1 + random_to(3), v.sw = 1 + random_to(3), v.top = random_to(4), v.left = random_to(4);
  const int high = v.h + v.top + random_to(4), wide = v.w + v.left + random_to(4);
  v.kh = std::min(1 + random_to(7), high), v.kw = std::min(1 + random_to(7), wide);
  v.ho = (high - v.kh) / v.sh + 1, v.wo = (wide - v.kw) / v.sw + 1, v.threads = 1 + random_to(3), v.newest = newest;
  auto x = numbers(size_t(v.n) * v.h * v.w * v.c, 9), w = numbers(size_t(v.taps()) * v.c * v.co, 9);
  auto g = numbers(size_t(v.n) * v.ho * v.wo * v.co, 9);
  std::vector<float> y(g.size(), NAN), dw(w.size(), NAN), right_y(g.size()), right_dw(w.size());
  for (size_t p = 0; p < g.size() / v.co; p++)
    for (int tap = 0; tap < v.taps(); tap++) {
      const int row = int(p / v.wo % v.ho) * v.sh + tap / v.kw - v.top, column = int(p % v.wo) * v.sw + tap % v.kw - v.left;
      if (row < 0 || row >= v.h || column < 0 || column >= v.w) continue;
      for (int c = 0; c < v.c; c++)
        for (int o = 0; o < v.co; o++) {
          const float value = x[((p / v.wo / v.ho * v.h + row) * v.w + column) * v.c + c];
          const size_t weight = (size_t(tap) * v.c + c) * v.co + o;
          right_y[p * v.co + o] += value * w[weight], right_dw[weight] += value * g[p * v.co + o];
        }
    }
  return call(bireal_stem_conv, {&v, x.data(), w.data()}, {y.data()}) && y == right_y &&
         call(bireal_stem_by_kernel, {&v, x.data(), g.data()}, {dw.data()}) && dw == right_dw;
}

static bool pooling(int newest) {
  int32_t v[6] = {1 + random_to(3), 1 + random_to(9), 1 + random_to(9), 1 + random_to(40), 1 + random_to(3), newest};
  const int n = v[0], h = v[1], w = v[2], c = v[3], ho = (h - 1) / 2 + 1, wo = (w - 1) / 2 + 1;
  auto x = numbers(size_t(n) * h * w * c, 7), g = numbers(size_t(n) * ho * wo * c, 99), sign = numbers(c, 2);
  auto mean = numbers(c, 5), mean_g = numbers(c, 5), slope = numbers(c, 5), factor = numbers(c, 5);
  for (auto& s : sign) s = s < 0 ? -1.0f : 1.0f;
  std::vector<float> seen(g.size(), NAN), dx(x.size(), NAN), right_dx(x.size());
  std::vector<int8_t> which(g.size());
  bool right = call(bireal_pool_largest, {v, x.data(), sign.data()}, {seen.data(), which.data()});
  for (size_t at = 0; at < g.size(); at++) {
    const size_t channel = at % c, p = at / c;
    float best = -INFINITY;
    int found = -1;
    size_t from = 0;
    for (int k = 0; k < 9; k++) {
      const int row = int(p / wo % ho) * 2 - 1 + k / 3, column = int(p % wo) * 2 - 1 + k % 3;
      if (row < 0 || row >= h || column < 0 || column >= w) continue;
      const size_t there = ((p / wo / ho * h + row) * w + column) * c + channel;
      if (x[there] * sign[channel] > best) best = x[there] * sign[channel], found = k, from = there;
    }
    right = right && seen[at] == best * sign[channel] && which[at] == found;
    right_dx[from] += g[at];
  }
  for (size_t at = 0; at < x.size(); at++) {
    const size_t l = at % c;
    right_dx[at] = (right_dx[at] - mean_g[l] - (x[at] - mean[l]) * slope[l]) * factor[l];
  }
  return right && call(bireal_pool_gradient,
                       {v, x.data(), g.data(), which.data(), mean.data(), mean_g.data(), slope.data(), factor.data()},
                       {dx.data()}) && dx == right_dx;
}

int main(int, char** argv) {
  const int newest = std::atoi(argv[1]);
  int wrong = 0;
  for (int i = 0; i < 60; i++) wrong += !stem(newest) + !pooling(newest);
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
