// Threads that work on one function together.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if !defined(__wasm__)
#include <condition_variable>
#include <mutex>
#include <thread>
#endif

namespace bireal {

#if defined(__wasm__)

// WebAssembly: one thread, which nothing else competes with, and no forks.
class Team {
 public:
  explicit Team(int) {}
  int size() const { return 1; }
  void gather() {}
  void run(const std::function<void(int)>& function) { function(0); }
};

#else

// How often this process was forked off, its parents included: a thread is there only in the process that started it.
inline std::atomic<unsigned> forks{0};

// Threads beside the caller's that work on one function. Idle ones spin for a moment, then sleep.
class Crew {
 public:
  explicit Crew(int size) {
    threads_.reserve(size);
    try {
      for (int i = 1; i <= size; i++) threads_.emplace_back([this, i] { work(i); });
    } catch (const std::exception& error) {  // no more threads, or no memory for one
      const size_t started = threads_.size() + 1;
      end();
      throw std::runtime_error("only " + std::to_string(started) + " of " + std::to_string(size + 1) +
                               " threads could be started: " + error.what() +
                               "\ntry again later, load with fewer threads, or raise the limit on them (ulimit -u)");
    }
  }
  ~Crew() { end(); }

  void run(const std::function<void(int)>& function) {
    function_ = &function;
    left_.store(int(threads_.size()), std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1);
    }
    if (sleeping_.load()) wake_.notify_all();
    function(0);
    if (!spin([&] { return left_.load(std::memory_order_acquire) == 0; }))
      while (left_.load(std::memory_order_acquire)) std::this_thread::yield();
  }

  const unsigned born = forks;

 private:
  void end() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }

  // Waits for at most a millisecond without going to sleep: waking a sleeper takes longer than a layer.
  template <class Done>
  static bool spin(const Done& done) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::milliseconds(1);
    do {
      for (int i = 0; i < 100; i++) {
        if (done()) return true;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
      std::this_thread::yield();  // to whoever else wants this core
    } while (std::chrono::steady_clock::now() < end);
    return false;
  }

  void work(int number) {
    for (unsigned seen = 0;;) {
      if (!spin([&] { return round_.load(std::memory_order_acquire) != seen; })) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleeping_++;
        wake_.wait(lock, [&] { return round_.load() != seen; });
        sleeping_--;
      }
      seen = round_.load();
      if (stop_) return;
      (*function_)(number);
      left_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> left_{0}, sleeping_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* function_ = nullptr;
};

// Runs a function on so many threads, the caller one of them.
class Team {
 public:
  explicit Team(int size) : size_(size) { gather(); }
  ~Team() { leave(); }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;
  int size() const { return size_; }

  // Starts the threads anew where the process was forked since; before the first `run` of a call. Throws where one cannot
  // be started, and then there are none.
  void gather() {
    leave();
    if (size_ > 1 && !crew_) crew_ = std::make_unique<Crew>(size_ - 1);
  }

  void run(const std::function<void(int)>& function) { crew_ ? crew_->run(function) : function(0); }

 private:
  // Of a parent's crew nothing can be used or freed: its locks may be held, and its threads' numbers may be others' by now.
  void leave() {
    if (crew_ && crew_->born != forks) (void)crew_.release();
  }

  int size_;
  std::unique_ptr<Crew> crew_;
};

#endif

}  // namespace bireal
