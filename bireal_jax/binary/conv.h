// What a convolution is for the calls of this folder, and the threads that do it.
#pragma once

#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

// x [n, h, w, c], weights [kh, kw, c, co], out [n, ho, wo, co]; zeros beyond the border. newest: the instructions that may be
// used if the CPU has them, 2 for AVX-512, 1 for AVX2 or NEON, 0 for none of these.
struct Conv {
  int32_t n, h, w, c, ho, wo, co, kh, kw, sh, sw, top, left, threads, newest;

  int taps() const { return kh * kw; }
  int rows() const { return (ho - 1) * sh + kh; }  // of an image with its border
  int columns() const { return (wo - 1) * sw + kw; }
};

// Runs `work` on so many threads, or on as many as can be made, the caller one of them. Rethrows what one of them threw.
template <class Work>
void together(int threads, const Work& work) {
  std::exception_ptr failure;
  std::mutex mutex;
  const auto guarded = [&] {
    try {
      work();
    } catch (...) {
      const std::lock_guard<std::mutex> lock(mutex);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> team;
  try {
    for (int i = 1; i < threads; i++) team.emplace_back(guarded);
  } catch (const std::exception&) {  // no more threads: those that there are do it all
  }
  guarded();
  for (auto& thread : team) thread.join();
  if (failure) std::rethrow_exception(failure);
}
