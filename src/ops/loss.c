/* Losses: a kernel writes row values and gradients, a second one adds the values up; nothing waits for the device. */
#include "offdiag/ops/loss.h"

#include "ops/reduce.h"
#include "ops/team.h"

/* The two losses between rows of p and of the target: row values become loss = value_factor * sum. */
static od_status pair_loss(od_device *device, const char *name, od_span loss, od_span dp, od_span dt, od_span p,
                           od_span target, int rows, int d, int shift, float gradient_factor, float value_factor,
                           bool accumulate) {
    /* Rows of an odd width are not aligned. */
    od_team team = OD_TEAM_OF(device, name, dp, dt, p, target, (od_span){NULL, (size_t)d});
    team.work = (od_work){10.0 * rows * d, 12.0 * rows * d}; /* operations: about */
    int partner = (shift % rows + rows) % rows;
    od_span values; // (rows)
    od_status status = od_span_create(device, (size_t)rows, &values);
    if (status)
        return status;
    status = OD_TEAM_LAUNCH(device, &team, "rows", name, (size_t)rows, OD_SPAN(values), OD_SPAN(dp), OD_SPAN(dt),
                            OD_SPAN(p), OD_SPAN(target), OD_U32((uint32_t)rows), OD_U32((uint32_t)d),
                            OD_U32((uint32_t)partner), OD_F32(gradient_factor), OD_I32(dt.buffer != NULL));
    if (!status)
        status = od_sum_partials(device, loss, values, (size_t)rows, value_factor, accumulate);
    od_buffer_release(values.buffer);
    return status;
}

od_status od_cosine_loss(od_device *device, od_span loss, od_span dp, od_span dt, od_span p, od_span target, int rows,
                         int d, int shift, float scale, bool accumulate) {
    if (rows <= 0 || d <= 0)
        return od_fail(OD_ERR_ARGUMENT, "cosine loss of %d rows of %d", rows, d);
    float factor = -scale / (float)rows;
    return pair_loss(device, "cosine", loss, dp, dt, p, target, rows, d, shift, factor, factor, accumulate);
}

od_status od_squared_error(od_device *device, od_span loss, od_span dp, od_span dt, od_span p, od_span target, int rows,
                           int d, int shift, float scale, bool accumulate) {
    if (rows <= 0 || d <= 0)
        return od_fail(OD_ERR_ARGUMENT, "squared error of %d rows of %d", rows, d);
    float factor = (float)((double)scale / ((double)rows * d));
    return pair_loss(device, "squared_error", loss, dp, dt, p, target, rows, d, shift, 2.0f * factor, factor,
                     accumulate);
}

od_status od_softmax_cross_entropy(od_device *device, od_span loss, od_span correct, od_span dlogits, od_span logits,
                                   od_buffer *labels, size_t labels_offset, int rows, int classes, float scale,
                                   bool accumulate) {
    if (rows <= 0 || classes <= 0)
        return od_fail(OD_ERR_ARGUMENT, "cross-entropy of %d rows of %d classes", rows, classes);
    od_team team = od_team_scalar(device, "cross_entropy");
    float factor = scale / (float)rows;
    od_span values; // (2, rows): losses, hits
    od_status status = od_span_create(device, 2 * (size_t)rows, &values);
    if (status)
        return status;
    od_span hits = od_span_at(values, (size_t)rows);
    status = OD_TEAM_LAUNCH(device, &team, "rows", "cross_entropy", (size_t)rows, OD_SPAN(values), OD_SPAN(hits),
                            OD_SPAN(dlogits), OD_SPAN(logits), OD_BUF(labels), OD_U64(labels_offset),
                            OD_U32((uint32_t)classes), OD_F32(factor), OD_I32(dlogits.buffer != NULL));
    if (!status)
        status = od_sum_partials(device, loss, values, (size_t)rows, factor, accumulate);
    if (!status && correct.buffer)
        status = od_sum_partials(device, correct, hits, (size_t)rows, 1.0f, false);
    od_buffer_release(values.buffer);
    return status;
}
