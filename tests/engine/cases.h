// For kernels_test.cc: cases, each from its own number, memory with guarded ends, and what follows sums, in plain loops.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "kernels.h"

using namespace bireal;

namespace {

const Kernels* kernels;
std::mt19937 rng;
unsigned every = 1, number = 0;
int passed = 0, failed = 0;

int draw(int low, int high) { return low + int(rng() % unsigned(high - low + 1)); }
template <class T>
T pick(const std::vector<T>& from) { return from[rng() % from.size()]; }
float grid(int most, int parts) { return float(draw(-most, most)) / float(parts); }

// Whether the next case is run; gives it its own random numbers.
bool chosen() {
  if (++number % every) return false;
  rng.seed(number);
  return true;
}

void report(const std::string& what, const std::string& wrong) {
  wrong.empty() ? passed++ : failed++;
  if (!wrong.empty() && failed <= 5)
    std::printf("FAILED %s: case %u: %s: %s\n", kernels->name, number, what.c_str(), wrong.c_str());
}

// Exactly that many elements on a 64-byte boundary, so that AddressSanitizer sees the first one too far.
template <class T>
struct Array {
  explicit Array(size_t count) : size(count) {
    if (posix_memalign(reinterpret_cast<void**>(&data), 64, std::max<size_t>(1, count * sizeof(T)))) std::abort();
    std::memset(static_cast<void*>(data), 255, count * sizeof(T));
  }
  Array(const Array&) = delete;
  ~Array() { std::free(data); }
  T& operator[](size_t i) { return data[i]; }
  T* data = nullptr;
  size_t size;
};

// ---------------------------------------------------------------------------------------------------------- epilogue

// Maps of `pixels` pixels and `channels` channels behind `skipped` others, and what is to be done to the sums.
struct End {
  Epilogue e;
  size_t skipped, pixels, channels;
  Array<float> scale, offset, residual, shift_in, slope, shift_out, sign_scale, sign_offset, out;
  Array<uint8_t> bits;
  bool rough;

  End(size_t pixels, size_t channels, bool plain, bool rough = false, size_t skipped = 0)
      : skipped(skipped), pixels(pixels), channels(channels), scale(pitch_of(channels)), offset(scale.size),
        residual((skipped + pixels) * scale.size), shift_in(scale.size), slope(scale.size), shift_out(scale.size),
        sign_scale(scale.size), sign_offset(scale.size), out((skipped + pixels) * scale.size),
        bits((skipped + pixels) * bits_pitch(channels)), rough(rough) {
    e.pitch = scale.size, e.bits_pitch = bits_pitch(channels);
    for (size_t k = 0; k < channels; k++) {
      scale[k] = grid(8, 8), offset[k] = grid(16, 8), slope[k] = grid(4, 4), shift_in[k] = grid(16, 8);
      shift_out[k] = grid(16, 8), sign_scale[k] = grid(4, 4), sign_offset[k] = grid(8, 8);
    }
    for (size_t p = 0; p < skipped + pixels; p++)
      for (size_t k = 0; k < channels; k++) residual[p * e.pitch + k] = grid(32, 8);
    const bool affine = !plain && draw(0, 1), sign_affine = !plain && draw(0, 1);
    const bool real = plain || rough || draw(0, 3), signs = !plain && (!real || draw(0, 1));
    if (affine) e.scale = scale.data, e.offset = offset.data;
    if (real) e.out = out.data;
    if (signs) e.bits = bits.data;
    if (signs && sign_affine) e.sign_scale = sign_scale.data, e.sign_offset = sign_offset.data;
    if (plain) return;
    if (draw(0, 1)) e.residual = residual.data;
    if (e.residual && real && draw(0, 1)) {  // the sum takes the place of its shortcut
      std::memcpy(out.data, residual.data, out.size * sizeof(float));
      e.residual = out.data;
    }
    e.act = pick<Act>({Act::none, Act::clip, Act::rprelu, rough ? Act::none : Act::sign});
    e.low = grid(8, 4), e.high = e.low + float(draw(0, 16)) / 4, e.leak = pick<float>({0, 0, .25f, -.5f});
    if (e.act == Act::rprelu) e.shift_in = shift_in.data, e.slope = slope.data, e.shift_out = shift_out.data;
  }

  double expected(double y, size_t pixel, size_t k) {
    if (e.scale) y = y * scale[k] + offset[k];
    if (e.residual) y += residual[pixel * e.pitch + k];
    if (e.act == Act::rprelu) {
      y += shift_in[k];
      return (y >= 0 ? y : y * slope[k]) + shift_out[k];
    }
    if (e.act == Act::clip) {
      const double clipped = std::min<double>(std::max<double>(y, e.low), e.high);
      return clipped + e.leak * (y - clipped);
    }
    return e.act == Act::sign ? (y >= 0 ? 1 : -1) : y;
  }

