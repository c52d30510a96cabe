/* Steps of the optimisers in double precision, from their definitions (offdiag/ops/optim.h). */
#ifndef REFERENCE_OPTIM_REF_H
#define REFERENCE_OPTIM_REF_H

#include <stdbool.h>
#include <stddef.h>

/* p, m, v, target, g are (n); v starts at 0. */
void optim_ref_sgd(double *p, double *m, const float *g, size_t n, double lr, double mu, double weight_decay);
void optim_ref_adam(double *p, double *m, double *v, const float *g, size_t n, double lr, const double betas[2],
                    double weight_decay, bool decoupled, int step);
/* One tensor. */
void optim_ref_lars(double *p, double *m, const float *g, size_t n, double lr, double mu, double weight_decay,
                    double eta, bool adapt, bool decay);
void optim_ref_average(double *target, const double *p, size_t n, double tau);

#endif
