/* Pooling in double, written from the definitions. */
#ifndef REFERENCE_POOL_H
#define REFERENCE_POOL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>

#include "offdiag/ops/pointwise.h"

static inline int reference_pool_out(int extent, const od_pool_shape *s) {
    return (extent + 2 * s->pad - s->size) / s->stride + 1;
}

/* y, argmax (n, h_out, w_out, c) of x (n, h, w, c). */
static inline void reference_maxpool(double *y, int32_t *argmax, const float *x, const od_pool_shape *s, int n) {
    const int h_out = reference_pool_out(s->h, s), w_out = reference_pool_out(s->w, s);
    for (int i = 0; i < n * h_out * w_out * s->c; i++) {
        const int c = i % s->c, q = i / s->c % w_out, p = i / s->c / w_out % h_out, image = i / s->c / w_out / h_out;
        double best = -INFINITY;
        for (int r = 0; r < s->size; r++)
            for (int t = 0; t < s->size; t++) {
                const int row = p * s->stride - s->pad + r, column = q * s->stride - s->pad + t;
                if (row < 0 || row >= s->h || column < 0 || column >= s->w)
                    continue;
                const double v = x[(((size_t)image * s->h + row) * s->w + column) * s->c + c];
                if (v > best) {
                    best = v;
                    argmax[i] = row * s->w + column;
                }
            }
        y[i] = best;
    }
}

/* dx (n, h, w, c): each dy is scattered to the pixel that won. */
static inline void reference_maxpool_backward(double *dx, const float *dy, const int32_t *argmax,
                                              const od_pool_shape *s, int n) {
    const int per_image = reference_pool_out(s->h, s) * reference_pool_out(s->w, s) * s->c;
    for (int i = 0; i < n * per_image; i++)
        dx[((size_t)(i / per_image) * s->h * s->w + argmax[i]) * s->c + i % s->c] += dy[i];
}

#endif
