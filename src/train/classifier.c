#include "train/classifier.h"

#include "model/params.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/loss.h"
#include "offdiag/ops/optim.h"

od_status od_classifier_create(od_classifier *c, od_device *device, int d, int classes, int rows) {
    od_status status = OD_OK;
    *c = (od_classifier){.device = device, .d = d, .classes = classes, .rows = rows};
    if ((status = od_param_add_linear(&c->table, "weight", "", d, classes, &c->w)) ||
        (status = od_param_add_vector(&c->table, "bias", "", classes, &c->bias)) ||
        (status = od_span_create(device, c->table.count, &c->param)) ||
        (status = od_span_create(device, c->table.count, &c->momentum)) ||
        (status = od_span_create(device, c->table.count, &c->grad)) ||
        (status = od_span_create(device, (size_t)rows * classes, &c->logits)) ||
        (status = od_span_create(device, (size_t)rows * classes, &c->dlogits)))
        return od_fail_in(status, "linear classifier of %d features: ", d);
    return od_classifier_reset(c);
}

void od_classifier_destroy(od_classifier *c) {
    od_span owned[] = {c->param, c->momentum, c->grad, c->logits, c->dlogits};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        od_buffer_release(owned[i].buffer);
    od_param_table_free(&c->table);
    *c = (od_classifier){0};
}

od_status od_classifier_reset(od_classifier *c) {
    od_status status = OD_OK;
    if ((status = od_span_zero(c->param, c->table.count)) || (status = od_span_zero(c->momentum, c->table.count)))
        return status;
    return od_span_zero(c->grad, c->table.count); /* what lies between the tensors takes steps too */
}

static od_status forward(od_classifier *c, od_span x, int rows) {
    if (rows > c->rows)
        return od_fail(OD_ERR_ARGUMENT, "%d rows for a classifier of %d", rows, c->rows);
    return od_linear_forward(c->device, c->logits, x, od_span_at(c->param, c->w), od_span_at(c->param, c->bias), rows,
                             c->d, c->classes);
}

od_status od_classifier_gradient(od_classifier *c, od_span loss, od_span correct, od_span x, od_buffer *labels,
                                 size_t labels_offset, int rows, float scale, bool accumulate) {
    od_status status = OD_OK;
    if ((status = forward(c, x, rows)) ||
        (status = od_softmax_cross_entropy(c->device, loss, correct, c->dlogits, c->logits, labels, labels_offset, rows,
                                           c->classes, scale, true)))
        return status;
    return od_linear_backward(c->device, OD_NO_SPAN, od_span_at(c->grad, c->w), od_span_at(c->grad, c->bias),
                              c->dlogits, x, od_span_at(c->param, c->w), rows, c->d, c->classes, accumulate);
}

od_status od_classifier_step(od_classifier *c, float lr, float momentum, float weight_decay) {
    const od_optim_range all = {.param = c->param, .momentum = c->momentum, .grad = c->grad, .count = c->table.count};
    return od_sgd_step(c->device, &all, lr, momentum, weight_decay);
}

od_status od_classifier_score(od_classifier *c, od_span loss, od_span correct, od_span x, od_buffer *labels, int rows) {
    od_status status = forward(c, x, rows);
    return status ? status
                  : od_softmax_cross_entropy(c->device, loss, correct, OD_NO_SPAN, c->logits, labels, 0, rows,
                                             c->classes, 1, false);
}
