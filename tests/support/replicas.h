/* One model on several devices: replicas with parts of a batch beside one model that has all of it. */
#ifndef TEST_REPLICAS_H
#define TEST_REPLICAS_H

#include "offdiag/model.h"

enum { REPLICA_IMAGES = 32, REPLICA_SIDE_MOST = 16, REPLICAS_MOST = 3 };

/* An arena of the model, on the host. */
typedef struct replica_arena {
    float *values;
    od_param *rows; /* its tensors */
    size_t count;
} replica_arena;

/* What steps came to. */
typedef struct replica_outcome {
    double loss;                              /* of the last step */
    replica_arena grad, value, stats, target; /* target: BYOL's statistics; no tensors without it */
} replica_outcome;
void replica_outcome_free(replica_outcome *o);

typedef struct replica_split {
    const char *name;
    int shares[REPLICAS_MOST], members, parts; /* parts: passes of a step */
} replica_split;
extern const replica_split replica_splits[];
extern const size_t replica_split_count;

/* Each method with heads, losses and optimisers: every head with SimSiam and with BYOL is among the first
 * `replica_method_count`. */
extern const size_t replica_method_count;
const char *replica_method_name(size_t method);
od_model_config replica_config(size_t method, const char *encoder, int side);

/* Steps on the same images (drawn once, the same in every run), on one device or on several together. All members'
 * outcomes must agree: in their bits where the devices have the same driver and kernels. */
replica_outcome replica_alone(od_device *device, const od_model_config *config, int parts, int steps);
replica_outcome replica_team(od_device *const *devices, const od_model_config *config, const replica_split *split,
                             int steps);

/* Fails where the loss or an arena differs by `most` of its size or more, or one tensor by five times that. A tensor a
 * hundred times smaller than its arena's others is held to a hundredth of theirs: a gradient that is zero but for
 * rounding has no size of its own. Returns the largest of all these. */
double replica_compare(const char *name, const char *split, const replica_outcome *a, const replica_outcome *b,
                       double most);
/* ||a - b|| / ||b|| of whole arenas. */
double replica_distance(const replica_arena *a, const replica_arena *b);

#endif
