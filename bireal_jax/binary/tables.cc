// The two gradients of a convolution one factor of which is ±1, without multiplications. Four products with four signs are
// one of 16 signed sums: these are made once, 24 additions, and then looked up, one addition for four multiplications and
// four additions. Exact as far as float32 is: the terms are the same, their order is another.
//
// Both gradients are the same sum. A table has 16 rows of 16 lanes; a byte says which row counts:
//
//   sum[target][channel][lane] = sum over terms of table_term[byte_term[channel]][lane]
//
//              lanes       four signs    of            a table for      targets        channels
//   by input   16 images   outputs       the weights   a pixel of g     input pixels   inputs
//   by kernel  16 outputs  images        x             a pixel of g     taps           inputs
//
// So rows, columns, strides and borders need no care beyond a list of which table meets which target. The order of a sum
// depends on the shapes alone, not on threads or instructions: work is divided where no sum is. Longer than it should be:
// one sum in two layouts, which are read side by side.
#include "tables.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "conv.h"
#include "xla.h"

namespace tables {
namespace {

constexpr int quad = 4;  // signs of a table

inline int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b < 0); }
inline int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }

struct Free {
  void operator()(float* p) const { operator delete(p, std::align_val_t(64)); }
};
using Floats = std::unique_ptr<float[], Free>;

Floats floats(size_t count) {  // zeros
  auto* p = static_cast<float*>(operator new(count * sizeof(float), std::align_val_t(64)));
  std::memset(p, 0, count * sizeof(float));
  return Floats(p);
}

const Kernels& choose(const Conv& v) {
  const Kernels* best = v.newest >= 2 ? avx512() : nullptr;
  if (!best && v.newest >= 1) best = avx2() ? avx2() : neon();
  return best ? *best : *portable();
}

// The terms of each of some targets.
struct Lists {
  std::vector<Term> terms;
  std::vector<uint32_t> ends = {0};

  void close() { ends.push_back(uint32_t(terms.size())); }
  const Term* begin(size_t i) const { return terms.data() + ends[i]; }
  int count(size_t i) const { return int(ends[i + 1] - ends[i]); }
};

// --- by the kernel ----------------------------------------------------------------------------------------------------

// dw [kh, kw, c, co] from x [n, h, w, c], signs, a byte each, 1 for +1, and g [n, ho, wo, co].
class ByKernel {
 public:
  ByKernel(const Conv& v, const Team& team, const uint8_t* x, const float* g, float* dw)
      : v_(v), team_(team), kernels_(choose(v)), x_(x), g_(g), dw_(dw), quads_(ceil_div(v.n, quad)), pixels_(v.ho * v.wo),
        sets_(ceil_div(pixels_, most)), pitch_(ceil_div(v.c, tile) * tile * lanes), size_(v.taps() * pitch_),
        blocks_(int(ceil_div(v.co, lanes))), wide_(blocks_ / 2), plane_(size_t(v.h) * v.w * v.c) {
    // Few output channels: the pixels are divided, too, into slices with sums of their own.
    slices_ = std::max<int64_t>(1, std::min<int64_t>(ceil_div(32, blocks_), quads_ * sets_ / 8));
  }

  void run() {
    list();
    picks_ = std::make_unique<uint8_t[]>(quads_ * plane_ + tile);
    std::atomic<int64_t> next{0};
    team_.run([&] {
      for (int64_t q; (q = next++) < quads_;) pick(q);
    });
    sums_ = floats(slices_ * blocks_ * size_);
    nothing_ = floats(slices_ * blocks_ * lanes);
    const int64_t units = slices_ * (blocks_ - wide_);
    std::vector<std::atomic<int64_t>> left(blocks_ - wide_);
    for (auto& l : left) l = slices_;
    next = 0;
    team_.run([&] {
      const Floats room = floats(2 * second);
      for (int64_t unit; (unit = next++) < units;) {
        const int64_t pair = unit % (blocks_ - wide_), slice = unit / (blocks_ - wide_);
        sum(slice, int(2 * pair), pair < wide_ ? 2 : 1, room.get());
        if (--left[pair] == 0) finish(int(2 * pair), pair < wide_ ? 2 : 1);
      }
    });
  }

