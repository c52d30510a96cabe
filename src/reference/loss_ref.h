/* Losses and their gradients in double precision, from their definitions. */
#ifndef REFERENCE_LOSS_REF_H
#define REFERENCE_LOSS_REF_H

#include <stdint.h>

/* Return the loss; dp, dt (rows, d) are set, or NULL. Row i goes with target row (i + shift) mod rows. */
double loss_ref_cosine(double *dp, double *dt, const float *p, const float *target, int rows, int d, int shift,
                       double scale);
double loss_ref_squared(double *dp, double *dt, const float *p, const float *target, int rows, int d, int shift,
                        double scale);
/* dlogits (rows, classes) or NULL; *correct: rows whose first largest logit is the label. */
double loss_ref_cross_entropy(double *dlogits, double *correct, const float *logits, const int32_t *labels, int rows,
                              int classes, double scale);

#endif
