/* The operations of a packed network in C99, of which to_c.py copies those that a network has. A map is [height][width]
 * [channels], as in bireal_jax/runtime/reference.py, which defines them; y may be x where each element is on its own. */

#include <stdint.h>

/* A window that slides over a map and gives [rows][columns][filters]. */
typedef struct {
  int height, width, channels, rows, columns, filters, tall, wide, down, right, top, left, groups;
} window;

/* The first and the end of a window's places that lie on the map. */
static int first(int begin)
{
  return begin < 0 ? -begin : 0;
}

static int end(int begin, int places, int side)
{
  return begin + places > side ? side - begin : places;
}

/* What becomes of a sum: scale and offset of its channel, if there are some, onto what lies there already, or not. */
static float finished(float sum, int channel, const float *scale, const float *offset, int onto, float there)
{
  if (scale)
    sum = sum * scale[channel] + offset[channel];
  return onto ? there + sum : sum;
}

static void normalize(const uint8_t *x, float *y, int pixels, int channels, const float *mean, const float *std)
{
  for (int i = 0; i < pixels; i++)
    for (int c = 0; c < channels; c++, x++, y++)
      *y = ((float)*x / 255.0f - mean[c]) / std[c];
}

/* weights [filters][tall][wide][channels / groups] */
static void conv(const float *x, float *y, const window *s, const float *weights, const float *scale,
                 const float *offset, int onto)
{
  const int depth = s->channels / s->groups, each = s->filters / s->groups;
  for (int r = 0; r < s->rows; r++)
    for (int q = 0; q < s->columns; q++) {
      const int top = r * s->down - s->top, left = q * s->right - s->left;
      const int i1 = end(top, s->tall, s->height), j1 = end(left, s->wide, s->width);
      for (int f = 0; f < s->filters; f++, y++) {
        float sum = 0;
        for (int i = first(top); i < i1; i++)
          for (int j = first(left); j < j1; j++) {
            const float *a = x + ((top + i) * s->width + left + j) * s->channels + f / each * depth;
            const float *b = weights + ((f * s->tall + i) * s->wide + j) * depth;
            for (int c = 0; c < depth; c++)
              sum += a[c] * b[c];
          }
        *y = finished(sum, f, scale, offset, onto, *y);
      }
    }
}

/* The signs of a map in bits, set for +1; each group begins with a word of its own. border: top, bottom, left and right
 * pixels of the sign pad around it. */
static void signs(const float *x, uint32_t *y, int height, int width, int channels, int groups, const int *border,
                  int pad)
{
  const int depth = channels / groups;
  for (int r = -border[0]; r < height + border[1]; r++)
    for (int q = -border[2]; q < width + border[3]; q++) {
      const int inside = r >= 0 && r < height && q >= 0 && q < width;
      for (int c = 0; c < channels; c += depth)
        for (int k = 0; k < depth; k += 32) {
          uint32_t word = 0;
          for (int b = 0; b < 32 && k + b < depth; b++)
            word |= (uint32_t)(inside ? x[(r * width + q) * channels + c + k + b] >= 0 : pad > 0) << b;
          *y++ = word;
        }
    }
}

/* In how many bits two rows of words differ: by the instruction that counts them, where there is one, else by adding
 * neighbours; of at most 31 words the sums fit into bytes. */
static int differ(const uint32_t *a, const uint32_t *b, int words)
{
  int sum = 0;
#if defined(__GNUC__) && (defined(__POPCNT__) || defined(__aarch64__) || defined(__riscv_zbb))
  for (int i = 0; i < words; i++)
    sum += __builtin_popcount(a[i] ^ b[i]);
#else
  while (words > 0) {
    uint32_t bytes = 0;
    int some = words < 31 ? words : 31;
    for (words -= some; some > 0; some--) {
      uint32_t bits = *a++ ^ *b++;
      bits -= (bits >> 1) & 0x55555555u;
      bits = (bits & 0x33333333u) + ((bits >> 2) & 0x33333333u);
      bytes += (bits + (bits >> 4)) & 0x0f0f0f0fu;
    }
    bytes = (bytes & 0x00ff00ffu) + ((bytes >> 8) & 0x00ff00ffu);
    sum += (int)((bytes & 0xffffu) + (bytes >> 16));
  }
#endif
  return sum;
}

/* ±1 times ±1; beyond the border nothing is added. A window's words are gathered in `row` once for all filters.
 * x as of `signs`; weights [filters][tall][wide][words] */
