// Compares a table of kernels with plain loops: kernels_test NAME [EVERY]
// runs each EVERY-th case; each is made from its own number. Numbers are multiples of small powers of two, so that sums
// are exact in any order and signs of zero occur. What no kernel may count is filled with ones: NaN, or wild offsets.
// Exit status: 0 passed, 1 failed, 2 this CPU has not the instructions.
#include "kernels.h"
#include "winograd.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

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

// opposite: every product is -1.
void binary(const Size& s, bool opposite = false) {
  if (!s.valid() || !chosen()) return;
  Conv c = s.conv();
  const int bytes = (c.cg + 7) / 8, taps = s.kh * s.kw;
  Array<uint8_t> map(size_t(s.h) * s.w * bits_pitch(s.c)), filters(size_t(s.co) * taps * bytes);
  for (size_t i = 0; i < map.size; i++) map[i] = opposite ? 255 : uint8_t(rng());  // beyond the channels, too
  for (size_t i = 0; i < filters.size; i++) filters[i] = opposite ? 0 : uint8_t(rng());
  std::vector<int32_t> input(size_t(s.h) * s.w * s.c), weight(size_t(taps) * c.cg * s.co);
  for (size_t i = 0; i < input.size(); i++) {
    const size_t k = i % s.c;
    input[i] = map[i / s.c * bits_pitch(s.c) + k / 8] >> k % 8 & 1 ? 1 : -1;
  }
  for (size_t i = 0; i < weight.size(); i++) {
    const size_t o = i % s.co, k = i / s.co % c.cg, tap = i / s.co / c.cg;
    weight[i] = filters[(o * taps + tap) * bytes + k / 8] >> k % 8 & 1 ? 1 : -1;
  }
  const bool ragged = s.groups > 1 && c.og % unit;  // without an epilogue
  End end(size_t(c.ho) * c.wo, s.co, ragged || draw(0, 3) == 0);
  c.band = draw(1, c.ho), c.pw = -1;
  kernels->binary_plan(c);
  Array<uint8_t> packed(c.packed), scratch(c.scratch);
  kernels->binary_pack(c, filters.data, packed.data);
  // Each output pixel is a class of its own here.
  c.classes = c.ho * c.wo;
  const int blocks = (c.og + unit - 1) / unit;
  Array<float> middle(size_t(s.groups) * blocks * c.classes * unit);
  std::memset(middle.data, 0, middle.size * sizeof(float));
  std::vector<uint16_t> pixel_class(c.classes);
  for (int p = 0; p < c.classes; p++) {
    pixel_class[p] = uint16_t(p);
    for (int o = 0; o < s.co; o++) {
      float& half = middle[((size_t(o / c.og) * blocks + o % c.og / unit) * c.classes + p) * unit + o % c.og % unit];
      for (int tap = 0; tap < taps; tap++) {
        const int y = p / c.wo * s.sh + tap / s.kw - s.top, x = p % c.wo * s.sw + tap % s.kw - s.left;
        const bool counts = s.pad || (y >= 0 && y < s.h && x >= 0 && x < s.w);
        for (int k = 0; k < c.cg; k++) half += counts ? 0.5f : weight[(size_t(tap) * c.cg + k) * s.co + o] > 0 ? 1.f : 0.f;
      }
    }
  }
  c.weight = packed.data, c.middle = middle.data, c.pixel_class = pixel_class.data();
  for (int from = 0, to; from < c.ho; from = to) {
    to = std::min(c.ho, from + draw(1, c.band));
    const int row = draw(from, to);
    kernels->binary_prepare(c, map.data, scratch.data, from, to);
    for (int block = c.groups * c.blocks; block--;) {
      kernels->binary_rows(c, scratch.data, from, block, row, to, end.e);
      kernels->binary_rows(c, scratch.data, from, block, from, row, end.e);
    }
  }
  end.compare(s.text("binary"), convolve(s, input, weight));
}

const std::vector<int> channels = {1, 3, 31, 33, 63, 64, 65, 127, 128, 257};
const std::vector<std::pair<int, int>> kernel_sizes = {{1, 1}, {3, 3}, {5, 3}}, strides = {{1, 1}, {2, 2}, {1, 2}};

