/* Kernels of the TopK SAE training step for CPUs: selection, decoding, weight gradients, update.

   Plain C on raw pointers, compiled on the machine that runs it and called through ctypes by native.py, where the
   shapes are checked. Every output element is reduced in a fixed order by one thread, so bits depend neither on the
   number of threads nor on how many SAEs share a batch nor on alignment (hence explicit vectors, no -ffast-math).

   S SAEs, N rows each, d width, M latents, k active a row. Arrays are contiguous but for a stride between SAEs. */

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

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

/* ---- Selection ----------------------------------------------------------------------------------------------
   Non-negative IEEE floats order like the integers with the same bits, so a row is reduced to int16 keys: the bits
   of a bfloat16, or the upper half of those of a float32 (whose lower half then only separates ties). */

#define BLOCK 32 /* keys compared at once; key arrays are padded to it with INT16_MIN */

/* Bit i is set where keys[i] >= t (or == t). */
INLINE uint32_t mask_of(const int16_t *keys, int16_t t, int equal) {
#if defined(__AVX512BW__)
  __m512i a = _mm512_loadu_si512(keys), b = _mm512_set1_epi16(t);
  return equal ? _mm512_cmpeq_epi16_mask(a, b) : _mm512_cmpge_epi16_mask(a, b);
#elif defined(__AVX2__)
  __m256i a = _mm256_loadu_si256((const __m256i *)keys), b = _mm256_loadu_si256((const __m256i *)(keys + 16));
  __m256i c = _mm256_set1_epi16(t);
  __m256i low = equal ? _mm256_cmpeq_epi16(a, c) : _mm256_cmpgt_epi16(c, a);
  __m256i high = equal ? _mm256_cmpeq_epi16(b, c) : _mm256_cmpgt_epi16(c, b);
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(low, high), 0xD8);
  uint32_t mask = (uint32_t)_mm256_movemask_epi8(packed);
  return equal ? mask : ~mask;
#else
  uint32_t mask = 0;
  int16_t any = 0;
  for (int i = 0; i < BLOCK; i++)
    any |= equal ? keys[i] == t : keys[i] >= t;
  for (int i = 0; any && i < BLOCK; i++)
    mask |= (uint32_t)(equal ? keys[i] == t : keys[i] >= t) << i;
  return mask;
#endif
}

static i64 count_from(const int16_t *keys, i64 n, int t) {
  i64 count = 0;
  if (t > INT16_MAX)
    return 0;
#if defined(__AVX512BW__)
  for (i64 i = 0; i < n; i += BLOCK)
    count += __builtin_popcount(mask_of(keys + i, (int16_t)t, 0));
#else
  for (i64 base = 0; base < n; base += 8192) { /* so that 16 bits hold the sum, which then takes few instructions */
    int16_t part = 0;
    i64 end = min_of(n, base + 8192);
    for (i64 i = base; i < end; i++)
      part += keys[i] >= (int16_t)t;
    count += part;
  }
#endif
  return count;
}

/* Positions, ascending, where keys >= t (or == t). Writes up to BLOCK elements past the last. */
static i64 positions_of(const int16_t *keys, i64 n, int t, int equal, int32_t *out) {
  i64 found = 0;
  if (t > INT16_MAX)
    return 0;
  for (i64 base = 0; base < n; base += BLOCK) {
    uint32_t mask = mask_of(keys + base, (int16_t)t, equal);
    if (!mask)
      continue;
#if defined(__AVX512BW__)
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    __m512i at = _mm512_add_epi32(first, _mm512_set1_epi32((int)base));
    _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32((__mmask16)mask, at));
    found += __builtin_popcount(mask & 0xFFFF);
    at = _mm512_add_epi32(at, _mm512_set1_epi32(16));
    _mm512_storeu_si512(out + found, _mm512_maskz_compress_epi32((__mmask16)(mask >> 16), at));
    found += __builtin_popcount(mask >> 16);
#else
    for (; mask; mask &= mask - 1)
      out[found++] = (int32_t)(base + __builtin_ctz(mask));
#endif
  }
  return found;
}

