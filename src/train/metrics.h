/* Collapse metrics: how many directions a batch of representations really uses. */
#ifndef TRAIN_METRICS_H
#define TRAIN_METRICS_H

#include <stddef.h>

#include "offdiag/status.h"

typedef struct od_collapse {
    double z_std; /* mean over coordinates of the std of z / |z|: 1/sqrt(d) when spread out, 0 when collapsed */
    double effective_rank;   /* exp(entropy of the normalised singular values of the centred matrix) */
    double participation;    /* (sum l)^2 / sum l^2 of the covariance's eigenvalues l */
    double mean_correlation; /* mean |Pearson correlation| over pairs of coordinates; constant coordinates left out */
} od_collapse;

/* z (rows, d) on the host. log_singular (min(rows, d)), natural logarithms in descending order, may be NULL; a singular
 * value of zero becomes log of the smallest normal double. A constant z has effective_rank and participation 1 and
 * correlation 0. NaN or infinity in z: OD_ERR_NUMERIC. */
od_status od_collapse_metrics(od_collapse *out, double *log_singular, const float *z, int rows, int d);

#endif
