// Eight threads on one loaded network, each against the answer of one alone; for ThreadSanitizer.
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#include "bireal.h"

int main(int count, char** arguments) {
  int wrong = 0;
  for (int i = 1; i < count; i++) {
    char error[BIREAL_ERROR_SIZE];
    bireal_options options{};
    options.threads = 1 + i % 3;
    bireal_net* net = bireal_load(arguments[i], &options, error);
    if (!net) return std::fprintf(stderr, "%s\n", error), 2;
    int shape[3];
    bireal_image_shape(net, shape);
    const size_t size = size_t(shape[0]) * shape[1] * shape[2], outputs = bireal_num_outputs(net), images = 1 + i % 4;
    std::vector<unsigned char> pixels(images * size);
    for (auto& v : pixels) v = (unsigned char)(std::rand());
    std::vector<float> expected(images * outputs);
    if (bireal_run_u8(net, pixels.data(), images, expected.data(), error)) return 2;
    std::vector<int> bad(8);
    std::vector<std::thread> threads;
    for (int t = 0; t < 8; t++)
      threads.emplace_back([&, t] {
        char own_error[BIREAL_ERROR_SIZE];
        std::vector<float> logits(expected.size());
        for (int repeat = 0; repeat < 10; repeat++)
          bad[t] += bireal_run_u8(net, pixels.data(), images, logits.data(), own_error) || logits != expected;
      });
    for (auto& thread : threads) thread.join();
    for (int n : bad) wrong += n;
    bireal_free(net);
  }
  std::printf("%d wrong\n", wrong);
  return wrong != 0;
}
