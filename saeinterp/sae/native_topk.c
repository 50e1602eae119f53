/* The k largest of every row, exactly.

   Non-negative IEEE floats order like the integers with the same bits, so a row is reduced to int16 keys: the bits
   of a bfloat16, or the upper half of those of a float32 (whose lower half then only separates ties). A bound that k
   keys surely reach leaves few of them to search. */

#include "native.h"
#if defined(__AVX512BW__) || defined(__AVX2__)
#include <immintrin.h>
#endif

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
