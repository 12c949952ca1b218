// Real-valued convolutions of few channels, the first layer of a network, forward and by the kernel. XLA's CPU backend takes one
// thread for the 7x7 stem of an ImageNet network, and unfolds patches for its weight gradient, which are as large as 49 images.
//
// A number of the image is multiplied with as many output channels as fill a vector; sums of several pixels, or of several
// weights, stay in registers. An image is copied into a border of zeros first, so that no window is special. Sums by the kernel
// are those of slices of rows, joined in their order: the bits are those of every number of threads.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "conv.h"
#include "xla.h"

namespace {

constexpr int lanes = 16;  // channels are filled up to a multiple of this

// Of the windows in a row: numbers of a row of the window, and floats from one thing to the next.
struct Window {
  int rows, depth, step, pitch, pitch_w;
};

struct Kernels {
  // out [pixel][co] of a row of pixels, from x, where the first window begins, and w [row][number][pitch_w].
  void (*forward)(const Window&, const float* x, const float* w, int count, float* out, int co);
  // sums [number, filled up][pitch_w] += one row of the window's numbers times g [pixel][pitch_g].
  void (*backward)(const Window&, const float* x, const float* g, int pitch_g, int count, float* sums);
  int numbers;  // these are filled up to a multiple of this; no more pixels are computed at once, either
};

#define KERNELS "stem.inc"
#include "instructions.h"

int filled(int count, int to) { return (count + to - 1) / to * to; }

// An image in its border of zeros, and behind it what is read and not used: windows beyond the last one where a row has fewer than
// are computed at once, and numbers that fill up the last window's.
class Bordered {
 public:
  Bordered(const Conv& v, const Kernels& kernels)
      : v_(v), image_(size_t(v.rows()) * v.columns() * v.c + size_t(kernels.numbers) * (v.sw * v.c + 1)) {}

  // What output rows from `begin` on, before `end_row`, read.
  void take(const float* x, int64_t image, int begin, int end_row) {
    const int first = std::max(0, v_.left), end = std::min(v_.columns(), v_.left + v_.w);
    const int above = std::max(begin * v_.sh, v_.top), below = std::min((end_row - 1) * v_.sh + v_.kh, v_.top + v_.h);
    for (int y = above; y < below && first < end; y++) {
      const float* from = x + ((image * v_.h + y - v_.top) * v_.w + first - v_.left) * v_.c;
      std::memcpy(row(y) + size_t(first) * v_.c, from, size_t(end - first) * v_.c * sizeof(float));
    }
  }
  float* row(int y) { return image_.data() + size_t(y) * v_.columns() * v_.c; }

 private:
  const Conv& v_;
  std::vector<float> image_;
};

// Runs `work(image, y, end)` for rows of outputs from y on, all images' one after the other.
template <class Work>
void rows_of(const Conv& v, int64_t first, int64_t end, const Work& work) {
  for (int64_t at = first; at < end;) {
    const int64_t image = at / v.ho, last = std::min(end, (image + 1) * v.ho);
    work(image, int(at - image * v.ho), int(last - image * v.ho));
    at = last;
  }
}

void forward(const Conv& v, const Team& team, const float* x, const float* w, float* out) {
  const Kernels& kernels = choose(v.newest);
  const Window window = {v.kh, v.kw * v.c, v.sw * v.c, v.columns() * v.c, filled(v.co, lanes)};
  std::vector<float> weights(size_t(window.rows) * window.depth * window.pitch_w);
  for (int k = 0; k < window.rows * window.depth; k++)
    std::memcpy(&weights[size_t(k) * window.pitch_w], w + size_t(k) * v.co, v.co * sizeof(float));
  const int64_t all = int64_t(v.n) * v.ho, at_once = std::max(1, std::min(v.ho, 32));
  std::atomic<int64_t> next{0};
  team.run([&] {
    Bordered room(v, kernels);
    for (int64_t first; (first = at_once * next++) < all;)
      rows_of(v, first, std::min(all, first + at_once), [&](int64_t image, int y, int end) {
        room.take(x, image, y, end);
        for (; y < end; y++)
          kernels.forward(window, room.row(y * v.sh), weights.data(), v.wo, out + (image * v.ho + y) * v.wo * v.co, v.co);
      });
  });
}

void backward(const Conv& v, const Team& team, const float* x, const float* g, float* dw) {
  const Kernels& kernels = choose(v.newest);
  const Window window = {v.kh, v.kw * v.c, v.sw * v.c, v.columns() * v.c, filled(v.co, lanes)};
  const size_t row = size_t(filled(window.depth, kernels.numbers)) * window.pitch_w, size = v.kh * row;
  const int64_t all = int64_t(v.n) * v.ho, slices = std::min<int64_t>(32, all);
  std::vector<float> sums(slices * size);
  std::atomic<int64_t> next{0};
  team.run([&] {
    Bordered room(v, kernels);
    std::vector<float> copy(v.co == window.pitch_w ? 0 : size_t(v.wo) * window.pitch_w);  // channels filled up
    for (int64_t slice; (slice = next++) < slices;)
      rows_of(v, all * slice / slices, all * (slice + 1) / slices, [&](int64_t image, int y, int end) {
        room.take(x, image, y, end);
        for (; y < end; y++) {
          const float* from = g + (image * v.ho + y) * v.wo * v.co;
          for (int p = 0; !copy.empty() && p < v.wo; p++)
            std::memcpy(&copy[size_t(p) * window.pitch_w], from + size_t(p) * v.co, v.co * sizeof(float));
          for (int ky = 0; ky < v.kh; ky++)
            kernels.backward(window, room.row(y * v.sh + ky), copy.empty() ? from : copy.data(), window.pitch_w, v.wo,
                             &sums[slice * size + ky * row]);
        }
      });
  });
  for (int ky = 0; ky < v.kh; ky++)
    for (int k = 0; k < window.depth; k++) {
      float* to = dw + (size_t(ky) * window.depth + k) * v.co;
      std::fill(to, to + v.co, 0.0f);
      for (int64_t slice = 0; slice < slices; slice++)
        for (int o = 0; o < v.co; o++) to[o] += sums[slice * size + ky * row + size_t(k) * window.pitch_w + o];
    }
}

template <class Work>
void* run(xla::Call* call, const Work& work) {
  return answer<Conv>(call, "no memory for the first convolution", [&](const Conv& v, const Team& team) {
    work(v, team, xla::in<float>(call, 1), xla::in<float>(call, 2), xla::out<float>(call, 0));
  });
}

}  // namespace

// Arguments: the members of Conv as int32, x, and w or g; result: out, or dw. float32; the caller has checked all shapes.
extern "C" __attribute__((visibility("default"))) void* bireal_stem_conv(xla::Call* call) { return run(call, forward); }
extern "C" __attribute__((visibility("default"))) void* bireal_stem_by_kernel(xla::Call* call) { return run(call, backward); }
