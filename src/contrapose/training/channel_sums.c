/* Sums over each channel, and linear maps of each channel, for batch normalisation of what is stored
   with its channels side by side (channels last), in float32 or float64. Compiled on first use for
   the processor at hand (compiler.py); called from channel_sums.py, which has the equations.

   Sums are float64: every number is widened first, so that those of float32 are off by some 1e-16 of
   the sum of their sizes. Maps compute in the precision of what is stored. Memory is the limit, and
   with float64 sums too: what counts is how often an array is read. Rows of few channels are taken
   several at a time, as one long row that fills whole vectors. Long rows are cut into blocks by
   their number alone, and the sums of blocks joined in their order: every result is the same for
   any number of threads. Maps begin at the end of an array, which sums have left in the cache. */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "team.h"

#if defined(__AVX512F__)
#include <immintrin.h>
enum { LANES = 8 };
#elif defined(__AVX__)
#include <immintrin.h>
enum { LANES = 4 };
#else
enum { LANES = 2 };
#endif
enum {
    LONG = 64,    /* numbers of a long row, at least */
    SIDE = 8,     /* long rows that are worked off side by side; as many are fetched ahead */
    LEAST = 64,   /* long rows of a block */
    BLOCKS = 64   /* at most */
};

typedef double doubles __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
typedef float floats __attribute__((vector_size(8 * LANES), aligned(4), may_alias));
typedef float few __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

typedef enum { MOMENTS, PRODUCTS, SCALED, GRADIENT } Task;

typedef struct {
    const void *x, *g;     /* [rows, channels]; g of PRODUCTS and GRADIENT */
    void *y;               /* likewise, of SCALED and GRADIENT */
    int64_t rows, channels;
    const double *of;      /* [1, channels] a; of SCALED a, b, c; of GRADIENT a, b, c, d */
    double *sums;          /* [2, channels], of MOMENTS and PRODUCTS */
    int32_t wide;          /* float64 is stored */
} Channels;

typedef struct {
    const Channels *c;
    Task task;
    int64_t width, whole, rest, blocks; /* numbers of a long row; how many; numbers left; blocks */
    void *of;              /* [.., width]; of maps in the precision of what is stored */
    double *sums;          /* [blocks, 2, width] */
    atomic_int taken;
} Work;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline doubles widened(few x) {
#if defined(__AVX512F__)
    return (doubles)_mm512_cvtps_pd((__m256)x);
#elif defined(__AVX__)
    return (doubles)_mm256_cvtps_pd((__m128)x);
#else
    return __builtin_convertvector(x, doubles);
#endif
}

#define AT(TYPE, x) (*(TYPE *)(x))

/* MOMENTS adds up x - a and (x - a)^2, PRODUCTS g and g (x - a), of vectors or of single numbers.
   STORED holds NUMBERs, and WIDENED makes WIDE of it. */
#define SUM(WIDE, STORED, NUMBER, WIDENED)                                                          \
    do {                                                                                            \
        const WIDE a = AT(const WIDE, of + i);                                                      \
        WIDE s = AT(WIDE, sums + i), t = AT(WIDE, sums + width + i);                                \
        for (int r = 0; r < rows; r++) {                                                            \
            const int64_t at = from + r * width + i;                                                \
            const NUMBER *x = (const NUMBER *)c->x + at, *g = (const NUMBER *)c->g + at;            \
            __builtin_prefetch(x + SIDE * width);                                                   \
            const WIDE off = WIDENED(AT(const STORED, x)) - a;                                      \
            if (task == MOMENTS) s += off, t += off * off;                                          \
            else {                                                                                  \
                __builtin_prefetch(g + SIDE * width);                                               \
                const WIDE of_g = WIDENED(AT(const STORED, g));                                     \
                s += of_g, t += of_g * off;                                                         \
            }                                                                                       \
        }                                                                                           \
        AT(WIDE, sums + i) = s, AT(WIDE, sums + width + i) = t;                                     \
    } while (0)

/* SCALED makes y = (x - a) b + c, GRADIENT y = g b - c - (x - a) d. */
#define MAP(STORED, NUMBER)                                                                         \
    do {                                                                                            \
        const NUMBER *p = (const NUMBER *)given + i;                                                \
        const STORED a = AT(const STORED, p), b = AT(const STORED, p + width);                      \
        const STORED e = AT(const STORED, p + 2 * width);                                           \
        for (int r = 0; r < rows; r++) {                                                            \
            const int64_t at = from + r * width + i;                                                \
            const STORED off = AT(const STORED, (const NUMBER *)c->x + at) - a;                     \
            AT(STORED, (NUMBER *)c->y + at) =                                                       \
                task == SCALED ? off * b + e                                                        \
                               : AT(const STORED, (const NUMBER *)c->g + at) * b - e                \
                                     - off * AT(const STORED, p + 3 * width);                       \
        }                                                                                           \
    } while (0)

