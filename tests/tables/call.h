// The call that XLA makes, for programs that test compiled code without it.
#pragma once

#include <cstddef>
#include <thread>
#include <vector>

#include "xla.h"

static const char* message = "";  // of the last error
static void* create_error(xla::ErrorArguments* why) {
  message = why->message;
  return &message;
}

// XLA's pool: each task on a thread of its own, or none at all.
static std::vector<std::thread> pool;
static int refused = 0;
static void forget_error(xla::Forget* why) { refused -= why->error == &refused; }
static void* schedule(xla::Task* task) {
#if defined(NO_THREADS)
  (void)task;
  refused++;
  return &refused;
#else
  pool.emplace_back(task->run, task->data);
  return nullptr;
#endif
}

// Whether the call went well. Allocates nothing.
template <size_t inputs, size_t outputs>
static bool call(void* (*function)(xla::Call*), void* const (&in)[inputs], void* const (&out)[outputs]) {
  xla::Api api = {};
  api.create_error = create_error, api.forget_error = forget_error, api.schedule = schedule;
  xla::Buffer buffers[inputs + outputs], *pointers[inputs + outputs];
  for (size_t i = 0; i < inputs + outputs; i++) {
    buffers[i] = {sizeof(xla::Buffer), nullptr, 0, i < inputs ? in[i] : out[i - inputs]};
    pointers[i] = buffers + i;
  }
  xla::Call c = {sizeof c, nullptr, &api, nullptr, 0, {}, {}};
  c.arguments.items = pointers, c.results.items = pointers + inputs;
  const bool done = function(&c) == nullptr;
  for (auto& thread : pool) thread.join();
  pool.clear();
  return done && !refused;
}
