// The packed file: read, checked, and turned into a list of operations whose every size and index is sound.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace bireal {

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Kind { conv, binary_conv, affine, add, sign, rprelu, clip, max_pool, avg_pool, mean, subsample,
                  pad_channels, concat, reshape, upsample };

struct Shape {
  int h = 0, w = 0, c = 0;
  size_t pixels() const { return size_t(h) * w; }
  size_t size() const { return pixels() * c; }
};

struct Op {
  Kind kind;
  std::vector<int> inputs;  // numbers of tensors, smaller than the one of the output
  Shape in, out;            // of the first input
  int kh = 1, kw = 1, sh = 1, sw = 1;
  int top = 0, bottom = 0, left = 0, right = 0;
  int groups = 1, pad = 0;  // pad: value beyond the border of a binary convolution
  int before = 0;           // channels of zeros in front
  int factor = 1;           // of upsample
  float low = 0, high = 0, leak = 0;
  std::vector<float> arrays[3];  // weight [kh, kw, cin / groups, cout], or scale and offset, or those of RPReLU
  std::vector<uint8_t> bits;     // binary weight [cout, kh, kw, ceil(cin / groups / 8)], instead of arrays[0]
};

struct Network {
  Shape image;
  std::vector<float> mean, std;
  std::vector<std::string> labels;
  std::vector<Op> ops;
  double work = 0;  // multiply-adds of one image
};

// Limits of a file; beyond them it is refused.
constexpr int max_side = 1 << 16, max_ops = 1 << 12, max_window = 64;
constexpr size_t max_header = 4 << 20, max_values = 1 << 17;  // bytes of JSON, and what stands in it
constexpr size_t max_elements = size_t(1) << 28;
constexpr int max_binary_inputs = 65535;  // of one output: counts are 16 bit

// Throws Error. Takes at most the size of the file and 48 MB.
Network parse(const uint8_t* data, size_t size);

// ±1 [kh, kw, cin / groups, cout] of a convolution with a binary weight.
std::vector<float> dense(const Op& op);

}  // namespace bireal
