/* Tiles of a similarity matrix, from the product to the sum, without leaving the core's cache.

   A block of MR rows and NR columns of query . key is summed in registers; its exponentials, masks
   and sums follow at once. Compiled on first use for the processor at hand (compiler.py); called
   from native.py, whose autograd functions say what is computed. Float32 throughout.

   Queries are given in panels of MR rows and keys in panels of NR rows, each panel stored depth by
   depth, the last one filled up with zeros: see `panels`. */

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 16, MR = 12 };
#elif defined(__AVX__)
#include <immintrin.h>
enum { LANES = 8, MR = 6 };
#elif defined(__aarch64__)
enum { LANES = 4, MR = 8 };
#else
enum { LANES = 4, MR = 4 };
#endif
enum { VECTORS = 2, NR = VECTORS * LANES, RULES = 4 };

typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ints __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef struct {
    int32_t relation;         /* 0 all, 1 the same group, 2 different groups */
    const int32_t *row_group, *col_group;
    const int32_t *row_id, *col_id; /* a pair with equal ids never counts; or null */
    float *row, *col;         /* sums of rows and of columns; backward: their weights. col or null */
} Rule;

typedef struct {
    int64_t n, m, depth, height, width; /* rows, columns, length of a row, sizes of a tile */
    int64_t stride;           /* numbers from one row of query, key, dquery, dkey to the next */
    float *rows, *cols;       /* panels of query and key */
    const float *query, *key; /* forward: rows of `depth` numbers, to be put into panels */
    float *dquery, *dkey;     /* gradients to add to, or null */
    float *kept;              /* exponentials of all tiles, for the backward pass; or null */
    const int32_t *match;     /* one column of each row that does not count, or null */
    float factor;             /* the exponentials are 2^(factor query . key) */
    int32_t mirrored;         /* rows against themselves: tiles of the upper triangle are given */
    int32_t rules;
    const Rule *rule;
} Work;

static inline vec load(const float *x) { return *(const vec *)x; }
static inline void store(float *x, vec v) { *(vec *)x = v; }
static inline ints load_ints(const int32_t *x) { return *(const ints *)x; }
static inline vec all(float x) { return x - (vec){0}; }
static inline ints all_ints(int32_t x) { return x - (ints){0}; }
static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }
static inline vec keep(vec x, ints where) { return (vec)((ints)x & where); }

static inline float total(vec x) {
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += x[l];
    return sum;
}

/* 2^x for |x| < 126: a polynomial on [-1/2, 1/2] (relative error 2e-9 before rounding), and the
   whole part into the exponent */
static inline vec exp2_of(vec x) {
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to a whole number */
    vec shifted = x + magic;
    ints whole = (ints)shifted - 0x4B400000;
    vec f = x - (shifted - magic);
    vec p = all(0x1.41d330p-13f);
    p = p * f + 0x1.5f456ap-10f;
    p = p * f + 0x1.3b2dbcp-7f;
    p = p * f + 0x1.c6aed4p-5f;
    p = p * f + 0x1.ebfbdap-3f;
    p = p * f + 0x1.62e430p-1f;
    p = p * f + 1.0f;
    return (vec)((ints)p + (whole << 23));
}

