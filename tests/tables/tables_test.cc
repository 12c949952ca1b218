// The gradients by tables of many shapes against plain loops, through the call that XLA makes.
//
//   tables_test NEWEST [every]     compares each `every`-th shape; prints how many there were and a digest of all bits
//   tables_test NEWEST memory      lets one allocation after the other fail
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "call.h"
#include "conv.h"

extern "C" void* bireal_tables_by_input(xla::Call*);
extern "C" void* bireal_tables_by_kernel(xla::Call*);

static long allocations_left = -1;  // < 0: no limit

static void* allocate(size_t size, size_t alignment) {
  if (allocations_left == 0) throw std::bad_alloc();
  if (allocations_left > 0) allocations_left--;
  void* p = nullptr;
  if (posix_memalign(&p, alignment, size)) throw std::bad_alloc();
  return p;
}
void* operator new(size_t size) { return allocate(size, 16); }
void* operator new[](size_t size) { return allocate(size, 16); }
void* operator new(size_t size, std::align_val_t a) { return allocate(size, size_t(a)); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete[](void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }

static uint64_t state = 1;
static int random_to(int count) {  // 0 .. count - 1
  state = state * 6364136223846793005u + 1442695040888963407u;
  return int((state >> 33) % uint64_t(count));
}
static float random_sign(int zeros) { return random_to(10) < zeros ? 0.0f : random_to(2) ? 1.0f : -1.0f; }

struct Problem {
  Conv v;
  std::vector<float> x, w, g, scale, dx, dw;
  std::vector<uint8_t> signs;  // of x, 1 for +1

  explicit Problem(int newest) {
    const int kernel[] = {1, 2, 3, 3, 4, 5, 7}, channels[] = {1, 3, 8, 16, 17, 33, 64, 70};
    v.n = 1 + random_to(34), v.h = 1 + random_to(9), v.w = 1 + random_to(9), v.c = channels[random_to(8)];
    v.co = channels[random_to(8)], v.kh = kernel[random_to(7)], v.kw = kernel[random_to(7)];
    v.sh = 1 + random_to(3), v.sw = 1 + random_to(3), v.top = random_to(v.kh + 2), v.left = random_to(v.kw + 2);
    const int high = v.h + v.top + random_to(4), wide = v.w + v.left + random_to(4);
    v.kh = v.kh < high ? v.kh : high, v.kw = v.kw < wide ? v.kw : wide;
    v.ho = (high - v.kh) / v.sh + 1, v.wo = (wide - v.kw) / v.sw + 1;
    v.threads = 1 + random_to(4), v.newest = newest;
    x.resize(size_t(v.n) * v.h * v.w * v.c), dx.resize(x.size());
    w.resize(size_t(v.taps()) * v.c * v.co), dw.resize(w.size());
    g.resize(size_t(v.n) * v.ho * v.wo * v.co), scale.assign(v.co, 1.0f);
    const int zeros = random_to(2) * 3;
    for (auto& s : x) s = random_sign(0), signs.push_back(s > 0);
    for (auto& s : w) s = random_sign(zeros);
    for (auto& s : g) s = float(random_to(2000001) - 1000000) * 1e-6f;
  }

  bool run() {
    return call(bireal_tables_by_input, {&v, w.data(), g.data(), scale.data()}, {dx.data()}) &&
           call(bireal_tables_by_kernel, {&v, signs.data(), g.data()}, {dw.data()});
  }

  bool right() const {
    std::vector<double> ex(dx.size()), ew(dw.size());
    for (int i = 0; i < v.n; i++)
      for (int p = 0; p < v.ho * v.wo; p++)
        for (int tap = 0; tap < v.taps(); tap++) {
          const int y = p / v.wo * v.sh + tap / v.kw - v.top, x0 = p % v.wo * v.sw + tap % v.kw - v.left;
          if (y < 0 || y >= v.h || x0 < 0 || x0 >= v.w) continue;
          for (int c = 0; c < v.c; c++)
            for (int o = 0; o < v.co; o++) {
              const size_t at = ((size_t(i) * v.h + y) * v.w + x0) * v.c + c, weight = (size_t(tap) * v.c + c) * v.co + o;
              const double value = g[(size_t(i) * v.ho * v.wo + p) * v.co + o];
              ex[at] += value * w[weight], ew[weight] += value * x[at];
            }
        }
    return near(dx, ex) && near(dw, ew);
  }

  static bool near(const std::vector<float>& a, const std::vector<double>& b) {
    double largest = 0, off = 0;
    for (size_t i = 0; i < a.size(); i++) {
      largest = std::fmax(largest, std::fabs(b[i]));
      off = std::isfinite(a[i]) ? std::fmax(off, std::fabs(a[i] - b[i])) : INFINITY;
    }
    return off <= 1e-6 * largest;
  }
};

static int memory(int newest) {
  for (int i = 0; i < 12; i++) {
    Problem p(newest);
    p.v.threads = 4;
    bool done = false;
    for (long limit = 0; !done; limit++) {
      allocations_left = limit;
      done = p.run();
      allocations_left = -1;
      if (!done && !std::strstr(message, "no memory")) return std::printf("odd: %s\n", message), 1;
    }
    if (!p.right()) return std::printf("wrong\n"), 1;
  }
  std::printf("each failed in one piece\n");
  return 0;
}

int main(int, char** argv) {
  const int newest = std::atoi(argv[1]);
  if (argv[2] && !std::strcmp(argv[2], "memory")) return memory(newest);
  const int every = argv[2] ? std::atoi(argv[2]) : 1;
  uint64_t digest = 14695981039346656037u;
  int shapes = 0, failed = 0;
  for (int i = 0; i < 240; i++) {
    Problem p(newest);
    if (i % every) continue;
    shapes++;
    if (!p.run() || !p.right()) {
      failed++;
      const Conv& v = p.v;
      std::printf("wrong: n %d, %d x %d, %d to %d, kernel %d x %d, strides %d %d, top %d left %d, threads %d\n", v.n, v.h, v.w, v.c,
                  v.co, v.kh, v.kw, v.sh, v.sw, v.top, v.left, v.threads);
    }
    for (const auto* all : {&p.dx, &p.dw})
      for (float f : *all) {
        uint32_t bits;
        f = f == 0 ? 0.0f : f;
        std::memcpy(&bits, &f, 4);
        digest = (digest ^ bits) * 1099511628211u;
      }
  }
  std::printf("%d shapes, %d failed, digest %016llx\n", shapes, failed, static_cast<unsigned long long>(digest));
  return failed != 0;
}
