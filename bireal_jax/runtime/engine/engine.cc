// Plans and runs a packed network: operations are fused into steps, maps get their places in one block of memory, and
// each step is cut into pieces for the threads.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "bireal.h"
#include "format.h"
#include "kernels.h"
#include "winograd.h"

namespace bireal {
namespace {

// ---------------------------------------------------------------------------------------------------------- memory

// Zeroed bytes on a 64-byte boundary.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) : size_(size) {
    data_ = static_cast<uint8_t*>(std::aligned_alloc(64, (size + 127) / 64 * 64));
    if (!data_) throw Error("not enough memory");
    std::memset(data_, 0, (size + 127) / 64 * 64);
  }
  Buffer(Buffer&& other) noexcept { swap(other); }
  Buffer& operator=(Buffer&& other) noexcept { return swap(other), *this; }
  ~Buffer() { std::free(data_); }

  template <class T>
  T* as() const { return reinterpret_cast<T*>(data_); }
  size_t size() const { return size_; }

 private:
  void swap(Buffer& other) { std::swap(data_, other.data_), std::swap(size_, other.size_); }
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// --------------------------------------------------------------------------------------------------------- threads

// Runs a function on so many threads, the caller one of them. Idle threads spin for a moment, then sleep.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { work(i); });
  }
  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return size_; }

  void run(const std::function<void(int)>& function) {
    if (size_ == 1) return function(0);
    function_ = &function;
    left_.store(size_ - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1);
    }
    if (sleeping_.load()) wake_.notify_all();
    function(0);
    if (!spin([&] { return left_.load(std::memory_order_acquire) == 0; }))
      while (left_.load(std::memory_order_acquire)) std::this_thread::yield();
  }

 private:
  // Waits for at most a millisecond without going to sleep: waking a sleeper takes longer than a layer.
  template <class Done>
  static bool spin(const Done& done) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    do {
      for (int i = 0; i < 100; i++) {
        if (done()) return true;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      std::this_thread::yield();  // to whoever else wants this core
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }

  void work(int number) {
    for (unsigned seen = 0;;) {
      if (!spin([&] { return round_.load(std::memory_order_acquire) != seen; })) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_++;
        wake_.wait(lock, [&] { return round_.load() != seen; });
        sleeping_--;
      }
      seen = round_.load();
      if (stop_) return;
      (*function_)(number);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> left_{0}, sleeping_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* function_ = nullptr;
};

// ----------------------------------------------------------------------------------------------------------- plan

// A place within a run's memory.
struct Place {
  size_t offset = none, size = 0;
  static constexpr size_t none = ~size_t(0);
  explicit operator bool() const { return offset != none; }
};

// What has been fused into the end of a step: operations by number, -1 for none.
struct Chain {
  int affine = -1, add = -1, act = -1, sign = -1, sign_affine = -1;
  int residual = -1;  // tensor
  int out = 0;        // tensor that comes out
  bool keep = true;   // the real-valued map is read by somebody
  int bits = -1;      // tensor of bits that comes out
};

struct Step {
  int op = 0;
  int input = 0;        // tensor
  Chain chain;
  int pool = -1;        // max_pool fused behind a real convolution, with a chain of its own
  Chain pool_chain;
  int position = 0;     // number of the last operation in it: when it can run
  Conv conv{};
  Buffer weight, offsets, int16_weight, int16_scale;
  std::vector<uint16_t> tap_counts;
  std::vector<uint8_t> row_class, col_class;
  Conv int16{};
  std::vector<size_t> columns;  // Winograd: where a column of the image lies in the planes
  size_t line = 0;              // and bytes of the planes and transformed rows of a thread
  Place scratch, band, lines;
};

struct Net {
  Network network;
  const Kernels* kernels = nullptr;
  bireal_options options{};
  std::vector<Step> steps;
  std::vector<Buffer> arrays;  // per operation: up to three arrays, one after the other
  std::vector<Place> reals, bits;
  size_t workspace = 0, weights = 0;
  std::vector<float> normalized;  // (value / 255 - mean) / std: [channel][value]
  std::mutex mutex;
  std::vector<std::unique_ptr<struct Context>> idle;

  const Shape& shape(int tensor) const { return tensor ? network.ops[tensor - 1].out : network.image; }
  const float* array(int op, int index) const {
    return arrays[op].as<float>() + index * pitch_of(network.ops[op].in.c);
  }
};

// Memory and threads of one run; a network has as many as there were runs at the same time.
struct Context {
  Buffer memory;
  Team team;
  Context(const Net& net) : memory(net.workspace), team(net.options.threads) {}
};

class Planner {
 public:
  explicit Planner(Net& net) : net_(net), ops_(net.network.ops), readers_(ops_.size() + 1), absorbed_(ops_.size()) {
    for (size_t i = 0; i < ops_.size(); i++)
      for (int input : ops_[i].inputs) readers_[input].push_back(int(i));
    last_ = int(ops_.size());
  }

  void plan() {
    const bool fuse = !net_.options.unfused;
    for (int i = 0; i < int(ops_.size()); i++) {
      if (absorbed_[i]) continue;
      Step step;
      step.op = i, step.input = ops_[i].inputs[0], step.position = i;
      const Kind kind = ops_[i].kind;
      const bool ragged = kind == Kind::binary_conv && ops_[i].groups > 1 && ops_[i].out.c / ops_[i].groups % unit;
      step.chain = begin(i);
      if (fuse && !ragged && kind != Kind::reshape && kind != Kind::concat && kind != Kind::pad_channels &&
          kind != Kind::subsample && kind != Kind::upsample && kind != Kind::mean)
        step.position = extend(step.chain, i);
      const int next = only_reader(step.chain.out);
      if (fuse && kind == Kind::conv && step.chain.bits < 0 && next >= 0 && ops_[next].kind == Kind::max_pool &&
          step.chain.add < 0 && real_valued(step.input)) {
        absorbed_[next] = true;
        step.pool = next;
        step.pool_chain = begin(next);
        step.position = extend(step.pool_chain, next);
      }
      net_.steps.push_back(std::move(step));
    }
    for (int c = 0; c < net_.network.image.c; c++)
      for (int value = 0; value < 256; value++)
        net_.normalized.push_back((float(value) / 255.f - net_.network.mean[c]) / net_.network.std[c]);
    std::stable_sort(net_.steps.begin(), net_.steps.end(),
                     [](const Step& a, const Step& b) { return a.position < b.position; });
    prepare();
    place();
  }

 private:
  bool real_valued(int tensor) const { return tensor == 0 || ops_[tensor - 1].kind != Kind::sign; }
  int only_reader(int tensor) const {
    return tensor != last_ && readers_[tensor].size() == 1 ? readers_[tensor][0] : -1;
  }
  // A sign that only binary convolutions read is kept as bits alone.
  bool bits_only(int op) const {
    if (ops_[op].kind != Kind::sign || op + 1 == last_) return false;
    for (int reader : readers_[op + 1])
      if (ops_[reader].kind != Kind::binary_conv) return false;
    return true;
  }

  // The step of an operation alone.
  Chain begin(int i) {
    Chain chain;
    chain.out = i + 1;
    switch (ops_[i].kind) {
      case Kind::affine: chain.affine = i; break;
      case Kind::add: chain.add = i, chain.residual = ops_[i].inputs[1]; break;
      case Kind::rprelu:
      case Kind::clip: chain.act = i; break;
      case Kind::sign: chain.act = i, chain.bits = i + 1, chain.keep = !bits_only(i) || net_.options.unfused; break;
      default: break;
    }
    return chain;
  }

  // Adds the operations behind it; returns the number of the last one that has an input of its own.
  int extend(Chain& chain, int position) {
    for (;;) {
      const int next = only_reader(chain.out);
      if (next < 0 || absorbed_[next]) break;
      const Op& op = ops_[next];
      if (op.kind == Kind::affine && chain.affine < 0 && chain.add < 0 && chain.act < 0) {
        chain.affine = next;
      } else if (op.kind == Kind::add && chain.add < 0 && chain.act < 0 && op.inputs[0] != op.inputs[1]) {
        chain.add = next;
        chain.residual = op.inputs[0] == chain.out ? op.inputs[1] : op.inputs[0];
        if (!real_valued(chain.residual)) return chain.add = -1, chain.residual = -1, position;
      } else if ((op.kind == Kind::rprelu || op.kind == Kind::clip) && chain.act < 0) {
        chain.act = next;
      } else {
        break;
      }
      absorbed_[next] = true;
      chain.out = next + 1;
      position = next;
    }
    for (int reader : readers_[chain.out]) {
      if (chain.sign >= 0 || chain.bits >= 0 || absorbed_[reader]) continue;
      int sign = reader, affine = -1;
      if (ops_[reader].kind == Kind::affine && only_reader(reader + 1) >= 0) affine = reader, sign = only_reader(reader + 1);
      if (ops_[sign].kind != Kind::sign || !bits_only(sign)) continue;
      chain.sign = sign, chain.sign_affine = affine, chain.bits = sign + 1;
      absorbed_[sign] = true;
      if (affine >= 0) absorbed_[affine] = true;
    }
    chain.keep = chain.out == last_;
    for (int reader : readers_[chain.out]) chain.keep |= reader != chain.sign && reader != chain.sign_affine;
    return position;
  }

  // Weights, packed for the kernels.
  void prepare() {
    for (auto& op : ops_) {
      hold(op.bits.size());
      for (auto& array : op.arrays) hold(array.size() * sizeof(float));
    }
    for (auto& op : ops_) {
      const bool channels = op.kind == Kind::affine || op.kind == Kind::rprelu;
      const size_t size = pitch_of(op.in.c) * sizeof(float);
      charge(channels ? 3 * size : 0);
      net_.arrays.emplace_back(channels ? 3 * size : 0);
      for (int k = 0; channels && k < 3; k++) {
        if (op.arrays[k].empty()) continue;
        std::memcpy(net_.arrays.back().as<uint8_t>() + k * size, op.arrays[k].data(), op.arrays[k].size() * sizeof(float));
        release(op.arrays[k].size() * sizeof(float));
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
        net_.kernels->binary_plan(c);
        // So many rows go through all filters in turn, that their part of the prepared input stays in the first cache.
        c.band = int(std::max<size_t>(1, (size_t(16) << 10) * c.ph / std::max<size_t>(1, c.scratch)));
        const size_t counts = size_t(c.kh) * c.kw * pitch_of(c.co) + 64;
        charge(c.packed + counts * sizeof(uint16_t));
        step.weight = Buffer(c.packed);
        step.tap_counts.assign(counts, 0);
        net_.kernels->binary_pack(c, op.bits.data(), step.weight.as<void>(), step.tap_counts.data());
        c.weight = step.weight.as<void>();
        c.tap_counts = step.tap_counts.data();
      } else {
        const size_t count = size_t(c.kh) * c.kw * c.cg * c.co;
        if (!op.bits.empty()) {
          hold(count * sizeof(float));
          op.arrays[0] = dense(op);
        }
        real(step, op);
        release(count * sizeof(float));
        std::vector<float>().swap(op.arrays[0]);
      }
      release(op.bits.size());
      std::vector<uint8_t>().swap(op.bits);
    }
  }

  // Of the file's own arrays, until they are packed: they count towards the limit.
  void hold(size_t bytes) { held_ += bytes, charge(0); }
  void release(size_t bytes) { held_ -= bytes; }

  // Before anything is allocated.
  void charge(size_t bytes) {
    net_.weights += bytes;
    if (net_.weights + net_.workspace + held_ > net_.options.max_memory)
      throw Error("the network needs more than " + std::to_string(net_.options.max_memory >> 20) +
                  " MB of memory; raise max_memory if you trust the file");
  }

  void real(Step& step, const Op& op) {
    Conv& c = step.conv;
    const bool pointwise = c.kh * c.kw * c.sh * c.sw == 1 && real_valued(step.input) && step.input && step.pool < 0;
    if (pointwise) c.wo = c.w = c.h * c.w, c.ho = c.h = 1;  // one long row
    c.ph = (c.ho - 1) * c.sh + c.kh, c.pw = (c.wo - 1) * c.sw + c.kw;
    // A pointwise convolution reads the map itself, whose pixels are `pitch` apart.
    const int stride = pointwise ? int(pitch_of(op.in.c)) : op.in.c;
    c.scratch = pointwise ? 0 : size_t(c.ph) * c.pw * op.in.c * sizeof(float) + 64;
    c.blocks = int(pitch_of(c.co) / unit);
    if (step.input == 0) plan_winograd(c);
    const size_t per = size_t(c.points ? c.points * c.kh * c.depth : c.kh * c.kw * op.in.c);  // of a filter; groups: zeros
    charge(per * pitch_of(c.co) * sizeof(float));
    step.weight = Buffer(per * pitch_of(c.co) * sizeof(float));
    float* out = step.weight.as<float>();
    if (c.points) {
      for (int o = 0; o < c.co; o++)
        for (int k = 0; k < c.depth; k++)
          for (int ky = 0; ky < c.kh; ky++) {
            double at[7];
            filter(step, op, ky, k, o, 1, at);
            for (int n = 0; n < c.points; n++)
              out[o / unit * per * unit + ((size_t(n) * c.kh + ky) * c.depth + k) * unit + o % unit] = float(at[n]);
          }
      lines(step, op);
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
    else if (pointwise && c.wo > 1) pointwise16(step, op);
  }

  // Winograd's algorithm: the part of a filter on one channel and phase, depth `k`, at all points.
  void filter(const Step& step, const Op& op, int ky, int k, int o, double factor, double* at) const {
    const Conv& c = step.conv;
    double taps[4] = {};
    for (int j = 0; k % c.sw + j * c.sw < c.kw; j++)
      taps[j] = factor * op.arrays[0][((size_t(ky) * c.kw + k % c.sw + j * c.sw) * op.in.c + k / c.sw) * c.co + o];
    winograd_filter(c.points, taps, at);
  }

  // Winograd's algorithm: places of the columns in the planes, and the memory of a thread.
  void lines(Step& step, const Op& op) {
    Conv& c = step.conv;
    const size_t pitch = plane_pitch(c.tiles), depth = c.depth + c.depth % 2;
    for (int x = c.left; x < std::min(c.pw, c.left + op.in.w); x++)
      step.columns.push_back((size_t(x % c.sw) * 4 + x / c.sw % 4) * pitch + x / c.sw / 4);
    step.line = (4 * depth * pitch + (c.kh + 1) * c.points * depth * c.tiles) * sizeof(float);
    c.scratch = 0;
  }

  // Weights of 16 bits on the pixels themselves, less 128; the normalization goes into scales and offsets. Each weight
  // takes over the rounding error of the one before, so that the errors of a window add up to next to nothing, where
  // neighbouring pixels are alike.
  void int16(Step& step, const Op& op) {
    Conv& c = step.int16;
    c = step.conv;
    c.steps = (c.kw * c.c + 1) / 2;
    c.depth += c.depth % 2;
    const size_t per = c.points ? size_t(c.points) * c.kh * c.depth : size_t(c.kh) * c.steps * 2, pitch = pitch_of(c.co);
    const size_t scales = std::max(1, c.points) * pitch;
    charge(per * pitch * sizeof(int16_t) + scales * sizeof(float));
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
    charge(rows.size() * cols.size() * pitch * sizeof(float));
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
    charge(pitch * c.c * sizeof(int16_t) + pitch * sizeof(float));
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
    std::vector<double> values(size_t(c.kh) * depth * 7);
    for (int k = 0; k < depth; k++)
      for (int ky = 0; ky < c.kh; ky++)
        filter(step, op, ky, k, o, 1 / (255.0 * net_.network.std[k / c.sw]), &values[(size_t(k) * c.kh + ky) * 7]);
    for (int n = 0; n < c.points; n++) {
      double largest = 1e-30, sum = 0;
      for (size_t i = n; i < values.size(); i += 7) largest = std::max(largest, std::fabs(values[i])), sum += std::fabs(values[i]);
      const double inputs = 128.0 * winograd_growth(c.points, n), room = 2147483647.0 / inputs - 2.0 * c.kh * depth;
      const double size = std::max(largest / 32767, sum / std::max(1.0, room));
      double error = 0;
      for (int k = 0; k < depth; k++) {
        if (k % c.sw == 0) error = 0;
        for (int ky = 0; ky < c.kh; ky++)
          step.int16_weight.as<int16_t>()[(((size_t(o / unit) * c.points + n) * c.kh + ky) * (c.depth / 2) + k / 2) * 2 * unit +
                                          o % unit * 2 + k % 2] =
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

  // Where maps lie: each from the step that writes it to the last one that reads it, first fit.
  void place() {
    const size_t count = ops_.size() + 1;
    net_.reals.resize(count), net_.bits.resize(count);
    std::vector<int> last_read(count, -1);
    for (size_t s = 0; s < net_.steps.size(); s++) {
      const Step& step = net_.steps[s];
      for (int input : ops_[step.op].inputs) last_read[input] = int(s);
      for (const Chain* chain : {&step.chain, &step.pool_chain})
        if (chain->residual >= 0) last_read[chain->residual] = int(s);
    }
    if (net_.options.unfused) last_read.assign(count, int(net_.steps.size()));
    last_read[last_] = int(net_.steps.size());
    struct Used {
      size_t begin, end;
      int until;
    };
    std::vector<Used> used;
    auto claim = [&](size_t size, int from, int until) {
      size = (size + 127) / 64 * 64;
      used.erase(std::remove_if(used.begin(), used.end(), [&](const Used& u) { return u.until < from; }), used.end());
      size_t at = 0;
      auto gap = used.begin();  // in order of begin
      for (; gap != used.end() && gap->begin < at + size; ++gap) at = std::max(at, gap->end);
      used.insert(gap, {at, at + size, std::max(from, until)});  // until: -1 where nobody reads it
      net_.workspace = std::max(net_.workspace, at + size);
      charge(0);
      return Place{at, size};
    };
    auto real = [&](int tensor, int from, int until) {
      const Shape& s = net_.shape(tensor);
      return claim(s.pixels() * pitch_of(s.c) * sizeof(float), from, until);
    };
    bool image = net_.options.unfused;
    for (auto& step : net_.steps)
      for (int input : ops_[step.op].inputs) image |= input == 0 && ops_[step.op].kind != Kind::conv;
    for (auto& step : net_.steps) image |= step.chain.residual == 0 || step.pool_chain.residual == 0;
    if (image) net_.reals[0] = real(0, 0, int(net_.steps.size()));
    for (size_t s = 0; s < net_.steps.size(); s++) {
      Step& step = net_.steps[s];
      const int now = int(s);
      const Op& op = ops_[step.op];
      if (op.kind == Kind::conv || op.kind == Kind::binary_conv)
        step.scratch = claim(std::max(step.conv.scratch, step.int16.scratch), now, now);
      if (step.line) step.lines = claim(size_t(net_.options.threads) * step.line, now, now);
      if (step.pool >= 0)
        step.band = claim(size_t(net_.options.threads) * ops_[step.pool].kh * step.conv.wo * pitch_of(step.conv.co) * sizeof(float), now, now);
      const Chain& chain = step.pool >= 0 ? step.pool_chain : step.chain;
      if (chain.bits >= 0) {
        const Shape& shape = net_.shape(chain.bits);
        net_.bits[chain.bits] = claim(shape.pixels() * bits_pitch(shape.c), now, last_read[chain.bits]);
      }
      if (!chain.keep) continue;
      // The sum takes the place of its shortcut, where nobody needs that any more.
      const int old = chain.residual;
      if (old > 0 && last_read[old] == now && net_.reals[old] && old != step.input) {
        net_.reals[chain.out] = net_.reals[old];
        for (auto& u : used)
          if (u.begin == net_.reals[old].offset) u.until = std::max(u.until, last_read[chain.out]);
      } else {
        net_.reals[chain.out] = real(chain.out, now, last_read[chain.out]);
      }
    }
  }

  Net& net_;
  std::vector<Op>& ops_;
  std::vector<std::vector<int>> readers_;
  std::vector<bool> absorbed_;
  size_t held_ = 0;
  int last_ = 0;
};

// ------------------------------------------------------------------------------------------------------------ run

class Run {
 public:
  Run(const Net& net, Context& context) : net_(net), context_(context), kernels_(*net.kernels) {}

  template <class Pixel>
  void image(const Pixel* pixels, float* logits) {
    const Shape& s = net_.network.image;
    if (net_.reals[0]) {
      float* out = real(0);
      for (size_t p = 0; p < s.pixels(); p++)
        for (int c = 0; c < s.c; c++) out[p * pitch_of(s.c) + c] = normalized(pixels[p * s.c + c], c);
    }
    for (const Step& step : net_.steps) run(step, pixels);
    const Shape& last = net_.network.ops.back().out;
    const float* from = real(int(net_.network.ops.size()));
    for (size_t p = 0; p < last.pixels(); p++)
      std::memcpy(logits + p * last.c, from + p * pitch_of(last.c), last.c * sizeof(float));
  }

  std::vector<double> profile(const uint8_t* pixels, int repeats) {
    std::vector<float> logits(net_.network.ops.back().out.size());
    std::vector<std::vector<double>> times(net_.steps.size());
    for (int r = 0; r < repeats; r++) {
      image(pixels, logits.data());
      for (size_t s = 0; s < net_.steps.size(); s++) {
        const auto begin = std::chrono::steady_clock::now();
        run(net_.steps[s], pixels);
        times[s].push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
    }
    std::vector<double> seconds(net_.network.ops.size());
    for (size_t s = 0; s < times.size(); s++) {
      std::nth_element(times[s].begin(), times[s].begin() + repeats / 2, times[s].end());
      seconds[net_.steps[s].op] = times[s][repeats / 2];
    }
    return seconds;
  }

  float* real(int tensor) const { return reinterpret_cast<float*>(at(net_.reals[tensor])); }
  uint8_t* bits(int tensor) const { return at(net_.bits[tensor]); }

 private:
  uint8_t* at(const Place& place) const { return place ? context_.memory.as<uint8_t>() + place.offset : nullptr; }

  float normalized(float value, int) const { return value; }
  float normalized(uint8_t value, int c) const {
    return net_.normalized[size_t(c) * 256 + value];
  }

  // Cuts [0, count) into one contiguous piece a thread.
  template <class Function>
  void split(int count, const Function& function) {
    const int threads = std::min(count, context_.team.size());
    if (threads <= 1) return function(0, count, 0);
    context_.team.run([&](int i) {
      const int begin = int(int64_t(count) * i / context_.team.size()), end = int(int64_t(count) * (i + 1) / context_.team.size());
      if (begin < end) function(begin, end, i);
    });
  }

  Epilogue epilogue(const Chain& chain) const {
    Epilogue e;
    const Shape& shape = net_.shape(chain.out);
    e.pitch = pitch_of(shape.c), e.bits_pitch = bits_pitch(shape.c);
    if (chain.affine >= 0) e.scale = net_.array(chain.affine, 0), e.offset = net_.array(chain.affine, 1);
    if (chain.residual >= 0) e.residual = real(chain.residual);
    if (chain.act >= 0) {
      const Op& op = net_.network.ops[chain.act];
      if (op.kind == Kind::sign) e.act = Act::sign;
      if (op.kind == Kind::clip) e.act = Act::clip, e.low = op.low, e.high = op.high, e.leak = op.leak;
      if (op.kind == Kind::rprelu) {
        e.act = Act::rprelu;
        e.shift_in = net_.array(chain.act, 0), e.slope = net_.array(chain.act, 1), e.shift_out = net_.array(chain.act, 2);
      }
    }
    if (chain.keep) e.out = real(chain.out);
    if (chain.bits >= 0) {
      e.bits = bits(chain.bits);
      if (chain.sign_affine >= 0)
        e.sign_scale = net_.array(chain.sign_affine, 0), e.sign_offset = net_.array(chain.sign_affine, 1);
    }
    return e;
  }

  template <class Pixel>
  void run(const Step& step, const Pixel* pixels) {
    const Op& op = net_.network.ops[step.op];
    const Epilogue e = epilogue(step.chain);
    const float* input = net_.reals[step.input] ? real(step.input) : nullptr;
    const int pitch = int(pitch_of(op.in.c)), out_pitch = int(pitch_of(op.out.c));
    const size_t bytes = size_t(pitch) * sizeof(float);
    switch (op.kind) {
      case Kind::binary_conv: return binary(step, e);
      case Kind::conv: return real_conv(step, e, pixels);
      case Kind::affine: case Kind::add: case Kind::rprelu: case Kind::clip: case Kind::sign:
        return split(int(op.in.pixels()), [&](int p0, int p1, int) { kernels_.map(input, p0, p1, e); });
      case Kind::max_pool:
        return split(op.out.h, [&](int y0, int y1, int) {
          for (int y = y0; y < y1; y++) {
            const float* rows[max_window];
            for (int i = 0; i < op.kh; i++) {
              const int iy = y * op.sh + i - op.top;
              rows[i] = iy >= 0 && iy < op.in.h ? input + size_t(iy) * op.in.w * pitch : nullptr;
            }
            kernels_.max_pool_row(rows, op.kh, op.kw, op.sw, op.left, op.in.w, op.out.w, pitch, size_t(y) * op.out.w, e);
          }
        });
      case Kind::avg_pool:
        return split(op.out.h, [&](int y0, int y1, int) {
          for (int y = y0; y < y1; y++) {
            const float* rows[max_window];
            for (int i = 0; i < op.kh; i++) rows[i] = input + size_t(y * op.sh + i) * op.in.w * pitch;
            kernels_.avg_pool_row(rows, op.kh, op.out.w, pitch, size_t(y) * op.out.w, e);
          }
        });
      case Kind::mean: {
        std::memset(e.out, 0, bytes);
        for (size_t p = 0; p < op.in.pixels(); p++)
          for (int c = 0; c < pitch; c++) e.out[c] += input[p * pitch + c];
        for (int c = 0; c < pitch; c++) e.out[c] /= float(op.in.pixels());
        return;
      }
      case Kind::subsample:
        for (int y = 0; y < op.out.h; y++)
          for (int x = 0; x < op.out.w; x++)
            std::memcpy(e.out + (size_t(y) * op.out.w + x) * pitch, input + (size_t(y) * op.sh * op.in.w + x * op.sw) * pitch, bytes);
        return;
      case Kind::upsample:
        return split(op.out.h, [&](int y0, int y1, int) {
          for (int y = y0; y < y1; y++)
            for (int x = 0; x < op.out.w; x++)
              std::memcpy(e.out + (size_t(y) * op.out.w + x) * pitch, input + (size_t(y / op.factor) * op.in.w + x / op.factor) * pitch, bytes);
        });
      case Kind::pad_channels:
        for (size_t p = 0; p < op.in.pixels(); p++) {
          std::memset(e.out + p * out_pitch, 0, out_pitch * sizeof(float));
          std::memcpy(e.out + p * out_pitch + op.before, input + p * pitch, op.in.c * sizeof(float));
        }
        return;
      case Kind::concat: {
        int before = 0;
        for (int number : op.inputs) {
          const int c = net_.shape(number).c;
          const size_t from = pitch_of(c);
          for (size_t p = 0; p < op.in.pixels(); p++)
            std::memcpy(e.out + p * out_pitch + before, real(number) + p * from, c * sizeof(float));
          before += c;
        }
        return;
      }
      case Kind::reshape:
        for (size_t i = 0, n = op.in.size(); i < n;) {
          const size_t ic = i % op.in.c, oc = i % op.out.c, run = std::min(op.in.c - ic, op.out.c - oc);
          std::memcpy(e.out + i / op.out.c * out_pitch + oc, input + i / op.in.c * pitch + ic, run * sizeof(float));
          i += run;
        }
        return;
    }
  }

  void binary(const Step& step, const Epilogue& e) {
    const Conv& c = step.conv;
    void* scratch = at(step.scratch);
    const uint8_t* in = bits(step.input);
    split(c.ph, [&](int y0, int y1, int) { kernels_.binary_prepare(c, in, scratch, y0, y1); });
    const int blocks = c.groups * c.blocks;
    if (c.ho >= 8 * context_.team.size())  // by rows: pixels of one thread share no cache line with the other's
      return split(c.ho, [&](int y0, int y1, int) {
        for (int y = y0; y < y1; y += c.band)
          for (int block = 0; block < blocks; block++)
            kernels_.binary_rows(c, scratch, block, y, std::min(y1, y + c.band), e);
      });
    split(blocks * c.ho, [&](int from, int to, int) {  // by filters: each thread reads its own weights
      while (from < to) {
        const int block = from / c.ho, y = from % c.ho, end = std::min(c.ho, y + to - from);
        kernels_.binary_rows(c, scratch, block, y, end, e);
        from += end - y;
      }
    });
  }

  // The input with its border of zeros, rows [y0, y1) of it.
  template <class To, class From>
  void border(const Conv& c, const Op& op, To* out, int y0, int y1, const From& from) {
    const int channels = op.in.c;
    for (int y = y0; y < y1; y++) {
      To* row = out + size_t(y) * c.pw * channels;
      const int iy = y - c.top, x0 = std::min(c.left, c.pw), x1 = std::min(c.pw, c.left + op.in.w);
      if (iy < 0 || iy >= op.in.h) {
        std::memset(row, 0, size_t(c.pw) * channels * sizeof(To));
        continue;
      }
      std::memset(row, 0, size_t(x0) * channels * sizeof(To));
      from(row + size_t(x0) * channels, size_t(iy) * op.in.w, x1 - x0);
      std::memset(row + size_t(x1) * channels, 0, size_t(c.pw - x1) * channels * sizeof(To));
    }
  }

  const int16_t* prepare_int16(const Step& step, const uint8_t* pixels) {
    const Op& op = net_.network.ops[step.op];
    int16_t* out = reinterpret_cast<int16_t*>(at(step.scratch));
    split(step.int16.ph, [&](int y0, int y1, int) {
      border(step.int16, op, out, y0, y1, [&](int16_t* to, size_t pixel, int count) {
        for (int i = 0; i < count * op.in.c; i++) to[i] = int16_t(pixels[pixel * op.in.c + i] - 128);
      });
    });
    return out;
  }
  const int16_t* prepare_int16(const Step&, const float*) { return nullptr; }

  template <class Pixel>
  const float* prepare_real(const Step& step, const Pixel* pixels) {
    const Conv& c = step.conv;
    const Op& op = net_.network.ops[step.op];
    if (!c.scratch) return real(step.input);
    float* out = reinterpret_cast<float*>(at(step.scratch));
    const int channels = op.in.c;
    if (step.input == 0) {
      std::vector<float> scale(channels), offset(channels);
      split(c.ph, [&](int y0, int y1, int) {
        border(c, op, out, y0, y1, [&](float* to, size_t pixel, int count) {
          for (int i = 0; i < count; i++)
            for (int k = 0; k < channels; k++) to[i * channels + k] = normalized(pixels[(pixel + i) * channels + k], k);
        });
      });
    } else if (net_.reals[step.input]) {
      const float* in = real(step.input);
      const size_t pitch = pitch_of(channels);
      split(c.ph, [&](int y0, int y1, int) {
        border(c, op, out, y0, y1, [&](float* to, size_t pixel, int count) {
          for (int i = 0; i < count; i++) std::memcpy(to + size_t(i) * channels, in + (pixel + i) * pitch, channels * sizeof(float));
        });
      });
    }
    return out;
  }

  // Winograd's algorithm: the transformed rows of a window, each made when it is first needed, by one thread. T: float, or
  // int32 for pairs of 16 bits.
  template <class T, class Pixel>
  class Lines {
   public:
    Lines(const Run& run, const Step& step, const Conv& c, const Pixel* pixels, int thread)
        : run_(run), step_(step), c_(c), pixels_(pixels),
          planes_(reinterpret_cast<float*>(run.at(step.lines) + size_t(thread) * step.line)),
          row_(planes_ + size_t(c.depth) * 4 * plane_pitch(c.tiles)),
          ring_(reinterpret_cast<T*>(row_ + size_t(c.points) * c.depth * c.tiles)) {
      std::memset(planes_, 0, size_t(row_ - planes_) * sizeof(float));
    }
    const T* const* window(int y) {
      const int first = y * c_.sh;
      for (ready_ = std::max(ready_, first); ready_ < first + c_.kh; ready_++) make(ready_);
      for (int i = 0; i < c_.kh; i++) rows_[i] = at(first + i);
      return rows_;
    }

   private:
    static constexpr bool narrow = std::is_same<T, int32_t>();
    size_t size() const { return size_t(c_.points) * c_.tiles * (narrow ? c_.depth / 2 : c_.depth); }
    T* at(int y) const { return ring_ + y % c_.kh * size(); }
    void make(int y) {
      const Op& op = run_.net_.network.ops[step_.op];
      const int iy = y - c_.top, channels = op.in.c;
      T* out = at(y);
      if (iy < 0 || iy >= op.in.h) {
        std::memset(out, 0, size() * sizeof(T));
        return;
      }
      const Pixel* in = pixels_ + size_t(iy) * op.in.w * channels;
      const size_t next = c_.sw * 4 * plane_pitch(c_.tiles);
      for (size_t column : step_.columns)
        for (int k = 0; k < channels; k++, in++) planes_[column + k * next] = narrow ? float(*in) - 128 : run_.normalized(*in, k);
      run_.transform(c_, planes_, row_, out);
    }

    const Run& run_;
    const Step& step_;
    const Conv& c_;
    const Pixel* pixels_;
    float *planes_, *row_;
    T* ring_;
    int ready_ = 0;
    const T* rows_[max_window];
  };

  void transform(const Conv& c, const float* planes, float*, float* out) const { kernels_.winograd_transform(c, planes, out); }
  void transform(const Conv& c, const float* planes, float* row, int32_t* out) const {
    kernels_.winograd_transform(c, planes, row);
    kernels_.winograd_pack(c, row, out);
  }
  void winograd(const Conv& c, const float* const* rows, int b0, int b1, int y, size_t pixel, const Epilogue& e) const {
    kernels_.real_winograd(c, rows, b0, b1, y, pixel, e);
  }
  void winograd(const Conv& c, const int32_t* const* rows, int b0, int b1, int y, size_t pixel, const Epilogue& e) const {
    kernels_.int16_winograd(c, rows, b0, b1, y, pixel, e);
  }

  // For a thread: a function that computes some rows.
  template <class T, class Pixel>
  auto by_winograd(const Step& step, const Conv& c, const Pixel* pixels) {
    return [this, &step, &c, pixels](int thread) {
      return [this, &c, lines = Lines<T, Pixel>(*this, step, c, pixels, thread)](
                 int b0, int b1, int y0, int y1, size_t pixel, const Epilogue& to) mutable {
        for (int y = y0; y < y1; y++, pixel += c.wo) winograd(c, lines.window(y), b0, b1, y, pixel, to);
      };
    };
  }

  template <class Pixel>
  void real_conv(const Step& step, Epilogue e, const Pixel* pixels) {
    if (step.input && step.int16.weight) return pointwise16(step, e);
    const bool narrow = step.int16.offsets && std::is_same<Pixel, uint8_t>();
    const Conv& c = narrow ? step.int16 : step.conv;
    if (narrow) e.scale = step.int16_scale.as<float>();
    if (c.points && narrow) return rows(step, c, e, by_winograd<int32_t>(step, c, pixels));
    if (c.points) return rows(step, c, e, by_winograd<float>(step, c, pixels));
    const int16_t* shorts = narrow ? prepare_int16(step, pixels) : nullptr;
    const float* wide = narrow ? nullptr : prepare_real(step, pixels);
    rows(step, c, e, [&](int) {
      return [&](int b0, int b1, int y0, int y1, size_t pixel, const Epilogue& to) {
        if (narrow) kernels_.int16_rows(c, shorts, b0, b1, y0, y1, pixel, to);
        else kernels_.real_rows(c, wide, b0, b1, y0, y1, pixel, to);
      };
    });
  }

  void pointwise16(const Step& step, Epilogue e) {
    Conv c = step.int16;
    const int channels = net_.network.ops[step.op].in.c;
    float* scales = reinterpret_cast<float*>(at(step.scratch));
    int16_t* narrow = reinterpret_cast<int16_t*>(scales + c.wo);
    const float* in = real(step.input);
    split(c.wo, [&](int p0, int p1, int) {
      for (size_t p = p0; p < size_t(p1); p++) scales[p] = kernels_.quantize(in + p * c.c, channels, c.c, narrow + p * c.c);
    });
    c.input_scales = scales;
    e.scale = step.int16_scale.as<float>();
    split(c.blocks, [&](int b0, int b1, int) { kernels_.int16_rows(c, narrow, b0, b1, 0, 1, 0, e); });
  }

  template <class Rows>
  void rows(const Step& step, const Conv& c, const Epilogue& e, const Rows& of_thread) {
    if (step.pool >= 0) return pooled(step, e, of_thread);
    if (c.ho > 1)
      return split(c.ho, [&](int y0, int y1, int thread) { of_thread(thread)(0, c.blocks, y0, y1, size_t(y0) * c.wo, e); });
    split(c.blocks, [&](int b0, int b1, int thread) { of_thread(thread)(b0, b1, 0, 1, 0, e); });
  }

  // Convolution and maximum together: a band of as many rows as a window has, in turn.
  template <class Rows>
  void pooled(const Step& step, const Epilogue& e, const Rows& of_thread) {
    const Conv& c = step.conv;
    const Op& op = net_.network.ops[step.pool];
    const Epilogue last = epilogue(step.pool_chain);
    const size_t row = size_t(c.wo) * e.pitch;
    split(op.out.h, [&](int y0, int y1, int thread) {
      float* band = reinterpret_cast<float*>(at(step.band)) + size_t(thread) * op.kh * row;
      auto rows = of_thread(thread);
      Epilogue to = e;
      to.bits = nullptr;
      int done = std::max(0, y0 * op.sh - op.top);
      for (int y = y0; y < y1; y++) {
        const int begin = std::max(0, y * op.sh - op.top), end = std::min(c.ho, y * op.sh - op.top + op.kh);
        for (done = std::max(done, begin); done < end; done++) {
          to.out = band + done % op.kh * row;
          rows(0, c.blocks, done, done + 1, 0, to);
        }
        const float* window[max_window];
        for (int i = 0; i < op.kh; i++) {
          const int iy = y * op.sh - op.top + i;
          window[i] = iy >= 0 && iy < c.ho ? band + iy % op.kh * row : nullptr;
        }
        kernels_.max_pool_row(window, op.kh, op.kw, op.sw, op.left, c.wo, op.out.w, int(e.pitch), size_t(y) * op.out.w, last);
      }
    });
  }

  const Net& net_;
  Context& context_;
  const Kernels& kernels_;
};

// ------------------------------------------------------------------------------------------------------- interface

const Kernels* choose(const char* name) {
  using Getter = const Kernels* (*)();
  struct { const char* name; Getter get; } const known[] = {
      {"avx512_vpopcnt", avx512_vpopcnt_kernels}, {"avx512", avx512_kernels}, {"avx2", avx2_kernels},
      {"neon", neon_kernels}, {"portable", portable_kernels}};
  if (!name || !*name) name = std::getenv("BIREAL_KERNELS");
  std::string usable;
  for (auto& row : known) {
    const Kernels* kernels = row.get();
    if (!kernels) continue;
    if (!name || !*name || !std::strcmp(name, row.name)) return kernels;
    usable += std::string(usable.empty() ? "" : ", ") + row.name;
  }
  throw Error("kernels \"" + std::string(name).substr(0, 40) + "\" are not known or not usable on this CPU; usable: " + usable);
}

int report(char* error, const char* what) {
  if (error) std::snprintf(error, BIREAL_ERROR_SIZE, "%s", what);
  return 1;
}

std::unique_ptr<Net> load(const uint8_t* data, size_t size, const bireal_options* options) {
  auto net = std::make_unique<Net>();
  if (options) net->options = *options;
  auto& o = net->options;
  if (o.threads == 0) o.threads = 1;
  if (o.threads < 1 || o.threads > 256) throw Error("threads are " + std::to_string(o.threads) + "; use 1 to 256");
  if (o.precision != 0 && o.precision != 1) throw Error("precision is neither float32 nor int16");
  if (!o.max_memory) o.max_memory = 4 * size + (size_t(64) << 20);
  net->kernels = choose(o.kernels);
  o.kernels = nullptr;  // the caller's string need not live on
  net->network = parse(data, size);
  Planner(*net).plan();
  return net;
}

template <class Pixel>
int run(bireal_net* handle, const Pixel* images, size_t n, float* logits, char* error);

bool finite(const uint8_t*, size_t) { return true; }
bool finite(const float* values, size_t count) {
  bool all = true;
  for (size_t i = 0; i < count; i++) all &= std::fabs(values[i]) <= 3.4028235e38f;
  return all;
}

}  // namespace
}  // namespace bireal

struct bireal_net {
  std::unique_ptr<bireal::Net> net;
};

namespace bireal {
namespace {

template <class Pixel>
int run(bireal_net* handle, const Pixel* images, size_t n, float* logits, char* error) {
  try {
    Net& net = *handle->net;
    const size_t size = net.network.image.size();
    for (size_t i = 0; i < n; i++)
      if (!finite(images + i * size, size))
        throw Error("image " + std::to_string(i) + " has NaN or infinity; mend the input");
    std::unique_ptr<Context> context;
    {
      std::lock_guard<std::mutex> lock(net.mutex);
      if (!net.idle.empty()) context = std::move(net.idle.back()), net.idle.pop_back();
    }
    if (!context) context = std::make_unique<Context>(net);
    for (size_t i = 0; i < n; i++) Run(net, *context).image(images + i * size, logits + i * net.network.ops.back().out.size());
    std::lock_guard<std::mutex> lock(net.mutex);
    net.idle.push_back(std::move(context));
    return 0;
  } catch (const std::exception& e) {
    return report(error, e.what());
  }
}

}  // namespace
}  // namespace bireal

extern "C" {

bireal_net* bireal_load_memory(const void* data, size_t size, const bireal_options* options, char* error) {
  try {
    return new bireal_net{bireal::load(static_cast<const uint8_t*>(data), size, options)};
  } catch (const std::exception& e) {
    bireal::report(error, e.what());
    return nullptr;
  }
}

bireal_net* bireal_load(const char* path, const bireal_options* options, char* error) {
  try {
    std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path, "rb"), std::fclose);
    if (!file) throw bireal::Error(std::string(path) + " cannot be opened");
    std::vector<uint8_t> data;
    uint8_t chunk[1 << 16];
    for (size_t n; (n = std::fread(chunk, 1, sizeof chunk, file.get()));) data.insert(data.end(), chunk, chunk + n);
    if (std::ferror(file.get())) throw bireal::Error(std::string(path) + " cannot be read");
    return bireal_load_memory(data.data(), data.size(), options, error);
  } catch (const std::exception& e) {
    bireal::report(error, e.what());
    return nullptr;
  }
}

void bireal_free(bireal_net* net) { delete net; }

void bireal_image_shape(const bireal_net* net, int shape[3]) {
  const auto& s = net->net->network.image;
  shape[0] = s.h, shape[1] = s.w, shape[2] = s.c;
}
int bireal_num_outputs(const bireal_net* net) { return int(net->net->network.ops.back().out.size()); }
void bireal_output_shape(const bireal_net* net, int shape[3]) {
  const auto& s = net->net->network.ops.back().out;
  shape[0] = s.h, shape[1] = s.w, shape[2] = s.c;
}
const char* bireal_label(const bireal_net* net, int index) {
  const auto& labels = net->net->network.labels;
  return index >= 0 && size_t(index) < labels.size() ? labels[index].c_str() : "";
}
const char* bireal_kernels(const bireal_net* net) { return net->net->kernels->name; }
size_t bireal_memory(const bireal_net* net) { return net->net->weights + net->net->workspace; }
double bireal_work(const bireal_net* net) { return net->net->network.work; }

int bireal_run_u8(bireal_net* net, const uint8_t* images, size_t n, float* logits, char* error) {
  return bireal::run(net, images, n, logits, error);
}
int bireal_run_f32(bireal_net* net, const float* images, size_t n, float* logits, char* error) {
  return bireal::run(net, images, n, logits, error);
}

int bireal_profile(bireal_net* handle, const uint8_t* image, int repeats, double* seconds, char* error) {
  try {
    if (repeats < 1) throw bireal::Error("repeats is less than 1");
    bireal::Context context(*handle->net);
    const auto found = bireal::Run(*handle->net, context).profile(image, repeats);
    std::copy(found.begin(), found.end(), seconds);
    return 0;
  } catch (const std::exception& e) {
    return bireal::report(error, e.what());
  }
}

int bireal_tensor(bireal_net* handle, int number, float* values) {
  bireal::Net& net = *handle->net;
  std::lock_guard<std::mutex> lock(net.mutex);
  if (!net.options.unfused || net.idle.empty() || number < 0 || size_t(number) >= net.reals.size() || !net.reals[number])
    return 1;
  const auto& shape = net.shape(number);
  const float* from = bireal::Run(net, *net.idle.back()).real(number);
  for (size_t p = 0; p < shape.pixels(); p++)
    std::memcpy(values + p * shape.c, from + p * bireal::pitch_of(shape.c), shape.c * sizeof(float));
  return 0;
}

}  // extern "C"
