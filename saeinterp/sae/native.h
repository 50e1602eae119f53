/* What the C kernels of the TopK SAE training step share: vectors, rows of bfloat16 or float32, chunks.

   The kernels (native_topk.c: selection; native_step.c: decoding, weight gradients, update) are plain C on raw
   pointers, compiled on the machine that runs it and called through ctypes by native.py, where shapes are checked.
   Every output element is reduced in a fixed order by one thread, so bits depend neither on the number of threads nor
   on how many SAEs share a batch nor on alignment (hence explicit vectors, no -ffast-math).

   S SAEs, N rows each, d width, M latents, k active a row. Arrays are contiguous but for a stride between SAEs. */

#ifndef SAEINTERP_NATIVE_H
#define SAEINTERP_NATIVE_H

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef int64_t i64;

enum { OUT_OF_MEMORY = 1 };

#if defined(__AVX512F__)
#define LANES 16
#elif defined(__AVX__)
#define LANES 8
#else
#define LANES 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef uint32_t vec_bits __attribute__((vector_size(4 * LANES)));
typedef float four __attribute__((vector_size(16)));

INLINE i64 min_of(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 round_up(i64 n, i64 unit) { return (n + unit - 1) / unit * unit; }

INLINE vec load(const float *p) {
  vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }

INLINE float sum_of(vec v) {
  four parts[LANES / 4];
  memcpy(parts, &v, sizeof v);
#if LANES == 16
  parts[0] = (parts[0] + parts[2]) + (parts[1] + parts[3]);
#elif LANES == 8
  parts[0] += parts[1];
#endif
  return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

INLINE float element(const void *row, i64 i, int bf16) {
  if (!bf16)
    return ((const float *)row)[i];
  uint32_t bits = (uint32_t)((const uint16_t *)row)[i] << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

/* Rows are read in chunks, two vectors each. Of bfloat16 the two hold the even and the odd elements, because a shift
   and a mask then convert all (little-endian) pairs; sums over d do not mind, and `pack` and `unpack` reorder the
   rest. The last chunk of a row is filled up with zeros. */
#define CHUNK (2 * LANES)

INLINE void load_chunk(const void *row, i64 i, i64 count, int bf16, vec out[2]) {
  if (bf16) {
    vec_bits pairs = {0};
    if (count >= CHUNK)
      memcpy(&pairs, (const uint16_t *)row + i, sizeof pairs);
    else
      memcpy(&pairs, (const uint16_t *)row + i, (size_t)count * 2);
    out[0] = (vec)(pairs << 16);
    out[1] = (vec)(pairs & 0xFFFF0000u);
  } else {
    const float *p = (const float *)row + i;
    float part[CHUNK] = {0};
    if (count < CHUNK) {
      memcpy(part, p, (size_t)count * 4);
      p = part;
    }
    out[0] = load(p);
    out[1] = load(p + LANES);
  }
}

/* float32 elements from their order in memory to that of chunks, and back. */
INLINE void pack(const float *restrict from, i64 d, int bf16, float *restrict to) {
  i64 i = 0;
  for (; bf16 && i + CHUNK <= d; i += CHUNK)
    for (int lane = 0; lane < LANES; lane++) {
      to[i + lane] = from[i + 2 * lane];
      to[i + LANES + lane] = from[i + 2 * lane + 1];
    }
  if (!bf16) {
    memcpy(to, from, (size_t)d * sizeof(float));
    i = d;
  }
  for (i64 j = d; j < round_up(d, CHUNK); j++)
    to[j] = 0;
  if (bf16 && i < d) {
    for (i64 j = i; j < i + CHUNK; j++)
      to[j] = 0;
    for (i64 j = i; j < d; j++)
      to[i + (j - i) % 2 * LANES + (j - i) / 2] = from[j];
  }
}

INLINE void unpack(const float *restrict from, i64 d, int bf16, float *restrict to) {
  i64 i = 0;
  for (; bf16 && i + CHUNK <= d; i += CHUNK)
    for (int lane = 0; lane < LANES; lane++) {
      to[i + 2 * lane] = from[i + lane];
      to[i + 2 * lane + 1] = from[i + LANES + lane];
    }
  if (!bf16)
    memcpy(to, from, (size_t)d * sizeof(float));
  else
    for (i64 j = i; j < d; j++)
      to[j] = from[i + (j - i) % 2 * LANES + (j - i) / 2];
}

#endif