void binary_corners() {
  for (int c : channels)
    for (int co = 1; co <= 71; co++) {
      Size s{3, 4, c, co == 71 ? 130 : co, 3, 3};
      s.padding(1), s.pad = (c + co) % 3 - 1;
      binary(s);
    }
  int turn = 0;
  for (int size = 1; size <= 17; size++)
    for (auto stride : strides)
      for (auto kernel : kernel_sizes)
        for (int pad = -1; pad <= 1; pad++)
          for (int padding = 0; padding <= 2; padding++, turn++) {
            Size s{size, size * 7 % 17 + 1, 0, 0, kernel.first, kernel.second, stride.first, stride.second};
            s.padding(padding), s.pad = pad, s.groups = turn % 3 + 1;
            s.c = s.groups * channels[turn % 7], s.co = s.groups * std::vector<int>{16, 5, 17, 1, 32}[turn % 5];
            binary(s);
          }
  for (int c : channels)
    for (int groups = 2; groups <= 3; groups++)
      for (int og : {1, 15, 16, 17, 48, 64, 80})
        for (auto kernel : kernel_sizes) {
          Size s{4, 3, c * groups, og * groups, kernel.first, kernel.second};
          s.padding(1), s.groups = groups, s.pad = (c + og) % 3 - 1;
          binary(s);
        }
  for (int pad = -1; pad <= 1; pad++)  // as many products as 16 bits count
    for (bool opposite : {false, true}) {
      Size s{3, 3, 7281, 2, 3, 3};
      s.padding(1), s.pad = pad;
      binary(s, opposite);
      binary({1, 1, 65535, 3}, opposite);
    }
}

Size random_size(int most_channels, int most_filters, double most_work) {
  for (;;) {
    Size s{draw(1, 17), draw(1, 17), draw(1, most_channels), draw(1, most_filters)};
    s.kh = draw(1, 5), s.kw = draw(1, 5), s.sh = draw(1, 3), s.sw = draw(1, 3);
    s.top = draw(0, 2), s.left = draw(0, 2), s.bottom = draw(0, 2), s.right = draw(0, 2);
    if (s.valid() && s.work() < most_work) return s;
  }
}

void binary_scattered(int count) {
  while (count--) {
    rng.seed(number + 1);
    Size s = random_size(140, 90, 1e6);
    s.pad = draw(-1, 1), s.groups = draw(1, 3);
    if (draw(0, 2) == 0) s.c = pick(channels);
    if (s.groups > 1 && draw(0, 1)) s.co = pick<int>({16, 32, 48});
    s.c *= s.groups, s.co *= s.groups;
    binary(s);
  }
}

// The input [h][w][c] with a border of zeros, its pixels `pitch` apart.
template <class T, class From>
void bordered(const Size& s, const Conv& c, const std::vector<From>& input, size_t pitch, Array<T>& out) {
  for (int y = 0; y < c.ph; y++)
    for (int x = 0; x < c.pw; x++)
      for (int k = 0; k < s.c; k++) {
        const int iy = y - s.top, ix = x - s.left;
        const bool inside = iy >= 0 && iy < s.h && ix >= 0 && ix < s.w;
        out[(size_t(y) * c.pw + x) * pitch + k] = inside ? T(input[(size_t(iy) * s.w + ix) * s.c + k]) : T(0);
      }
}

template <class Rows, class Input>
void run_rows(Rows rows, const Conv& c, const Input* input, const End& end) {
  const int row = draw(0, c.ho), block = draw(0, c.blocks);
  for (int part = 0; part < 4; part++) {
    const bool below = part & 1, right = part & 2;
    const int y0 = below ? row : 0;
    rows(c, input, right ? block : 0, right ? c.blocks : block, y0, below ? c.ho : row,
         end.skipped + size_t(y0) * c.wo, end.e);
  }
}

