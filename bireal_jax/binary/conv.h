// What a convolution is for the calls of this folder, and the threads that do it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <new>

#include "xla.h"

// x [n, h, w, c], weights [kh, kw, c, co], out [n, ho, wo, co]; zeros beyond the border. newest: the instructions that may be
// used if the CPU has them, 2 for AVX-512, 1 for AVX2 or NEON, 0 for none of these.
struct Conv {
  int32_t n, h, w, c, ho, wo, co, kh, kw, sh, sw, top, left, threads, newest;

  int taps() const { return kh * kw; }
  int rows() const { return (ho - 1) * sh + kh; }  // of an image with its border
  int columns() const { return (wo - 1) * sw + kw; }
};

// Who does a call: the thread that it came on, and up to `size - 1` of XLA's own. Threads made for the call would have to be
// put on a core first; where the other core was not quite idle they stayed on the caller's, and the call took as long as on one.
struct Team {
  xla::Call* call;
  int size;

  // Runs `work` on so many threads, or as many as come before the caller is done with it. Rethrows what one of them threw.
  template <class Work>
  void run(const Work& work) const {
    const auto shared = std::make_shared<Shared>();
    shared->work = [&work] { work(); };
    try {
      for (int i = 1; i < size; i++) {
        auto ticket = std::make_unique<std::shared_ptr<Shared>>(shared);
        if (xla::scheduled(call, join, ticket.get())) ticket.release();
      }
    } catch (const std::bad_alloc&) {  // those that there are do it all
    }
    shared->guarded();
    std::unique_lock<std::mutex> lock(shared->mutex);
    shared->over = true;
    shared->left.wait(lock, [&] { return shared->inside == 0; });
    if (shared->failure) std::rethrow_exception(shared->failure);
  }

 private:
  struct Shared {  // outlives the call: who comes late still asks whether it is over
    std::function<void()> work;
    std::mutex mutex;
    std::condition_variable left;
    int inside = 0;
    bool over = false;
    std::exception_ptr failure;

    void guarded() {
      try {
        work();
      } catch (...) {
        const std::lock_guard<std::mutex> lock(mutex);
        failure = std::current_exception();
      }
    }
  };

  static void join(void* data) {
    const std::unique_ptr<std::shared_ptr<Shared>> ticket(static_cast<std::shared_ptr<Shared>*>(data));
    Shared& shared = **ticket;
    std::unique_lock<std::mutex> lock(shared.mutex);
    if (shared.over) return;
    shared.inside++;
    lock.unlock();
    shared.guarded();
    lock.lock();
    if (--shared.inside == 0) shared.left.notify_all();
  }
};

// Answers a call whose first argument is a Shape, its members as int32, `threads` among them: by work(shape, team), or with an
// error that says what there was no memory for.
template <class Shape, class Work>
void* answer(xla::Call* call, const char* no_memory, const Work& work) {
  if (xla::answered(call)) return nullptr;
  Shape shape;
  std::memcpy(&shape, xla::in<void>(call, 0), sizeof shape);
  try {
    work(shape, Team{call, shape.threads});
    return nullptr;
  } catch (const std::exception&) {
    return xla::out_of_resources(call, no_memory);
  }
}