/* The t in [low, high] for which between k and k + slack keys are >= t; without one, the k-th largest key (and then
   *more tells how many keys equal to it are among the k largest, the others of which are >= t + 1). */
static int threshold(const int16_t *keys, i64 n, i64 k, int low, int high, i64 slack, i64 *more) {
  *more = 0;
  while (low < high) { /* at least k keys are >= low, fewer are > high */
    int middle = low + (high - low + 1) / 2;
    i64 count = count_from(keys, n, middle);
    if (count >= k && count <= k + slack)
      return middle;
    if (count > k)
      low = middle;
    else
      high = middle - 1;
  }
  *more = k - count_from(keys, n, low + 1);
  return low;
}

typedef struct {
  int16_t *keys, *few_keys, *maxima;
  int32_t *few, *found, *chosen;
} Scratch;

static i64 scratch_bytes(i64 M) {
  i64 padded = round_up(M, BLOCK) + BLOCK;
  return round_up(3 * padded * (i64)sizeof(int16_t) + 3 * padded * (i64)sizeof(int32_t), 64);
}

static Scratch scratch_at(char *memory, i64 M) {
  i64 padded = round_up(M, BLOCK) + BLOCK;
  Scratch s;
  s.few = (int32_t *)memory;
  s.found = s.few + padded;
  s.chosen = s.found + padded;
  s.keys = (int16_t *)(s.chosen + padded);
  s.few_keys = s.keys + padded;
  s.maxima = s.few_keys + padded;
  return s;
}

/* Pads keys[n:] to a whole block; returns its end. */
static i64 pad(int16_t *keys, i64 n) {
  i64 end = round_up(n, BLOCK);
  for (i64 i = n; i < end; i++)
    keys[i] = INT16_MIN;
  return end;
}

/* The ReLU keeps any NaN, sign set or not (processors make both): it must reach the loss. */
INLINE void write_keys(const void *row, i64 M, int bf16, int absolute, int16_t *restrict keys) {
  if (bf16) {
    const int16_t *bits = row;
    if (absolute)
      for (i64 i = 0; i < M; i++)
        keys[i] = bits[i] & INT16_MAX;
    else
      for (i64 i = 0; i < M; i++)
        keys[i] = bits[i] > 0 ? bits[i] : bits[i] > (int16_t)0xFF80 && bits[i] < 0 ? INT16_MAX : 0;
  } else {
    const int32_t *bits = row;
    if (absolute)
      for (i64 i = 0; i < M; i++)
        keys[i] = (int16_t)((bits[i] & INT32_MAX) >> 16);
    else
      for (i64 i = 0; i < M; i++)
        keys[i] = bits[i] > 0 ? bits[i] >> 16 : bits[i] > (int32_t)0xFF800000 && bits[i] < 0 ? INT16_MAX : 0;
  }
}

/* A bound that at least k keys reach: of maxima over disjoint sets of keys, k do. 0 where that would not pay. */
static int lower_bound(const Scratch *s, i64 n, i64 k) {
  i64 sets = BLOCK;
  while (sets < 4 * k)
    sets *= 2;
  if (8 * sets > n)
    return 0;
  memcpy(s->maxima, s->keys, (size_t)sets * sizeof(int16_t));
  for (i64 base = sets; base < n; base += sets) {
    i64 width = min_of(sets, n - base);
    const int16_t *restrict keys = s->keys + base;
    int16_t *restrict maxima = s->maxima;
    for (i64 i = 0; i < width; i++)
      maxima[i] = keys[i] > maxima[i] ? keys[i] : maxima[i];
  }
  i64 more;
  return threshold(s->maxima, sets, k, 0, INT16_MAX, k / 4, &more);
}

