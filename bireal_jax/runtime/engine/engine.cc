// The interface in C: loads a packed network, plans it, runs it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#if !defined(__wasm__)
#include <mutex>
#include <thread>

#include <pthread.h>
#endif

#include "bireal.h"
#include "net.h"
#include "run.h"

namespace bireal {
namespace {

#if defined(__wasm__)  // one thread, no forks, no environment
struct {
  void lock() {}
  void unlock() {}
} idle_mutex;
bool watch_forks() { return true; }
unsigned cores() { return 1; }
const char* environment(const char*) { return nullptr; }
#else
// For the list of idle contexts of every network, and held at a fork: so a child finds each of them whole.
std::mutex idle_mutex;
bool watch_forks() {
  return !pthread_atfork([] { idle_mutex.lock(); }, [] { idle_mutex.unlock(); }, [] { forks++, idle_mutex.unlock(); });
}
unsigned cores() { return std::thread::hardware_concurrency(); }
const char* environment(const char* name) { return std::getenv(name); }
#endif

struct { const char* name; const Kernels* (*get)(); } const known[] = {
    {"avx512_vpopcnt", avx512_vpopcnt_kernels}, {"avx512", avx512_kernels}, {"avx2", avx2_kernels},
    {"neon", neon_kernels}, {"wasm", wasm_kernels}, {"portable", portable_kernels}};

const bool prepared = [] {
  for (auto& row : known) row.get();  // fills their tables now, not when a fork may come between
  return watch_forks();
}();

const Kernels* choose(const char* name) {
  if (!name || !*name) name = environment("BIREAL_KERNELS");
  std::string usable;
  for (auto& row : known) {
    const Kernels* kernels = row.get();
    if (!kernels) continue;
    if (!name || !*name || !std::strcmp(name, row.name)) return kernels;
    usable += std::string(usable.empty() ? "" : ", ") + row.name;
  }
  throw Error("kernels \"" + std::string(name).substr(0, 40) + "\" are not known or not usable on this CPU; usable: " + usable);
}

int report(char* error, const char* what) {
  if (error) *error = 0, std::strncat(error, what, BIREAL_ERROR_SIZE - 1);
  return 1;
}

std::unique_ptr<Net> load(const uint8_t* data, size_t size, const bireal_options* options) {
  if (!prepared) throw Error("not enough memory");
  if (!data) throw Error("there is no file: data is NULL");
  auto net = std::make_unique<Net>();
  if (options) net->options = *options;
  auto& o = net->options;
  if (o.threads == 0) o.threads = 1;
  if (o.threads < 1 || o.threads > 256) throw Error("threads are " + std::to_string(o.threads) + "; use 1 to 256");
  if (const unsigned most = cores()) o.threads = std::min(o.threads, int(most));
  if (o.precision != 0 && o.precision != 1) throw Error("precision is neither float32 nor int16");
  if (!o.max_memory) o.max_memory = 4 * size + (size_t(64) << 20);
  if (sizeof(size_t) == 4) o.max_memory = std::min(o.max_memory, size_t(1) << 30);  // sums do not go round
  net->kernels = choose(o.kernels);
  o.kernels = nullptr;  // the caller's string need not live on
  net->network = parse(data, size);
  plan(*net);
  return net;
}

bool finite(const uint8_t*, size_t) { return true; }
bool finite(const float* values, size_t count) {
  bool all = true;
  for (size_t i = 0; i < count; i++) all &= std::fabs(values[i]) <= 3.4028235e38f;
  return all;
}

}  // namespace
}  // namespace bireal

struct bireal_net {
  std::unique_ptr<bireal::Net> net;
};

