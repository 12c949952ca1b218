// What Winograd's algorithm takes of an image: transformed rows, in float or int16, as T says.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "net.h"

namespace bireal {

inline void transform(const Kernels& k, const Conv& c, const float* row, float* lanes, float* out) {
  k.real_transform(c, row, lanes, out);
}
inline void transform(const Kernels& k, const Conv& c, const int16_t* row, int16_t* lanes, int16_t* out) {
  k.int16_transform(c, row, lanes, out);
}
inline void winograd(const Kernels& k, const Conv& c, const float* const* rows, int b0, int b1, int y, size_t pixel, const Epilogue& e) {
  k.real_winograd(c, rows, b0, b1, y, pixel, e);
}
inline void winograd(const Kernels& k, const Conv& c, const int16_t* const* rows, int b0, int b1, int y, size_t pixel, const Epilogue& e) {
  k.int16_winograd(c, rows, b0, b1, y, pixel, e);
}

// The rows of a window, each made when it is first needed, by one thread, in its own memory.
template <class T, class Pixel>
class Lines {
 public:
  Lines(const Net& net, const Conv& c, const Pixel* pixels, void* memory)
      : net_(net), c_(c), pixels_(pixels), size_(c.points * winograd_pitch(c)), row_(static_cast<T*>(memory)),
        lanes_(row_ + winograd_row(c)), ring_(lanes_ + 4 * winograd_lane(c)) {
    std::memset(row_, 0, (winograd_row(c) + 4 * winograd_lane(c)) * sizeof(T));
  }

  // Those of output row y, which never goes back.
  const T* const* window(int y) {
    const int first = y * c_.sh;
    for (ready_ = std::max(ready_, first); ready_ < first + c_.kh; ready_++) make(ready_);
    for (int i = 0; i < c_.kh; i++) rows_[i] = at(first + i);
    return rows_;
  }

 private:
  T* at(int y) const { return ring_ + y % c_.kh * size_; }
  void make(int y) {
    const int iy = y - c_.top, count = std::min(c_.pw - c_.left, c_.w) * c_.c;
    if (iy < 0 || iy >= c_.h) {
      std::memset(at(y), 0, size_ * sizeof(T));
      return;
    }
    const Pixel* in = pixels_ + size_t(iy) * c_.w * c_.c;
    T* out = row_ + size_t(c_.left) * c_.c;
    if (std::is_same<T, int16_t>())
      for (int i = 0; i < count; i++) out[i] = T(in[i] - 128);
    else
      for (int i = 0; i < count; i += c_.c)
        for (int k = 0; k < c_.c; k++) out[i + k] = T(net_.pixel(in[i + k], k));
    transform(*net_.kernels, c_, row_, lanes_, at(y));
  }

  const Net& net_;
  const Conv& c_;
  const Pixel* pixels_;
  const size_t size_;
  T *row_, *lanes_, *ring_;
  int ready_ = 0;
  const T* rows_[max_window];
};

}  // namespace bireal