/* s->chosen = the k largest of a row (NaN is largest), ties to the lowest index. */
static void select_row(const void *row, i64 M, i64 k, int bf16, int absolute, const Scratch *s) {
  write_keys(row, M, bf16, absolute, s->keys);
  i64 n = pad(s->keys, M), more;
  const int16_t *keys = s->keys;
  const int32_t *few = NULL;
  int bound = lower_bound(s, n, k);
  if (bound > 0) {
    i64 count = positions_of(keys, n, bound, 0, s->few);
    for (i64 i = 0; i < count; i++)
      s->few_keys[i] = keys[s->few[i]];
    n = pad(s->few_keys, count);
    keys = s->few_keys;
    few = s->few;
  }
  int t = threshold(keys, n, k, bound, INT16_MAX, 0, &more);
  i64 sure = positions_of(keys, n, more ? t + 1 : t, 0, s->chosen);
  if (more) {
    i64 ties = positions_of(keys, n, t, 1, s->found);
    int32_t *chosen = s->chosen + sure;
    if (bf16 || ties == more) {
      memcpy(chosen, s->found, (size_t)more * sizeof(int32_t));
    } else {
      const int32_t *bits = row;
      int16_t *low = s->maxima; /* no longer needed; holds M keys */
      for (i64 i = 0; i < ties; i++) {
        int32_t b = bits[few ? few[s->found[i]] : s->found[i]];
        b = absolute || b > 0 ? b & UINT16_MAX : 0;
        low[i] = (int16_t)(b + INT16_MIN);
      }
      i64 padded = pad(low, ties), last;
      int32_t *at = (int32_t *)chosen; /* positions among the ties, then replaced by what they stand for */
      int least = threshold(low, padded, more, INT16_MIN, INT16_MAX, 0, &last);
      i64 above = positions_of(low, padded, last ? least + 1 : least, 0, at);
      for (i64 i = 0; last && i < ties; i++)
        if (low[i] == least) {
          at[above++] = (int32_t)i;
          last--;
        }
      for (i64 i = 0; i < more; i++)
        chosen[i] = s->found[at[i]];
    }
  }
  for (i64 i = 0; few && i < k; i++)
    s->chosen[i] = few[s->chosen[i]];
}

/* values[rows, k], indices[rows, k] of pre[rows, M]. */
int saeinterp_top_k(const void *pre, i64 rows, i64 M, i64 k, int bf16, int absolute, float *values, i64 *indices) {
  i64 bytes = scratch_bytes(M), width = bf16 ? 2 : 4;
  char *memory = malloc((size_t)(bytes * omp_get_max_threads()));
  if (!memory)
    return OUT_OF_MEMORY;
#pragma omp parallel
  {
    Scratch s = scratch_at(memory + bytes * omp_get_thread_num(), M);
#pragma omp for schedule(dynamic, 32)
    for (i64 r = 0; r < rows; r++) {
      const char *row = (const char *)pre + r * M * width;
      select_row(row, M, k, bf16, absolute, &s);
      for (i64 j = 0; j < k; j++) {
        float value = element(row, s.chosen[j], bf16);
        values[r * k + j] = absolute || !(value <= 0) ? value : 0;
        indices[r * k + j] = s.chosen[j];
      }
    }
  }
  free(memory);
  return 0;
}

/* out[S, N, M] = pre where chosen, 0 elsewhere; fired[S, M] = rows on which a latent is not 0. */
int saeinterp_keep_top_k(const void *pre, i64 S, i64 N, i64 M, i64 k, int bf16, int absolute, void *out, float *fired) {
  i64 bytes = scratch_bytes(M), width = bf16 ? 2 : 4;
  int threads = omp_get_max_threads();
  char *memory = malloc((size_t)(bytes * threads));
  int32_t *counts = calloc((size_t)(S * M), sizeof(int32_t));
  if (!memory || !counts) {
    free(memory);
    free(counts);
    return OUT_OF_MEMORY;
  }
#pragma omp parallel
  {
    Scratch s = scratch_at(memory + bytes * omp_get_thread_num(), M);
#pragma omp for schedule(dynamic, 32)
    for (i64 r = 0; r < S * N; r++) {
      const char *row = (const char *)pre + r * M * width;
      char *kept = (char *)out + r * M * width;
      int32_t *count = counts + r / N * M;
      select_row(row, M, k, bf16, absolute, &s);
      memset(kept, 0, (size_t)(M * width));
      for (i64 j = 0; j < k; j++) {
        i64 m = s.chosen[j];
        float value = element(row, m, bf16);
        if (value == 0 || (!absolute && value < 0))
          continue;
        memcpy(kept + m * width, row + m * width, (size_t)width);
#pragma omp atomic
        count[m]++;
      }
    }
#pragma omp for schedule(static)
    for (i64 i = 0; i < S * M; i++)
      fired[i] = (float)counts[i];
  }
  free(memory);
  free(counts);
  return 0;
}

