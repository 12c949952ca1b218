// What WebAssembly lacks: a C++ library with exceptions. What is thrown ends the call, as an exception of JavaScript with
// the same words; nothing is unwound, so the instance is given up after a load (web/bireal.mjs). Whatever would end a
// program comes here too: a trap has no message.
#if defined(__wasm__)
#include <cstdarg>
#include <cstdlib>
#include <exception>
#include <new>

extern "C" {

__attribute__((import_module("env"), import_name("fail"), noreturn)) void bireal_fail(const char* what);

void* __cxa_allocate_exception(size_t size) { return operator new(size); }
// Here only std::exception and what is made from it are thrown, and it stands first in them.
void __cxa_throw(void* thrown, void*, void*) { bireal_fail(static_cast<std::exception*>(thrown)->what()); }

}  // extern "C"

void std::__libcpp_verbose_abort(const char* format, ...) noexcept { bireal_fail(format); }

void* operator new(size_t size) {
  void* memory = std::malloc(size);
  if (!memory) bireal_fail("not enough memory");
  return memory;
}
void* operator new[](size_t size) { return operator new(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
#endif
