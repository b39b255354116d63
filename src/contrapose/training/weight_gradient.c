/* The gradient of a convolution's weights, summed in float64, for the few channels of images.
   Compiled on first use for the processor at hand (compiler.py); called from weight_gradient.py.

   One row of the output at a time: the inputs of each weight beside each other, widened, times the
   row's gradients, widened, are a product of small matrices, which are all in the cache. Images are
   cut into blocks by their number alone, and the sums of blocks joined in their order: the result is
   the same for any number of threads. */

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

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

/* sums[HIGH][vectors LANES] += of[HIGH][n] by[n][..]; the rows of `of` and `by` lie far apart */
static inline __attribute__((always_inline)) void product(
    const double *of, const double *by, int64_t n, int64_t across, int vectors, double *sums) {
    doubles s[HIGH][VECTORS];
    for (int t = 0; t < HIGH; t++)
        for (int v = 0; v < vectors; v++) s[t][v] = *(doubles *)(sums + t * across + v * LANES);
    for (int64_t i = 0; i < n; i++)
        for (int v = 0; v < vectors; v++) {
            const doubles g = *(const doubles *)(by + i * across + v * LANES);
            for (int t = 0; t < HIGH; t++) s[t][v] += of[t * n + i] * g;
        }
    for (int t = 0; t < HIGH; t++)
        for (int v = 0; v < vectors; v++) *(doubles *)(sums + t * across + v * LANES) = s[t][v];
}

/* of[taps][wide] of the row y of the output of image n; the rows beyond the last weight stay 0 */
static void inputs(const Convolution *c, int64_t n, int64_t y, double *of) {
    for (int64_t k = 0; k < c->channels; k++)
        for (int64_t i = 0; i < c->kernel[0]; i++) {
            const int64_t row = y * c->stride[0] - c->padding[0] + i * c->dilation[0];
            const float *x = c->x + n * c->x_stride[0] + k * c->x_stride[1] + row * c->x_stride[2];
            const int inside = row >= 0 && row < c->height;
            for (int64_t j = 0; j < c->kernel[1]; j++, of += c->wide) {
                const int64_t step = c->stride[1], from = j * c->dilation[1] - c->padding[1];
                const int64_t before = from < 0 ? (step - 1 - from) / step : 0; /* the first inside */
                const int64_t first = inside ? least(before, c->wide) : c->wide;
                const int64_t last = from < c->width
                    ? least((c->width - 1 - from) / step + 1, c->wide) : 0; /* beyond the last */
                int64_t o = 0;
                for (; o < first; o++) of[o] = 0;
                for (; o < last; o++) of[o] = x[(from + o * step) * c->x_stride[3]];
                for (; o < c->wide; o++) of[o] = 0;
            }
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
    double *of = calloc((w->taps + w->across) * c->wide, sizeof *of);
    if (!of) {
        atomic_store(&w->failed, 1);
        return 0;
    }
    double *by = of + w->taps * c->wide;
    for (int64_t b; (b = atomic_fetch_add(&w->taken, 1)) < w->blocks;) {
        double *sums = w->sums + b * w->taps * w->across;
        const int64_t end = c->images * (b + 1) / w->blocks;
        for (int64_t n = c->images * b / w->blocks; n < end; n++)
            for (int64_t y = 0; y < c->high; y++) {
                inputs(c, n, y, of);
                gradients(c, n, y, w->across, by);
                for (int64_t k = 0; k < w->across; k += w->vectors * LANES)
                    for (int64_t t = 0; t < w->taps; t += HIGH) {
                        double *to = sums + t * w->across + k;
                        if (w->vectors == 1)
                            product(of + t * c->wide, by + k, c->wide, w->across, 1, to);
                        else
                            product(of + t * c->wide, by + k, c->wide, w->across, VECTORS, to);
                    }
            }
    }
    free(of);
    return 0;
}

/* The gradient on `threads` threads; 0, or -1 if there was no memory. */
int32_t contrapose_weight_gradient(const Convolution *c, int32_t threads) {
    const int64_t taps = c->channels * c->kernel[0] * c->kernel[1];
    Work w = {.c = c, .taps = up(taps, HIGH), .vectors = c->out > LANES ? VECTORS : 1};
    w.across = up(c->out, w.vectors * LANES);
    w.blocks = least(BLOCKS, c->images);
    w.sums = calloc((w.blocks + 1) * w.taps * w.across, sizeof *w.sums);
    if (!w.sums) return -1;
    threads = least(threads, w.blocks);
    pthread_t other[threads + 1];
    int started = 0;
    while (started < threads - 1 && !pthread_create(other + started, 0, blocks, &w)) started++;
    blocks(&w);
    for (int i = 0; i < started; i++) pthread_join(other[i], 0);
    for (int64_t t = 0; t < taps; t++)
        for (int64_t k = 0; k < c->out; k++) {
            double sum = 0;
            for (int64_t b = 0; b < w.blocks; b++) sum += w.sums[(b * w.taps + t) * w.across + k];
            c->dw[t * c->out + k] = sum;
        }
    free(w.sums);
    return atomic_load(&w.failed) ? -1 : 0;
}