/* ---- Decoding ------------------------------------------------------------------------------------------------ */

/* error -= value[0] * row[0] + ... over J decoder rows; error is in the order of chunks. */
INLINE void subtract(float *restrict error, const void *const *rows, const float *value, i64 d, int J, int bf16) {
  const void *row[8];
  vec times[8];
  for (int j = 0; j < J; j++) {
    row[j] = rows[j];
    times[j] = value[j] + (vec){0};
  }
  for (i64 i = 0; i < d; i += CHUNK) {
    vec a = load(error + i), b = load(error + i + LANES), w[2];
    for (int j = 0; j < J; j++) {
      load_chunk(row[j], i, d - i, bf16, w);
      a -= times[j] * w[0];
      b -= times[j] * w[1];
    }
    store(error + i, a);
    store(error + i + LANES, b);
  }
}

/* out[j] = <error, row[j]> for J decoder rows. */
INLINE void project(const float *error, const void *const *rows, float *out, i64 d, int J, int bf16) {
  const void *row[4];
  vec a[4], b[4], w[2];
  for (int j = 0; j < J; j++) {
    row[j] = rows[j];
    a[j] = b[j] = (vec){0};
  }
  for (i64 i = 0; i < d; i += CHUNK)
    for (int j = 0; j < J; j++) {
      load_chunk(row[j], i, d - i, bf16, w);
      a[j] += load(error + i) * w[0];
      b[j] += load(error + i + LANES) * w[1];
    }
  for (int j = 0; j < J; j++)
    out[j] = sum_of(a[j] + b[j]);
}

INLINE void decode_row(const float *x, i64 d, i64 active, const void **rows, const float *value, float *packed,
                       float *error, float *dvalue, int bf16) {
  i64 j = 0;
  pack(x, d, bf16, packed);
  for (; j + 8 <= active; j += 8)
    subtract(packed, rows + j, value + j, d, 8, bf16);
  for (; j < active; j++)
    subtract(packed, rows + j, value + j, d, 1, bf16);
  unpack(packed, d, bf16, error);
  for (j = 0; j + 4 <= active; j += 4)
    project(packed, rows + j, dvalue + j, d, 4, bf16);
  for (; j < active; j++)
    project(packed, rows + j, dvalue + j, d, 1, bf16);
}

/* error[S, N, d] = x - sum of value * W_dec; dvalues[S, N, k] = <error, W_dec>, 0 where the value is 0.
   A row's k decoder rows stay in the cache between the two passes over them. */
