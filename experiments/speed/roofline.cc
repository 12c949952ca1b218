// Peak rates of one core, in registers: what bounds each kind of layer. Prints "name G op/s"; one multiply-add is two.
#include <immintrin.h>

#include <chrono>
#include <cstdint>
#include <cstdio>

template <class Body>
void rate(const char* name, double operations, Body body) {
  double best = 1e9;
  for (int round = 0; round < 40; round++) {
    const auto begin = std::chrono::steady_clock::now();
    body(20000);
    const double s = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = s < best ? s : best;
  }
  std::printf("%s %.1f\n", name, operations * 20000 / best * 1e-9);
}

#define KEEP(x) asm volatile("" : "+x"(x))

#if defined(__AVX512F__)
using F = __m512;
#define FMA(x, y, z) _mm512_fmadd_ps(x, y, z)
#define SET(x) _mm512_set1_ps(x)
#define ADDED(x) "+v"(x)
#else
using F = __m256;
#define FMA(x, y, z) _mm256_fmadd_ps(x, y, z)
#define SET(x) _mm256_set1_ps(x)
#define ADDED(x) "+x"(x)
#endif

int main() {
  rate("float32", sizeof(F) / 4 * 2 * 12.0, [](int n) {
    F sum[12], x = SET(0.5f), y = SET(1e-9f);
    for (auto& s : sum) s = SET(0);
    for (int i = 0; i < n; i++)
      for (auto& s : sum) {
        s = FMA(x, y, s);
        KEEP(s);
      }
  });
  // Gradients of 1-bit convolutions in training: a row of a table, loaded and added, is four products and additions a lane.
  rate("tables", sizeof(F) / 4 * 4 * 2 * 16.0, [](int n) {
    alignas(64) static F table[16] = {};
    F a = SET(0), b = a, c = a, d = a, e = a, f = a, g = a, h = a;  // an array of them would go to memory after every turn
    const auto turn = [&](const F* row) __attribute__((always_inline)) {
      asm volatile(
          "vaddps %8, %0, %0\n vaddps %9, %1, %1\n vaddps %10, %2, %2\n vaddps %11, %3, %3\n"
          "vaddps %12, %4, %4\n vaddps %13, %5, %5\n vaddps %14, %6, %6\n vaddps %15, %7, %7"
          : ADDED(a), ADDED(b), ADDED(c), ADDED(d), ADDED(e), ADDED(f), ADDED(g), ADDED(h)
          : "m"(row[0]), "m"(row[1]), "m"(row[2]), "m"(row[3]), "m"(row[4]), "m"(row[5]), "m"(row[6]), "m"(row[7]));
    };
    for (int i = 0; i < n; i++) turn(table), turn(table + 8);
  });
  rate("int16", 16 * 2 * 10.0, [](int n) {  // vpmaddwd and an addition
    __m256i sum[10], x = _mm256_set1_epi16(3), y = _mm256_set1_epi16(5);
    for (auto& s : sum) s = _mm256_setzero_si256();
    for (int i = 0; i < n; i++)
      for (auto& s : sum) {
        __m256i p = _mm256_madd_epi16(x, y);
        KEEP(p);
        s = _mm256_add_epi32(s, p);
        KEEP(s);
      }
  });
  rate("xor_popcount_table", 256 * 2 * 4.0, [](int n) {  // vpxor, the population count by byte shuffles, an addition
    const __m256i low = _mm256_set1_epi8(15),
                  table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4, 0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    __m256i sum[4], x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
    for (auto& s : sum) s = _mm256_setzero_si256();
    for (int i = 0; i < n; i++)
      for (auto& s : sum) {
        KEEP(x);
        const __m256i v = _mm256_xor_si256(x, y);
        s = _mm256_add_epi8(s, _mm256_add_epi8(_mm256_shuffle_epi8(table, _mm256_and_si256(v, low)),
                                               _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(v, 4), low))));
        KEEP(s);
      }
  });
  rate("xor_popcount_scalar", 64 * 2 * 8.0, [](int n) {
    uint64_t sum[8] = {}, x = 3, y = 5;
    for (int i = 0; i < n; i++)
      for (auto& s : sum) {
        asm volatile("" : "+r"(x));
        s += __builtin_popcountll(x ^ y);
        asm volatile("" : "+r"(s));
      }
  });
  rate("look_up_pairs", 3 * 32 * 4 * 2 * 2 * 4.0, [](int n) {  // ours: three shuffles serve two pixels
    __m256i raw[4], high[4], t[3], w = _mm256_set1_epi8(7);
    for (auto& v : t) v = _mm256_set1_epi8(0x21);
    for (int j = 0; j < 4; j++) raw[j] = high[j] = _mm256_setzero_si256();
    for (int i = 0; i < n; i++)
      for (int j = 0; j < 4; j++) {
        KEEP(w);
        __m256i x = _mm256_add_epi8(_mm256_add_epi8(_mm256_shuffle_epi8(t[0], w), _mm256_shuffle_epi8(t[1], w)), _mm256_shuffle_epi8(t[2], w));
        KEEP(t[0]);
        KEEP(t[1]);
        raw[j] = _mm256_add_epi8(raw[j], x);
        high[j] = _mm256_add_epi8(high[j], _mm256_srli_epi16(x, 4));
        KEEP(raw[j]);
        KEEP(high[j]);
      }
  });
#if defined(__AVX512VPOPCNTDQ__) && defined(__AVX512VNNI__)
  rate("xor_popcount_vector", 512 * 2 * 8.0, [](int n) {
    __m512i sum[8], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
    for (auto& s : sum) s = _mm512_setzero_si512();
    for (int i = 0; i < n; i++)
      for (auto& s : sum) {
        __m512i v;
        asm volatile("vpxorq %2, %3, %1\n\tvpopcntq %1, %1\n\tvpaddq %1, %0, %0" : "+v"(s), "=&v"(v) : "v"(x), "v"(y));
      }
  });
  rate("full_adder_pairs", 2 * 512 * 2 * 8.0, [](int n) {  // ours: five operations for two words
    __m512i sum[8], x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(5);
    for (auto& s : sum) s = _mm512_setzero_si512();
    for (int i = 0; i < n; i++)
      for (auto& s : sum) {
        __m512i v, u;
        asm volatile("vpxorq %3, %4, %1\n\tvpxorq %3, %4, %2\n\tvpternlogq $0xd4, %2, %3, %1\n\tvpopcntq %1, %1\n\t"
                     "vpaddq %1, %0, %0"
                     : "+v"(s), "=&v"(v), "=&v"(u) : "v"(x), "v"(y));
      }
  });
  rate("int16_vnni", 32 * 2 * 8.0, [](int n) {  // vpdpwssd
    __m512i sum[8], x = _mm512_set1_epi16(3), y = _mm512_set1_epi16(5);
    for (auto& s : sum) s = _mm512_setzero_si512();
    for (int i = 0; i < n; i++)
      for (auto& s : sum) asm volatile("vpdpwssd %1, %2, %0" : "+v"(s) : "v"(x), "v"(y));
  });
#endif
}
