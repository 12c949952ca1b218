// For kernels_test.cc: Winograd's algorithm against plain loops.
#pragma once
#include "cases.h"
#include "winograd.h"

namespace {

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

}  // namespace