int saeinterp_decode_error(const float *x, const float *values, const i64 *indices, const void *W_dec, i64 W_stride,
                           i64 S, i64 N, i64 d, i64 k, int bf16, float *error, float *dvalues) {
  int threads = omp_get_max_threads();
  i64 width = bf16 ? 2 : 4, padded = round_up(d, CHUNK);
  i64 bytes = round_up(padded * 4 + k * (i64)(sizeof(void *) + 2 * sizeof(float) + sizeof(i64)), 64);
  char *memory = aligned_alloc(64, (size_t)(bytes * threads));
  if (!memory)
    return OUT_OF_MEMORY;
#pragma omp parallel
  {
    float *packed = (float *)(memory + bytes * omp_get_thread_num());
    const void **rows = (const void **)(packed + padded);
    i64 *slot = (i64 *)(rows + k);
    float *value = (float *)(slot + k), *dvalue = value + k;
#pragma omp for schedule(dynamic, 32)
    for (i64 r = 0; r < S * N; r++) {
      const char *W = (const char *)W_dec + r / N * W_stride * width;
      i64 active = 0;
      for (i64 j = 0; j < k; j++) {
        dvalues[r * k + j] = 0;
        if (values[r * k + j] == 0)
          continue;
        rows[active] = W + indices[r * k + j] * d * width;
        value[active] = values[r * k + j];
        slot[active++] = r * k + j;
      }
      if (bf16)
        decode_row(x + r * d, d, active, rows, value, packed, error + r * d, dvalue, 1);
      else
        decode_row(x + r * d, d, active, rows, value, packed, error + r * d, dvalue, 0);
      for (i64 j = 0; j < active; j++)
        dvalues[slot[j]] = dvalue[j];
    }
  }
  free(memory);
  return 0;
}

/* ---- Weight gradients ------------------------------------------------------------------------------------------
   The (row, latent) pairs of an SAE are sorted by latent, then rows; each latent sums its rows. d is cut into
   slices: one slice of all rows is copied together so that it stays in the second-level cache. */

#define SLICE_BYTES 128 /* of a row: 4,096 rows take 512 KiB */

typedef struct {
  int32_t *row;
  float *value, *dvalue;
  int32_t *start; /* [M + 1]: pairs of latent m are start[m] ... start[m + 1] - 1 */
} Pairs;

/* next[m] += pairs of latent m in rows r0 ... r1 - 1 */
static void count_pairs(const float *values, const i64 *indices, i64 k, i64 r0, i64 r1, int32_t *next) {
  for (i64 p = r0 * k; p < r1 * k; p++)
    next[indices[p]] += values[p] != 0;
}

/* Puts those pairs at next[m], next[m] + 1, ... */
static void place_pairs(const float *values, const float *dvalues, const i64 *indices, i64 k, i64 r0, i64 r1,
                        int32_t *next, const Pairs *pairs) {
  for (i64 r = r0; r < r1; r++)
    for (i64 p = r * k; p < r * k + k; p++)
      if (values[p] != 0) {
        int32_t at = next[indices[p]]++;
        pairs->row[at] = (int32_t)r;
        pairs->value[at] = values[p];
        pairs->dvalue[at] = dvalues[p];
      }
}

/* Turns counts[chunks, M] into where each chunk's pairs of each latent begin. */
static void place_chunks(int32_t *counts, i64 chunks, i64 M, const Pairs *pairs, float *fired) {
  int32_t at = 0;
  for (i64 m = 0; m < M; m++) {
    pairs->start[m] = at;
    for (i64 c = 0; c < chunks; c++) {
      int32_t count = counts[c * M + m];
      counts[c * M + m] = at;
      at += count;
    }
    fired[m] = (float)(at - pairs->start[m]);
  }
  pairs->start[M] = at;
}

INLINE uint16_t to_bfloat16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return (uint16_t)(f == f ? rounded : (bits >> 16 | 0x40));
}

/* Columns column ... column + SLICE_BYTES / size - 1 of all rows, side by side, zeros beyond d; `from` is float32, or
   already of the slice's type. */
static void copy_slice(const void *from, i64 N, i64 d, i64 column, int round, i64 size, char *restrict to) {
  i64 width = min_of(SLICE_BYTES / size, d - column);
  for (i64 r = 0; r < N; r++, to += SLICE_BYTES) {
    if (width * size < SLICE_BYTES)
      memset(to, 0, SLICE_BYTES);
    if (round) {
      const float *row = (const float *)from + r * d + column;
      for (i64 i = 0; i < width; i++)
        ((uint16_t *)to)[i] = to_bfloat16(row[i]);
    } else if (width * size == SLICE_BYTES)
      memcpy(to, (const char *)from + (r * d + column) * size, SLICE_BYTES);
    else
      memcpy(to, (const char *)from + (r * d + column) * size, (size_t)(width * size));
  }
}

