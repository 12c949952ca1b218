// Compares a table of kernels with plain loops: kernels_test NAME [EVERY]
// runs each EVERY-th case; each is made from its own number. Numbers are multiples of small powers of two, so that sums
// are exact in any order and signs of zero occur. What no kernel may count is filled with ones: NaN, or wild offsets.
// Exit status: 0 passed, 1 failed, 2 this CPU has not the instructions.
#include "cases.h"
#include "winograd_cases.h"

namespace {

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
  else if (name == "wasm") kernels = wasm_kernels();
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
