/* Batch normalisation (Ioffe & Szegedy 2015), with the fused ReLU and residual add of a ResNet block.
 *
 * A batch may hold several groups (the two views of an image batch) whose statistics are kept apart, as if the layer
 * had been called once per group in order: x is (groups, rows, C) with rows = N*H*W of one group. */
#ifndef OFFDIAG_OPS_NORM_H
#define OFFDIAG_OPS_NORM_H

#include "offdiag/device.h"

typedef struct od_bn_shape {
    int groups, rows, c;
    float eps; /* 1e-5 */
} od_bn_shape;

/* Learned scale and shift and the running statistics, each (C); OD_NO_SPAN where there is none. */
typedef struct od_bn_params {
    od_span gamma, beta; /* no affine: OD_NO_SPAN both */
    od_span running_mean, running_var;
    float momentum; /* 0.1: running = 0.9 running + 0.1 batch, once per group in order; unbiased variance, as PyTorch */
} od_bn_params;

typedef struct od_bn_fuse {
    bool relu;
    od_span residual; /* (groups, rows, C), added before the ReLU; OD_NO_SPAN: none */
    /* another layer's saved tensor: the residual is that layer's convolution output, normalised (and cut by a ReLU) as
     * it is read; OD_NO_SPAN: the residual as it is */
    od_span residual_saved;
    bool residual_relu;
} od_bn_fuse;

/* saved (groups, 4, C): mean, rstd, and the map slope, shift that normalises: y = act(x * slope + shift + residual). */
enum { OD_BN_SAVED = 4 };
static inline od_span od_bn_affine(od_span saved, int c) {
    return od_span_at(saved, 2 * (size_t)c);
}

/* Training: the statistics of x (groups, rows, C), into saved and the running ones. Variance in two passes over chunks,
 * which are Chan-combined. */
od_status od_bn_statistics(od_device *device, const od_bn_shape *shape, const od_bn_params *params, od_span saved,
                           od_span x);
/* The same from partial statistics (groups, parts, 3, C), as a convolution gives them (od_conv_stats). */
od_status od_bn_finish(od_device *device, const od_bn_shape *shape, const od_bn_params *params, od_span saved,
                       od_span partial, int parts);
/* For statistics over several devices' rows: merged (groups, 3, C) of the rows here (how many, mean, sum of squares
 * about the mean), from x or from partial statistics. What all devices' merged ones come to is for od_bn_finish, with
 * parts 1 and the rows of all. */
od_status od_bn_merged(od_device *device, const od_bn_shape *shape, od_span merged, od_span x);
od_status od_bn_merge(od_device *device, const od_bn_shape *shape, od_span merged, od_span partial, int parts);
/* saved (1, 4, C) from the running statistics. */
od_status od_bn_running(od_device *device, const od_bn_shape *shape, const od_bn_params *params, od_span saved);
/* y = act(x * slope + shift + residual) for all groups; y may be x's or the residual's own memory. fuse may be NULL. */
od_status od_bn_apply(od_device *device, const od_bn_shape *shape, const od_bn_fuse *fuse, od_span y, od_span x,
                      od_span saved);

/* y (groups, rows, C) = relu(x * slope + shift); affine holds slope, shift (2, C), those of group g `stride` floats on.
 */
od_status od_affine_relu(od_device *device, od_span y, od_span x, od_span affine, size_t stride, int groups, int rows,
                         int c);

/* Training, statistics and map together. y may not be x's own memory. */
od_status od_bn_forward(od_device *device, const od_bn_shape *shape, const od_bn_params *params, const od_bn_fuse *fuse,
                        od_span y, od_span saved, od_span x);
/* Inference: statistics are the running ones. All groups * rows rows are alike. */
od_status od_bn_inference(od_device *device, const od_bn_shape *shape, const od_bn_params *params,
                          const od_bn_fuse *fuse, od_span y, od_span x);

/* Gradients of the training form. dy is the gradient at y. Where fuse->relu is set, the mask is y > 0 with y the
 * forward output, or, without y (OD_NO_SPAN), x * slope + shift > 0: right where nothing was added. d_residual (groups,
 * rows, C), the gradient of the added input, may be OD_NO_SPAN and may be dy's own memory. dgamma, dbeta (C) sum over
 * groups and add to what is there when accumulate is set; OD_NO_SPAN without affine. dx may be x's own memory, and dy's
 * when d_residual is OD_NO_SPAN. */
od_status od_bn_backward(od_device *device, const od_bn_shape *shape, const od_bn_fuse *fuse, od_span dx,
                         od_span d_residual, od_span dgamma, od_span dbeta, od_span dy, od_span y, od_span x,
                         od_span saved, bool accumulate);
/* Its two halves, between which several devices add up their sums: sums (groups, 2, C) of the masked gradient and of it
 * times xhat over the rows here, and dgamma, dbeta from them; then dx, with the means of `sums` over all_rows rows a
 * group. */
od_status od_bn_backward_sums(od_device *device, const od_bn_shape *shape, const od_bn_fuse *fuse, od_span sums,
                              od_span dgamma, od_span dbeta, od_span dy, od_span y, od_span x, od_span saved,
                              bool accumulate);
/* The same sums from partial ones (groups, parts, 2, C), as a convolution gives them (od_conv_grads). */
od_status od_bn_backward_finish(od_device *device, const od_bn_shape *shape, od_span sums, od_span dgamma,
                                od_span dbeta, od_span partial, int parts, bool accumulate);
od_status od_bn_backward_input(od_device *device, const od_bn_shape *shape, int all_rows, const od_bn_fuse *fuse,
                               od_span dx, od_span d_residual, od_span dy, od_span y, od_span x, od_span saved,
                               od_span sums);

#endif