/* out[MR][NR] = the products of a panel of queries and a panel of keys */
static void product(const float *restrict q, const float *restrict k, int64_t depth,
                    float *restrict out) {
    vec sum[MR][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) sum[r][v] = all(0);
    for (int64_t t = 0; t < depth; t++, q += MR, k += NR) {
        vec b[VECTORS];
        for (int v = 0; v < VECTORS; v++) b[v] = load(k + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < VECTORS; v++) sum[r][v] += q[r] * b[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; v++) store(out + r * NR + v * LANES, sum[r][v]);
}

/* to[r][d] += sum over k < inner of a[r * down + k * along] * b[k][d], for r < rows <= MR and
   `vectors` vectors of d */
static inline __attribute__((always_inline)) void accumulate(
    const float *restrict a, int64_t down, int64_t along, const float *restrict b, int64_t inner,
    int64_t stride, int64_t rows, float *restrict to, const int vectors) {
    vec sum[MR][VECTORS];
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) sum[r][v] = all(0);
    for (int64_t k = 0; k < inner; k++, a += along, b += stride) {
        vec x[VECTORS];
        for (int v = 0; v < vectors; v++) x[v] = load(b + v * LANES);
#pragma GCC unroll 16
        for (int r = 0; r < MR; r++)
#pragma GCC unroll 4
            for (int v = 0; v < vectors; v++) sum[r][v] += a[r * down] * x[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < MR; r++)
        if (r < rows)
            for (int v = 0; v < vectors; v++) {
                vec *at = (vec *)(to + r * stride + v * LANES);
                *at += sum[r][v];
            }
}

/* to[rows][stride] += a . b, with a[rows][inner] read at a[r * down + k * along] */
static void gradient(const float *a, int64_t down, int64_t along, const float *b, int64_t inner,
                     int64_t stride, int64_t rows, float *to) {
    int64_t d = 0;
    for (; d + NR <= stride; d += NR)
        for (int64_t r = 0; r < rows; r += MR) {
            const float *from = a + r * down;
            float *into = to + r * stride + d;
            if (down == 1)
                accumulate(from, 1, along, b + d, inner, stride, rows - r, into, VECTORS);
            else
                accumulate(from, down, 1, b + d, inner, stride, rows - r, into, VECTORS);
        }
    for (; d < stride; d += LANES)
        for (int64_t r = 0; r < rows; r += MR) {
            const float *from = a + r * down;
            float *into = to + r * stride + d;
            if (down == 1)
                accumulate(from, 1, along, b + d, inner, stride, rows - r, into, 1);
            else
                accumulate(from, down, 1, b + d, inner, stride, rows - r, into, 1);
        }
}

/* Which pairs of a tile count under a rule: NONE, ALL, or some, which COMPARE tells */
enum { NONE, ALL, COMPARE };

static int counted(const Rule *rule, int64_t r0, int64_t r1, int64_t c0, int64_t c1) {
    if (rule->row_id) return COMPARE;
    if (!rule->relation) return ALL;
    int32_t a = rule->row_group[r0], b = a, c = rule->col_group[c0], d = c;
    for (int64_t r = r0; r < r1; r++) {
        if (rule->row_group[r] < a) a = rule->row_group[r];
        if (rule->row_group[r] > b) b = rule->row_group[r];
    }
    for (int64_t j = c0; j < c1; j++) {
        if (rule->col_group[j] < c) c = rule->col_group[j];
        if (rule->col_group[j] > d) d = rule->col_group[j];
    }
    if (a == b && b == c && c == d) return rule->relation == 1 ? ALL : NONE;
    if (a <= d && c <= b) return COMPARE;
    return rule->relation == 1 ? NONE : ALL;
}

/* The lanes, of those from column c on, whose pairs with row r count under a rule */
static inline ints lanes(const Rule *rule, int64_t r, int64_t c, int32_t left) {
    /* the last columns: read a whole vector no further than the arrays reach */
    int32_t group[LANES], id[LANES];
    const int32_t *groups = rule->col_group, *ids = rule->col_id;
    if (groups) groups += c;
    if (ids) ids += c;
    if (left < LANES) {
        if (groups) groups = memcpy(group, groups, sizeof(int32_t) * left);
        if (ids) ids = memcpy(id, ids, sizeof(int32_t) * left);
    }
    ints where = all_ints(-1);
    if (rule->relation == 1) where = load_ints(groups) == all_ints(rule->row_group[r]);
    if (rule->relation == 2) where = load_ints(groups) != all_ints(rule->row_group[r]);
    if (ids) where &= load_ints(ids) != all_ints(rule->row_id[r]);
    return where;
}

/* The exponentials of one row of a block: 0 beyond the columns, at the row itself and its match */
static inline void exponentials(const Work *w, const float *x, int64_t r, int64_t c, int on_diagonal,
                                vec e[VECTORS]) {
    int64_t left = w->m - c, match = w->match ? w->match[r] - c : -1;
    int64_t self = on_diagonal ? r - c : -1;
    for (int v = 0; v < VECTORS; v++) e[v] = exp2_of(load(x + v * LANES) * w->factor);
    if (left >= NR && (uint64_t)match >= NR && (uint64_t)self >= NR) return;
    float some[NR];
    memcpy(some, e, sizeof some);
    for (int64_t l = left; l < NR; l++) some[l] = 0;
    if ((uint64_t)match < NR) some[match] = 0;
    if ((uint64_t)self < NR) some[self] = 0;
    memcpy(e, some, sizeof some);
}

/* Where the exponentials of a tile are kept, row after row of `wide` numbers; or null */
static inline float *kept_of(const Work *w, int64_t i, int64_t j) {
    int64_t across = (w->m + w->width - 1) / w->width, wide = up(w->width, NR);
    return w->kept ? w->kept + (i * across + j) * w->height * wide : 0;
}

/* Adds to the sums of rows and of columns, for every rule, what tiles hold. beside: room for
   sums_room(w) numbers, the sums of rows lane by lane */
static int64_t sums_room(const Work *w) { return w->rules * w->height * LANES; }

static void sums(const Work *w, const int32_t *tiles, int64_t count, float *beside) {
    float x[MR * NR];
    int64_t wide = up(w->width, NR);
    for (int64_t t = 0; t < count; t++) {
        int64_t i = tiles[2 * t], j = tiles[2 * t + 1];
        int64_t r0 = i * w->height, r1 = least(r0 + w->height, w->n);
        int64_t c0 = j * w->width, c1 = least(c0 + w->width, w->m);
        int on_diagonal = w->mirrored && i == j;
        int state[RULES], any = 0;
        for (int s = 0; s < w->rules; s++) any |= state[s] = counted(w->rule + s, r0, r1, c0, c1);
        if (!any) continue;
        float *kept = kept_of(w, i, j);
        memset(beside, 0, sizeof(float) * w->rules * w->height * LANES);
        for (int64_t c = c0; c < c1; c += NR) {
            vec below[RULES][VECTORS];
            for (int s = 0; s < w->rules; s++)
                for (int v = 0; v < VECTORS; v++) below[s][v] = all(0);
            for (int64_t r = r0; r < r1; r += MR) {
                product(w->rows + r * w->depth, w->cols + c * w->depth, w->depth, x);
                for (int64_t q = r; q < least(r + MR, r1); q++) {
                    vec e[VECTORS];
                    exponentials(w, x + (q - r) * NR, q, c, on_diagonal, e);
                    if (kept)
                        for (int v = 0; v < VECTORS; v++)
                            store(kept + (q - r0) * wide + (c - c0) + v * LANES, e[v]);
                    for (int s = 0; s < w->rules; s++) {
                        if (state[s] == NONE) continue;
                        vec *row = (vec *)(beside + (s * w->height + q - r0) * LANES);
                        vec sum = *row;
                        for (int v = 0; v < VECTORS; v++) {
                            vec f = e[v];
                            int64_t at = c + v * LANES;
                            if (state[s] == COMPARE) {
                                if (at >= w->m) break;
                                f = keep(f, lanes(w->rule + s, q, at, least(w->m - at, LANES)));
                            }
                            sum += f;
                            below[s][v] += f;
                        }
                        *row = sum;
                    }
                }
            }
            if (on_diagonal) continue;
            for (int s = 0; s < w->rules; s++)
                if (w->rule[s].col)
                    for (int64_t l = 0; l < least(NR, c1 - c); l++)
                        w->rule[s].col[c + l] += ((float *)below[s])[l];
        }
        for (int s = 0; s < w->rules; s++)
            for (int64_t r = r0; r < r1; r++)
                w->rule[s].row[r] += total(load(beside + (s * w->height + r - r0) * LANES));
    }
}

/* Adds to dquery and dkey what tiles hold: the gradient of every exponential is the weight of its
   row, of its column (if col is given), or the sum of the two. weight: room for one tile */
static int64_t gradients_room(const Work *w) { return up(w->height, MR) * up(w->width, NR); }

static void gradients(const Work *w, const int32_t *tiles, int64_t count, float *weight) {
    int64_t wide = up(w->width, NR);
    float x[MR * NR];
    for (int64_t t = 0; t < count; t++) {
        int64_t i = tiles[2 * t], j = tiles[2 * t + 1];
        int64_t r0 = i * w->height, r1 = least(r0 + w->height, w->n);
        int64_t c0 = j * w->width, c1 = least(c0 + w->width, w->m);
        int on_diagonal = w->mirrored && i == j;
        int state[RULES], any = 0;
        for (int s = 0; s < w->rules; s++) any |= state[s] = counted(w->rule + s, r0, r1, c0, c1);
        if (!any) continue;
        const float *kept = kept_of(w, i, j);
        for (int64_t c = c0; c < c1; c += NR) {
            int64_t left = least(NR, c1 - c);
            for (int64_t r = r0; r < r1; r += MR) {
                if (!kept) product(w->rows + r * w->depth, w->cols + c * w->depth, w->depth, x);
                for (int64_t q = r; q < least(r + MR, r1); q++) {
                    vec e[VECTORS], sum[VECTORS];
                    if (!kept) exponentials(w, x + (q - r) * NR, q, c, on_diagonal, e);
                    else
                        for (int v = 0; v < VECTORS; v++)
                            e[v] = load(kept + (q - r0) * wide + (c - c0) + v * LANES);
                    for (int v = 0; v < VECTORS; v++) sum[v] = all(0);
                    for (int s = 0; s < w->rules; s++) {
                        if (state[s] == NONE) continue;
                        const Rule *rule = w->rule + s;
                        float beside[NR];
                        const float *col = rule->col ? rule->col + c : 0;
                        if (col && left < NR) {
                            memset(beside, 0, sizeof beside);
                            col = memcpy(beside, col, left * sizeof(float));
                        }
                        for (int v = 0; v < VECTORS; v++) {
                            vec f = all(rule->row[q]);
                            if (col) f += load(col + v * LANES);
                            int64_t at = c + v * LANES;
                            if (state[s] == COMPARE) {
                                if (at >= w->m) break;
                                f = keep(f, lanes(rule, q, at, least(w->m - at, LANES)));
                            }
                            sum[v] += f;
                        }
                    }
                    float *to = weight + (q - r0) * wide + (c - c0);
                    for (int v = 0; v < VECTORS; v++) store(to + v * LANES, e[v] * sum[v]);
                }
            }
        }
        if (w->dquery)
            gradient(weight, wide, 1, w->key + c0 * w->stride, c1 - c0, w->stride, r1 - r0,
                     w->dquery + r0 * w->stride);
        if (w->dkey && !on_diagonal)
            gradient(weight, 1, wide, w->query + r0 * w->stride, r1 - r0, w->stride, c1 - c0,
                     w->dkey + c0 * w->stride);
    }
}

/* out[depth][size] = `size` rows of x[n][depth] from row p on, depth by depth; 0 beyond the last */
static void panel(const float *x, int64_t n, int64_t depth, int64_t size, int64_t p, float *out) {
    const float *from = x + p * depth;
    if (n - p >= size) {
        for (int64_t d = 0; d < depth; d++)
            for (int64_t r = 0; r < size; r++) out[d * size + r] = from[r * depth + d];
        return;
    }
    for (int64_t d = 0; d < depth; d++)
        for (int64_t r = 0; r < size; r++) out[d * size + r] = p + r < n ? from[r * depth + d] : 0;
}

/* The share of thread `number` of `threads` in the panels of query and key */
static void panels(const Work *w, int64_t number, int64_t threads) {
    for (int64_t p = number * MR; p < w->n; p += threads * MR)
        panel(w->query, w->n, w->depth, MR, p, w->rows + p * w->depth);
    for (int64_t p = number * NR; p < w->m; p += threads * NR)
        panel(w->key, w->m, w->depth, NR, p, w->cols + p * w->depth);
}

/* ---- the k nearest ---- */

/* A candidate as one number whose order is that of the similarities; of equal ones the first key
   is the larger. */
static inline uint64_t candidate(float similarity, int64_t index) {
    uint32_t bits;
    memcpy(&bits, &similarity, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (uint64_t)bits << 32 | (uint32_t)~(uint32_t)index;
}

static inline float similarity_of(uint64_t x) {
    uint32_t bits = x >> 32;
    bits = bits >> 31 ? bits & 0x7FFFFFFFu : ~bits;
    float similarity;
    memcpy(&similarity, &bits, sizeof bits);
    return similarity;
}

/* Moves the k largest of count > k numbers, all different, to the front, by counting 11 bits of
   them at a time. spare: room for count numbers */
static void select_largest(uint64_t *x, int64_t count, int64_t k, uint64_t *spare) {
    const uint64_t *from = x;
    int64_t found = 0;
    for (int shift = 53; count > k - found; shift = shift > 11 ? shift - 11 : 0) {
        int32_t size[2048] = {0};
        for (int64_t i = 0; i < count; i++) size[from[i] >> shift & 2047]++;
        int64_t bin = 2047, above = 0;
        while (above + size[bin] < k - found) above += size[bin--];
        int64_t left = 0;
        for (int64_t i = 0; i < count; i++) { /* writes never overtake reads */
            uint64_t at = from[i];
            int64_t here = at >> shift & 2047;
            x[found] = at;
            found += here > bin;
            spare[left] = at;
            left += here == bin;
        }
        from = spare;
        count = left;
    }
    memcpy(x + found, from, count * sizeof *x);
}

/* Sorts the largest first: a few by insertion, many by their similarities' bits, 11 at a time */
static void sort_largest(uint64_t *x, int64_t count, uint64_t *spare) {
    if (count <= 48) {
        for (int64_t i = 1; i < count; i++) {
            uint64_t at = x[i];
            int64_t j = i;
            for (; j && x[j - 1] < at; j--) x[j] = x[j - 1];
            x[j] = at;
        }
        return;
    }
    uint64_t *from = x, *to = spare;
    for (int shift = 32; shift < 64; shift += 11) {
        int32_t place[2048] = {0};
        for (int64_t i = 0; i < count; i++) place[2047 - (from[i] >> shift & 2047)]++;
        int32_t sum = 0;
        for (int b = 0; b < 2048; b++) {
            int32_t here = place[b];
            place[b] = sum;
            sum += here;
        }
        for (int64_t i = 0; i < count; i++)
            to[place[2047 - (from[i] >> shift & 2047)]++] = from[i];
        uint64_t *t = from;
        from = to;
        to = t;
    }
    memcpy(x, from, count * sizeof *x); /* three passes end in `spare` */
}

/* The lanes of x that are above a threshold, as bits */
static inline uint32_t above(const float *x, float threshold) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(_mm512_loadu_ps(x), _mm512_set1_ps(threshold), _CMP_GT_OQ);
#elif defined(__AVX__)
    return _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(x), _mm256_set1_ps(threshold), _CMP_GT_OQ));
