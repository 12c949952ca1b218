/* Preloaded: a machine of 8 cores on which only so many more threads can be started; -1: any number. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>

int threads_left = -1;

int get_nprocs(void) { return 8; }

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*function)(void*), void* argument) {
  int (*real)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");
  if (!threads_left) return EAGAIN;
  if (threads_left > 0) threads_left--;
  return real(thread, attributes, function, argument);
}