static void binary_conv(const uint32_t *x, float *y, const window *s, const uint32_t *weights, uint32_t *row,
                        const float *scale, const float *offset, int onto)
{
  const int depth = s->channels / s->groups, each = s->filters / s->groups, words = (depth + 31) / 32;
  for (int r = 0; r < s->rows; r++)
    for (int q = 0; q < s->columns; q++)
      for (int g = 0; g < s->groups; g++) {
        const int top = r * s->down - s->top, left = q * s->right - s->left;
        const int i0 = first(top), i1 = end(top, s->tall, s->height);
        const int j0 = first(left), j1 = end(left, s->wide, s->width);
        const int whole = i1 - i0 == s->tall && j1 - j0 == s->wide; /* then all its words are compared at once */
        const int step = whole ? s->tall : 1, count = step * (j1 - j0) * words;
        uint32_t *w = row;
        for (int i = i0; i < i1; i++)
          for (int j = j0; j < j1; j++)
            for (int k = 0; k < words; k++)
              *w++ = x[(((top + i) * s->width + left + j) * s->groups + g) * words + k];
        for (int f = g * each; f < (g + 1) * each; f++, y++) {
          int sum = (i1 - i0) * (j1 - j0) * depth;
          const uint32_t *a = row;
          for (int i = i0; i < i1; i += step, a += count)
            sum -= 2 * differ(a, weights + ((f * s->tall + i) * s->wide + j0) * words, count);
          *y = finished((float)sum, f, scale, offset, onto, *y);
        }
      }
}

static void affine(const float *x, float *y, int pixels, int channels, const float *scale, const float *offset)
{
  for (int i = 0; i < pixels; i++)
    for (int c = 0; c < channels; c++)
      *y++ = *x++ * scale[c] + offset[c];
}

static void add(const float *x, const float *more, float *y, int count)
{
  for (int i = 0; i < count; i++)
    y[i] = x[i] + more[i];
}

static void sign(const float *x, float *y, int count)
{
  for (int i = 0; i < count; i++)
    y[i] = x[i] >= 0 ? 1.0f : -1.0f;
}

static void rprelu(const float *x, float *y, int pixels, int channels, const float *shift_in, const float *slope,
                   const float *shift_out)
{
  for (int i = 0; i < pixels; i++)
    for (int c = 0; c < channels; c++) {
      const float u = *x++ + shift_in[c];
      *y++ = (u >= 0 ? u : slope[c] * u) + shift_out[c];
    }
}

static void clip(const float *x, float *y, int count, float low, float high, float leak)
{
  for (int i = 0; i < count; i++) {
    const float v = x[i], inside = v < low ? low : v > high ? high : v;
    y[i] = leak != 0 ? inside + leak * (v - inside) : inside;
  }
}

static void max_pool(const float *x, float *y, const window *s)
{
  for (int r = 0; r < s->rows; r++)
    for (int q = 0; q < s->columns; q++)
      for (int c = 0; c < s->channels; c++) {
        const int top = r * s->down - s->top, left = q * s->right - s->left;
        const int i1 = end(top, s->tall, s->height), j1 = end(left, s->wide, s->width);
        float most = -3.402823466e38f;
        for (int i = first(top); i < i1; i++)
          for (int j = first(left); j < j1; j++) {
            const float v = x[((top + i) * s->width + left + j) * s->channels + c];
            most = v > most ? v : most;
          }
        *y++ = most;
      }
}

static void avg_pool(const float *x, float *y, const window *s)
{
  for (int r = 0; r < s->rows; r++)
    for (int q = 0; q < s->columns; q++)
      for (int c = 0; c < s->channels; c++) {
        float sum = 0;
        for (int i = 0; i < s->tall; i++)
          for (int j = 0; j < s->wide; j++)
            sum += x[((r * s->down + i) * s->width + q * s->right + j) * s->channels + c];
        *y++ = sum / (float)(s->tall * s->wide);
      }
}

/* One pixel of each square of `side`. */
static void subsample(const float *x, float *y, int rows, int columns, int width, int channels, int side)
{
  for (int r = 0; r < rows; r++)
    for (int q = 0; q < columns; q++)
      for (int c = 0; c < channels; c++)
        *y++ = x[(r * side * width + q * side) * channels + c];
}

/* A square of `side` for each pixel. */
static void upsample(const float *x, float *y, int rows, int columns, int width, int channels, int side)
{
  for (int r = 0; r < rows; r++)
    for (int q = 0; q < columns; q++)
      for (int c = 0; c < channels; c++)
        *y++ = x[(r / side * width + q / side) * channels + c];
}

static void zero(float *y, int count)
{
  for (int i = 0; i < count; i++)
    y[i] = 0;
}

/* Writes a map into channels of a deeper one, from channel `at` on. */
static void place(const float *x, float *y, int pixels, int channels, int deep, int at)
{
  for (int i = 0; i < pixels; i++)
    for (int c = 0; c < channels; c++)
      y[i * deep + at + c] = *x++;
}
