/* Packed 1-bit networks on CPUs: the C interface of the engine.
 *
 *   char error[BIREAL_ERROR_SIZE];
 *   bireal_net* net = bireal_load("net.safetensors", NULL, error);
 *   if (!net || bireal_run_u8(net, pixels, 1, logits, error)) fprintf(stderr, "%s\n", error);
 *   bireal_free(net);
 *
 * A loaded network can be run by several threads at once, and in a process that was forked off, also while other threads
 * ran it: its own threads are then started anew. It is freed once, in each process, when no run of it goes on. A handle that
 * is NULL, as after a load that failed, has no shape, no name and no memory; its runs fail, and it can be freed.
 * Maps are NHWC.
 */
#ifndef BIREAL_H
#define BIREAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BIREAL_API __attribute__((visibility("default")))
#define BIREAL_ERROR_SIZE 512

typedef struct bireal_net bireal_net;

typedef struct {
  int threads;         /* of one run, no more than there are cores; 0: one. They share each image, or, of at least as
                          many images, each takes its own, where max_memory allows that */
  int precision;       /* 0: float32; 1: first convolution, on uint8 pixels, and 1x1 convolutions of maps in 16 bits */
  int unfused;         /* 1: every operation alone, so that bireal_tensors_* can show each; slow */
  const char* kernels; /* "avx512_vpopcnt", "avx512", "avx2", "neon", "portable"; NULL: environment BIREAL_KERNELS, or
                          else the best that this CPU has */
  size_t max_memory;   /* bytes that the network may take when loaded; 0: 4 times the file and 64 MB */
} bireal_options;

/* Loads and checks a packed network. options: NULL for the defaults. Returns NULL and says why in error on failure.
 * A file is read once. data must not change before bireal_load_memory returns; then it is no longer needed. */
BIREAL_API bireal_net* bireal_load(const char* path, const bireal_options* options, char error[BIREAL_ERROR_SIZE]);
BIREAL_API bireal_net* bireal_load_memory(const void* data, size_t size, const bireal_options* options,
                                          char error[BIREAL_ERROR_SIZE]);
BIREAL_API void bireal_free(bireal_net* net);

/* Height, width and channels of an image; number of outputs, h * w * c of a map; height, width and channels of the
 * output, 1 and 1 of logits; name of a class, "" if it has none. */
BIREAL_API void bireal_image_shape(const bireal_net* net, int shape[3]);
BIREAL_API int bireal_num_outputs(const bireal_net* net);
BIREAL_API void bireal_output_shape(const bireal_net* net, int shape[3]);
BIREAL_API const char* bireal_label(const bireal_net* net, int index);
/* What runs: "avx2" and the like. Bytes of weights, and of the maps of one image. Multiply-adds of one image. */
BIREAL_API const char* bireal_kernels(const bireal_net* net);
BIREAL_API size_t bireal_memory(const bireal_net* net);
BIREAL_API double bireal_work(const bireal_net* net);

/* n images [n, h, w, c] to logits [n, outputs]. uint8 images are normalized as the file says, float ones must be
 * already. Returns 0, or 1 and why in error: an image with NaN or infinity, no memory, or a thread that could not be
 * started; the next run tries again. */
BIREAL_API int bireal_run_u8(bireal_net* net, const uint8_t* images, size_t n, float* logits,
                             char error[BIREAL_ERROR_SIZE]);
BIREAL_API int bireal_run_f32(bireal_net* net, const float* images, size_t n, float* logits,
                              char error[BIREAL_ERROR_SIZE]);

/* Where the time goes: the median over so many runs of one image, in seconds for each operation; what is fused into
 * another counts with it and has 0. seconds: as many as the file has operations. */
BIREAL_API int bireal_profile(bireal_net* net, const uint8_t* image, int repeats, double* seconds,
                              char error[BIREAL_ERROR_SIZE]);

/* For tests: every tensor of an unfused network for one image, [h, w, c] each: the normalized image, then what each
 * operation gives. */
BIREAL_API int bireal_tensors_u8(bireal_net* net, const uint8_t* image, float* const* values,
                                 char error[BIREAL_ERROR_SIZE]);
BIREAL_API int bireal_tensors_f32(bireal_net* net, const float* image, float* const* values,
                                  char error[BIREAL_ERROR_SIZE]);

#ifdef __cplusplus
}
#endif
#endif
