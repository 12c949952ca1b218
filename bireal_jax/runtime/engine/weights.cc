// Weights, packed for the kernels: bits, floats, or whole numbers of 16 bits; direct or for Winograd's algorithm.
#include <algorithm>
#include <cmath>

#include "net.h"
#include "winograd.h"

namespace bireal {
namespace {

class Packer {
 public:
  explicit Packer(Net& net) : net_(net), ops_(net.network.ops) {}

  // Weights, packed for the kernels.
  void pack() {
    for (auto& op : ops_) {
      net_.hold(op.bits.size());
      for (auto& array : op.arrays) net_.hold(array.size() * sizeof(float));
    }
    for (auto& op : ops_) {
      const bool channels = op.kind == Kind::affine || op.kind == Kind::rprelu;
      const size_t size = pitch_of(op.in.c) * sizeof(float);
      net_.charge(channels ? 3 * size : 0);
      net_.arrays.emplace_back(channels ? 3 * size : 0);
      for (int k = 0; channels && k < 3; k++) {
        if (op.arrays[k].empty()) continue;
        std::memcpy(net_.arrays.back().as<uint8_t>() + k * size, op.arrays[k].data(), op.arrays[k].size() * sizeof(float));
        net_.release(op.arrays[k].size() * sizeof(float));
        std::vector<float>().swap(op.arrays[k]);
      }
    }
    for (auto& step : net_.steps) {
      Op& op = ops_[step.op];
      if (op.kind != Kind::conv && op.kind != Kind::binary_conv) continue;
      Conv& c = step.conv;
      c.h = op.in.h, c.w = op.in.w, c.c = op.in.c, c.ho = op.out.h, c.wo = op.out.w, c.co = op.out.c;
      c.kh = op.kh, c.kw = op.kw, c.sh = op.sh, c.sw = op.sw, c.top = op.top, c.left = op.left;
      c.groups = op.groups, c.pad = op.pad, c.cg = op.in.c / op.groups, c.og = op.out.c / op.groups;
      if (op.kind == Kind::binary_conv) {
        // So many rows go through all filters in turn that what is prepared of the input stays in the first cache.
        const bool bands = by_rows(net_, c);
        c.band = c.ho;
        net_.kernels->binary_plan(c);
        for (const size_t cache = 16 << 10; bands && c.band > 1 && c.scratch > cache; net_.kernels->binary_plan(c))
          c.band = std::max(1, std::min(c.band - 1, int(size_t(c.band) * cache / c.scratch)));
        net_.charge(c.packed);
        step.weight = Buffer(c.packed);
        net_.kernels->binary_pack(c, op.bits.data(), step.weight.as<void>());
        c.weight = step.weight.as<void>();
        middles(step, op);
      } else {
        const size_t count = size_t(c.kh) * c.kw * c.cg * c.co;
        if (!op.bits.empty()) {
          net_.hold(count * sizeof(float));
          op.arrays[0] = dense(op);
        }
        real(step, op);
        net_.release(count * sizeof(float));
        std::vector<float>().swap(op.arrays[0]);
      }
      net_.release(op.bits.size());
      std::vector<uint8_t>().swap(op.bits);
    }
  }

 private:
  // Parts of a window that lie within the input: distinct [begin, end) of its taps, and which of them each output has.
  struct Parts {
    std::vector<std::pair<int, int>> kinds;
    std::vector<uint16_t> of;
    Parts(int count, int stride, int low, int size, int window) {
      for (int i = 0; i < count; i++) {
        const std::pair<int, int> part(std::max(0, low - i * stride), std::min(window, size + low - i * stride));
        const auto found = std::find(kinds.begin(), kinds.end(), part);
        of.push_back(uint16_t(found - kinds.begin()));
        if (found == kinds.end()) kinds.push_back(part);
      }
    }
    size_t size() const { return kinds.size(); }
  };

