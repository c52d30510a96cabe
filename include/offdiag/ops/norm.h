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
} od_bn_fuse;

/* Training: y = act(gamma (x - mean) rstd + beta + residual). saved (groups, 2, C): mean and rstd for the backward
 * pass. Variance in two passes or Chan-combined chunks. y may be x's own memory only for inference. */
od_status od_bn_forward(od_device *device, const od_bn_shape *shape, const od_bn_params *params, const od_bn_fuse *fuse,
                        od_span y, od_span saved, od_span x);

/* Inference: statistics are the running ones. All groups * rows rows are alike. */
od_status od_bn_inference(od_device *device, const od_bn_shape *shape, const od_bn_params *params,
                          const od_bn_fuse *fuse, od_span y, od_span x);

/* Gradients of the training form. dy is the gradient at y; y is the forward output, read only where fuse->relu is set
 * (the mask is y > 0). d_residual (groups, rows, C), the gradient of the added input, may be OD_NO_SPAN and may be dy's
 * own memory. dgamma, dbeta (C) sum over groups and add to what is there when accumulate is set; OD_NO_SPAN without
 * affine. dx may be dy's own memory when d_residual is OD_NO_SPAN, and may not be x's. */
od_status od_bn_backward(od_device *device, const od_bn_shape *shape, const od_bn_params *params,
                         const od_bn_fuse *fuse, od_span dx, od_span d_residual, od_span dgamma, od_span dbeta,
                         od_span dy, od_span y, od_span x, od_span saved, bool accumulate);

#endif
