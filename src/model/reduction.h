/* The gradients' sum over all members, which begins while the backward pass goes on: it writes the gradient arena from
 * its end downwards, and what is done is read in pieces and given to the team. */
#ifndef MODEL_REDUCTION_H
#define MODEL_REDUCTION_H

#include "dist/team.h"
#include "offdiag/device.h"

typedef struct od_reduction {
    od_member *member;
    od_pinned *host;
    float *values;  /* (count) on the host */
    size_t count;   /* of the arena */
    bool final;     /* this pass's gradients are the step's */
    size_t started; /* gradients from here up are on their way to the host */
    size_t given;   /* and from here up with the team; given >= started */
    od_mark *mark;  /* passed when those between are there */
} od_reduction;

od_status od_reduction_create(od_reduction *r, od_device *device, od_member *member, size_t count);
void od_reduction_destroy(od_reduction *r);

/* A pass begins; with `final` its gradients are what the step's come to. */
void od_reduction_begin(od_reduction *r, bool final);
/* All gradients (grad, the arena) from `from` up are made, or queued to be. r may be NULL. */
od_status od_reduction_advance(od_reduction *r, od_device *device, od_span grad, size_t from);
/* The arena gets the sums. Waits for all members. */
od_status od_reduction_finish(od_reduction *r, od_device *device, od_span grad);

#endif
