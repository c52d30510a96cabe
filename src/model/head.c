#include "model/head.h"

#include <stdlib.h>
#include <string.h>

#include "model/directpred.h"
#include "model/params.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/head.h"
#include "offdiag/ops/pointwise.h"

const char *const od_head_names[] = {"none", "offdiag", "linear", "mlp", "directpred", NULL};

const char *od_head_name(od_head_kind head) {
    return od_head_names[head];
}

bool od_head_parse(const char *text, od_head_kind *out) {
    for (int i = 0; od_head_names[i]; i++)
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
    if (kind == OD_HEAD_DIRECTPRED) {
        if ((status = od_param_add_linear(b->stats, "predictor", ".W", d, d, &h->w_at)) ||
            (status = od_param_add_linear(b->stats, "predictor", ".correlation", d, d, &h->f_at)) || !net->device ||
            (status = od_span_create(net->device, (size_t)d * d, &h->sum)))
            return status;
        return od_span_create(net->device, (size_t)net->max_rows * d, &h->p);
    }
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
    od_buffer_release(h->sum.buffer);
    *h = (od_head){0};
}

od_status od_head_update(od_head *h, const od_net *net) {
    od_span v = od_span_at(net->value, h->v);
    if (h->kind == OD_HEAD_OFFDIAG)
        return od_offdiag_weight(net->device, h->w, v, h->d);
    if (h->kind == OD_HEAD_LINEAR)
        h->w = v;
    if (h->kind == OD_HEAD_DIRECTPRED)
        h->w = od_span_at(net->stats, h->w_at);
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
    case OD_HEAD_DIRECTPRED:
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
    if (h->kind == OD_HEAD_DIRECTPRED) {
        const od_gemm_shape square = {.trans_a = true, .m = h->d, .n = h->d, .k = n};
        h->rows = accumulate ? h->rows + n : n;
        od_status failed = od_gemm(net->device, &square, h->sum, z, z, 1, accumulate ? 1 : 0);
        return failed ? failed
                      : od_linear_backward(net->device, dz_memory, OD_NO_SPAN, OD_NO_SPAN, dp, z, h->w, n, h->d, h->d,
                                           false);
    }
    od_span dw = od_span_at(net->grad, h->v);
    od_status status =
        od_linear_backward(net->device, dz_memory, dw, OD_NO_SPAN, dp, z, h->w, n, h->d, h->d, accumulate);
    if (!status && h->kind == OD_HEAD_OFFDIAG)
        status = od_offdiag_mask(net->device, dw, h->d);
    return status;
}

/* DirectPred: h->sum (d, d) of the rows here becomes that of all members' rows. */
static od_status sum_of_all(od_head *h, const od_net *net, double *rows) {
    const size_t n = (size_t)h->d * h->d;
    *rows = h->rows;
    if (!net->member)
        return OD_OK;
    float *host = malloc(n * sizeof *host);
    double *sums = malloc((n + 1) * sizeof *sums);
    od_status status =
        host && sums ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for correlations of %d projections", h->d);
    if (status || (status = od_span_read(h->sum, host, n)))
        goto out;
    for (size_t i = 0; i < n; i++)
        sums[i] = host[i];
    sums[n] = h->rows;
    if ((status = od_member_sum(net->member, sums, n + 1)))
        goto out;
    for (size_t i = 0; i < n; i++)
        host[i] = (float)sums[i];
    *rows = sums[n];
    status = od_span_write(h->sum, host, n);
out:
    free(host);
    free(sums);
    return status;
}

od_status od_head_follow(od_head *h, const od_net *net, const od_model_config *c, uint64_t step) {
    size_t n = (size_t)h->d * h->d;
    double rows = 0;
    od_status status = OD_OK;
    if (h->kind != OD_HEAD_DIRECTPRED || !h->rows)
        return OD_OK;
    od_span f = od_span_at(net->stats, h->f_at);
    float keep = step ? c->directpred_rho : 0, *host = NULL;
    if ((status = sum_of_all(h, net, &rows)) ||
        (status = step ? od_scale(net->device, f, keep, n) : od_span_zero(f, n)) ||
        (status = od_axpy(net->device, f, (1 - keep) / (float)rows, h->sum, n)) ||
        step % (uint64_t)(c->directpred_every > 0 ? c->directpred_every : 1))
        return status;
    if (!(host = malloc(2 * n * sizeof *host)))
        return od_fail(OD_ERR_MEMORY, "no memory for a %dx%d head", h->d, h->d);
    if (!(status = od_span_read(f, host, n)) &&
        !(status = od_directpred_weight(host + n, host, h->d, c->directpred_eps)))
        status = od_span_write(h->w, host + n, n);
    free(host);
    return status;
}