 private:
  // Which pixels of g a tap meets, for each set of pixels.
  void list() {
    clipped_.assign(v_.taps(), false);
    for (int64_t set = 0; set < sets_; set++)
      for (int tap = 0; tap < v_.taps(); tap++) {
        const int64_t first = pixels_ * set / sets_, end = pixels_ * (set + 1) / sets_;
        for (int64_t p = first; p < end; p++) {
          const int64_t y = p / v_.wo * v_.sh + tap / v_.kw - v_.top, x = p % v_.wo * v_.sw + tap % v_.kw - v_.left;
          if (y < 0 || y >= v_.h || x < 0 || x >= v_.w) clipped_[tap] = true;
          else lists_.terms.push_back({uint32_t((p - first) * table * sizeof(float)), uint32_t((y * v_.w + x) * v_.c)});
        }
        lists_.close();
      }
  }

  void pick(int64_t q) {
    const uint8_t* from[quad];
    for (int j = 0; j < quad; j++) from[j] = x_ + std::min<int64_t>(q * quad + j, v_.n - 1) * plane_;
    kernels_.pick(from, plane_, picks_.get() + q * plane_);
  }

  float* sums(int64_t slice, int block) const { return sums_.get() + (slice * blocks_ + block) * size_; }

  // Tables of a pixel of four images, for outputs from the block on; beyond the last image and output they are of zeros.
  void fill(int64_t q, int64_t pixel, int block, int width, float* to, float* nothing) const {
    alignas(64) float copy[quad][2 * lanes] = {};
    const float* from[quad];
    const int here = std::min(v_.co - block * lanes, width * lanes);
    for (int j = 0; j < quad; j++) {
      const bool there = q * quad + j < v_.n;
      from[j] = copy[j];
      if (!there) continue;
      const float* row = g_ + ((q * quad + j) * pixels_ + pixel) * v_.co + block * lanes;
      if (here == width * lanes) from[j] = row;
      else std::memcpy(copy[j], row, here * sizeof(float));
    }
    kernels_.fill(from, width, to, nothing);
  }

  void sum(int64_t slice, int block, int width, float* room) {
    float *to = sums(slice, block), *nothing = nothing_.get() + (slice * blocks_ + block) * lanes;
    const int64_t all = quads_ * sets_;
    for (int64_t i = all * slice / slices_, end = all * (slice + 1) / slices_; i < end; i++) {
      const int64_t q = i / sets_, set = i % sets_, first = pixels_ * set / sets_;
      for (int64_t p = first; p < pixels_ * (set + 1) / sets_; p++)
        fill(q, p, block, width, room + (p - first) * table, nothing);
      for (int tap = 0; tap < v_.taps(); tap++) {
        const size_t list = set * v_.taps() + tap;
        kernels_.add(room, picks_.get() + q * plane_, lists_.begin(list), lists_.count(list), v_.c, width,
                     to + tap * pitch_, size_);
      }
    }
  }

  // Adds the slices up, in their order. Where a tap went beyond the border, 0 times g is among its terms.
  void finish(int first, int width) {
    for (int block = first; block < first + width; block++)
      for (int tap = 0; tap < v_.taps(); tap++) {
        const int here = std::min(v_.co - block * lanes, lanes);
        for (int c = 0; c < v_.c; c++) {
          float total[lanes] = {};
          for (int64_t slice = 0; slice < slices_; slice++) {
            const float *from = sums(slice, block) + tap * pitch_ + c * lanes,
                        *nothing = nothing_.get() + (slice * blocks_ + block) * lanes;
            for (int l = 0; l < lanes; l++) total[l] += clipped_[tap] ? from[l] + nothing[l] : from[l];
          }
          std::memcpy(dw_ + (size_t(tap) * v_.c + c) * v_.co + block * lanes, total, here * sizeof(float));
        }
      }
  }

