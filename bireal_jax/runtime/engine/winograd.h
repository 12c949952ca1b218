// Winograd's algorithm for a convolution from the image: whether it fits, and its weights.
#pragma once

#include "kernels.h"

namespace bireal {

// Sets points, depth and tiles where it fits; points is 0 elsewhere.
void plan_winograd(Conv& conv);

// Weights of a filter, and where in them the one of a point, row of the window and depth is.
inline size_t winograd_weights(const Conv& c) { return c.kh * (size_t(c.points - 1) * c.depth + c.last); }
inline size_t winograd_place(const Conv& c, int point, int ky, int k) {
  return (size_t(point) * c.kh) * c.depth + size_t(ky) * (point == c.points - 1 ? c.last : c.depth) + k;
}

// G w: the filter w of `points` - 3 taps at all points.
void winograd_filter(int points, const double* w, double* out);

// The largest sum that B^T gives at a point for inputs of at most 1.
int winograd_growth(int points, int point);

}  // namespace bireal