/* out[m, column ...] = sum over the pairs of m of weight * slice[row] */
INLINE void sum_slice(const char *slice, const Pairs *pairs, const float *weight, i64 m0, i64 m1, i64 d, i64 column,
                      float *out, int bf16) {
  enum { MOST = SLICE_BYTES / 2 };
  const i64 columns = SLICE_BYTES / (bf16 ? 2 : 4), width = min_of(columns, d - column);
  const int V = (int)columns / LANES;
  for (i64 m = m0; m < m1; m++) {
    vec a[MOST / LANES] = {{0}}, b[MOST / LANES] = {{0}}, w[2];
    i64 p = pairs->start[m], end = pairs->start[m + 1];
    if (!bf16) /* two at a time: too few sums to keep the multipliers busy */
      for (; p + 2 <= end; p += 2)
        for (int i = 0; i < V; i += 2) {
          load_chunk(slice + (i64)pairs->row[p] * SLICE_BYTES, i * LANES, CHUNK, 0, w);
          a[i] += weight[p] * w[0];
          a[i + 1] += weight[p] * w[1];
          load_chunk(slice + (i64)pairs->row[p + 1] * SLICE_BYTES, i * LANES, CHUNK, 0, w);
          b[i] += weight[p + 1] * w[0];
          b[i + 1] += weight[p + 1] * w[1];
        }
    for (; p < end; p++)
      for (int i = 0; i < V; i += 2) {
        load_chunk(slice + (i64)pairs->row[p] * SLICE_BYTES, i * LANES, CHUNK, bf16, w);
        a[i] += weight[p] * w[0];
        a[i + 1] += weight[p] * w[1];
      }
    float sums[MOST];
    for (int i = 0; i < V; i++)
      store(sums + i * LANES, a[i] + b[i]);
    unpack(sums, width, bf16, out + m * d + column);
  }
}

