/* Convolution in double precision from its definition: the backward passes scatter the terms of the forward sum. */
#ifndef REFERENCE_CONV_REF_H
#define REFERENCE_CONV_REF_H

#include "offdiag/ops/conv.h"

/* y (n, h_out, w_out, c_out) from x (n, h, w, c_in), w (kernel_h, kernel_w, c_in, c_out) */
void conv_ref_forward(double *y, const float *x, const float *w, const od_conv_shape *shape, int n);
/* dx (n, h, w, c_in) */
void conv_ref_backward_data(double *dx, const float *dy, const float *w, const od_conv_shape *shape, int n);
/* dw (kernel_h, kernel_w, c_in, c_out) += gradient */
void conv_ref_backward_weight(double *dw, const float *x, const float *dy, const od_conv_shape *shape, int n);

#endif
