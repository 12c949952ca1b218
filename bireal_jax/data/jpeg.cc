// A part of a JPEG file, resized: only the rows and columns that count are decoded, each row is resized as it comes. Bit
// for bit what Pillow gives for image.resize((size, size), BILINEAR, box=box), which is the definition and the test.
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include <jpeglib.h>
// after it
#include <jerror.h>

#if !defined(JCS_EXTENSIONS) || !defined(LIBJPEG_TURBO_VERSION_NUMBER)
#error "only libjpeg-turbo decodes parts of an image"
#endif

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

// Pixels are 8 bit; weights have 22 bits behind the point, so that a sum of products fits 32 bits.
constexpr int precision = 22;
constexpr int margin = 4;  // columns around the box: colours are interpolated between neighbours that are further apart

// Triangles of which each averages the pixels below it, one for each new pixel: its first old one and their weights.
struct Filter {
  int taps;
  std::vector<int> first, count;
  std::vector<int32_t> weights;
  std::vector<int32_t> wide;  // the same, each four times in a row, for pixels of four bytes

  // `size` new pixels in place of the old ones [begin, end) of `all`.
  Filter(int all, int begin, int end, int size) : first(size), count(size) {
    const double scale = double(end - begin) / size, reach = scale < 1 ? 1 : scale;
    taps = (int(2 * reach) + 3) / 2 * 2;  // even
    weights.assign(size_t(size) * taps, 0);
    std::vector<double> w(taps);
    for (int i = 0; i < size; i++) {
      const double centre = begin + (i + 0.5) * scale;
      int from = int(centre - reach + 0.5), to = int(centre + reach + 0.5);
      from = from < 0 ? 0 : from, to = to > all ? all : to;
      double sum = 0;
      for (int k = from; k < to; k++) {
        double x = (k - centre + 0.5) * (1 / reach);
        x = x < 0 ? -x : x;
        sum += w[k - from] = x < 1 ? 1 - x : 0;
      }
      first[i] = from, count[i] = to - from;
      for (int k = 0; k < count[i]; k++) weights[size_t(i) * taps + k] = int32_t(0.5 + w[k] / sum * (1 << precision));
    }
  }
  void widen() {
    for (int32_t w : weights) wide.insert(wide.end(), 4, w);
  }
  int begin() const { return first.front(); }
  int end() const { return first.back() + count.back(); }
};

constexpr int32_t half = 1 << (precision - 1);

inline uint8_t rounded(int32_t sum) {
  const int32_t v = sum >> precision;
  return uint8_t(v < 0 ? 0 : v > 255 ? 255 : v);
}

// A row of pixels of four bytes to one of three; row[0] is old pixel `offset`. Writes a byte more than the new pixels have,
// and reads as many old ones for each, weights of 0 and what is beyond the end included: a branch would be mispredicted.
void plain_row(const Filter& f, const uint8_t* row, int offset, int size, bool mirror, uint8_t* out) {
  for (int n = 0; n < size; n++, out += 3) {
    const int i = mirror ? size - 1 - n : n;
    const uint8_t* pixel = row + 4 * size_t(f.first[i] - offset);
    const int32_t* w = f.weights.data() + size_t(i) * f.taps;
    int32_t sum[3] = {half, half, half};
    for (int k = 0; k < f.taps; k++)
      for (int c = 0; c < 3; c++) sum[c] += pixel[4 * k + c] * w[k];
    for (int c = 0; c < 3; c++) out[c] = rounded(sum[c]);
  }
}

// A new row of `width` bytes from `count` rows, `width` bytes each.
void plain_column(const uint8_t* rows, int count, const int32_t* w, int width, uint8_t* out) {
  for (int x = 0; x < width; x++) {
    int32_t sum = half;
    for (int k = 0; k < count; k++) sum += rows[size_t(k) * width + x] * w[k];
    out[x] = rounded(sum);
  }
}

#if defined(__x86_64__)
// The same in vectors.
__attribute__((target("avx2"))) inline __m128i bytes(__m256i sum) {  // eight sums to eight bytes, in the lower half
  sum = _mm256_srai_epi32(sum, precision);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  return _mm_packus_epi16(words, words);
}

__attribute__((target("avx2"))) void avx2_row(const Filter& f, const uint8_t* row, int offset, int size, bool mirror,
                                              uint8_t* out) {
  const int* first = f.first.data();
  const int32_t* wide = f.wide.data();
  const int taps = f.taps;
  for (int n = 0; n < size; n++, out += 3) {
    const int i = mirror ? size - 1 - n : n;
    const uint8_t* pixel = row + 4 * size_t(first[i] - offset);
    const int32_t* w = wide + 4 * size_t(i) * taps;
    __m256i pair = _mm256_setzero_si256();
    for (int k = 0; k < taps; k += 2) {
      const __m128i v = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(pixel + 4 * k));
      const __m256i weight = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + 4 * k));
      pair = _mm256_add_epi32(pair, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(v), weight));
    }
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(pair), _mm256_extracti128_si256(pair, 1));
    sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(half)), precision);
    sum = _mm_packus_epi32(sum, sum);
    const int32_t v = _mm_cvtsi128_si32(_mm_packus_epi16(sum, sum));
    std::memcpy(out, &v, 4);
  }
}