void real(int count) {
  while (count--) {
    if (!chosen()) continue;
    Size s = random_size(20, 50, 1e5);
    const bool pointwise = draw(0, 3) == 0, rough = draw(0, 2) == 0;
    if (pointwise) s.w *= s.h, s.h = s.kh = s.kw = s.sh = s.sw = 1, s.padding(0);  // one long row
    if (pointwise && draw(0, 1)) s.w = 1, s.co = draw(1, 150);                     // fully connected
    Conv c = s.conv();
    std::vector<double> input(size_t(s.h) * s.w * s.c), weight(size_t(s.kh) * s.kw * s.c * s.co);
    for (auto& v : input) v = rough ? float(draw(-999, 999)) / 999.f : grid(8, 8);
    for (auto& v : weight) v = rough ? float(draw(-999, 999)) / 999.f : grid(8, 8);
    const size_t pitch = pointwise ? pitch_of(s.c) : s.c, per = size_t(s.kh) * s.kw * s.c;
    c.c = int(pitch), c.blocks = int(pitch_of(s.co) / unit);
    Array<float> map(size_t(c.ph) * c.pw * pitch), packed(per * pitch_of(s.co));
    bordered(s, c, input, pitch, map);
    for (size_t i = 0; i < weight.size(); i++) {
      const size_t o = i % s.co;
      packed[(o / unit * per + i / s.co) * unit + o % unit] = float(weight[i]);
    }
    c.weight = packed.data;
    End end(size_t(c.ho) * c.wo, s.co, false, rough, draw(0, 3));
    run_rows(kernels->real_rows, c, map.data, end);
    end.compare(s.text(pointwise ? "pointwise" : rough ? "rough real" : "real"), convolve(s, input, weight));
  }
}

void int16(int count) {
  while (count--) {
    if (!chosen()) continue;
    const Size s = random_size(5, 40, 1e5);
    Conv c = s.conv();
    const int most = std::min(32767, 2147483647 / (255 * s.kh * s.kw * s.c));
    std::vector<int32_t> input(size_t(s.h) * s.w * s.c), weight(size_t(s.kh) * s.kw * s.c * s.co);
    const bool extreme = draw(0, 3) == 0;
    for (auto& v : input) v = extreme ? 255 : draw(0, 255);
    for (auto& v : weight) v = extreme ? most : draw(-most, most);
    c.steps = (s.kw * s.c + 1) / 2, c.blocks = int(pitch_of(s.co) / unit);
    Array<int16_t> map(size_t(c.ph) * c.pw * s.c + 64), packed(size_t(s.kh) * c.steps * 2 * pitch_of(s.co));
    bordered(s, c, input, s.c, map);
    std::memset(packed.data, 0, packed.size * sizeof(int16_t));
    for (size_t i = 0; i < weight.size(); i++) {
      const size_t o = i % s.co, at = i / s.co % (s.kw * s.c), ky = i / s.co / (s.kw * s.c);
      packed[((o / unit * s.kh + ky) * c.steps + at / 2) * 2 * unit + o % unit * 2 + at % 2] = int16_t(weight[i]);
    }
    c.weight = packed.data;
    End end(size_t(c.ho) * c.wo, s.co, true, false, draw(0, 3));
    // Powers of two as scales: kernels with and without a fused multiply-add round once.
    for (int o = 0; o < s.co; o++) end.scale[o] = float(1 << draw(0, 3));
    end.e.scale = end.scale.data, end.e.offset = end.offset.data;
    Array<float> offsets(6 * end.e.pitch);  // in turn, of 2 classes of rows and 3 of columns
    std::vector<uint8_t> row_class(c.ho), col_class(c.wo);
    if (draw(0, 1)) {
      for (size_t i = 0; i < offsets.size; i++) offsets[i] = grid(100, 8);
      for (auto& v : row_class) v = uint8_t(draw(0, 1));
      for (auto& v : col_class) v = uint8_t(draw(0, 2));
      c.offsets = offsets.data, c.row_class = row_class.data(), c.col_class = col_class.data(), c.col_classes = 3;
    }
    std::vector<double> sums = convolve(s, input, weight);
    for (size_t i = 0; i < sums.size(); i++) {
      const size_t p = i / s.co, o = i % s.co, at = (row_class[p / c.wo] * 3 + col_class[p % c.wo]) * end.e.pitch + o;
      sums[i] = double(float(sums[i])) * end.scale[o] + (c.offsets ? offsets[at] : end.offset[o]);
    }
    run_rows(kernels->int16_rows, c, map.data, end);
    end.e.scale = nullptr;  // done
    end.compare(s.text("int16"), sums);
  }
}