#else
    uint32_t bits = 0;
    for (int l = 0; l < LANES; l++) bits |= (uint32_t)(x[l] > threshold) << l;
    return bits;
#endif
}

static inline int counts(const Rule *rule, int64_t r, int64_t c) {
    if (rule->row_id && rule->row_id[r] == rule->col_id[c]) return 0;
    if (!rule->relation) return 1;
    return (rule->row_group[r] == rule->col_group[c]) == (rule->relation == 1);
}

typedef struct {
    int64_t k, most;          /* keys asked for, candidates held of a row; most >= k + NR */
    float *value;             /* [n][k], nearest first; -inf where fewer pairs count */
    int64_t *index;           /* [n][k]; 0 there */
} Nearest;

/* The nearest keys of the rows from `first`, a whole number of panels, up to `last`, under the only
   rule. room: (last - first + 1) times `most` candidates */
static void nearest(const Work *w, const Nearest *asked, int64_t first, int64_t last,
                    uint64_t *room) {
    const Rule *rule = w->rule;
    int64_t k = asked->k, most = asked->most;
    float x[MR * NR];
    float threshold[last - first];
    int64_t held[last - first];
    for (int64_t r = 0; r < last - first; r++) threshold[r] = -INFINITY, held[r] = 0;
    int some = rule->relation || rule->row_id;
    uint64_t *spare = room + (last - first) * most;
    for (int64_t c = 0; c < w->m; c += NR)
        for (int64_t p = first; p < last; p += MR) {
            product(w->rows + p * w->depth, w->cols + c * w->depth, w->depth, x);
            for (int64_t r = p; r < least(p + MR, last); r++) {
                uint64_t *mine = room + (r - first) * most;
                int64_t have = held[r - first];
                for (int v = 0; v < VECTORS; v++) {
                    int64_t at = c + v * LANES, left = w->m - at;
                    uint32_t bits = above(x + (r - p) * NR + v * LANES, threshold[r - first]);
                    if (left < LANES) bits &= left > 0 ? (1u << left) - 1 : 0;
                    for (; bits; bits &= bits - 1) {
                        int l = __builtin_ctz(bits);
                        if (some && !counts(rule, r, at + l)) continue;
                        mine[have++] = candidate(x[(r - p) * NR + v * LANES + l], at + l);
                    }
                }
                if (have + NR > most) {
                    select_largest(mine, have, k, spare);
                    have = k;
                    uint64_t low = mine[0];
                    for (int64_t i = 1; i < k; i++)
                        if (mine[i] < low) low = mine[i];
                    threshold[r - first] = similarity_of(low);
                }
                held[r - first] = have;
            }
        }
    for (int64_t r = first; r < last; r++) {
        uint64_t *mine = room + (r - first) * most;
        int64_t have = held[r - first];
        if (have > k) select_largest(mine, have, k, spare), have = k;
        sort_largest(mine, have, spare);
        for (int64_t i = 0; i < k; i++) {
            asked->value[r * k + i] = i < have ? similarity_of(mine[i]) : -INFINITY;
            asked->index[r * k + i] = i < have ? (int64_t)(uint32_t)~(uint32_t)mine[i] : 0;
        }
    }
}

