// Fuzzes the reader of packed files and, with BIREAL_FUZZ=infer in the environment, the whole engine: a file that loads
// is run, and what fusing, threads and the kind of image must not change is compared. For libFuzzer:
//
//   clang++ -std=c++17 -O2 -Ibireal_jax/runtime/engine -c tests/engine/mutate.cc
//   clang++ -std=c++17 -O2 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all
//     -fno-sanitize-coverage=trace-cmp -Ibireal_jax/runtime/engine
//     tests/engine/fuzz.cc bireal_jax/runtime/engine/*.cc mutate.o -o fuzz
//   python tests/engine/make_seeds.py seeds
//   ./fuzz -timeout=60 -rss_limit_mb=0 -mutate_depth=1 -entropic=0 -max_len=8192 seeds
//
// mutate.o stands last: of a template that both use, the linker takes the first copy, the one with sanitizers.
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>
#include <vector>

#include "bireal.h"
#include "format.h"
#include "random.h"

extern "C" __attribute__((weak)) int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                                                               void (*)(const volatile void*));
extern "C" __attribute__((weak)) size_t __sanitizer_get_allocated_size(const volatile void*);

namespace {

const bool infer = std::getenv("BIREAL_FUZZ") && !std::strcmp(std::getenv("BIREAL_FUZZ"), "infer");

[[noreturn]] void found(const std::string& what) {
  std::fprintf(stderr, "FOUND: %s\n", what.c_str());
  std::abort();
}

// Bytes allocated, and with `exact` those freed too, and the most at one time.
std::atomic<long> live{0}, most{0};
std::atomic<bool> exact{false};
void allocated(const volatile void*, size_t size) {
  const long now = live += long(size);
  if (exact && now > most) most = now;
}
void freed(const volatile void* pointer) {
  if (exact && pointer) live -= long(__sanitizer_get_allocated_size(pointer));
}

// Loads under a limit: four times the file and 64 MB, and one second of this thread. What allocates no more in sum, and
// takes no longer on the clock, is within it; anything else is loaded once more and measured.
template <class Load>
void limited(size_t size, Load load) {
  const long limit = long(4 * size + (64 << 20));
  live = 0;
  const auto began = std::chrono::steady_clock::now();
  load();
  if (live <= limit && std::chrono::steady_clock::now() - began < std::chrono::seconds(1)) return;
  live = most = 0, exact = true;
  const std::clock_t clock = std::clock();
  load();
  exact = false;
  if (most > limit) found("it takes " + std::to_string(most >> 20) + " MB");
  if (std::clock() - clock > CLOCKS_PER_SEC) found("it takes more than a second");
}

// How far the inputs came.
enum Stage { no_header, no_digest, refused, loaded, ran, stages };
size_t reached[stages];
void tell() {
  std::fprintf(stderr, "inputs refused in the header: %zu, by the digest: %zu, behind it: %zu; loaded: %zu, run: %zu\n",
               reached[no_header], reached[no_digest], reached[refused], reached[loaded], reached[ran]);
}

Stage stage(const char* error) {
  for (const char* start : {"the header is not", "the header has more", "the header has a key", "no packed network",
                            "the file is cut off", "the header has no __metadata__", "the header has no bireal_jax",
                            "the file is too short", "the file has another format", "the header has no format", "the metadata",
                            "format"})
    if (!std::strncmp(error, start, std::strlen(start))) return no_header;
  return std::strstr(error, "digest") ? no_digest : refused;
}

bireal_net* load(const uint8_t* data, size_t size, const char* kernels, int unfused, int threads, int precision) {
  bireal_options options{};
  options.kernels = kernels, options.unfused = unfused, options.threads = threads, options.precision = precision;
  char error[BIREAL_ERROR_SIZE] = "";
  std::vector<bireal_net*> nets;
  nets.reserve(2);
  limited(size, [&] { nets.push_back(bireal_load_memory(data, size, &options, error)); });
  if (nets.size() > 1) bireal_free(nets[0]);
  bireal_net* net = nets.back();
  if (!net && !*error) found("no network and no word why");
  if (!net && (std::strstr(error, "std::") || std::strstr(error, "vector"))) found(error);
  if (!net && unfused && kernels) reached[stage(error)]++;
  return net;
}

struct Answers {
  std::vector<float> of_bytes, of_floats;
};

Answers run(bireal_net* net, unsigned seed) {
  char error[BIREAL_ERROR_SIZE];
  int shape[3];
  bireal_image_shape(net, shape);
  Random random(seed);
  std::vector<uint8_t> bytes(size_t(shape[0]) * shape[1] * shape[2]);
  std::vector<float> floats(bytes.size());
  for (auto& v : bytes) v = uint8_t(random(256));
  for (auto& v : floats) v = random.one_in(100) ? 1e38f : (float(random(2000)) - 1000) / 500;
  Answers a;
  a.of_bytes.resize(bireal_num_outputs(net)), a.of_floats.resize(a.of_bytes.size());
  if (bireal_run_u8(net, bytes.data(), 1, a.of_bytes.data(), error)) found(error);
  if (bireal_run_f32(net, floats.data(), 1, a.of_floats.data(), error)) found(error);
  return a;
}

void compare(const std::vector<float>& a, const std::vector<float>& b, const char* what) {
  for (size_t i = 0; i < a.size(); i++)
    if (!(a[i] == b[i]) && !(a[i] != a[i] && b[i] != b[i]))
      found(std::string(what) + ": output " + std::to_string(i) + " is " + std::to_string(a[i]) + " or " + std::to_string(b[i]));
}

void run_all(const uint8_t* data, size_t size) {
  const unsigned seed = unsigned(size) + data[size - 1];
  for (const char* kernels : {"portable", static_cast<const char*>(nullptr)}) {
    bireal_net* plain = load(data, size, kernels, 1, 1, 0);
    bireal_net* fused = load(data, size, kernels, 0, 1 + (seed % 8 == 0), 0);
    bireal_net* narrow = load(data, size, kernels, 0, 1, 1);
    if (plain && fused && bireal_work(plain) < 4e6 && bireal_memory(plain) < 8 << 20) {
      reached[ran] += kernels != nullptr;
      const Answers expected = run(plain, seed), answers = run(fused, seed);
      compare(expected.of_bytes, answers.of_bytes, "fused, of bytes");
      compare(expected.of_floats, answers.of_floats, "fused, of floats");
      if (narrow) run(narrow, seed);
    }
    reached[loaded] += plain && kernels;
    for (bireal_net* net : {plain, fused, narrow}) bireal_free(net);
    if (!plain && !fused) return;
  }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  if (__sanitizer_install_malloc_and_free_hooks) __sanitizer_install_malloc_and_free_hooks(allocated, freed);
  std::atexit(tell);
  return 0;
}

// Short stacks of where memory came from, and 16 MB of freed memory that is watched.
extern "C" const char* __asan_default_options() { return "malloc_context_size=2:quarantine_size_mb=16"; }

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (infer) {
    if (size) run_all(data, size);
    return 0;
  }
  Stage end = loaded;
  limited(size, [&] {
    try {
      bireal::parse(data, size);
    } catch (const bireal::Error& error) {
      end = stage(error.what());
    }
  });
  reached[end]++;
  return 0;
}