// Winograd's algorithm on one output row, in float and in 16 bits, against the sums themselves. Weights are multiples of
// 360, the denominator of the transformed filters, so that these are whole.
void winograd(int count) {
  while (count--) {
    if (!chosen()) continue;
    Conv c{};
    c.sw = draw(1, 2), c.sh = 1, c.groups = 1, c.kh = draw(1, 7), c.kw = c.sw * draw(2, 3) + draw(1, c.sw), c.cg = c.c = draw(1, 5);
    c.ho = 1, c.wo = draw(16, 70), c.co = c.og = draw(1, 70), c.blocks = int(pitch_of(c.co) / unit);
    c.pw = (c.wo - 1) * c.sw + c.kw;
    plan_winograd(c);
    c.halved = c.wo % 4 == 0 && draw(0, 2);
    const bool narrow = draw(0, 1);
    const int channels = c.c;
    if (narrow) c.depth += c.depth % 2, c.last += c.last % 2;
    std::vector<int> input(size_t(c.kh) * c.pw * channels), weight(size_t(c.kh) * c.kw * channels * c.co);
    for (auto& v : input) v = draw(0, 5) ? draw(-128, 127) : draw(0, 1) ? -128 : 127;
    for (auto& v : weight) v = 360 * draw(-3, 3);
    const size_t length = c.points * winograd_pitch(c), per = winograd_weights(c) * unit;
    Array<float> line(winograd_row(c)), lanes(4 * winograd_lane(c)), rows(length * c.kh), packed(per * c.blocks);
    Array<int16_t> line16(line.size), lanes16(lanes.size), rows16(rows.size), packed16(packed.size);
    const int width = c.halved ? c.wo / 2 : c.wo;
    Array<float> out(width * pitch_of(c.co)), zeros(pitch_of(c.co)), ones(7 * pitch_of(c.co));
    std::memset(packed.data, 0, packed.size * sizeof(float)), std::memset(packed16.data, 0, packed.size * sizeof(int16_t));
    std::memset(line.data, 0, line.size * sizeof(float)), std::memset(line16.data, 0, line.size * sizeof(int16_t));
    std::memset(zeros.data, 0, zeros.size * sizeof(float)), std::fill(ones.data, ones.data + ones.size, 1.f);
    std::vector<const float*> pointers;
    std::vector<const int16_t*> pointers16;
    for (int ky = 0; ky < c.kh; ky++) {
      for (int i = 0; i < c.pw * channels; i++) {
        line[i] = float(input[size_t(ky) * c.pw * channels + i]);
        line16[i] = int16_t(line[i]);
      }
      pointers.push_back(rows.data + ky * length), pointers16.push_back(rows16.data + ky * length);
      if (narrow) kernels->int16_transform(c, line16.data, lanes16.data, rows16.data + ky * length);
      else kernels->real_transform(c, line.data, lanes.data, rows.data + ky * length);
    }
    for (int o = 0; o < c.co; o++)
      for (int k = 0; k < channels * c.sw; k++)
        for (int ky = 0; ky < c.kh; ky++) {
          double taps[4] = {}, at[7];
          for (int j = 0, kx; (kx = k / channels + j * c.sw) < c.kw; j++)
            taps[j] = weight[((size_t(ky) * c.kw + kx) * channels + k % channels) * c.co + o];
          winograd_filter(c.points, taps, at);
          for (int n = 0; n < c.points; n++) {
            if (n == c.points - 1 && k >= c.last) {  // a filter without the highest tap
              if (at[n] != 0) std::abort();
              continue;
            }
            const size_t place = winograd_place(c, n, ky, k);
            packed[o / unit * per + place * unit + o % unit] = float(at[n]);
            if (narrow) packed16[o / unit * per + place / 2 * 2 * unit + o % unit * 2 + k % 2] = int16_t(std::lround(at[n]));
          }
        }
    c.weight = narrow ? static_cast<void*>(packed16.data) : packed.data;
    const uint8_t row_class = 0;
    const std::vector<uint8_t> col_class(c.wo);
    c.offsets = zeros.data, c.row_class = &row_class, c.col_class = col_class.data(), c.col_classes = 1;
    Epilogue e;
    e.pitch = pitch_of(c.co), e.out = out.data, e.scale = narrow ? ones.data : nullptr;
    const int cut = draw(0, c.blocks);
    for (int part = 0; part < 2; part++) {
      const int b0 = part ? cut : 0, b1 = part ? c.blocks : cut;
      if (narrow) kernels->int16_winograd(c, pointers16.data(), b0, b1, 0, 0, e);
      else kernels->real_winograd(c, pointers.data(), b0, b1, 0, 0, e);
    }
    std::string wrong;
    for (int o = 0; o < c.co; o++) {
      std::vector<double> sums(c.wo), sizes(c.wo);
      for (int x = 0; x < c.wo; x++)
        for (int ky = 0; ky < c.kh; ky++)
          for (int kx = 0; kx < c.kw; kx++)
            for (int k = 0; k < channels; k++) {
              const double product = double(input[(size_t(ky) * c.pw + x * c.sw + kx) * channels + k]) *
                                     weight[((size_t(ky) * c.kw + kx) * channels + k) * c.co + o];
              sums[x] += product, sizes[x] += std::fabs(product);
            }
      for (int x = 0; x < width; x++) {
        const int from = c.halved ? std::max(0, 2 * x - 1) : x, to = c.halved ? 2 * x + 2 : x + 1;
        const double most = *std::max_element(&sums[from], &sums[to - 1] + 1), size = *std::max_element(&sizes[from], &sizes[to - 1] + 1);
        const double found = out[x * e.pitch + o];
        if (!(std::fabs(found - most) <= 4e-6 * size)) wrong = std::to_string(found) + " instead of " + std::to_string(most);
      }
    }
    report(std::string(narrow ? "16 bits, " : "real, ") + std::to_string(c.points) + " points" + (c.halved ? ", maxima" : ""), wrong);
  }
}