  // What the kernels that count bits add to their counts: with padding of 0, which they count as -1, the set bits of the
  // taps beyond the border, and half the number of products.
  void middles(Step& step, const Op& op) {
    Conv& c = step.conv;
    const bool zeros = c.pad == 0;
    const Parts rows(c.ho, c.sh, zeros ? c.top : 0, zeros ? c.h : 1 << 30, c.kh);
    const Parts cols(c.wo, c.sw, zeros ? c.left : 0, zeros ? c.w : 1 << 30, c.kw);
    c.classes = int(rows.size() * cols.size());
    const int blocks = (c.og + unit - 1) / unit, bytes = (c.cg + 7) / 8;
    const size_t floats = size_t(c.groups) * blocks * c.classes * unit;
    net_.charge(floats * sizeof(float) + size_t(c.ho) * c.wo * sizeof(uint16_t));
    step.middle = Buffer(floats * sizeof(float));
    for (int o = 0; o < c.co; o++) {
      // set[y][x]: bits of the taps above and to the left
      std::vector<std::vector<int>> set(c.kh + 1, std::vector<int>(c.kw + 1));
      const uint8_t* bits = op.bits.data() + size_t(o) * c.kh * c.kw * bytes;
      for (int ky = 0; ky < c.kh; ky++)
        for (int kx = 0; kx < c.kw; kx++, bits += bytes) {
          int tap = 0;
          for (int k = 0; k < c.cg; k++) tap += bits[k / 8] >> k % 8 & 1;
          set[ky + 1][kx + 1] = tap + set[ky][kx + 1] + set[ky + 1][kx] - set[ky][kx];
        }
      float* out = step.middle.as<float>() + (size_t(o / c.og) * blocks + o % c.og / unit) * c.classes * unit + o % c.og % unit;
      for (const auto& [y0, y1] : rows.kinds)
        for (const auto& [x0, x1] : cols.kinds) {
          const int inside = set[y1][x1] - set[y0][x1] - set[y1][x0] + set[y0][x0];
          *out = float((y1 - y0) * (x1 - x0) * c.cg) / 2 + float(set[c.kh][c.kw] - inside);
          out += unit;
        }
    }
    for (int y = 0; y < c.ho; y++)
      for (int x = 0; x < c.wo; x++) step.pixel_class.push_back(uint16_t(rows.of[y] * cols.size() + cols.of[x]));
    c.middle = step.middle.as<float>(), c.pixel_class = step.pixel_class.data();
  }

  void real(Step& step, const Op& op) {
    Conv& c = step.conv;
    if (depthwise(op, step.input)) {
      const size_t pitch = pitch_of(c.co);
      net_.charge(c.kh * c.kw * pitch * sizeof(float));
      step.weight = Buffer(c.kh * c.kw * pitch * sizeof(float));
      for (int t = 0; t < c.kh * c.kw; t++)
        std::memcpy(step.weight.as<float>() + t * pitch, &op.arrays[0][size_t(t) * c.co], c.co * sizeof(float));
      c.weight = step.weight.as<float>();
      return;
    }
    const bool pointwise = c.kh * c.kw * c.sh * c.sw == 1 && net_.real_valued(step.input) && step.input && step.pool < 0;
    if (pointwise) c.wo = c.w = c.h * c.w, c.ho = c.h = 1;  // one long row
    c.ph = (c.ho - 1) * c.sh + c.kh, c.pw = (c.wo - 1) * c.sw + c.kw;
    // A pointwise convolution reads the map itself, whose pixels are `pitch` apart.
    const int stride = pointwise ? int(pitch_of(op.in.c)) : op.in.c;
    c.scratch = pointwise ? 0 : size_t(c.ph) * c.pw * op.in.c * sizeof(float) + 64;
    c.blocks = int(pitch_of(c.co) / unit);
    if (step.input == 0) plan_winograd(c);
    const size_t per = c.points ? winograd_weights(c) : size_t(c.kh) * c.kw * op.in.c;  // of a filter; groups: zeros
    net_.charge(per * pitch_of(c.co) * sizeof(float));
    step.weight = Buffer(per * pitch_of(c.co) * sizeof(float));
    float* out = step.weight.as<float>();
    if (c.points) {
      for (int o = 0; o < c.co; o++)
        for (int k = 0; k < c.depth; k++)
          for (int ky = 0; ky < c.kh; ky++) {
            double at[7];
            filter(step, op, ky, k, o, 1, at);
            for (int n = 0; n < c.points - (k >= c.last); n++)
              out[(o / unit * per + winograd_place(c, n, ky, k)) * unit + o % unit] = float(at[n]);
          }
      step.line = line(c);
      c.halved = halved(step, c);
      c.scratch = 0;
    }
    for (int t = 0; t < c.kh * c.kw && !c.points; t++)
      for (int k = 0; k < c.cg; k++)
        for (int o = 0; o < c.co; o++) {
          const size_t channel = size_t(o / c.og) * c.cg + k;
          out[(o / unit * per + size_t(t) * op.in.c + channel) * unit + o % unit] =
              op.arrays[0][(size_t(t) * c.cg + k) * c.co + o];
        }
    c.cg = op.in.c, c.c = stride;
    c.weight = out;
    if (net_.options.precision != 1 || op.groups > 1) return;
    if (step.input == 0) int16(step, op);
    else if (pointwise && c.wo > 1) pointwise16(step, op);  // the last layer is left exact
  }

