// XLA's foreign function interface, as far as it is used here. Its binary interface is stable (version 0.3, and jaxlib 0.10
// to 0.12 were tried), so nothing of a jaxlib is needed when the package is installed.
#pragma once

#include <cstddef>
#include <cstdint>

namespace xla {

struct Extension {
  size_t size;
  int32_t type;
  Extension* next;
};
constexpr int32_t metadata_type = 1;

struct Version {
  size_t size;
  Extension* extensions;
  int32_t major, minor;
};

struct Metadata {
  size_t size;
  Version version;
};

struct MetadataExtension {
  Extension base;
  Metadata* metadata;
};

struct ErrorArguments {
  size_t size;
  Extension* extensions;
  const char* message;
  int32_t code;
};
constexpr int32_t resource_exhausted = 8;

struct Forget {
  size_t size;
  Extension* extensions;
  void* error;
};

struct Task {
  size_t size;
  Extension* extensions;
  void* context;
  void (*run)(void* data);
  void* data;
};

struct Api {
  size_t size;
  Extension* extensions;
  Version version;
  const void* internal;
  void* (*create_error)(ErrorArguments*);
  void* error_message;
  void (*forget_error)(Forget*);
  void *register_handler, *stream, *register_type, *context, *set_state, *state, *allocate, *free;
  void* (*schedule)(Task*);  // on a thread of XLA's own, sooner or later; an error where it has none
};

struct Buffer {
  size_t size;
  Extension* extensions;
  int32_t type;
  void* data;
};

struct Buffers {  // arguments, and results
  size_t size;
  Extension* extensions;
  int64_t count;
  int32_t* types;
  Buffer** items;
};

struct Call {
  size_t size;
  Extension* extensions;
  const Api* api;
  void* context;
  int32_t stage;
  Buffers arguments, results;
};

// Whether the call was XLA's question for which version this was written; it is answered then.
inline bool answered(Call* call) {
  if (!call->extensions || call->extensions->type != metadata_type) return false;
  Version& version = reinterpret_cast<MetadataExtension*>(call->extensions)->metadata->version;
  version.major = 0, version.minor = 3;
  return true;
}

// Whether run(data) will be called by one of XLA's threads.
inline bool scheduled(Call* call, void (*run)(void*), void* data) {
  Task task = {sizeof task, nullptr, call->context, run, data};
  void* error = call->api->schedule ? call->api->schedule(&task) : call;
  if (!error) return true;
  Forget why = {sizeof why, nullptr, error};
  if (error != call) call->api->forget_error(&why);
  return false;
}

// What argument, or result, number i points at.
template <class T>
const T* in(const Call* call, int i) {
  return static_cast<const T*>(call->arguments.items[i]->data);
}
template <class T>
T* out(const Call* call, int i) {
  return static_cast<T*>(call->results.items[i]->data);
}

inline void* out_of_resources(Call* call, const char* message) {
  ErrorArguments why = {sizeof(ErrorArguments), nullptr, message, resource_exhausted};
  return call->api->create_error(&why);
}

}  // namespace xla