static void sum_dvalues(const Pairs *pairs, i64 m0, i64 m1, float *out) {
  for (i64 m = m0; m < m1; m++) {
    float sums[4] = {0};
    for (i64 p = pairs->start[m]; p < pairs->start[m + 1]; p++)
      sums[(p - pairs->start[m]) & 3] += pairs->dvalue[p];
    out[m] = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
}

/* Everything an SAE's weight gradients are made of, and where they go. */
typedef struct {
  const void *x;
  const float *error;
  float *W_enc, *b_enc, *W_dec;
  i64 N, d;
} Layer;

/* Latents m0 ... m1 - 1 of one slice; `which` numbers slices, those of W_dec even, of W_enc odd. *copied is the slice
   that `slice` holds. */
INLINE void sum_task(const Layer *layer, const Pairs *pairs, i64 which, i64 m0, i64 m1, int bf16, char *slice,
                     i64 *copied) {
  const i64 size = bf16 ? 2 : 4, column = which / 2 * (SLICE_BYTES / size);
  const int encoder = which % 2;
  if (*copied != which)
    copy_slice(encoder ? layer->x : layer->error, layer->N, layer->d, column, bf16 && !encoder, size, slice);
  *copied = which;
  sum_slice(slice, pairs, encoder ? pairs->dvalue : pairs->value, m0, m1, layer->d, column,
            encoder ? layer->W_enc : layer->W_dec, bf16);
  if (which == 0)
    sum_dvalues(pairs, m0, m1, layer->b_enc);
}

/* Writes W_enc[S, M, d], b_enc[S, M], W_dec[S, M, d] (with strides between SAEs) and fired[S, M]. Where x is
   bfloat16, the error is rounded to it too. */
int saeinterp_weight_gradients(const void *x, int bf16, const float *error, const float *values, const float *dvalues,
                               const i64 *indices, i64 S, i64 N, i64 d, i64 M, i64 k, float *W_enc, i64 W_enc_stride,
                               float *b_enc, i64 b_enc_stride, float *W_dec, i64 W_dec_stride, float *fired) {
  /* Many SAEs: each is one thread's work. Few: all threads share one after another. */
  const i64 threads = omp_get_max_threads(), size = bf16 ? 2 : 4, columns = SLICE_BYTES / size;
  const int many = S >= 4 * threads;
  const i64 sets = many ? threads : 1, chunks = many ? 1 : threads, slices = 2 * ((d + columns - 1) / columns);
  const i64 blocks = many ? 1 : min_of(M, (4 * threads + slices - 1) / slices); /* of latents: work for all */
  const i64 ints = round_up(N * k + M + 1 + chunks * M, 16), floats = round_up(2 * N * k, 16);
  const i64 set_bytes = 4 * (ints + floats), slice_bytes = N * SLICE_BYTES;
  char *memory = aligned_alloc(64, (size_t)round_up(sets * set_bytes + threads * slice_bytes, 64));
  if (!memory)
    return OUT_OF_MEMORY;
#pragma omp parallel
  {
    const i64 me = omp_get_thread_num();
    char *slice = memory + sets * set_bytes + me * slice_bytes;
    Pairs pairs;
    pairs.value = (float *)(memory + (many ? me : 0) * set_bytes);
    pairs.dvalue = pairs.value + N * k;
    pairs.row = (int32_t *)(pairs.value + floats);
    pairs.start = pairs.row + N * k;
    int32_t *counts = pairs.start + M + 1;
    const i64 s0 = many ? me : 0, s_step = many ? omp_get_num_threads() : 1;
    for (i64 s = s0; s < S; s += s_step) {
      const float *v = values + s * N * k, *dv = dvalues + s * N * k;
      const i64 *index = indices + s * N * k;
      const Layer layer = {(const char *)x + s * N * d * size, error + s * N * d, W_enc + s * W_enc_stride,
                           b_enc + s * b_enc_stride, W_dec + s * W_dec_stride, N, d};
      i64 copied = -1;
      if (many) {
        memset(counts, 0, (size_t)M * sizeof(int32_t));
        count_pairs(v, index, k, 0, N, counts);
        place_chunks(counts, 1, M, &pairs, fired + s * M);
        place_pairs(v, dv, index, k, 0, N, counts, &pairs);
        for (i64 which = 0; which < slices; which++)
          if (bf16)
            sum_task(&layer, &pairs, which, 0, M, 1, slice, &copied);
          else
            sum_task(&layer, &pairs, which, 0, M, 0, slice, &copied);
        continue;
      }
#pragma omp for schedule(static)
      for (i64 c = 0; c < chunks; c++) {
        memset(counts + c * M, 0, (size_t)M * sizeof(int32_t));
        count_pairs(v, index, k, c * N / chunks, (c + 1) * N / chunks, counts + c * M);
      }
#pragma omp single
      place_chunks(counts, chunks, M, &pairs, fired + s * M);
#pragma omp for schedule(static)
      for (i64 c = 0; c < chunks; c++)
        place_pairs(v, dv, index, k, c * N / chunks, (c + 1) * N / chunks, counts + c * M, &pairs);
#pragma omp for schedule(dynamic, 1)
      for (i64 task = 0; task < slices * blocks; task++) {
        i64 block = task % blocks, m0 = block * M / blocks, m1 = (block + 1) * M / blocks;
        if (bf16)
          sum_task(&layer, &pairs, task / blocks, m0, m1, 1, slice, &copied);
        else
          sum_task(&layer, &pairs, task / blocks, m0, m1, 0, slice, &copied);
      }
    }
  }
  free(memory);
  return 0;
}

/* ---- Update ---------------------------------------------------------------------------------------------------- */

typedef struct {
  int adam;
  float beta1, beta2, eps, momentum;
  float factor, lr, rate, root; /* rate = lr / (1 - beta1^t); root = sqrt(1 - beta2^t) */
} Rule;

/* One optimizer step of n parameters; the gradient is factor * g - toward * p. */
static void step(const Rule *rule, float toward, i64 n, float *restrict p, const float *restrict g, float *restrict m,
                 float *restrict v) {
  const float factor = rule->factor, beta1 = rule->beta1, beta2 = rule->beta2, eps = rule->eps, rate = rule->rate;
  const float momentum = rule->momentum, lr = rule->lr, root = 1 / rule->root;
  if (rule->adam)
    for (i64 i = 0; i < n; i++) {
      float gradient = factor * g[i] - toward * p[i];
      m[i] = m[i] + (1 - beta1) * (gradient - m[i]);
      v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
      p[i] -= rate * m[i] / (sqrtf(v[i]) * root + eps);
    }
  else
    for (i64 i = 0; i < n; i++) {
      float gradient = factor * g[i] - toward * p[i];
      m[i] = m[i] + (1 - momentum) * (gradient - m[i]);
      p[i] -= lr * (float)((m[i] > 0) - (m[i] < 0));
    }
}

INLINE float dot(const float *a, const float *b, i64 d) {
  vec sums[4] = {0};
  i64 i = 0;
  for (; i + 4 * LANES <= d; i += 4 * LANES)
    for (int j = 0; j < 4; j++)
      sums[j] += load(a + i + j * LANES) * load(b + i + j * LANES);
  for (; i + LANES <= d; i += LANES)
    sums[0] += load(a + i) * load(b + i);
  float rest = 0;
  for (; i < d; i++)
    rest += a[i] * b[i];
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3])) + rest;
}

