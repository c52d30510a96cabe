#include "model/head.h"

#include <string.h>

#include "model/params.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/head.h"

const char *const od_head_names[] = {"none", "offdiag", "linear", "mlp", NULL};

const char *od_head_name(od_head_kind head) {
    return od_head_names[head];
}

bool od_head_parse(const char *text, od_head_kind *out) {
    for (int i = 0; i < 4; i++)
        if (strcmp(text, od_head_names[i]) == 0) {
            *out = (od_head_kind)i;
            return true;
        }
    return false;
}

od_status od_head_create(od_head *h, const od_builder *b, od_head_kind kind, int d, int hidden) {
    const od_net *net = b->net;
    od_status status = OD_OK;
    *h = (od_head){.kind = kind, .d = d};
    if (kind == OD_HEAD_NONE)
        return OD_OK;
    if (kind == OD_HEAD_MLP)
        return od_mlp_create(&h->mlp, b, "predictor", 2, d, hidden, d, true, false);
    const char *suffix = kind == OD_HEAD_OFFDIAG ? ".V" : ".weight";
    if ((status = od_param_add_linear(b->params, "predictor", suffix, d, d, &h->v)))
        return status;
    if (!net->device)
        return OD_OK;
    if (kind == OD_HEAD_OFFDIAG && (status = od_span_create(net->device, (size_t)d * d, &h->w)))
        return status;
    return od_span_create(net->device, (size_t)net->max_rows * d, &h->p);
}

void od_head_destroy(od_head *h) {
    if (h->kind == OD_HEAD_OFFDIAG)
        od_buffer_release(h->w.buffer);
    od_mlp_destroy(&h->mlp);
    od_buffer_release(h->p.buffer);
    *h = (od_head){0};
}

od_status od_head_update(od_head *h, const od_net *net) {
    od_span v = od_span_at(net->value, h->v);
    if (h->kind == OD_HEAD_OFFDIAG)
        return od_offdiag_weight(net->device, h->w, v, h->d);
    if (h->kind == OD_HEAD_LINEAR)
        h->w = v;
    return OD_OK;
}

od_status od_head_forward(od_head *h, const od_net *net, od_span *p, od_span z, int n) {
    switch (h->kind) {
    case OD_HEAD_NONE:
        *p = z;
        return OD_OK;
    case OD_HEAD_MLP:
        return od_mlp_forward(&h->mlp, net, OD_MODE_TRAIN, p, z, n);
    case OD_HEAD_OFFDIAG:
    case OD_HEAD_LINEAR:
        break;
    }
    *p = h->p;
    return od_linear_forward(net->device, h->p, z, h->w, OD_NO_SPAN, n, h->d, h->d);
}

/* Gradient of V from that of W: the diagonal is fixed. Masking the sum is the sum of the masked, so accumulation holds.
 */
od_status od_head_backward(od_head *h, const od_net *net, od_span *dz, od_span dz_memory, od_span dp, od_span z, int n,
                           bool accumulate) {
    if (h->kind == OD_HEAD_NONE) {
        *dz = dp;
        return OD_OK;
    }
    *dz = dz_memory;
    if (h->kind == OD_HEAD_MLP)
        return od_mlp_backward(&h->mlp, net, dz_memory, dp, z, n, accumulate);
    od_span dw = od_span_at(net->grad, h->v);
    od_status status =
        od_linear_backward(net->device, dz_memory, dw, OD_NO_SPAN, dp, z, h->w, n, h->d, h->d, accumulate);
    if (!status && h->kind == OD_HEAD_OFFDIAG)
        status = od_offdiag_mask(net->device, dw, h->d);
    return status;
}