  // Winograd's algorithm: whether windows of the pool behind are joined along x at once.
  bool halved(const Step& step, const Conv& c) const {
    if (step.pool < 0 || step.chain.residual >= 0 || step.chain.act >= 0) return false;
    const Op& pool = ops_[step.pool];
    return pool.kw == 3 && pool.sw == 2 && pool.left == 1 && c.wo % 4 == 0 && pool.out.w * 2 == c.wo;
  }

  // Winograd's algorithm: bytes of the rows of a thread.
  static size_t line(const Conv& c) {
    const size_t floats = winograd_row(c) + 4 * winograd_lane(c) + c.kh * c.points * winograd_pitch(c);
    return (floats * sizeof(float) + 63) / 64 * 64;
  }

  // Winograd's algorithm: the part of a filter on one channel and phase, depth `k`, at all points.
  void filter(const Step& step, const Op& op, int ky, int k, int o, double factor, double* at) const {
    const Conv& c = step.conv;
    double taps[4] = {};
    for (int j = 0, x; (x = k / op.in.c + j * c.sw) < c.kw; j++)
      taps[j] = factor * op.arrays[0][((size_t(ky) * c.kw + x) * op.in.c + k % op.in.c) * c.co + o];
    winograd_filter(c.points, taps, at);
  }

