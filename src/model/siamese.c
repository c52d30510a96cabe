/* One training step of a Siamese network without negatives (SimSiam: Chen & He 2021; BYOL: Grill et al. 2020), forward
 * and backward, and the network in evaluation mode. Rows 0..n-1 are view 1, rows n..2n-1 view 2. */
#include "model/internal.h"
#include "offdiag/ops/pointwise.h"

/* z (rows, d) = projector(encoder(x)); *h (rows, F) is dropped when NULL. */
static od_status branch_forward(od_branch *branch, od_mode mode, od_span *z, od_span *h, od_span x, int rows) {
    od_span features = OD_NO_SPAN;
    od_status status = od_encoder_forward(&branch->encoder, &branch->net, mode, &features, x, rows);
    if (status)
        return status;
    status = od_mlp_forward(&branch->projector, &branch->net, mode, z, features, rows);
    if (h)
        *h = features;
    else
        od_activation_drop(mode, features);
    return status;
}

/* *target (2n, d): what the other view is to predict; not the model's own only with BYOL, then from the pool. The
 * target branch runs first: the online branch's activations take the place of its own. */
static od_status forward(od_model *m, od_span *target, od_span x, int rows) {
    od_branch *online = &m->online;
    const bool byol = m->config.method == OD_BYOL;
    od_status status = OD_OK;
    /* x (2n, S, S, 4) -> h (2n, F) -> z (2n, d) -> p (2n, d) */
    if ((byol && (status = branch_forward(&m->target, OD_MODE_TARGET, target, NULL, x, rows))) ||
        (status = branch_forward(online, OD_MODE_TRAIN, &m->z, &m->h, x, rows)) ||
        (status = od_head_forward(&m->head, &online->net, &m->p, m->z, rows)))
        return status;
    if (!byol)
        *target = m->z;
    return OD_OK;
}

od_status od_model_step(od_model *m, od_span loss, od_span x, int n, float scale, bool accumulate) {
    od_branch *online = &m->online;
    int rows = 2 * n;
    od_span target = OD_NO_SPAN, dz = OD_NO_SPAN;
    const int least = online->net.member ? 1 : 2;
    if (n < least || n > m->max_n)
        return od_fail(OD_ERR_ARGUMENT, "a step with %d images; the model was built for %d to %d", n, least, m->max_n);
    od_status status = forward(m, &target, x, rows);

    /* loss between p of one view and t of the other; its gradient dp (2n, d); stop-gradient at t, or else
     * the gradient there, which joins that of z */
    if (!status)
        status = od_objective_run(&m->objective, loss, m->dp, m->p, target, n, scale, accumulate);
    if (m->config.method == OD_BYOL)
        od_buffer_release(target.buffer);

    /* backward: dp -> dz -> dh -> every weight */
    if (status || (status = od_head_backward(&m->head, &online->net, &dz, m->dz, m->dp, m->z, rows, accumulate)) ||
        (status = od_reduction_advance(online->net.reduction, m->device, online->net.grad, m->head_offset)) ||
        (m->objective.dt.buffer &&
         (status = od_axpy(m->device, dz, 1, m->objective.dt, (size_t)rows * m->config.proj_dim))) ||
        (status = od_mlp_backward(&online->projector, &online->net, m->dh, dz, m->h, rows, accumulate)) ||
        (status = od_reduction_advance(online->net.reduction, m->device, online->net.grad, m->projector_offset)))
        return status;
    return od_encoder_backward(&online->encoder, &online->net, m->dh, rows, accumulate);
}

/* Of as many images as the activations have room for. */
static od_status some_features(od_model *m, od_span features, od_span z, od_span x, int n) {
    od_branch *online = &m->online;
    od_span h = OD_NO_SPAN, out = OD_NO_SPAN;
    od_status status = od_encoder_forward(&online->encoder, &online->net, OD_MODE_INFER, &h, x, n);
    if (status)
        return status;
    if ((status = od_span_copy(features, h, (size_t)n * online->encoder.c)) || !z.buffer)
        goto out;
    if ((status = od_mlp_forward(&online->projector, &online->net, OD_MODE_INFER, &out, h, n)))
        goto out;
    status = od_span_copy(z, out, (size_t)n * m->config.proj_dim);
out:
    od_buffer_release(h.buffer);
    od_buffer_release(out.buffer);
    return status;
}

od_status od_model_features(od_model *m, od_span features, od_span z, od_span x, int n) {
    const int most = m->online.net.max_rows;
    const size_t image = (size_t)m->config.image_size * m->config.image_size * 4;
    od_status status = OD_OK;
    for (int first = 0; first < n && !status; first += most) {
        const od_span z_part = z.buffer ? od_span_at(z, (size_t)first * m->config.proj_dim) : OD_NO_SPAN;
        status = some_features(m, od_span_at(features, (size_t)first * m->online.encoder.c), z_part,
                               od_span_at(x, first * image), n - first < most ? n - first : most);
    }
    return status;
}
