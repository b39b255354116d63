/* The gradient of a convolution's weights, summed in float64, for the few channels of images.
   Compiled on first use for the processor at hand (compiler.py); called from weight_gradient.py.

   One row of the output at a time: the rows of the input that it needs and its gradients, widened,
   are in the cache, and their products a small matrix. Images are cut into blocks by their number
   alone, and the sums of blocks joined in their order: the result is the same for any number of
   threads. */

#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "team.h"

#if defined(__AVX512F__)
enum { LANES = 8, HIGH = 6 };
#elif defined(__AVX__)
enum { LANES = 4, HIGH = 3 };
#else
enum { LANES = 2, HIGH = 3 };
#endif
enum { VECTORS = 4, BLOCKS = 32 };

typedef double doubles __attribute__((vector_size(8 * LANES), aligned(8), may_alias));

typedef struct {
    const float *x, *g;     /* [images, channels, height, width], and of the output */
    double *dw;             /* [weights of one output channel, output channels]: channel, row, column */
    int64_t x_stride[4], g_stride[4]; /* in numbers */
    int64_t images, channels, height, width, out, high, wide; /* the last three: of the output */
    int64_t kernel[2], stride[2], padding[2], dilation[2];
} Convolution;

typedef struct {
    const Convolution *c;
    int64_t taps, across, blocks;  /* weights and output channels, filled up; of images */
    int64_t vectors;               /* of output channels side by side */
    double *sums;                  /* [blocks, taps, across] */
    atomic_int taken, failed;
} Work;

static inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t up(int64_t x, int64_t step) { return (x + step - 1) / step * step; }

/* sums[HIGH][vectors LANES] += the sum over i of the inputs of[HIGH][step i] times by[i][..] */
static inline __attribute__((always_inline)) void product(
    const double *const *of, int64_t step, const double *by, int64_t n, int64_t across, int vectors,
    double *sums) {
    doubles s[HIGH][VECTORS];
    const double *from[HIGH];
    for (int t = 0; t < HIGH; t++) {
        from[t] = of[t];
        for (int v = 0; v < vectors; v++) s[t][v] = *(doubles *)(sums + t * across + v * LANES);
    }
    for (int64_t i = 0; i < n; i++)
        for (int v = 0; v < vectors; v++) {
            const doubles g = *(const doubles *)(by + i * across + v * LANES);
            for (int t = 0; t < HIGH; t++) s[t][v] += from[t][i * step] * g;
        }
    for (int t = 0; t < HIGH; t++)
        for (int v = 0; v < vectors; v++) *(doubles *)(sums + t * across + v * LANES) = s[t][v];
}

static inline int64_t reach(const Convolution *c) { /* columns of the input, with padding */
    return (c->wide - 1) * c->stride[1] + (c->kernel[1] - 1) * c->dilation[1] + 1;
}

/* rows[channels kernel[0]][reach]: the rows of the input that the row y of the output of image n
   needs, from the padding on */
static void inputs(const Convolution *c, int64_t n, int64_t y, double *rows) {
    const int64_t length = reach(c), before = least(c->padding[1], length);
    const int64_t end = least(c->width + c->padding[1], length), apart = c->x_stride[3];
    for (int64_t k = 0; k < c->channels; k++)
        for (int64_t i = 0; i < c->kernel[0]; i++, rows += length) {
            const int64_t row = y * c->stride[0] - c->padding[0] + i * c->dilation[0];
            const float *x = c->x + n * c->x_stride[0] + k * c->x_stride[1] + row * c->x_stride[2];
            int64_t q = 0;
            if (row >= 0 && row < c->height) {
                for (; q < before; q++) rows[q] = 0;
                if (apart == 1)
                    for (; q < end; q++) rows[q] = x[q - c->padding[1]];
                else
                    for (; q < end; q++) rows[q] = x[(q - c->padding[1]) * apart];
            }
            for (; q < length; q++) rows[q] = 0;
        }
}

/* by[wide][across] of the same row; what is beyond the last output channel stays 0 */
static void gradients(const Convolution *c, int64_t n, int64_t y, int64_t across, double *by) {
    for (int64_t o = 0; o < c->wide; o++) {
        const float *g = c->g + n * c->g_stride[0] + y * c->g_stride[2] + o * c->g_stride[3];
        if (c->g_stride[1] == 1)
            for (int64_t k = 0; k < c->out; k++) by[o * across + k] = g[k];
        else
            for (int64_t k = 0; k < c->out; k++) by[o * across + k] = g[k * c->g_stride[1]];
    }
}

static void *blocks(void *given) {
    Work *w = given;
    const Convolution *c = w->c;
    const int64_t rows = c->channels * c->kernel[0], length = reach(c);
    double *x = calloc((rows + 1) * length + w->across * c->wide, sizeof *x);
    const double **of = malloc(w->taps * sizeof *of);
    if (!x || !of) {
        atomic_store(&w->failed, 1);
        free(x);
        free(of);
        return 0;
    }
    double *by = x + (rows + 1) * length;
    for (int64_t t = 0; t < w->taps; t++) { /* the inputs of each weight; zeros of what fills up */
        const int64_t row = t / c->kernel[1], column = t % c->kernel[1];
        of[t] = row < rows ? x + row * length + column * c->dilation[1] : x + rows * length;
    }
    for (int64_t b; (b = atomic_fetch_add(&w->taken, 1)) < w->blocks;) {
        double *sums = w->sums + b * w->taps * w->across;
        const int64_t end = c->images * (b + 1) / w->blocks;
        for (int64_t n = c->images * b / w->blocks; n < end; n++)
            for (int64_t y = 0; y < c->high; y++) {
                inputs(c, n, y, x);
                gradients(c, n, y, w->across, by);
                for (int64_t k = 0; k < w->across; k += w->vectors * LANES)
                    for (int64_t t = 0; t < w->taps; t += HIGH) {
                        double *to = sums + t * w->across + k;
                        const double *const *from = of + t;
#define PRODUCT(V) product(from, c->stride[1], by + k, c->wide, w->across, V, to)
                        if (w->vectors == 1) PRODUCT(1);
                        else if (w->vectors == 2) PRODUCT(2);
                        else PRODUCT(VECTORS);
                    }
            }
    }
    free(x);
    free(of);
    return 0;
}

/* The gradient on `threads` threads, of the team if there is one; 0, or -1 if there was no memory. */
int32_t contrapose_weight_gradient(const Convolution *c, int32_t threads, Team team) {
    const int64_t taps = c->channels * c->kernel[0] * c->kernel[1];
    Work w = {.c = c, .taps = up(taps, HIGH), .vectors = c->out > 2 * LANES ? VECTORS : c->out > LANES ? 2 : 1};
    w.across = up(c->out, w.vectors * LANES);
    w.blocks = least(BLOCKS, c->images);
    w.sums = calloc((w.blocks + 1) * w.taps * w.across, sizeof *w.sums);
    if (!w.sums) return -1;
    threads = least(threads, w.blocks);
    share(blocks, &w, threads, team);
    for (int64_t t = 0; t < taps; t++)
        for (int64_t k = 0; k < c->out; k++) {
            double sum = 0;
            for (int64_t b = 0; b < w.blocks; b++) sum += w.sums[(b * w.taps + t) * w.across + k];
            c->dw[t * c->out + k] = sum;
        }
    free(w.sums);
    return atomic_load(&w.failed) ? -1 : 0;
}