  const Conv& v_;
  const Team team_;
  const Kernels& kernels_;
  const uint8_t* x_;
  const float* g_;
  float* dw_;
  const int64_t quads_, pixels_, sets_;
  const size_t pitch_, size_;  // floats of a tap's sums, of a block's
  const int blocks_, wide_;    // of 16 outputs; pairs of them
  const size_t plane_;
  int64_t slices_;
  Lists lists_;
  std::vector<char> clipped_;
  std::unique_ptr<uint8_t[]> picks_;  // [quad][h][w][c]
  Floats sums_, nothing_;             // [slice][block][tap][c][16], [slice][block][16]
};

// --- by the input -----------------------------------------------------------------------------------------------------

// dx [n, h, w, c] from w [kh, kw, c, co], signs or 0, and g [n, ho, wo, co] times scale [co]. Where images do not fill the lanes, or too few
// threads have something to do, images are cut into bands, each in a lane of its own.
class ByInput {
 public:
  ByInput(const Conv& v, const Team& team, const float* w, const float* g, const float* scale, float* dx)
      : v_(v), team_(team), kernels_(choose(v)), w_(w), g_(g), scale_(scale), dx_(dx), blocks_(int(ceil_div(v.co, lanes))),
        cells_(int(ceil_div(v.c, tile)) * tile), row_(size_t(v.w) * cells_ * lanes), half_(v.kh * row_) {
    const size_t size = size_t(v.taps()) * v.c * v.co;
    zeros_ = std::any_of(w, w + size, [](float s) { return s == 0; });
    signs_ = zeros_ ? 2 : quad;
    per_block_ = lanes / signs_;
    chunks_ = int(ceil_div(blocks_, most / per_block_));  // blocks whose tables are made together
    chunk_ = int(ceil_div(blocks_, chunks_));
    tables_ = chunk_ * per_block_;
    pixels_ = std::min(v.wo, std::max(1, most / tables_));
    cut();
  }

  void run() {
    pick();
    list();
    std::atomic<int64_t> next{0};
    team_.run([&] {
      const Floats room = floats(width_ * second), ring = floats(width_ * half_);
      for (int64_t group; (group = next++) < groups_;) sum(group * width_ * lanes, room.get(), ring.get());
    });
  }

 private:
  // Bands of whole strides, as many as make the longest thread's work shortest: rows, and tables of rows that two bands need.
  // Two vectors at a time take a tenth less.
  void cut() {
    double best = INFINITY;
    for (int width = 1; width <= 2; width++)
      for (int bands = 1; bands <= std::min(v_.h, width * lanes * v_.threads); bands++) {
        const int64_t height = ceil_div(ceil_div(v_.h, bands), v_.sh) * v_.sh;
        const int64_t groups = ceil_div(int64_t(v_.n) * bands, width * lanes);
        const double rows = double(height) + 0.2 * (v_.kh - 1), vectors = width == 2 ? 1.8 : 1;
        const double work = double(ceil_div(groups, v_.threads)) * rows * vectors;
        if (work < best) best = work, bands_ = bands, height_ = int(height), groups_ = groups, width_ = width;
      }
  }

  // picks_ [chunk][tap][table][channel]: which row the weights of an input channel choose.
  void pick() {
    picks_.assign(size_t(chunks_) * v_.taps() * tables_ * cells_, 0);
    uint8_t* to = picks_.data();
    for (int chunk = 0; chunk < chunks_; chunk++)
      for (int tap = 0; tap < v_.taps(); tap++)
        for (int k = 0; k < tables_; k++, to += cells_) {
          const int first = chunk * chunk_ * lanes + k * signs_, here = std::min(signs_, v_.co - first);
          for (int c = 0; c < v_.c; c++) {
            const float* w = w_ + (size_t(tap) * v_.c + c) * v_.co + first;
            int number = 0;
            for (int j = 0, digit = 1; j < here; j++, digit *= zeros_ ? 3 : 2)
              number += digit * (zeros_ ? 1 + (w[j] > 0) - (w[j] < 0) : w[j] > 0);
            to[c] = uint8_t(number * index_step);
          }
        }
  }

