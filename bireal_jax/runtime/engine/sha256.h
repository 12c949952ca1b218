// SHA-256 (FIPS 180-4).
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

namespace bireal {

class Sha256 {
 public:
  void add(const uint8_t* data, size_t size) {
    length_ += size;
    if (fill_) {
      const size_t n = std::min(size, 64 - fill_);
      std::memcpy(block_ + fill_, data, n);
      fill_ += n, data += n, size -= n;
      if (fill_ < 64) return;
      compress(block_);
    }
    for (; size >= 64; data += 64, size -= 64) compress(data);
    if (size) std::memcpy(block_, data, size);
    fill_ = size;
  }

  std::string hex() {
    uint8_t tail[72] = {0x80};
    const size_t zeros = (fill_ < 56 ? 56 : 120) - fill_;
    for (int i = 0; i < 8; i++) tail[zeros + i] = uint8_t(length_ * 8 >> (56 - 8 * i));
    add(tail, zeros + 8);
    std::string out(64, 0);
    for (int i = 0; i < 64; i++) out[i] = "0123456789abcdef"[state_[i / 8] >> (28 - i % 8 * 4) & 15];
    return out;
  }

 private:
  static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

  void compress(const uint8_t* block) {
    static const uint32_t k[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (int i = 0; i < 16; i++)
      w[i] = uint32_t(block[4 * i]) << 24 | block[4 * i + 1] << 16 | block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++)
      w[i] = w[i - 16] + (rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3) + w[i - 7] +
             (rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10);
    uint32_t a = state_[0], b = state_[1], c = state_[2], d = state_[3];
    uint32_t e = state_[4], f = state_[5], g = state_[6], h = state_[7];
    auto round = [](uint32_t a, uint32_t b, uint32_t c, uint32_t& d, uint32_t e, uint32_t f, uint32_t g, uint32_t& h,
                    uint32_t add) {
      h += (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) + add;
      d += h;
      h += (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    };
    for (int i = 0; i < 64; i += 8) {  // the names go round, not the values
      round(a, b, c, d, e, f, g, h, k[i] + w[i]), round(h, a, b, c, d, e, f, g, k[i + 1] + w[i + 1]);
      round(g, h, a, b, c, d, e, f, k[i + 2] + w[i + 2]), round(f, g, h, a, b, c, d, e, k[i + 3] + w[i + 3]);
      round(e, f, g, h, a, b, c, d, k[i + 4] + w[i + 4]), round(d, e, f, g, h, a, b, c, k[i + 5] + w[i + 5]);
      round(c, d, e, f, g, h, a, b, k[i + 6] + w[i + 6]), round(b, c, d, e, f, g, h, a, k[i + 7] + w[i + 7]);
    }
    const uint32_t sum[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) state_[i] += sum[i];
  }

  uint32_t state_[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  uint8_t block_[64];
  size_t fill_ = 0;
  uint64_t length_ = 0;
};

}  // namespace bireal
