/* Decoding, weight gradients and the optimizer step of TopK SAEs. Of the M latents only the k active ones of each row
   are touched. */

#include "native.h"

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

/* ---- Weight gradients ----
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

/* ---- Update ---- */

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