/* ---- threads ---- */

/* Tasks in rounds: those of a round touch nothing in common, so that it does not matter which
   thread takes which, and every result is the same for any number of threads. */
typedef struct {
    const Work *work;
    const Nearest *asked;       /* null, or the k nearest are meant */
    int32_t backward;
    int64_t shares;             /* of the work of putting rows into panels, in the forward pass */
    int64_t rounds;
    const int32_t *round;       /* [rounds + 1] the first task of each */
    const int32_t *task;        /* [tasks + 1] the first tile of each */
    const int32_t *tiles;       /* pairs (block of rows, block of columns) */
    float *room;                /* of all threads, each `each` numbers */
    int64_t each;
    atomic_int threads, taken, arrived, met, numbered;
} Visit;

static void take(Visit *v, int64_t task, float *room) {
    const Work *w = v->work;
    const int32_t *tiles = v->tiles + 2 * v->task[task];
    int64_t count = v->task[task + 1] - v->task[task];
    if (v->asked)
        for (int64_t t = 0; t < count; t++) {
            int64_t first = tiles[2 * t] * w->height;
            nearest(w, v->asked, first, least(first + w->height, w->n), (uint64_t *)room);
        }
    else if (v->backward)
        gradients(w, tiles, count, room);
    else
        sums(w, tiles, count, room);
}

