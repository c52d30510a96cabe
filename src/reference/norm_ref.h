/* Batch normalisation in double precision, from its definition. All tensors are (groups, rows, c) or (c). */
#ifndef REFERENCE_NORM_REF_H
#define REFERENCE_NORM_REF_H

#include "offdiag/ops/norm.h"

/* The inputs; gamma, beta, residual may be NULL. */
typedef struct norm_ref_input {
    const float *x, *gamma, *beta, *residual;
    bool relu;
} norm_ref_input;

/* y (groups, rows, c), mean and rstd (groups, c); running (c) each updated in place, or NULL */
void norm_ref_forward(double *y, double *mean, double *rstd, double *running_mean, double *running_var,
                      const od_bn_shape *shape, const norm_ref_input *in, double momentum);
/* The statistics given, one set for all rows. */
void norm_ref_inference(double *y, const od_bn_shape *shape, const norm_ref_input *in, const float *mean,
                        const float *var);
/* g (groups, rows, c): dy behind the ReLU of the given y; dx through the full Jacobian of the normalisation; dgamma and
 * dbeta (c) are added to. */
void norm_ref_backward(double *dx, double *g, double *dgamma, double *dbeta, const od_bn_shape *shape,
                       const norm_ref_input *in, const float *dy, const float *y);

#endif