__attribute__((target("avx2"))) void avx2_column(const uint8_t* rows, int count, const int32_t* w, int width,
                                                 uint8_t* out) {
  int x = 0;
  for (; x + 16 <= width; x += 16) {
    __m256i low = _mm256_set1_epi32(half), high = low;
    for (int k = 0; k < count; k++) {
      const uint8_t* row = rows + size_t(k) * width + x;
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row));
      const __m256i weight = _mm256_set1_epi32(w[k]);
      low = _mm256_add_epi32(low, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(v), weight));
      high = _mm256_add_epi32(high, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)), weight));
    }
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + x), _mm_unpacklo_epi64(bytes(low), bytes(high)));
  }
  for (; x < width; x++) {
    int32_t sum = half;
    for (int k = 0; k < count; k++) sum += rows[size_t(k) * width + x] * w[k];
    out[x] = rounded(sum);
  }
}

const bool avx2 = __builtin_cpu_supports("avx2");
const auto resize_row = avx2 ? avx2_row : plain_row;
const auto resize_column = avx2 ? avx2_column : plain_column;
#else
const auto resize_row = plain_row;
const auto resize_column = plain_column;
#endif

struct Errors {
  jpeg_error_mgr manager;  // first, so that libjpeg's pointer is one to this
  std::jmp_buf jump;
};

[[noreturn]] void leave(j_common_ptr info) { std::longjmp(reinterpret_cast<Errors*>(info->err)->jump, 1); }
void leave_at_warning(j_common_ptr info, int level) {
  if (level < 0) leave(info);
}

// Leaves at a warning that pixels are made up, with what it says; other warnings are about what does not matter.
struct Listener {
  Errors errors;  // first, as above
  char* text;
};

[[noreturn]] void tell(j_common_ptr info) {
  info->err->format_message(info, reinterpret_cast<Listener*>(info->err)->text);
  leave(info);
}
void tell_what_is_lost(j_common_ptr info, int level) {
  if (level >= 0) return;
  switch (info->err->msg_code) {
    case JWRN_HIT_MARKER:
    case JWRN_EXTRANEOUS_DATA:  // a hole of zeros leaves bytes over
    case JWRN_HUFF_BAD_CODE:
    case JWRN_ARITH_BAD_CODE:
    case JWRN_JPEG_EOF:
    case JWRN_MUST_RESYNC:
      tell(info);
  }
}

// What is asked for, and memory for it. Everything with a destructor lives here: longjmp does not leave this.
struct Crop {
  const int width, height, size;
  const bool mirror;
  Filter across;
  const Filter down;
  // Columns first or, as newer versions of Pillow do where the image is tall, rows: the results differ by rounding.
  const bool rows_first;
  const int from, to, pitch;  // columns that are decoded; bytes of what is kept of a row
  std::vector<uint8_t> memory, rows;
  // Not aligned, or libjpeg-turbo writes pixels past the caches: three times as slow, as they are read at once.
  uint8_t* const row;

  Crop(int width, int height, const int box[4], int size, bool mirror, bool tall)
      : width(width), height(height), size(size), mirror(mirror), across(width, box[0], box[2], size),
        down(height, box[1], box[3], size), rows_first(tall && height > size && height - size > 2 * (width - size)),
        from(across.begin() > margin ? across.begin() - margin : 0),
        to(across.end() + margin < width ? across.end() + margin : width),
        pitch(rows_first ? 4 * (across.end() - across.begin()) : 3 * size),
        memory(4 * (size_t(width) + across.taps) + 68), rows(size_t(pitch) * (down.end() - down.begin()) + 1),
        row(memory.data() + 4 + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64) {
    across.widen();
  }

  // Decoded row number `y`, whose first pixel is column `left`.
  void take(int y, int left) {
    uint8_t* to = rows.data() + size_t(pitch) * (y - down.begin());
    if (rows_first) std::memcpy(to, row + 4 * size_t(across.begin() - left), pitch);
    else resize_row(across, row, left, size, mirror, to);
  }