  // For a set of neighbouring pixels of a row of g: the columns of the input that they meet, and with which taps.
  void list() {
    for (int first = 0; first < v_.wo; first += pixels_) {
      const int end = std::min(first + pixels_, v_.wo);
      for (int x = first * v_.sw - v_.left; x < (end - 1) * v_.sw - v_.left + v_.kw; x++) {
        if (x < 0 || x >= v_.w) continue;
        for (int p = first; p < end; p++) {
          const int tap = x + v_.left - p * v_.sw;
          if (tap < 0 || tap >= v_.kw) continue;
          for (int k = 0; k < tables_; k++)
            lists_.terms.push_back({uint32_t(((p - first) * tables_ + k) * table * sizeof(float)),
                                    uint32_t((tap * tables_ + k) * cells_)});
        }
        if (lists_.terms.size() == lists_.ends.back()) continue;
        columns_.push_back(x);
        lists_.close();
      }
      sets_.push_back(columns_.size());
    }
  }

  // dx of the bands from the first on, one in a lane. Rows are counted from where each band begins.
  void sum(int64_t first, float* room, float* ring) const {
    const int64_t begin = bands_ > 1 ? ceil_div(v_.top - v_.kh + 1, v_.sh) : 0;
    const int64_t last = std::min<int64_t>(v_.ho - 1, floor_div(height_ - 1 + v_.top, v_.sh));
    int done = 0;
    for (int64_t y = begin; y <= last; y++) {
      for (; done < std::min<int64_t>(height_, y * v_.sh - v_.top); done++) flush(first, done, ring);
      spread(first, int(y), room, ring);
    }
    for (; done < height_; done++) flush(first, done, ring);
  }

  // Adds to the ring what a row of g gives.
  void spread(int64_t first, int y, float* room, float* ring) const {
    const float* from[2 * lanes];  // rows of g, null beyond the last image or the border
    for (int i = 0; i < width_ * lanes; i++) {
      const int64_t image = (first + i) / bands_, at = y + (first + i) % bands_ * height_ / v_.sh;
      from[i] = image < v_.n && at >= 0 && at < v_.ho ? g_ + (image * v_.ho + at) * v_.wo * v_.co : nullptr;
    }
    for (size_t set = 0; set < sets_.size(); set++)
      for (int chunk = 0; chunk < chunks_; chunk++) {
        const int left = int(set) * pixels_;
        for (int x = left; x < std::min(left + pixels_, v_.wo); x++)
          for (int k = 0; k < width_; k++)
            fill(from + k * lanes, x, chunk, room + k * second + (x - left) * tables_ * table);
        for (int ky = 0; ky < v_.kh; ky++) {
          const int to = y * v_.sh - v_.top + ky;
          if (to < 0 || to >= height_) continue;
          const uint8_t* picks = picks_.data() + size_t(chunk * v_.kh + ky) * v_.kw * tables_ * cells_;
          for (size_t i = set ? sets_[set - 1] : 0; i < sets_[set]; i++)
            kernels_.add(room, picks, lists_.begin(i), lists_.count(i), cells_, width_,
                         ring + to % v_.kh * row_ + size_t(columns_[i]) * cells_ * lanes, half_);
        }
      }
  }

