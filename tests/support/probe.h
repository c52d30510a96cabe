/* A small model with its images, whose loss can be asked for at other weights. */
#ifndef TEST_PROBE_H
#define TEST_PROBE_H

#include "harness.h"
#include "offdiag/model.h"

typedef struct od_probe {
    od_model *model;
    od_span loss, x;
    int n;
    size_t count; /* elements of the parameter arena */
} od_probe;

/* images (2n, S, S, 4): both views; the fourth channel is set to 0. */
od_probe od_probe_create(od_device *device, const od_model_config *config, int n, float *images);
void od_probe_destroy(od_probe *p);

/* One pass of gradients, without or with an update behind it. */
void od_probe_step(od_probe *p);
void od_probe_update(od_probe *p);

/* The loss with other parameters, as od_compare_gradient wants it; context: an od_probe. */
od_status od_probe_loss(void *context, const double *w, size_t elements, double *loss);
/* The gradient after a first update, which moves BYOL's online network away from its target, by differences of the
 * loss; and one that is 10 % too long must not pass. */
void od_probe_check_gradient(od_cases *cases, od_probe *p, double tolerance);

float *od_span_to_host(od_span s, size_t count); /* malloc'd */

#endif