  // Weights of 16 bits on the pixels themselves, less 128; the normalization goes into scales and offsets. Each weight
  // takes over the rounding error of the one before, so that the errors of a window add up to next to nothing, where
  // neighbouring pixels are alike.
  void int16(Step& step, const Op& op) {
    Conv& c = step.int16;
    c = step.conv;
    c.steps = (c.kw * c.c + 1) / 2;
    c.depth += c.depth % 2, c.last += c.last % 2;
    const size_t per = c.points ? winograd_weights(c) : size_t(c.kh) * c.steps * 2, pitch = pitch_of(c.co);
    const size_t scales = std::max(1, c.points) * pitch;
    net_.charge(per * pitch * sizeof(int16_t) + scales * sizeof(float));
    step.int16_weight = Buffer(per * pitch * sizeof(int16_t));
    step.int16_scale = Buffer(scales * sizeof(float));
    auto weight = [&](int ky, int kx, int k, int o) {
      return double(op.arrays[0][((size_t(ky) * c.kw + kx) * c.c + k) * c.co + o]);
    };
    const auto& net = net_.network;
    const float* scale = step.chain.affine >= 0 ? net_.array(step.chain.affine, 0) : nullptr;
    const float* offset = step.chain.affine >= 0 ? net_.array(step.chain.affine, 1) : nullptr;
    auto classes = [](int count, int stride, int low, int size, int window, std::vector<std::pair<int, int>>& kinds,
                      std::vector<uint8_t>& of) {
      for (int i = 0; i < count; i++) {
        const int begin = std::max(0, low - i * stride), end = std::min(window, size + low - i * stride);
        size_t k = 0;
        while (k < kinds.size() && kinds[k] != std::make_pair(begin, end)) k++;
        if (k == kinds.size()) kinds.emplace_back(begin, end);
        of.push_back(uint8_t(k));
      }
      return kinds.size() <= 255;
    };
    std::vector<std::pair<int, int>> rows, cols;
    if (!classes(c.ho, c.sh, c.top, c.h, c.kh, rows, step.row_class) ||
        !classes(c.wo, c.sw, c.left, c.w, c.kw, cols, step.col_class))
      return;
    net_.charge(rows.size() * cols.size() * pitch * sizeof(float));
    step.offsets = Buffer(rows.size() * cols.size() * pitch * sizeof(float));
    for (int o = 0; o < c.co; o++) {
      const double a = scale ? scale[o] : 1, b = offset ? offset[o] : 0;
      if (c.points) winograd16(step, op, o, a);
      else direct16(step, op, o, a);
      // sums[y][x]: of the taps above and to the left
      std::vector<std::vector<double>> sums(c.kh + 1, std::vector<double>(c.kw + 1));
      for (int ky = 0; ky < c.kh; ky++)
        for (int kx = 0; kx < c.kw; kx++) {
          double tap = 0;
          for (int k = 0; k < c.c; k++) tap += weight(ky, kx, k, o) * (net.mean[k] - 128 / 255.0) / net.std[k];
          sums[ky + 1][kx + 1] = tap + sums[ky][kx + 1] + sums[ky + 1][kx] - sums[ky][kx];
        }
      for (size_t i = 0; i < rows.size(); i++)
        for (size_t j = 0; j < cols.size(); j++) {
          const auto [y0, y1] = rows[i];
          const auto [x0, x1] = cols[j];
          const double sum = sums[y1][x1] - sums[y0][x1] - sums[y1][x0] + sums[y0][x0];
          step.offsets.as<float>()[(i * cols.size() + j) * pitch + o] = float(b - a * sum);
        }
    }
    c.weight = step.int16_weight.as<int16_t>();
    c.scratch = c.points ? 0 : (size_t(c.ph) * c.pw * c.c + 64) * sizeof(int16_t);
    c.offsets = step.offsets.as<float>();
    c.row_class = step.row_class.data(), c.col_class = step.col_class.data(), c.col_classes = int(cols.size());
  }

  // A convolution of one pixel in 16 bits: inputs of at most input_limit, which are found at run time.
  void pointwise16(Step& step, const Op& op) {
    Conv& c = step.int16;
    c = step.conv;
    c.steps = c.c / 2;
    const size_t pitch = pitch_of(c.co);
    net_.charge(pitch * c.c * sizeof(int16_t) + pitch * sizeof(float));
    step.int16_weight = Buffer(pitch * c.c * sizeof(int16_t));
    step.int16_scale = Buffer(pitch * sizeof(float));
    for (int o = 0; o < c.co; o++) {
      double largest = 1e-30, sum = 0, error = 0;
      for (int k = 0; k < op.in.c; k++) {
        const double w = std::fabs(double(op.arrays[0][size_t(k) * c.co + o]));
        largest = std::max(largest, w), sum += w;
      }
      const double size = std::max(largest / 32767, sum / (2147483647.0 / input_limit - op.in.c));
      for (int k = 0; k < op.in.c; k++, error = 0)
        step.int16_weight.as<int16_t>()[(size_t(o / unit) * c.steps + k / 2) * 2 * unit + o % unit * 2 + k % 2] =
            rounded(op.arrays[0][size_t(k) * c.co + o] / size, 32767, error);
      const float* scale = step.chain.affine >= 0 ? net_.array(step.chain.affine, 0) : nullptr;
      step.int16_scale.as<float>()[o] = float(size * (scale ? scale[o] : 1));
    }
    c.weight = step.int16_weight.as<int16_t>();
    c.scratch = size_t(c.wo) * (sizeof(float) + c.c * sizeof(int16_t)) + 64;
  }

