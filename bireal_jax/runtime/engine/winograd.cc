#include "winograd.h"

namespace bireal {
namespace {

const double filter6[6][3] = {{1 / 4., 0, 0},         {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
                              {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1}};
const double filter7[7][4] = {{-1 / 4., 0, 0, 0},
                              {-1 / 6., -1 / 6., -1 / 6., -1 / 6.},
                              {1 / 18., -1 / 18., 1 / 18., -1 / 18.},
                              {1 / 72., 1 / 36., 1 / 18., 1 / 9.},
                              {-1 / 120., 1 / 60., -1 / 30., 1 / 15.},
                              {32 / 45., 16 / 45., 8 / 45., 4 / 45.},
                              {0, 0, 0, 1 / 2.}};
const int growth6[6] = {10, 10, 10, 6, 6, 10}, growth7[7] = {30, 20, 28, 14, 14, 10, 30};

}  // namespace

void plan_winograd(Conv& c) {
  const int taps = (c.kw + c.sw - 1) / c.sw;
  c.points = c.groups == 1 && c.sw <= 2 && c.wo >= 16 && (taps == 3 || taps == 4) ? taps + 3 : 0;
  c.depth = c.cg * c.sw;
  c.tiles = (c.wo + 3) / 4;
  c.last = (c.kw - 1) % c.sw * c.cg + c.cg;
}

void winograd_filter(int points, const double* w, double* out) {
  for (int n = 0; n < points; n++) {
    out[n] = 0;
    for (int j = 0; j < points - 3; j++) out[n] += (points == 7 ? filter7[n][j] : filter6[n][j]) * w[j];
  }
}

int winograd_growth(int points, int point) { return points == 7 ? growth7[point] : growth6[point]; }

}  // namespace bireal
