#include "model/mlp.h"

#include <stdio.h>

#include "model/params.h"
#include "offdiag/ops/gemm.h"

static od_status create_layer(od_mlp_layer *l, const od_builder *b, const char *prefix, int index, bool last) {
    const od_net *net = b->net;
    od_status status = OD_OK;
    char linear[40], norm[40];
    size_t elements = (size_t)net->max_rows * l->out;
    snprintf(linear, sizeof linear, "%s.%d", prefix, 3 * index);
    snprintf(norm, sizeof norm, "%s.%d", prefix, 3 * index + 1);
    if ((status = od_param_add_linear(b->params, linear, ".weight", l->in, l->out, &l->w)) ||
        (l->bn && (status = od_bn_layer_create(&l->norm, b, norm, l->out, !last))))
        return status;
    if (!net->trained)
        return OD_OK;
    if ((status = od_span_create(net->device, elements, &l->u)) ||
        (l->bn && ((status = od_span_create(net->device, elements, &l->y)) ||
                   (status = od_span_create(net->device, elements, &l->d)))))
        return od_fail_in(status, "activations of %s for %d rows: ", linear, net->max_rows);
    return OD_OK;
}

od_status od_mlp_create(od_mlp *l, const od_builder *b, const char *prefix, int depth, int in, int hidden, int out,
                        bool out_bias, bool out_bn) {
    char bias[40];
    *l = (od_mlp){.out_bias = out_bias};
    if (depth < 1 || depth > OD_MLP_LAYERS)
        return od_fail(OD_ERR_ARGUMENT, "%s: %d layers; expected 1 to %d", prefix, depth, OD_MLP_LAYERS);
    l->depth = depth;
    for (int i = 0; i < depth; i++) {
        bool last = i == depth - 1;
        l->layer[i] =
            (od_mlp_layer){.in = i ? hidden : in, .out = last ? out : hidden, .bn = !last || out_bn, .relu = !last};
        od_status status = create_layer(&l->layer[i], b, prefix, i, last);
        if (status)
            return status;
    }
    snprintf(bias, sizeof bias, "%s.%d", prefix, 3 * (depth - 1));
    return out_bias ? od_param_add_vector(b->params, bias, ".bias", out, &l->bias) : OD_OK;
}

void od_mlp_destroy(od_mlp *l) {
    for (int i = 0; i < l->depth; i++) {
        od_buffer_release(l->layer[i].u.buffer);
        od_buffer_release(l->layer[i].y.buffer);
        od_buffer_release(l->layer[i].d.buffer);
        od_bn_layer_destroy(&l->layer[i].norm);
    }
    *l = (od_mlp){0};
}

/* Where a layer's result goes: the memory it keeps in TRAIN mode, else a buffer from the pool. */
static od_status activation(const od_net *net, od_mode mode, od_span *out, od_span kept, size_t elements) {
    if (mode == OD_MODE_TRAIN) {
        *out = kept;
        return OD_OK;
    }
    return od_span_create(net->device, elements, out);
}

static od_status layer_forward(const od_mlp_layer *l, const od_net *net, od_mode mode, od_span *y, od_span x,
                               od_span bias, int n) {
    size_t elements = (size_t)n * l->out;
    od_span u = OD_NO_SPAN, out = OD_NO_SPAN;
    od_status status = OD_OK;
    if ((status = activation(net, mode, &u, l->u, elements)) ||
        (l->bn && (status = activation(net, mode, &out, l->y, elements))) ||
        (status = od_linear_forward(net->device, u, x, od_span_at(net->value, l->w), bias, n, l->in, l->out)) ||
        (l->bn && (status = od_bn_layer_forward(&l->norm, net, mode, out, u, l->relu, n, 1))))
        goto out;
    *y = l->bn ? out : u;
out:
    if (l->bn || status)
        od_activation_drop(mode, u);
    if (status)
        od_activation_drop(mode, out);
    return status;
}

od_status od_mlp_forward(od_mlp *l, const od_net *net, od_mode mode, od_span *y, od_span x, int n) {
    od_span in = x, out = OD_NO_SPAN;
    for (int i = 0; i < l->depth; i++) {
        bool bias = l->out_bias && i == l->depth - 1;
        od_status status =
            layer_forward(&l->layer[i], net, mode, &out, in, bias ? od_span_at(net->value, l->bias) : OD_NO_SPAN, n);
        if (i > 0)
            od_activation_drop(mode, in);
        if (status)
            return status;
        in = out;
    }
    *y = out;
    return OD_OK;
}

od_status od_mlp_backward(od_mlp *l, const od_net *net, od_span dx, od_span dy, od_span x, int n, bool accumulate) {
    for (int i = l->depth - 1; i >= 0; i--) {
        od_mlp_layer *k = &l->layer[i];
        od_span in = i ? k[-1].y : x, din = i ? k[-1].d : dx, du = dy;
        od_span dbias = l->out_bias && i == l->depth - 1 ? od_span_at(net->grad, l->bias) : OD_NO_SPAN;
        od_status status = OD_OK;
        if (k->bn) {
            du = k->d;
            if ((status =
                     od_bn_layer_backward(&k->norm, net, du, OD_NO_SPAN, dy, k->y, k->u, k->relu, n, 1, accumulate)))
                return status;
        }
        if ((status = od_linear_backward(net->device, din, od_span_at(net->grad, k->w), dbias, du, in,
                                         od_span_at(net->value, k->w), n, k->in, k->out, accumulate)))
            return status;
        dy = din;
    }
    return OD_OK;
}
