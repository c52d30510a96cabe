/* The inside of od_model. */
#ifndef MODEL_INTERNAL_H
#define MODEL_INTERNAL_H

#include "model/encoder.h"
#include "model/head.h"
#include "model/mlp.h"
#include "model/objective.h"
#include "offdiag/ops/optim.h"

/* Encoder and projector: what online and target have in common. */
typedef struct od_branch {
    od_net net;
    od_encoder encoder;
    od_mlp projector;
} od_branch;

struct od_model {
    od_device *device;
    od_model_config config;
    int max_n;
    od_param_table params, stats;
    size_t projector_offset, head_offset;
    od_reduction reduction; /* with a team */
    od_model_arenas arenas;
    od_arena arena; /* of activations */
    od_branch online;
    od_branch target; /* BYOL */
    od_head head;
    od_objective objective;
    od_lars *lars[2]; /* LARS: encoder and projector; head, where it has tensors */

    /* the step's own tensors, rows = 2 max_n */
    od_span h, z, p;    /* of the last step: (rows, F), (rows, d), (rows, d); kept by the layers */
    od_span dp, dz, dh; /* gradients (rows, d), (rows, d), (rows, F) */
};

/* The optimiser's state beside the momentum; after the arenas. */
od_status od_optimizer_create(od_model *model);
void od_optimizer_destroy(od_model *model);

#endif