/* `rows` long rows from the number `from` on, the first `length` numbers of each */
static inline __attribute__((always_inline)) void side_by_side(
    const Channels *c, Task task, int wide, int rows, int64_t from, int64_t width, int64_t length,
    const void *given, double *sums) {
    const double *of = given;
    int64_t i = 0;
    if (task == MOMENTS || task == PRODUCTS) {
        if (wide) {
            for (; i + LANES <= length; i += LANES) SUM(doubles, doubles, double, );
            for (; i < length; i++) SUM(double, double, double, );
        } else {
            for (; i + LANES <= length; i += LANES) SUM(doubles, few, float, widened);
            for (; i < length; i++) SUM(double, float, float, );
        }
    } else if (wide) {
        for (; i + LANES <= length; i += LANES) MAP(doubles, double);
        for (; i < length; i++) MAP(double, double);
    } else {
        for (; i + 2 * LANES <= length; i += 2 * LANES) MAP(floats, float);
        for (; i < length; i++) MAP(float, float);
    }
}

static inline __attribute__((always_inline)) void block(const Work *w, Task task, int wide,
                                                        int64_t number) {
    const int64_t width = w->width, end = w->whole * (number + 1) / w->blocks;
    int64_t r = w->whole * number / w->blocks;
    double *sums = 0;
    if (task == MOMENTS || task == PRODUCTS)
        sums = memset(w->sums + number * 2 * width, 0, 2 * width * sizeof *sums);
    for (; r + SIDE <= end; r += SIDE)
        side_by_side(w->c, task, wide, SIDE, r * width, width, width, w->of, sums);
    for (; r < end; r++) side_by_side(w->c, task, wide, 1, r * width, width, width, w->of, sums);
    if (number == w->blocks - 1 && w->rest)
        side_by_side(w->c, task, wide, 1, r * width, width, w->rest, w->of, sums);
}

static void *blocks(void *given) {
    Work *w = given;
    for (int64_t k; (k = atomic_fetch_add(&w->taken, 1)) < w->blocks;) {
        const int64_t last = w->blocks - 1 - k;
        switch (2 * w->task + w->c->wide) {
        case 2 * MOMENTS: block(w, MOMENTS, 0, k); break;
        case 2 * MOMENTS + 1: block(w, MOMENTS, 1, k); break;
        case 2 * PRODUCTS: block(w, PRODUCTS, 0, k); break;
        case 2 * PRODUCTS + 1: block(w, PRODUCTS, 1, k); break;
        case 2 * SCALED: block(w, SCALED, 0, last); break;
        case 2 * SCALED + 1: block(w, SCALED, 1, last); break;
        case 2 * GRADIENT: block(w, GRADIENT, 0, last); break;
        case 2 * GRADIENT + 1: block(w, GRADIENT, 1, last); break;
        }
    }
    return 0;
}

/* The task on `threads` threads, of the team if there is one; 0, or -1 if there was no memory. At
   least one channel. */
int32_t contrapose_channels(const Channels *c, int32_t task, int32_t threads, Team team) {
    static const int given[] = {[MOMENTS] = 1, [PRODUCTS] = 1, [SCALED] = 3, [GRADIENT] = 4};
    const int sums = task == MOMENTS || task == PRODUCTS;
    int64_t many = 1; /* rows in a long one */
    if (c->channels < LONG)
        while (many * c->channels < LONG || many * c->channels % (2 * LANES)) many *= 2;
    Work w = {.c = c, .task = task, .width = many * c->channels};
    w.whole = c->rows / many;
    w.rest = c->rows % many * c->channels;
    w.blocks = least(BLOCKS, w.whole / LEAST + 1);
    const int64_t of = given[task] * w.width;
    w.of = malloc((of + (sums ? 2 * w.width * w.blocks : 0)) * sizeof(double));
    if (!w.of) return -1;
    w.sums = (double *)w.of + of;
    for (int64_t k = 0; k < given[task] * many; k++)
        for (int64_t i = 0; i < c->channels; i++) {
            const double number = c->of[k / many * c->channels + i];
            if (sums || c->wide) ((double *)w.of)[k * c->channels + i] = number;
            else ((float *)w.of)[k * c->channels + i] = number;
        }
    threads = least(threads, w.blocks);
    share(blocks, &w, threads, team);
    for (int64_t k = 0; sums && k < 2; k++)
        for (int64_t i = 0; i < c->channels; i++) {
            double sum = 0;
            for (int64_t b = 0; b < w.blocks; b++)
                for (int64_t m = 0; m < many; m++)
                    sum += w.sums[(2 * b + k) * w.width + m * c->channels + i];
            c->sums[k * c->channels + i] = sum;
        }
    free(w.of);
    return 0;
}
