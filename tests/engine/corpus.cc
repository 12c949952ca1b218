// Files as the fuzzer makes them, without a fuzzer: corpus COUNT SEED... writes mutations of the seeds and new networks,
// each behind its length in 32 bits.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed);
extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t) {
  if (size) data[size / 2] ^= 1;
  return size;
}

int main(int argc, char** argv) {
  constexpr size_t most = 8192;
  std::vector<std::string> seeds;
  for (int i = 2; i < argc; i++) {
    std::ifstream file(argv[i], std::ios::binary);
    seeds.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  for (unsigned n = 0; n < unsigned(std::atoi(argv[1])); n++) {
    std::string data = seeds[n % seeds.size()];
    size_t size = data.size();
    data.resize(most);
    for (unsigned times = 1 + n % 2; times; times--)
      size = LLVMFuzzerCustomMutator(reinterpret_cast<uint8_t*>(&data[0]), size, most, 7919 * n + times);
    const uint32_t length = uint32_t(size);
    std::fwrite(&length, 4, 1, stdout);
    std::fwrite(data.data(), 1, size, stdout);
  }
}
