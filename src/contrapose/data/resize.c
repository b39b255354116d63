/* Pillow's resize of 8-bit images, equal bit for bit: two passes, each a weighted sum of whole
   numbers that is rounded to 8 bits. Compiled on first use for the processor at hand (compiler.py);
   called from resize.py, which asks Pillow for the weights and for the order of the passes.

   Sums of whole numbers may be taken in any order, so both passes are one operation: STRIP bytes
   that lie side by side are summed over the taps at once. For the pass along rows, 16 rows of colour
   or 64 of grey are turned first, so that neighbours in a row lie STRIP bytes apart. Colour has 4
   bytes a pixel within, the last of which means nothing. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>
enum { LANES = 16 };
typedef __m512i ints;
static inline ints load(const uint8_t *x) {
    return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)x));
}
static inline ints all(int32_t x) { return _mm512_set1_epi32(x); }
static inline ints plus(ints a, ints b) { return _mm512_add_epi32(a, b); }
static inline ints times(ints a, ints b) { return _mm512_mullo_epi32(a, b); }
static inline void store(uint8_t *x, ints a, int bits) {
    a = _mm512_max_epi32(_mm512_srai_epi32(a, bits), all(0));
    _mm_storeu_si128((__m128i *)x, _mm512_cvtusepi32_epi8(a));
}
#elif defined(__AVX2__)
#include <immintrin.h>
enum { LANES = 8 };
typedef __m256i ints;
static inline ints load(const uint8_t *x) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)x));
}
static inline ints all(int32_t x) { return _mm256_set1_epi32(x); }
static inline ints plus(ints a, ints b) { return _mm256_add_epi32(a, b); }
static inline ints times(ints a, ints b) { return _mm256_mullo_epi32(a, b); }
static inline void store(uint8_t *x, ints a, int bits) {
    a = _mm256_srai_epi32(a, bits);
    __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    _mm_storel_epi64((__m128i *)x, _mm_packus_epi16(half, half));
}
#else
enum { LANES = 16 }; /* loops, of which the compiler makes what there is */
typedef struct { int32_t x[LANES]; } ints;
#define EACH for (int l = 0; l < LANES; l++)
static inline ints load(const uint8_t *x) { ints a; EACH a.x[l] = x[l]; return a; }
static inline ints all(int32_t x) { ints a; EACH a.x[l] = x; return a; }
static inline ints plus(ints a, ints b) { EACH a.x[l] += b.x[l]; return a; }
static inline ints times(ints a, ints b) { EACH a.x[l] *= b.x[l]; return a; }
static inline void store(uint8_t *x, ints a, int bits) {
    EACH { const int32_t s = a.x[l] >> bits; x[l] = s < 0 ? 0 : s > 255 ? 255 : s; }
}
#endif
enum { BITS = 22, STRIP = 64, VECTORS = STRIP / LANES };

typedef struct {
    int32_t length, taps;    /* pixels of the result; weights of each that are stored */
    const int32_t *first;    /* the first pixel that each sums */
    const int32_t *count;    /* how many it sums */
    const int32_t *weight;   /* in units of 2^-BITS */
} Axis;

typedef struct {
    const uint8_t *pixels;
    int64_t row;             /* bytes from one row to the next */
    int32_t pixel;           /* bytes from one pixel to the next: 1 grey, 3 or 4 colour */
} Picture;

/* out[i] = sum over t of weight[t] in[t stride + i], rounded and clipped, for STRIP bytes */
static inline void weigh(const uint8_t *in, int64_t stride, const int32_t *weight, int32_t count,
                         uint8_t *out) {
    ints sum[VECTORS];
    for (int v = 0; v < VECTORS; v++) sum[v] = all(1 << (BITS - 1));
    for (int32_t t = 0; t < count; t++) {
        const ints w = all(weight[t]);
        for (int v = 0; v < VECTORS; v++)
            sum[v] = plus(sum[v], times(w, load(in + t * stride + v * LANES)));
    }
    for (int v = 0; v < VECTORS; v++) store(out + v * LANES, sum[v], BITS);
}

static inline int32_t end(const Axis *axis) {
    return axis->first[axis->length - 1] + axis->count[axis->length - 1];
}

static inline int64_t up(int64_t bytes) { return (bytes + STRIP - 1) / STRIP * STRIP; }

/* The pass along at most STRIP / size rows, which are stored `stride` bytes apart. size: bytes of a
   pixel within, a constant where this is inlined. left: the pixel of the axis at x.pixels. */
