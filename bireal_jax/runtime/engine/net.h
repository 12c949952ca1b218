// A network ready to run: operations fused into steps, weights packed for the kernels, maps with their places in one block
// of memory.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bireal.h"
#include "format.h"
#include "kernels.h"
#include "team.h"

namespace bireal {

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
  bool light = false;   // done by one thread: to meet another one would take longer
  Conv conv{};
  Buffer weight, offsets, int16_weight, int16_scale;
  Buffer middle;
  std::vector<uint16_t> pixel_class;
  std::vector<uint8_t> row_class, col_class;
  Conv int16{};
  size_t line = 0;  // Winograd: bytes of the rows of a thread, before its band of rows for a pool
  Place scratch;    // of all threads
};

struct Net {
  Network network;
  const Kernels* kernels = nullptr;
  bireal_options options{};
  std::vector<Step> steps;
  std::vector<Buffer> arrays;  // per operation: up to three arrays, one after the other
  std::vector<Place> reals, bits;
  size_t workspace = 0, weights = 0;
  size_t local = 0;  // bytes of a thread's own memory
  std::vector<float> normalized;  // (value / 255 - mean) / std: [channel][value]
  std::vector<std::unique_ptr<struct Context>> idle;  // engine.cc has the lock

  size_t held = 0;  // bytes of the file's own arrays, until they are packed: they count towards the limit

  // Before anything is allocated.
  void charge(size_t bytes) {
    weights += bytes;
    if (weights + memory(options.threads) + held > options.max_memory)
      throw Error("the network needs more than " + std::to_string(options.max_memory >> 20) +
                  " MB of memory; raise max_memory if you trust the file");
  }
  void reserve(size_t bytes) {  // of a thread's own memory
    constexpr size_t apart = 4096;  // cores fetch ahead: none may write close behind what another one reads
    local = std::max(local, (bytes + 63) / 64 * 64 + apart);
    charge(0);
  }
  size_t memory(size_t threads) const { return workspace + threads * local; }

  // Whether each thread takes images of its own: then they meet once a batch, and not in every layer.
  bool by_images(size_t count) const {
    const size_t threads = options.threads;
    return threads > 1 && count >= threads && weights + memory(threads) + (threads - 1) * memory(1) <= options.max_memory;
  }
  void hold(size_t bytes) { held += bytes, charge(0); }
  void release(size_t bytes) { held -= bytes; }

  // A channel of a pixel as the network takes it; floats come normalized.
  float pixel(float value, int) const { return value; }
  float pixel(uint8_t value, int c) const { return normalized[size_t(c) * 256 + value]; }
  bool real_valued(int tensor) const { return tensor == 0 || network.ops[tensor - 1].kind != Kind::sign; }
  const Shape& shape(int tensor) const { return tensor ? network.ops[tensor - 1].out : network.image; }
  const float* array(int op, int index) const {
    return arrays[op].as<float>() + index * pitch_of(network.ops[op].in.c);
  }
};

// Memory and threads of one run; a network has as many as there were runs at the same time. Memory: maps, then what threads
// have for themselves; the first one for all threads, further ones for one each, once they took images of their own.
struct Context {
  std::vector<Buffer> memory;
  Team team;
  Context(const Net& net) : team(net.options.threads) { memory.emplace_back(net.memory(net.options.threads)); }
};

// Whether a convolution takes each channel of a map by itself.
inline bool depthwise(const Op& op, int input) {
  return op.kind == Kind::conv && input && op.groups == op.in.c && op.out.c == op.in.c && op.groups > 1;
}

// Columns of the rows that a pool behind a convolution takes.
inline int pooled_width(const Conv& conv) { return conv.halved ? conv.wo / 2 : conv.wo; }

// Whether threads share a binary convolution by its rows, or by its filters.
inline bool by_rows(const Net& net, const Conv& c) { return c.ho >= 8 * net.options.threads; }

// Makes the steps of a network that was parsed, kernels and options chosen. Raises Error where it needs too much memory.
void plan(Net& net);
// The part of it that packs the weights of all steps.
void pack_weights(Net& net);

}  // namespace bireal
