/* Element-wise operations, reductions and pooling, NHWC float32. `count` is a number of elements. */
#ifndef OFFDIAG_OPS_POINTWISE_H
#define OFFDIAG_OPS_POINTWISE_H

#include "offdiag/device.h"

od_status od_relu_forward(od_device *device, od_span y, od_span x, size_t count);               /* y may be x */
od_status od_relu_backward(od_device *device, od_span dx, od_span dy, od_span y, size_t count); /* dx may be dy */
od_status od_add(od_device *device, od_span out, od_span a, od_span b, size_t count);           /* out may be a or b */
od_status od_scale(od_device *device, od_span x, float factor, size_t count);                   /* x *= factor */
od_status od_axpy(od_device *device, od_span y, float alpha, od_span x, size_t count);          /* y += alpha x */

/* out[0] = sum, or sum of squares, of x; two stages in a fixed order. */
od_status od_sum(od_device *device, od_span out, od_span x, size_t count);
od_status od_sum_squares(od_device *device, od_span out, od_span x, size_t count);
/* out (C) = (accumulate ? out : 0) + column sums of x (rows, C). */
od_status od_column_sum(od_device *device, od_span out, od_span x, size_t rows, int c, bool accumulate);
/* out[0] = the number of NaN and infinite elements, as float. */
od_status od_count_nonfinite(od_device *device, od_span out, od_span x, size_t count);

/* Rows scaled to length 1: y (rows, C) = x / max(|x|, eps), and its gradient (dx may be dy). */
od_status od_l2_normalize(od_device *device, od_span y, od_span x, int rows, int c, float eps);
od_status od_l2_normalize_backward(od_device *device, od_span dx, od_span dy, od_span x, int rows, int c, float eps);

/* Global average pooling: y (N, C) = mean over H, W of x (N, H, W, C), and its gradient. */
od_status od_avgpool_forward(od_device *device, od_span y, od_span x, int n, int h, int w, int c);
od_status od_avgpool_backward(od_device *device, od_span dx, od_span dy, int n, int h, int w, int c);

typedef struct od_pool_shape {
    int h, w, c;           /* input */
    int size, stride, pad; /* 3, 2, 1 in ResNet's ImageNet stem */
} od_pool_shape;
/* Max pooling: y (N, Hout, Wout, C); argmax (same shape, int32 in a float buffer's place) is the input's pixel index
 * h*W + w, the first one of equals. Backward gathers: no atomics. Padding never wins. */
od_status od_maxpool_forward(od_device *device, const od_pool_shape *shape, od_span y, od_span argmax, od_span x,
                             int n);
od_status od_maxpool_backward(od_device *device, const od_pool_shape *shape, od_span dx, od_span dy, od_span argmax,
                              int n);

#endif