// A pixel in whole numbers: within half a unit, the largest exactly at the limit.
void quantized(int count) {
  while (count--) {
    if (!chosen()) continue;
    const int channels = draw(1, 70), pitch = int(pitch_of(channels));
    Array<float> x(pitch);
    Array<int16_t> out(pitch);
    float largest = 0;
    for (int i = 0; i < channels; i++) x[i] = float(draw(-9999, 9999)) / 77.f, largest = std::max(largest, std::fabs(x[i]));
    const float unit_size = kernels->quantize(x.data, channels, pitch, out.data);
    std::string wrong = largest && std::fabs(unit_size * float(input_limit) / largest - 1) > 1e-6f ? "size" : "";
    for (int i = 0; i < pitch; i++) {
      if (std::abs(out[i]) > input_limit) wrong = "beyond the limit";
      if (i >= channels ? out[i] : std::fabs(out[i] * unit_size - x[i]) > 0.501f * unit_size) wrong = "channel " + std::to_string(i);
    }
    x[draw(0, channels - 1)] = draw(0, 1) ? NAN : -INFINITY;  // whatever comes out is within the limit
    kernels->quantize(x.data, channels, pitch, out.data);
    for (int i = 0; i < pitch; i++)
      if (std::abs(out[i]) > input_limit) wrong = "of NaN or infinity";
    report("quantized", wrong);
  }
}

// --------------------------------------------------------------------------------- each channel by itself, elementwise

