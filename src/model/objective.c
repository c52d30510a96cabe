#include "model/objective.h"

#include "model/batch_norm.h"
#include "offdiag/ops/loss.h"
#include "offdiag/ops/pointwise.h"

const char *const od_out_norm_names[] = {"auto", "none", "bn", "l2", NULL};

static const float bn_eps = 1e-5f, l2_eps = 1e-8f;

static od_out_norm norm_of(const od_model_config *c) {
    if (c->out_norm != OD_OUT_AUTO)
        return c->out_norm;
    return c->loss == OD_LOSS_NORMALIZED ? OD_OUT_BN : OD_OUT_NONE;
}

od_status od_objective_create(od_objective *o, od_device *device, const od_model_config *c, int max_rows) {
    size_t d = c->proj_dim, elements = max_rows * d;
    *o = (od_objective){
        .device = device, .loss = c->loss, .norm = norm_of(c), .one_sided = c->one_sided, .d = c->proj_dim};
    bool normalized = o->norm != OD_OUT_NONE, bn = o->norm == OD_OUT_BN;
    struct {
        od_span *span;
        size_t elements;
    } wanted[] = {{&o->p_hat, normalized ? elements : 0},
                  {&o->t_hat, normalized ? elements : 0},
                  {&o->p_saved, bn ? 2 * OD_BN_SAVED * d : 0},
                  {&o->t_saved, bn ? 2 * OD_BN_SAVED * d : 0},
                  {&o->dt, c->target_gradient ? elements : 0}};
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        od_status status = wanted[i].elements ? od_span_create(device, wanted[i].elements, wanted[i].span) : OD_OK;
        if (status)
            return status;
    }
    return OD_OK;
}

void od_objective_destroy(od_objective *o) {
    od_span owned[] = {o->p_hat, o->t_hat, o->p_saved, o->t_saved, o->dt};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        od_buffer_release(owned[i].buffer);
    *o = (od_objective){0};
}

/* y (2n, d) from x; batch norm has neither affine nor running statistics, each view its own. */
static od_status normalize(const od_objective *o, od_span y, od_span saved, od_span x, int n) {
    const od_bn_shape shape = {.groups = 2, .rows = n, .c = o->d, .eps = bn_eps};
    const od_bn_params params = {0};
    if (o->norm == OD_OUT_L2)
        return od_l2_normalize(o->device, y, x, 2 * n, o->d, l2_eps);
    od_status status = od_bn_all_statistics(o->device, o->member, &shape, &params, saved, x);
    return status ? status : od_bn_apply(o->device, &shape, NULL, y, x, saved);
}

/* dx (2n, d), in place, from the gradient at y. */
static od_status normalize_backward(const od_objective *o, od_span dx, od_span saved, od_span x, int n) {
    const od_bn_shape shape = {.groups = 2, .rows = n, .c = o->d, .eps = bn_eps};
    const od_bn_fuse fuse = {0};
    if (o->norm == OD_OUT_L2)
        return od_l2_normalize_backward(o->device, dx, dx, x, 2 * n, o->d, l2_eps);
    return od_bn_all_backward(o->device, o->member, &shape, &fuse, dx, OD_NO_SPAN, OD_NO_SPAN, OD_NO_SPAN, dx,
                              OD_NO_SPAN, x, saved, false);
}

/* The distance itself: symmetrised, or of view 1's outputs from view 2's targets alone. */
static od_status pairs(const od_objective *o, od_span loss, od_span dp, od_span p, od_span target, int n, float scale,
                       bool accumulate) {
    od_span dt = o->dt;
    size_t view = (size_t)n * o->d;
    int rows = 2 * n, shift = n;
    od_status status = OD_OK;
    if (o->one_sided) {
        rows = n;
        shift = 0;
        target = od_span_at(target, view);
        if ((status = od_span_zero(od_span_at(dp, view), view)) || (dt.buffer && (status = od_span_zero(dt, view))))
            return status;
        dt = dt.buffer ? od_span_at(dt, view) : dt;
    }
    if (o->loss == OD_LOSS_COSINE)
        return od_cosine_loss(o->device, loss, dp, dt, p, target, rows, o->d, shift, scale, accumulate);
    /* |p - t|^2 of unit vectors, 2 - 2 cos, is the sum over coordinates (BYOL), else the mean */
    float per_row = o->norm == OD_OUT_L2 ? (float)o->d : 1.0f;
    return od_squared_error(o->device, loss, dp, dt, p, target, rows, o->d, shift, scale * per_row, accumulate);
}

od_status od_objective_run(od_objective *o, od_span loss, od_span dp, od_span p, od_span target, int n, float scale,
                           bool accumulate) {
    od_status status = OD_OK;
    if (o->norm == OD_OUT_NONE)
        return pairs(o, loss, dp, p, target, n, scale, accumulate);
    if ((status = normalize(o, o->p_hat, o->p_saved, p, n)) ||
        (status = normalize(o, o->t_hat, o->t_saved, target, n)) ||
        (status = pairs(o, loss, dp, o->p_hat, o->t_hat, n, scale, accumulate)) ||
        (status = normalize_backward(o, dp, o->p_saved, p, n)) || !o->dt.buffer)
        return status;
    return normalize_backward(o, o->dt, o->t_saved, target, n);
}
