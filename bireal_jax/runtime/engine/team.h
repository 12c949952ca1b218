// Threads that work on one function together.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace bireal {

// Runs a function on so many threads, the caller one of them. Idle threads spin for a moment, then sleep.
class Team {
 public:
  explicit Team(int size) : size_(size) {
    for (int i = 1; i < size; i++) threads_.emplace_back([this, i] { work(i); });
  }
  ~Team() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      round_.fetch_add(1);
    }
    wake_.notify_all();
    for (auto& thread : threads_) thread.join();
  }
  int size() const { return size_; }

  void run(const std::function<void(int)>& function) {
    if (size_ == 1) return function(0);
    function_ = &function;
    left_.store(size_ - 1, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      round_.fetch_add(1);
    }
    if (sleeping_.load()) wake_.notify_all();
    function(0);
    if (!spin([&] { return left_.load(std::memory_order_acquire) == 0; }))
      while (left_.load(std::memory_order_acquire)) std::this_thread::yield();
  }

 private:
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

  int size_;
  std::vector<std::thread> threads_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<unsigned> round_{0};
  std::atomic<int> left_{0}, sleeping_{0};
  std::atomic<bool> stop_{false};
  const std::function<void(int)>* function_ = nullptr;
};

}  // namespace bireal