  // sums: [pixels][channels]
  void compare(const std::string& what, const std::vector<double>& sums) {
    std::string wrong;
    for (size_t i = 0; i < pixels * channels && wrong.empty(); i++) {
      const size_t p = skipped + i / channels, k = i % channels;
      double y = expected(sums[i], p, k);
      char text[200];
      if (e.out) {
        const float found = out[p * e.pitch + k];
        if (rough ? !(std::fabs(found - y) <= 1e-5 * (10 + std::fabs(y))) : !(found == float(y))) {
          std::snprintf(text, sizeof text, "pixel %zu channel %zu is %.9g instead of %.9g", p, k, found, y);
          wrong = text;
        }
        y = found;
      }
      if (e.sign_scale) y = y * sign_scale[k] + sign_offset[k];
      const bool unsure = rough && e.sign_scale && std::fabs(y) < 1e-4;
      if (e.bits && !unsure && (bits[p * e.bits_pitch + k / 8] >> k % 8 & 1) != (y >= 0)) {
        std::snprintf(text, sizeof text, "pixel %zu channel %zu: wrong sign of %.9g", p, k, y);
        wrong = text;
      }
    }
    const char* acts[] = {"", ", clip", ", rprelu", ", sign"};
    report(what + (e.scale ? ", affine" : "") + (e.residual ? ", residual" : "") + acts[int(e.act)], wrong);
  }
};

// ------------------------------------------------------------------------------------------------------- convolutions

struct Size {
  int h, w, c, co, kh = 1, kw = 1, sh = 1, sw = 1, top = 0, left = 0, bottom = 0, right = 0, groups = 1, pad = 0;
  int ho() const { return (h + top + bottom - kh) / sh + 1; }
  int wo() const { return (w + left + right - kw) / sw + 1; }
  bool valid() const { return h + top + bottom >= kh && w + left + right >= kw; }
  double work() const { return double(ho()) * wo() * kh * kw * (c / groups) * co; }
  void padding(int p) { top = left = bottom = right = p; }
  std::string text(const char* what) const {
    char s[300];
    std::snprintf(s, sizeof s, "%s %dx%dx%d -> %d, kernel %dx%d, stride %dx%d, padding %d %d %d %d of %d, %d groups",
                  what, h, w, c, co, kh, kw, sh, sw, top, left, bottom, right, pad, groups);
    return s;
  }
  Conv conv() const {
    Conv v{};
    v.h = h, v.w = w, v.c = c, v.ho = ho(), v.wo = wo(), v.co = co, v.kh = kh, v.kw = kw, v.sh = sh, v.sw = sw;
    v.top = top, v.left = left, v.groups = groups, v.pad = pad, v.cg = c / groups, v.og = co / groups;
    v.ph = (v.ho - 1) * sh + kh, v.pw = (v.wo - 1) * sw + kw;
    return v;
  }
};

// The convolution itself. input: [h][w][c]; weight: [kh][kw][c / groups][co].
template <class T>
std::vector<double> convolve(const Size& s, const std::vector<T>& input, const std::vector<T>& weight) {
  const int cg = s.c / s.groups, og = s.co / s.groups;
  std::vector<double> sums;
  std::vector<T> sum(s.co);
  for (int y = 0; y < s.ho(); y++)
    for (int x = 0; x < s.wo(); x++) {
      std::fill(sum.begin(), sum.end(), T(0));
      for (int tap = 0; tap < s.kh * s.kw; tap++) {
        const int iy = y * s.sh + tap / s.kw - s.top, ix = x * s.sw + tap % s.kw - s.left;
        const bool inside = iy >= 0 && iy < s.h && ix >= 0 && ix < s.w;
        for (int k = 0; k < s.c; k++) {
          const T a = inside ? input[(size_t(iy) * s.w + ix) * s.c + k] : T(s.pad);
          const T* w = &weight[(size_t(tap) * cg + k % cg) * s.co + k / cg * og];
          T* to = &sum[k / cg * og];
          for (int o = 0; o < og; o++) to[o] += a * w[o];
        }
      }
      sums.insert(sums.end(), sum.begin(), sum.end());
    }
  return sums;
}

Size random_size(int most_channels, int most_filters, double most_work) {
  for (;;) {
    Size s{draw(1, 17), draw(1, 17), draw(1, most_channels), draw(1, most_filters)};
    s.kh = draw(1, 5), s.kw = draw(1, 5), s.sh = draw(1, 3), s.sw = draw(1, 3);
    s.top = draw(0, 2), s.left = draw(0, 2), s.bottom = draw(0, 2), s.right = draw(0, 2);
    if (s.valid() && s.work() < most_work) return s;
  }
}

}  // namespace