/* Wait for the other threads: rounds are short, and shared evenly */
static void meet(Visit *v) {
    int before = atomic_load(&v->met);
    if (atomic_fetch_add(&v->arrived, 1) + 1 == atomic_load(&v->threads)) {
        atomic_store(&v->arrived, 0);
        atomic_store(&v->taken, 0);
        atomic_store(&v->met, before + 1);
    } else
        for (int tries = 0; atomic_load(&v->met) == before; tries++)
            if (tries > 1000) sched_yield();
}

static void *visit(void *given) {
    Visit *v = given;
    int number = atomic_fetch_add(&v->numbered, 1);
    float *room = v->room + v->each * number;
    if (!v->backward) {
        for (int64_t some; (some = atomic_fetch_add(&v->taken, 1)) < v->shares;)
            panels(v->work, some, v->shares);
        meet(v);
    }
    for (int64_t round = 0; round < v->rounds; round++) {
        for (;;) {
            int64_t task = v->round[round] + atomic_fetch_add(&v->taken, 1);
            if (task >= v->round[round + 1]) break;
            take(v, task, room);
        }
        meet(v);
    }
    return 0;
}

/* Runs all tasks on `threads` threads; 0, or -1 if there was no memory. */
int32_t contrapose_visit(const Work *work, const Nearest *asked, int32_t backward, int32_t threads,
                         int64_t rounds, const int32_t *round, const int32_t *task,
                         const int32_t *tiles) {
    int64_t each = asked ? 2 * (work->height + 1) * asked->most
                 : backward ? gradients_room(work) : sums_room(work);
    each = up(each, 64);
    Visit v = {.work = work, .asked = asked, .backward = backward, .shares = threads, .rounds = rounds,
               .round = round, .task = task, .tiles = tiles, .each = each};
    v.room = aligned_alloc(64, threads * each * sizeof(float));
    if (!v.room) return -1;
    pthread_t other[threads];
    int started = 0;
    atomic_store(&v.threads, threads);
    while (started < threads - 1 && !pthread_create(other + started, 0, visit, &v)) started++;
    atomic_store(&v.threads, started + 1); /* before this thread arrives, which all wait for */
    visit(&v);
    for (int i = 0; i < started; i++) pthread_join(other[i], 0);
    free(v.room);
    return 0;
}

/* Sizes that the caller must know: rows of a panel of queries and of keys, lanes, rules at a time */
void contrapose_sizes(int32_t *out) {
    out[0] = MR;
    out[1] = NR;
    out[2] = LANES;
    out[3] = RULES;
}
