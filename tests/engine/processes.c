/* A network in forked processes, with 1 to 8 threads, and what a caller may get wrong:
 *
 *   ./processes net.safetensors
 *
 * The images are noise. Prints "right", or says what was not.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bireal.h"

#define CHECK(holds)                                                                           \
  do { \
    if (!(holds)) fprintf(stderr, "line %d: not %s; %s\n", __LINE__, #holds, error), exit(1); \
  } while (0)
enum { IMAGES = 9 };

int get_nprocs(void) { return 8; } /* as many threads as are asked for */

static char error[BIREAL_ERROR_SIZE];
static unsigned char* pixels;
static float* expected;
static size_t outputs;
static volatile int ended;

static int same(bireal_net* net) {
  char own[BIREAL_ERROR_SIZE];
  float* logits = malloc(IMAGES * outputs * sizeof *logits);
  int right = 1;
  for (size_t n = 1; n <= IMAGES; n += IMAGES - 1)
    right &= !bireal_run_u8(net, pixels, n, logits, own) && !memcmp(logits, expected, n * outputs * sizeof *logits);
  free(logits);
  return right;
}

static void* call(void* net) {
  while (!ended)
    if (!same(net)) fprintf(stderr, "another thread's run was wrong\n"), exit(1);
  return NULL;
}

/* A child calls the network, then so does its own child, and each frees it. */
static void fork_and_call(bireal_net* net, int deep) {
  const pid_t child = fork();
  if (!child) {
    alarm(20); /* instead of a hang */
    if (deep > 1) CHECK(same(net));
    if (deep) fork_and_call(net, deep - 1);
    CHECK(!deep || same(net));
    bireal_free(net);
    _exit(0);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void misuse(bireal_net* net) {
  float logits[1];
  double seconds[1];
  int shape[3] = {1, 1, 1};
  CHECK(!bireal_load(NULL, NULL, error) && strstr(error, "NULL"));
  CHECK(!bireal_load("/", NULL, error) && strstr(error, "cannot be"));
  CHECK(!bireal_load_memory(NULL, 5, NULL, error) && strstr(error, "NULL"));
  CHECK(!bireal_load_memory("", 0, NULL, NULL));
  CHECK(bireal_run_u8(NULL, pixels, 1, logits, error) && strstr(error, "no network"));
  CHECK(bireal_run_f32(NULL, logits, 1, logits, NULL));
  CHECK(bireal_profile(NULL, pixels, 1, seconds, error) && strstr(error, "no network"));
  CHECK(bireal_run_u8(net, NULL, 1, logits, error) && strstr(error, "NULL"));
  CHECK(bireal_run_u8(net, pixels, 1, NULL, error) && strstr(error, "NULL"));
  CHECK(!bireal_run_u8(net, NULL, 0, NULL, error));
  CHECK(bireal_profile(net, pixels, 0, seconds, error) && strstr(error, "repeats"));
  bireal_image_shape(NULL, shape);
  CHECK(!shape[0] && !shape[1] && !shape[2]);
  shape[0] = 1, bireal_output_shape(NULL, shape);
  CHECK(!shape[0] && !bireal_num_outputs(NULL) && !bireal_memory(NULL) && bireal_work(NULL) == 0);
  CHECK(!*bireal_label(NULL, 0) && !*bireal_label(net, -1) && !*bireal_label(net, 1 << 30) && !*bireal_kernels(NULL));
  bireal_free(NULL);
}

int main(int count, char** arguments) {
  if (count != 2) return 2;
  for (int threads = 1; threads <= 8; threads++) {
    bireal_options options = {0};
    options.threads = threads;
    bireal_net* net = bireal_load(arguments[1], &options, error);
    CHECK(net);
    if (threads == 1) {
      int shape[3];
      bireal_image_shape(net, shape);
      const size_t size = (size_t)IMAGES * shape[0] * shape[1] * shape[2];
      outputs = bireal_num_outputs(net);
      pixels = malloc(size), expected = malloc(IMAGES * outputs * sizeof *expected);
      for (size_t i = 0; i < size; i++) pixels[i] = (unsigned char)(i * 37 % 256);
      CHECK(!bireal_run_u8(net, pixels, IMAGES, expected, error));
      misuse(net);
    }
    fork_and_call(net, 1); /* before the first run here */
    CHECK(same(net));
    fork_and_call(net, 2);
    pthread_t others[2];
    ended = 0;
    for (int i = 0; i < 2; i++) CHECK(!pthread_create(&others[i], NULL, call, net));
    for (int i = 0; i < 5; i++) fork_and_call(net, i % 3);
    ended = 1;
    for (int i = 0; i < 2; i++) pthread_join(others[i], NULL);
    CHECK(same(net));
    bireal_free(net);
  }
  puts("right");
  return 0;
}
