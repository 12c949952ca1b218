// Numbers for the fuzzer: cheap, and the same everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

class Random {  // SplitMix64
 public:
  explicit Random(unsigned seed) : state_(seed) {}
  size_t operator()(size_t below) {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9, z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return (z ^ z >> 31) % below;
  }
  bool one_in(size_t n) { return (*this)(n) == 0; }
  template <class T>
  const T& of(const std::vector<T>& list) { return list[(*this)(list.size())]; }

 private:
  uint64_t state_;
};
