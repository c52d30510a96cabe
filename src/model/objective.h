/* What is minimised: the distance of the head's outputs of one view from the other view's targets, after normalisation.
 */
#ifndef MODEL_OBJECTIVE_H
#define MODEL_OBJECTIVE_H

#include "dist/team.h"
#include "offdiag/model.h"

typedef struct od_objective {
    od_device *device;
    od_member *member; /* its batch norm counts all members' rows; NULL: alone */
    od_loss_kind loss;
    od_out_norm norm; /* not AUTO */
    bool one_sided;
    int d;
    od_span p_hat, t_hat;     /* normalised outputs and targets (rows, d); without normalisation unused */
    od_span p_saved, t_saved; /* BN: their statistics (2, 4, d) */
    od_span dt;               /* (rows, d) gradient at the targets; with stop-gradient unused */
} od_objective;

od_status od_objective_create(od_objective *o, od_device *device, const od_model_config *config, int max_rows);
void od_objective_destroy(od_objective *o);

/* loss[0] and dp (2n, d), and o->dt without stop-gradient, of outputs p (2n, d) and targets (2n, d): as od_model_step.
 */
od_status od_objective_run(od_objective *o, od_span loss, od_span dp, od_span p, od_span target, int n, float scale,
                           bool accumulate);

#endif