// Averages, maxima, and convolutions of each channel by itself.
void pools(int count) {
  while (count--) {
    if (!chosen()) continue;
    const int kind = draw(0, 2);
    const bool average = kind == 0;
    const int n = draw(1, 40), size = draw(1, 4), kh = average ? size : draw(1, 3), kw = average ? size : draw(1, 3);
    const int sw = average ? size : draw(1, 3), w = draw(kw, 17), pitch = int(pitch_of(n));
    const int left = average ? 0 : draw(0, kw - 1), right = average ? 0 : draw(0, kw - 1);
    const int wo = (w + left + right - kw) / sw + 1;
    std::vector<std::vector<float>> rows(kh, std::vector<float>(size_t(w + right) * pitch, 1000.f));  // and beyond
    std::vector<const float*> pointers;
    for (auto& row : rows) {
      for (int i = 0; i < w * pitch; i++) row[i] = i % pitch < n ? grid(64, 8) : NAN;
      pointers.push_back(!average && kh > 1 && draw(0, 2) == 0 && &row != &rows[0] ? nullptr : row.data());
    }
    Array<float> weight(size_t(kh) * kw * pitch);
    for (size_t i = 0; i < weight.size; i++) weight[i] = grid(8, 8);
    End end(wo, n, false, average && size == 3, draw(0, 3));
    std::vector<double> sums;
    for (int x = 0; x < wo; x++)
      for (int k = 0; k < n; k++) {
        double sum = 0, best = -INFINITY, product = 0;
        for (int i = 0; i < kh; i++)
          for (int j = std::max(0, x * sw - left); pointers[i] && j < std::min(w, x * sw - left + kw); j++) {
            sum += rows[i][size_t(j) * pitch + k];
            best = std::max<double>(best, rows[i][size_t(j) * pitch + k]);
            product += double(rows[i][size_t(j) * pitch + k]) * weight[(size_t(i) * kw + j - (x * sw - left)) * pitch + k];
          }
        sums.push_back(average ? sum / (size * size) : kind == 1 ? best : product);
      }
    if (average) kernels->avg_pool_row(pointers.data(), size, wo, pitch, end.skipped, end.e);
    else if (kind == 1) kernels->max_pool_row(pointers.data(), kh, kw, sw, left, w, wo, pitch, end.skipped, end.e);
    else kernels->depthwise_row(pointers.data(), weight.data, kh, kw, sw, left, w, wo, pitch, end.skipped, end.e);
    end.compare((average ? "average of " : kind == 1 ? "maximum of " : "channels by ") + std::to_string(kh) + "x" + std::to_string(kw), sums);
  }
}

void maps(int count) {
  while (count--) {
    if (!chosen()) continue;
    const size_t pixels = draw(1, 9), n = draw(1, 70), skipped = draw(0, 3), pitch = pitch_of(n);
    const bool rough = draw(0, 2) == 0;
    End end(pixels, n, false, rough, skipped);
    Array<float> input((skipped + pixels) * pitch);
    std::vector<double> sums;
    for (size_t p = 0; p < pixels; p++)
      for (size_t k = 0; k < n; k++) {
        input[(skipped + p) * pitch + k] = rough ? float(draw(-9999, 9999)) / 999.f : draw(0, 9) ? grid(16, 8) : -0.f;
        sums.push_back(input[(skipped + p) * pitch + k]);
      }
    const size_t cut = skipped + draw(0, int(pixels));
    kernels->map(input.data, skipped, cut, end.e);
    kernels->map(input.data, cut, skipped + pixels, end.e);
    end.compare("map of " + std::to_string(n) + " channels", sums);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  if (name == "portable") kernels = portable_kernels();
  else if (name == "avx2") kernels = avx2_kernels();
  else if (name == "avx512") kernels = avx512_kernels();
  else if (name == "avx512_vpopcnt") kernels = avx512_vpopcnt_kernels();
  else if (name == "neon") kernels = neon_kernels();
  if (!kernels) return std::printf("kernels \"%s\" are not known or not usable on this CPU\n", name.c_str()), 2;
  if (argc > 2) every = std::max(1, std::atoi(argv[2]));
  binary_corners();
  binary_scattered(2000);
  real(600);
  int16(400);
  winograd(300);
  quantized(100);
  pools(600);
  maps(600);
  std::printf("%s: %d passed, %d failed\n", kernels->name, passed, failed);
  return failed || !passed;
}