/* params[S, P] (W_enc, b_enc, W_dec, b_dec) by gradient[S, P] and moments [slots][S, P]. W_dec rows: the gradient
   loses what points along the row, and the new row is scaled to unit norm. */
int saeinterp_update(float *params, i64 params_stride, const float *gradient, i64 gradient_stride, float *first,
                     float *second, i64 moment_stride, i64 S, i64 M, i64 d, int adam, double beta1, double beta2,
                     double eps, double momentum, const double *lr, const i64 *steps, const float *factor) {
  const i64 unit = 8192, before = M * d + M, rows = unit / d ? unit / d : 1;
  const i64 plain = (before + unit - 1) / unit, tasks = plain + (M + rows - 1) / rows + 1;
#pragma omp parallel for schedule(static)
  for (i64 task = 0; task < S * tasks; task++) {
    i64 s = task / tasks, part = task % tasks;
    double t = (double)steps[s] + 1;
    Rule rule = {adam, (float)beta1, (float)beta2, (float)eps, (float)momentum, factor[s], (float)lr[s], 0, 1};
    if (adam) {
      rule.rate = (float)(lr[s] / (1 - pow(beta1, t)));
      rule.root = (float)sqrt(1 - pow(beta2, t));
    }
    float *p = params + s * params_stride, *m = first + s * moment_stride, *v = second + s * moment_stride;
    const float *g = gradient + s * gradient_stride;
    if (part < plain) {
      i64 at = part * unit;
      step(&rule, 0, min_of(unit, before - at), p + at, g + at, m + at, v + at);
    } else if (part == tasks - 1) {
      i64 at = before + M * d;
      step(&rule, 0, d, p + at, g + at, m + at, v + at);
    } else {
      i64 row = (part - plain) * rows, end = min_of(M, row + rows);
      for (; row < end; row++) {
        i64 at = before + row * d;
        step(&rule, rule.factor * dot(g + at, p + at, d), d, p + at, g + at, m + at, v + at);
        float norm = sqrtf(dot(p + at, p + at, d));
        float scale = 1 / (norm < FLT_MIN ? FLT_MIN : norm);
        for (i64 i = at; i < at + d; i++)
          p[i] *= scale;
      }
    }
  }
  return 0;
}

int saeinterp_threads(void) { return omp_get_max_threads(); }
