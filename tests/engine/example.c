/* The class of an image, in C:
 *
 *   cc -Ibireal_jax/runtime/engine tests/engine/example.c $PWD/bireal_jax/runtime/_engine.*.so -o example
 *   ./example net.safetensors image.raw
 *
 * The library is that one file. To ship it beside the program: cc ... -L. -l:engine.so -Wl,-rpath,'$ORIGIN', a copy of it
 * being engine.so.
 * image.raw: height x width x channels bytes, as the network takes them.
 */
#include <stdio.h>
#include <stdlib.h>

#include "bireal.h"

int main(int count, char** arguments) {
  char error[BIREAL_ERROR_SIZE];
  if (count != 3) return fprintf(stderr, "usage: %s NET IMAGE\n", arguments[0]), 2;
  bireal_net* net = bireal_load(arguments[1], NULL, error);
  if (!net) return fprintf(stderr, "%s\n", error), 1;

  int shape[3];
  bireal_image_shape(net, shape);
  size_t size = (size_t)shape[0] * shape[1] * shape[2];
  unsigned char* image = malloc(size);
  FILE* file = fopen(arguments[2], "rb");
  if (!image || !file || fread(image, 1, size, file) != size)
    return fprintf(stderr, "%s does not have %zu bytes\n", arguments[2], size), 1;
  fclose(file);

  int outputs = bireal_num_outputs(net), best = 0;
  float* logits = malloc(outputs * sizeof *logits);
  if (!logits || bireal_run_u8(net, image, 1, logits, error)) return fprintf(stderr, "%s\n", error), 1;
  for (int i = 1; i < outputs; i++)
    if (logits[i] > logits[best]) best = i;
  printf("%d %s %.6g\n", best, bireal_label(net, best), logits[best]);

  free(logits), free(image), bireal_free(net);
  return 0;
}