  void finish(uint8_t* out) {
    std::vector<uint8_t> line(3 * size_t(size) + 1);
    for (int y = 0; y < size; y++, out += 3 * size_t(size)) {
      const uint8_t* from = rows.data() + size_t(pitch) * (down.first[y] - down.begin());
      const int32_t* w = down.weights.data() + size_t(y) * down.taps;
      resize_column(from, down.count[y], w, pitch, rows_first ? row : out);
      if (!rows_first) continue;
      resize_row(across, row, across.begin(), size, mirror, line.data());
      std::memcpy(out, line.data(), 3 * size_t(size));
    }
  }
};

// Calls function(info) after the header is read. False for what is no JPEG file of one or three components, and when
// libjpeg finds anything wrong meanwhile.
template <class Function>
bool read(const uint8_t* data, size_t length, const Function& function) {
  jpeg_decompress_struct info;
  Errors errors;
  info.err = jpeg_std_error(&errors.manager);
  errors.manager.error_exit = leave;
  errors.manager.emit_message = leave_at_warning;
  if (setjmp(errors.jump)) {
    jpeg_destroy_decompress(&info);
    return false;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, data, static_cast<unsigned long>(length));
  jpeg_read_header(&info, TRUE);
  const bool done = (info.num_components == 1 || info.num_components == 3) && function(info);
  jpeg_destroy_decompress(&info);
  return done;
}

bool decode(jpeg_decompress_struct& info, Crop& crop) {
  if (int(info.image_width) != crop.width || int(info.image_height) != crop.height) return false;
  info.out_color_space = JCS_EXT_RGBX;
  jpeg_start_decompress(&info);
  JDIMENSION left = JDIMENSION(crop.from), columns = JDIMENSION(crop.to - crop.from);
  if (crop.to - crop.from < crop.width) jpeg_crop_scanline(&info, &left, &columns);
  if (crop.down.begin()) jpeg_skip_scanlines(&info, JDIMENSION(crop.down.begin()));
  JSAMPROW pointer = crop.row;
  for (int y = crop.down.begin(); y < crop.down.end(); y++) {
    if (jpeg_read_scanlines(&info, &pointer, 1) != 1) return false;
    crop.take(y, int(left));
  }
  return true;
}

}  // namespace

extern "C" {

// Width and height of a JPEG file of one or three components; returns 1, or 0 for anything else.
__attribute__((visibility("default"))) int bireal_jpeg_size(const uint8_t* data, size_t length, int size[2]) {
  return read(data, length, [&](const jpeg_decompress_struct& info) {
    size[0] = int(info.image_width), size[1] = int(info.image_height);
    return true;
  });
}

// The box (left, top, right, bottom) of an image of width x height, resized to out [size, size, 3] and mirrored. Returns
// 1, or 0 for anything but a sound JPEG file of one or three components: then out means nothing.
__attribute__((visibility("default"))) int bireal_jpeg_crop(const uint8_t* data, size_t length, int width, int height,
                                                            const int box[4], int size, int mirror,
                                                            int rows_first_if_tall, uint8_t* out) {
  if (size < 1 || box[0] < 0 || box[1] < 0 || box[2] <= box[0] || box[3] <= box[1] || box[2] > width || box[3] > height)
    return 0;
  try {
    Crop crop(width, height, box, size, mirror != 0, rows_first_if_tall != 0);
    if (!read(data, length, [&](jpeg_decompress_struct& info) { return decode(info, crop); })) return 0;
    crop.finish(out);
    return 1;
  } catch (...) {  // no memory
    return 0;
  }
}

// Whether something is missing in a JPEG file of any kind: 1, and what in text [JMSG_LENGTH_MAX = 200], or 0. Every
// number in the file is read, few pixels are made of them.
__attribute__((visibility("default"))) int bireal_jpeg_damage(const uint8_t* data, size_t length, char* text) {
  jpeg_decompress_struct info;
  Listener listener;
  listener.text = text;
  info.err = jpeg_std_error(&listener.errors.manager);
  listener.errors.manager.error_exit = tell;
  listener.errors.manager.emit_message = tell_what_is_lost;
  if (setjmp(listener.errors.jump)) {
    jpeg_destroy_decompress(&info);
    return 1;
  }
  jpeg_create_decompress(&info);
  jpeg_mem_src(&info, data, static_cast<unsigned long>(length));
  jpeg_read_header(&info, TRUE);
  info.scale_num = 1, info.scale_denom = 8;
  jpeg_start_decompress(&info);
  JSAMPARRAY row = (*info.mem->alloc_sarray)(reinterpret_cast<j_common_ptr>(&info), JPOOL_IMAGE,
                                             info.output_width * JDIMENSION(info.output_components), 1);
  while (info.output_scanline < info.output_height) jpeg_read_scanlines(&info, row, 1);
  jpeg_finish_decompress(&info);
  jpeg_destroy_decompress(&info);
  return 0;
}

}  // extern "C"