static inline void across(Picture x, int many, const Axis *axis, int32_t left, int size,
                          uint8_t *turned, uint8_t *to, int64_t stride) {
    const int rows = STRIP / size, columns = end(axis) - axis->first[0];
    uint8_t line[STRIP];
    x.pixels += (int64_t)(axis->first[0] - left) * x.pixel;
    for (int i = 0; i < columns; i++)
        for (int r = 0; r < rows; r++) {
            const uint8_t *p = x.pixels + (r < many ? r : 0) * x.row + (int64_t)i * x.pixel;
            uint8_t *t = turned + (int64_t)i * STRIP + r * size;
            if (size == 1) *t = *p;
            else if (x.pixel == 4) memcpy(t, p, 4);
            else { t[0] = p[0]; t[1] = p[1]; t[2] = p[2]; t[3] = 0; }
        }
    for (int64_t o = 0; o < axis->length; o++) {
        weigh(turned + (int64_t)(axis->first[o] - axis->first[0]) * STRIP, STRIP,
              axis->weight + o * axis->taps, axis->count[o], line);
        for (int r = 0; r < many; r++) memcpy(to + r * stride + o * size, line + r * size, size);
    }
}

/* A row of pixels into one plane or three, which lie `plane` bytes apart */
static inline void part(const uint8_t *row, int64_t pixels, int size, uint8_t *out, int64_t plane) {
    if (size == 1) memcpy(out, row, pixels);
    else
        for (int c = 0; c < 3; c++)
            for (int64_t i = 0; i < pixels; i++) out[c * plane + i] = row[4 * i + c];
}

static inline void rows_first(Picture x, const Axis *ax, const Axis *down, int size,
                              uint8_t *turned, uint8_t *middle, uint8_t *out) {
    const int32_t top = down->first[0], high = end(down) - top, rows = STRIP / size;
    const int64_t width = ax->length, stride = up(width * size);
    uint8_t line[STRIP];
    for (int32_t y = 0; y < high; y += rows) {
        const Picture block = {x.pixels + (top + y) * x.row, x.row, x.pixel};
        across(block, high - y < rows ? high - y : rows, ax, 0, size, turned,
               middle + y * stride, stride);
    }
    for (int64_t o = 0; o < down->length; o++)
        for (int64_t i = 0; i < width; i += rows) {
            weigh(middle + (down->first[o] - top) * stride + i * size, stride,
                  down->weight + o * down->taps, down->count[o], line);
            part(line, width - i < rows ? width - i : rows, size, out + o * width + i,
                 width * down->length);
        }
}

/* aside: room for STRIP bytes of every row that is used, since those of the last pixels end early */
static inline void columns_first(Picture x, const Axis *ax, const Axis *down, int size,
                                 uint8_t *turned, uint8_t *middle, uint8_t *aside, uint8_t *out) {
    const int32_t left = ax->first[0], top = down->first[0], high = end(down) - top;
    const int64_t width = ax->length, used = (int64_t)(end(ax) - left) * x.pixel;
    const int64_t between = up(used), stride = up(width * size), rows = STRIP / size;
    const uint8_t *from = x.pixels + top * x.row + (int64_t)left * x.pixel;
    for (int64_t a = 0; a < used; a += STRIP) {
        const uint8_t *column = from + a;
        int64_t apart = x.row;
        if (used - a < STRIP) {
            for (int32_t y = 0; y < high; y++) memcpy(aside + y * STRIP, column + y * x.row, used - a);
            column = aside;
            apart = STRIP;
        }
        for (int64_t o = 0; o < down->length; o++)
            weigh(column + (down->first[o] - top) * apart, apart, down->weight + o * down->taps,
                  down->count[o], middle + o * between + a);
    }
    for (int64_t y = 0; y < down->length; y += rows) {
        const int many = down->length - y < rows ? down->length - y : rows;
        const Picture block = {middle + y * between, between, x.pixel};
        across(block, many, ax, left, size, turned, aside, stride);
        for (int r = 0; r < many; r++)
            part(aside + r * stride, width, size, out + (y + r) * width, width * down->length);
    }
}

/* out: [1, h, w] of grey or [3, h, w] of colour. Nonzero without memory. */
int32_t contrapose_resize(const Picture *x, const Axis *ax, const Axis *down, int32_t columns,
                          uint8_t *out) {
    const int size = x->pixel == 1 ? 1 : 4;
    const int64_t wide = end(ax) - ax->first[0], high = end(down) - down->first[0];
    const int64_t stride = up((int64_t)ax->length * size), turned = wide * STRIP;
    const int64_t middle = columns ? down->length * up(wide * x->pixel) : high * stride;
    const int64_t block = stride * (STRIP / size), last = high * STRIP;
    uint8_t *work = malloc(turned + middle + (columns ? block > last ? block : last : 0));
    if (!work) return 1;
    uint8_t *next = work + turned, *aside = next + middle;
    if (columns && size == 1) columns_first(*x, ax, down, 1, work, next, aside, out);
    else if (columns) columns_first(*x, ax, down, 4, work, next, aside, out);
    else if (size == 1) rows_first(*x, ax, down, 1, work, next, out);
    else rows_first(*x, ax, down, 4, work, next, out);
    free(work);
    return 0;
}
