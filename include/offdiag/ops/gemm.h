/* Matrix products and the linear layer, row-major float32. */
#ifndef OFFDIAG_OPS_GEMM_H
#define OFFDIAG_OPS_GEMM_H

#include "offdiag/device.h"

/* C (m, n) = alpha op(A) op(B) + beta C, where op(A) is (m, k) and op(B) is (k, n); `trans_a` means that A is stored
 * (k, m), `trans_b` that B is stored (n, k). Leading dimensions are in elements; 0 means densely packed. */
typedef struct od_gemm_shape {
    bool trans_a, trans_b;
    int m, n, k;
    int lda, ldb, ldc;
} od_gemm_shape;

/* beta 0 never reads C (which may hold NaN). C must not overlap A or B. Variants: own CPU and GPU kernels, CLBlast
 * where it was built in and passed its check on this device, ref. */
od_status od_gemm(od_device *device, const od_gemm_shape *shape, od_span c, od_span a, od_span b, float alpha,
                  float beta);

/* The same through one named variant ("ref", "cpu", "gpu", "clblast"): for tests and benchmarks.
 * OD_ERR_UNSUPPORTED with the variant's reason when it refuses. */
od_status od_gemm_variant(od_device *device, const char *variant, const od_gemm_shape *shape, od_span c, od_span a,
                          od_span b, float alpha, float beta);
/* The variants' names in order of preference on this device; NULL-terminated, static. */
const char *const *od_gemm_variants(void);

/* Linear layer: w (in, out), y (rows, out) = x (rows, in) w + bias (out); bias may be OD_NO_SPAN. */
od_status od_linear_forward(od_device *device, od_span y, od_span x, od_span w, od_span bias, int rows, int in,
                            int out);
/* dx (rows, in), dw (in, out), dbias (out): each may be OD_NO_SPAN; accumulate adds to dw and dbias. */
od_status od_linear_backward(od_device *device, od_span dx, od_span dw, od_span dbias, od_span dy, od_span x, od_span w,
                             int rows, int in, int out, bool accumulate);

/* y (rows, c) += bias (c), in place. */
od_status od_bias_add(od_device *device, od_span y, od_span bias, int rows, int c);

#endif