namespace bireal {
namespace {

constexpr Shape nothing;
const Shape& input(const bireal_net* handle) { return handle ? handle->net->network.image : nothing; }
const Shape& output(const bireal_net* handle) { return handle ? handle->net->network.ops.back().out : nothing; }
void give(const Shape& s, int shape[3]) { shape[0] = s.h, shape[1] = s.w, shape[2] = s.c; }

// The network of a handle, for n images that can be run.
template <class Pixel>
Net& checked(bireal_net* handle, const Pixel* images, size_t n, const void* out) {
  if (!handle) throw Error("there is no network: it is NULL, as after a load that failed");
  if (n && (!images || !out)) throw Error("the images or the place for what comes out are NULL");
  const size_t size = handle->net->network.image.size();
  for (size_t i = 0; i < n; i++)
    if (!finite(images + i * size, size))
      throw Error("image " + std::to_string(i) + " has NaN or infinity; mend the input");
  return *handle->net;
}

template <class Pixel>
int run(bireal_net* handle, const Pixel* images, size_t n, float* logits, char* error) {
  try {
    Net& net = checked(handle, images, n, logits);
    const size_t size = net.network.image.size();
    std::unique_ptr<Context> context;
    {
      std::lock_guard lock(idle_mutex);
      if (!net.idle.empty()) context = std::move(net.idle.back()), net.idle.pop_back();
    }
    if (context) context->team.gather();
    else context = std::make_unique<Context>(net);
    auto one = [&](size_t i, int memory, Team* team) {
      Run(net, context->memory[memory], team).image(images + i * size, logits + i * net.network.ops.back().out.size());
    };
    if (net.by_images(n)) {
      while (context->memory.size() < size_t(net.options.threads)) context->memory.emplace_back(net.memory(1));
      std::atomic<size_t> next{0};
      context->team.run([&](int thread) {
        for (size_t i; (i = next++) < n;) one(i, thread, nullptr);
      });
    } else {
      for (size_t i = 0; i < n; i++) one(i, 0, &context->team);
    }
    std::lock_guard lock(idle_mutex);
    net.idle.push_back(std::move(context));
    return 0;
  } catch (const std::exception& e) {
    return report(error, e.what());
  }
}

template <class Pixel>
int tensors(bireal_net* handle, const Pixel* image, float* const* values, char* error) {
  try {
    Net& net = checked(handle, image, 1, values);
    if (!net.options.unfused) throw Error("the tensors in between are fused away; load with unfused");
    Context context(net);
    Run run(net, context.memory[0], &context.team);
    std::vector<float> logits(output(handle).size());
    run.image(image, logits.data());
    for (int number = 0; number <= int(net.network.ops.size()); number++) {
      const auto& shape = net.shape(number);
      for (size_t p = 0; p < shape.pixels(); p++)
        std::memcpy(values[number] + p * shape.c, run.real(number) + p * pitch_of(shape.c), shape.c * sizeof(float));
    }
    return 0;
  } catch (const std::exception& e) {
    return report(error, e.what());
  }
}

}  // namespace
}  // namespace bireal

extern "C" {

bireal_net* bireal_load_memory(const void* data, size_t size, const bireal_options* options, char* error) {
  try {
    return new bireal_net{bireal::load(static_cast<const uint8_t*>(data), size, options)};
  } catch (const std::exception& e) {
    bireal::report(error, e.what());
    return nullptr;
  }
}

#if !defined(__wasm__)  // no files
bireal_net* bireal_load(const char* path, const bireal_options* options, char* error) {
  try {
    if (!path) throw bireal::Error("there is no file: its path is NULL");
    std::unique_ptr<FILE, int (*)(FILE*)> file(std::fopen(path, "rb"), std::fclose);
    if (!file) throw bireal::Error(std::string(path) + " cannot be opened");
    std::vector<uint8_t> data;
    uint8_t chunk[1 << 16];
    for (size_t n; (n = std::fread(chunk, 1, sizeof chunk, file.get()));) data.insert(data.end(), chunk, chunk + n);
    if (std::ferror(file.get())) throw bireal::Error(std::string(path) + " cannot be read");
    return bireal_load_memory(data.data(), data.size(), options, error);
  } catch (const std::exception& e) {
    bireal::report(error, e.what());
    return nullptr;
  }
}

#endif

void bireal_free(bireal_net* net) { delete net; }

void bireal_image_shape(const bireal_net* net, int shape[3]) { bireal::give(bireal::input(net), shape); }
int bireal_num_outputs(const bireal_net* net) { return int(bireal::output(net).size()); }
void bireal_output_shape(const bireal_net* net, int shape[3]) { bireal::give(bireal::output(net), shape); }
const char* bireal_label(const bireal_net* net, int index) {
  if (!net || index < 0 || size_t(index) >= net->net->network.labels.size()) return "";
  return net->net->network.labels[index].c_str();
}
const char* bireal_kernels(const bireal_net* net) { return net ? net->net->kernels->name : ""; }
size_t bireal_memory(const bireal_net* net) {
  return net ? net->net->weights + net->net->memory(net->net->options.threads) : 0;
}
double bireal_work(const bireal_net* net) { return net ? net->net->network.work : 0; }

int bireal_run_u8(bireal_net* net, const uint8_t* images, size_t n, float* logits, char* error) {
  return bireal::run(net, images, n, logits, error);
}
int bireal_run_f32(bireal_net* net, const float* images, size_t n, float* logits, char* error) {
  return bireal::run(net, images, n, logits, error);
}

int bireal_profile(bireal_net* handle, const uint8_t* image, int repeats, double* seconds, char* error) {
  try {
    bireal::Net& net = bireal::checked(handle, image, 1, seconds);
    if (repeats < 1) throw bireal::Error("repeats is less than 1");
    bireal::Context context(net);
    const auto found = bireal::Run(net, context.memory[0], &context.team).profile(image, repeats);
    std::copy(found.begin(), found.end(), seconds);
    return 0;
  } catch (const std::exception& e) {
    return bireal::report(error, e.what());
  }
}

int bireal_tensors_u8(bireal_net* net, const uint8_t* image, float* const* values, char* error) {
  return bireal::tensors(net, image, values, error);
}
int bireal_tensors_f32(bireal_net* net, const float* image, float* const* values, char* error) {
  return bireal::tensors(net, image, values, error);
}

}  // extern "C"
