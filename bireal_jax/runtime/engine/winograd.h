// Winograd's algorithm for a convolution from the image: whether it fits, and its weights.
#pragma once

#include "kernels.h"

namespace bireal {

// Sets points, depth and tiles where it fits; points is 0 elsewhere.
void plan_winograd(Conv& conv);

// G w: the filter w of `points` - 3 taps at all points.
void winograd_filter(int points, const double* w, double* out);

// The largest sum that B^T gives at a point for inputs of at most 1.
int winograd_growth(int points, int point);

}  // namespace bireal
