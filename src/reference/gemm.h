/* Matrix product in double, written from the definition. */
#ifndef REFERENCE_GEMM_H
#define REFERENCE_GEMM_H

#include <stddef.h>

#include "offdiag/ops/gemm.h"

/* c (m, n) with leading dimension ldc, holding the old C on entry, becomes alpha op(a) op(b) + beta c. */
static inline void reference_gemm(double *c, const float *a, const float *b, const od_gemm_shape *s, double alpha,
                                  double beta) {
    for (int i = 0; i < s->m; i++)
        for (int j = 0; j < s->n; j++) {
            double sum = 0;
            for (int p = 0; p < s->k; p++) {
                const double x = s->trans_a ? a[(size_t)p * s->lda + i] : a[(size_t)i * s->lda + p];
                const double y = s->trans_b ? b[(size_t)j * s->ldb + p] : b[(size_t)p * s->ldb + j];
                sum += x * y;
            }
            double *to = &c[(size_t)i * s->ldc + j];
            *to = alpha * sum + (beta == 0 ? 0 : beta * *to);
        }
}

#endif