  // Filter `o` of 16 bits; `a` is the scale that follows.
  void direct16(Step& step, const Op& op, int o, double a) {
    const Conv& c = step.int16;
    const double most = std::min(32767.0, std::floor(2147483647.0 / (128.0 * c.kh * c.kw * c.c)));
    auto weight = [&](int t, int k) {
      return op.arrays[0][(size_t(t) * c.c + k) * c.co + o] / (255.0 * net_.network.std[k]);
    };
    double largest = 1e-30;
    for (int t = 0; t < c.kh * c.kw; t++)
      for (int k = 0; k < c.c; k++) largest = std::max(largest, std::fabs(weight(t, k)));
    const double size = largest / most;
    for (int k = 0; k < c.c; k++) {
      double error = 0;
      for (int t = 0; t < c.kh * c.kw; t++) {
        const int ky = t / c.kw, kx = ky % 2 ? c.kw - 1 - t % c.kw : t % c.kw;  // to and fro: to a neighbour
        const size_t at = kx * c.c + k;
        step.int16_weight.as<int16_t>()[((o / unit * size_t(c.kh) + ky) * c.steps + at / 2) * 2 * unit + o % unit * 2 + at % 2] =
            rounded(weight(ky * c.kw + kx, k) / size, most, error);
      }
    }
    step.int16_scale.as<float>()[o] = float(a * size);
  }

  // The same at the points of Winograd's algorithm, each of which has a scale of its own.
  void winograd16(Step& step, const Op& op, int o, double a) {
    const Conv& c = step.int16;
    const int depth = step.conv.depth;
    const size_t per = winograd_weights(c);
    std::vector<double> values(size_t(c.kh) * depth * 7);
    for (int k = 0; k < depth; k++)
      for (int ky = 0; ky < c.kh; ky++)
        filter(step, op, ky, k, o, 1 / (255.0 * net_.network.std[k % op.in.c]), &values[(size_t(k) * c.kh + ky) * 7]);
    for (int n = 0; n < c.points; n++) {
      double largest = 1e-30, sum = 0;
      for (size_t i = n; i < values.size(); i += 7) largest = std::max(largest, std::fabs(values[i])), sum += std::fabs(values[i]);
      const double inputs = 128.0 * winograd_growth(c.points, n), room = 2147483647.0 / inputs - 2.0 * c.kh * depth;
      const double size = std::max(largest / 32767, sum / std::max(1.0, room));
      std::vector<double> errors(op.in.c);  // of a channel
      for (int k = 0; k < (n == c.points - 1 ? step.conv.last : depth); k++) {
        double& error = errors[k % op.in.c];
        for (int ky = 0; ky < c.kh; ky++)
          step.int16_weight.as<int16_t>()[(o / unit * per + winograd_place(c, n, ky, k)) / 2 * 2 * unit + o % unit * 2 + k % 2] =
              rounded(values[(size_t(k) * c.kh + ky) * 7 + n] / size, 32767, error);
      }
      step.int16_scale.as<float>()[n * pitch_of(c.co) + o] = float(a * size);
    }
  }

  // Rounds a weight and the error of those before; keeps the new one.
  static int16_t rounded(double value, double most, double& error) {
    const double q = std::max(-most, std::min(most, std::nearbyint(value + error)));
    error += value - q;
    return int16_t(q);
  }

  Net& net_;
  std::vector<Op>& ops_;
};

}  // namespace

void pack_weights(Net& net) { Packer(net).pack(); }

}  // namespace bireal
