/* images NET COUNT int16: runs so many images on one thread, for what counts or times it; prints milliseconds an image. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "bireal.h"

int main(int argc, char** argv) {
  char error[BIREAL_ERROR_SIZE];
  bireal_options options = {.threads = 1, .precision = argc > 3 && !strcmp(argv[3], "int16")};
  bireal_net* net = bireal_load(argv[1], &options, error);
  if (!net) return fprintf(stderr, "%s\n", error), 1;
  int shape[3];
  bireal_image_shape(net, shape);
  const size_t size = (size_t)shape[0] * shape[1] * shape[2];
  unsigned char* image = malloc(size);
  float* logits = malloc(sizeof(float) * bireal_num_outputs(net));
  for (size_t i = 0; i < size; i++) image[i] = (unsigned char)(i * 7919 + (i >> 5) * 31);
  const int count = atoi(argv[2]);
  struct timespec begin, end;
  clock_gettime(CLOCK_MONOTONIC, &begin);
  for (int i = 0; i < count; i++)
    if (bireal_run_u8(net, image, 1, logits, error)) return fprintf(stderr, "%s\n", error), 1;
  clock_gettime(CLOCK_MONOTONIC, &end);
  const double ms = 1e3 * (double)(end.tv_sec - begin.tv_sec) + 1e-6 * (double)(end.tv_nsec - begin.tv_nsec);
  printf("%s: %.3f ms an image, first logit %g\n", bireal_kernels(net), ms / count, logits[0]);
  bireal_free(net);
  return 0;
}