  // Tables of a chunk of outputs at a pixel of each row; zeros for what is not there.
  void fill(const float* const* rows_of, int x, int chunk, float* to) const {
    static const float none[lanes] = {};
    for (int b = 0; b < chunk_; b++, to += per_block_ * table) {
      const int first = (chunk * chunk_ + b) * lanes, here = std::min(v_.co - first, lanes);
      alignas(64) float copy[lanes][lanes];
      float scale[lanes] = {};
      const float* from[lanes];
      if (here > 0) std::memcpy(scale, scale_ + first, here * sizeof(float));
      if (here < lanes) std::memset(copy, 0, sizeof copy);
      for (int i = 0; i < lanes; i++) {
        from[i] = none;
        if (!rows_of[i] || here <= 0) continue;
        const float* at = rows_of[i] + size_t(x) * v_.co + first;
        from[i] = here < lanes ? copy[i] : at;
        if (here < lanes) std::memcpy(copy[i], at, here * sizeof(float));
      }
      kernels_.fill_channels(from, scale, zeros_, to, table);
    }
  }

  // Writes a row of each band, which is complete, and empties its place.
  void flush(int64_t first, int y, float* ring) const {
    for (int k = 0; k < width_; k++, first += lanes, ring += half_) {
      float* const sums = ring + y % v_.kh * row_;
      float* out[lanes];
      for (int i = 0; i < lanes; i++) {
        const int64_t image = (first + i) / bands_, at = y + (first + i) % bands_ * height_;
        out[i] = image < v_.n && at < v_.h ? dx_ + (image * v_.h + at) * v_.w * v_.c : nullptr;
      }
      write(sums, out);
      std::memset(sums, 0, row_ * sizeof(float));
    }
  }

  void write(const float* sums, float* const* out) const {
    const bool all = std::all_of(out, out + lanes, [](const float* p) { return p; });
    for (int x = 0; x < v_.w; x++)
      for (int c = 0; c < v_.c; c += lanes) {
        const float* from = sums + (size_t(x) * cells_ + c) * lanes;
        const int here = std::min(lanes, v_.c - c);
        float* to[lanes];
        for (int i = 0; i < lanes; i++) to[i] = out[i] ? out[i] + size_t(x) * v_.c + c : nullptr;
        if (here == lanes && all) kernels_.transpose(from, to);
        else
          for (int i = 0; i < lanes; i++)
            for (int k = 0; to[i] && k < here; k++) to[i][k] = from[k * lanes + i];
      }
  }

  const Conv& v_;
  const Team team_;
  const Kernels& kernels_;
  const float *w_, *g_, *scale_;
  float* dx_;
  const int blocks_, cells_;  // of 16 outputs; input channels, filled up
  const size_t row_, half_;   // floats of the sums of a row, of the ring of rows
  bool zeros_;
  int signs_, per_block_, chunks_, chunk_, tables_, pixels_;
  int bands_, height_, width_;  // of an image; rows of a band; vectors of bands that are summed up together
  int64_t groups_;              // of so many vectors
  std::vector<uint8_t> picks_;
  Lists lists_;
  std::vector<int> columns_;  // of each list
  std::vector<size_t> sets_;  // where the lists of each set end
};

constexpr const char* no_memory = "no memory for the gradient of a 1-bit convolution";

}  // namespace
}  // namespace tables

// Arguments: the members of Conv as int32, w, g and scale, or x, in bytes, and g; result: dx, or dw. float32; the caller has
// checked all shapes.
extern "C" __attribute__((visibility("default"))) void* bireal_tables_by_input(xla::Call* call) {
  return answer<Conv>(call, tables::no_memory, [&](const Conv& v, const Team& team) {
    const auto in = [&](int i) { return xla::in<float>(call, i); };
    tables::ByInput(v, team, in(1), in(2), in(3), xla::out<float>(call, 0)).run();
  });
}
extern "C" __attribute__((visibility("default"))) void* bireal_tables_by_kernel(xla::Call* call) {
  return answer<Conv>(call, tables::no_memory, [&](const Conv& v, const Team& team) {
    tables::ByKernel(v, team, xla::in<uint8_t>(call, 1), xla::in<float>(call, 2), xla::out<float>(call, 0)).run();
  });
}
