#include "model/layers.h"

#include <stdio.h>

#include "model/params.h"
#include "offdiag/ops/gemm.h"

/* ---- batch norm ------------------------------------------------------------------------------------------------- */

od_status od_bn_layer_create(od_bn_layer *l, const od_builder *b, const char *prefix, int c, bool affine) {
    od_status status = OD_OK;
    *l = (od_bn_layer){.affine = affine, .c = c};
    if (affine) {
        if ((status = od_param_add_vector(b->params, prefix, ".weight", c, &l->gamma)) ||
            (status = od_param_add_vector(b->params, prefix, ".bias", c, &l->beta)))
            return status;
    }
    if ((status = od_param_add_vector(b->stats, prefix, ".running_mean", c, &l->mean)) ||
        (status = od_param_add_vector(b->stats, prefix, ".running_var", c, &l->var)))
        return status;
    return b->net->device ? od_span_create(b->net->device, (size_t)b->net->groups * OD_BN_SAVED * c, &l->saved) : OD_OK;
}

void od_bn_layer_destroy(od_bn_layer *l) {
    od_buffer_release(l->saved.buffer);
    l->saved = OD_NO_SPAN;
}

static od_bn_params bn_params(const od_bn_layer *l, const od_net *net) {
    return (od_bn_params){.gamma = l->affine ? od_span_at(net->value, l->gamma) : OD_NO_SPAN,
                          .beta = l->affine ? od_span_at(net->value, l->beta) : OD_NO_SPAN,
                          .running_mean = od_span_at(net->stats, l->mean),
                          .running_var = od_span_at(net->stats, l->var),
                          .momentum = 0.1f};
}

static od_bn_shape bn_shape(const od_bn_layer *l, const od_net *net, od_mode mode, int n, int pixels) {
    const int groups = mode == OD_MODE_INFER ? 1 : net->groups;
    return (od_bn_shape){.groups = groups, .rows = n / groups * pixels, .c = l->c, .eps = 1e-5f};
}

od_status od_bn_layer_forward(const od_bn_layer *l, const od_net *net, od_mode mode, od_span y, od_span x, bool relu,
                              int n, int pixels) {
    const od_bn_params params = bn_params(l, net);
    const od_bn_fuse fuse = {.relu = relu};
    const od_bn_shape shape = bn_shape(l, net, mode, n, pixels);
    if (mode == OD_MODE_INFER)
        return od_bn_inference(net->device, &shape, &params, &fuse, y, x);
    return od_bn_forward(net->device, &shape, &params, &fuse, y, l->saved, x);
}

od_status od_bn_layer_backward(const od_bn_layer *l, const od_net *net, od_span dx, od_span d_residual, od_span dy,
                               od_span y, od_span x, bool relu, int n, int pixels, bool accumulate) {
    const od_bn_fuse fuse = {.relu = relu};
    const od_bn_shape shape = bn_shape(l, net, OD_MODE_TRAIN, n, pixels);
    od_span dgamma = l->affine ? od_span_at(net->grad, l->gamma) : OD_NO_SPAN;
    od_span dbeta = l->affine ? od_span_at(net->grad, l->beta) : OD_NO_SPAN;
    return od_bn_backward(net->device, &shape, &fuse, dx, d_residual, dgamma, dbeta, dy, y, x, l->saved, accumulate);
}

/* ---- activations ------------------------------------------------------------------------------------------------ */

/* Where a layer's result goes: the memory it keeps in TRAIN mode, else a buffer from the pool. */
static od_status activation(const od_net *net, od_mode mode, od_span *out, od_span kept, size_t elements) {
    if (mode == OD_MODE_TRAIN) {
        *out = kept;
        return OD_OK;
    }
    return od_span_create(net->device, elements, out);
}

/* ---- convolution + BN ------------------------------------------------------------------------------------------- */

static int out_pixels(const od_conv_bn *l) {
    return od_conv_out_h(&l->shape) * od_conv_out_w(&l->shape);
}

size_t od_conv_bn_size(const od_conv_bn *l) {
    return (size_t)out_pixels(l) * l->shape.c_out;
}

od_status od_conv_bn_create(od_conv_bn *l, const od_builder *b, const od_conv_bn_spec *spec) {
    const od_net *net = b->net;
    od_status status = OD_OK;
    *l = (od_conv_bn){.shape = spec->shape, .relu = spec->relu};
    unsigned passes = OD_CONV_FORWARD;
    if (net->trained)
        passes |= OD_CONV_BACKWARD_WEIGHT | (spec->first ? 0 : OD_CONV_BACKWARD_DATA);
    if ((net->device && (status = od_conv_create(net->device, &spec->shape, passes, &l->conv))) ||
        (status = od_param_add_conv(b->params, spec->conv, ".weight", spec->shape.kernel_h, spec->shape.c_in,
                                    spec->c_stored, spec->shape.c_out, &l->w)))
        return status;
    return od_bn_layer_create(&l->bn, b, spec->bn, spec->shape.c_out, true);
}

void od_conv_bn_destroy(od_conv_bn *l) {
    od_conv_destroy(l->conv);
    od_bn_layer_destroy(&l->bn);
    *l = (od_conv_bn){0};
}

od_status od_conv_bn_update(od_conv_bn *l, const od_net *net) {
    return od_conv_set_weights(l->conv, od_span_at(net->value, l->w));
}

od_status od_conv_bn_forward(od_conv_bn *l, const od_net *net, od_mode mode, const od_conv_input *x, int n) {
    const od_span u = od_arena_span(net->arena, l->u);
    const od_bn_params params = bn_params(&l->bn, net);
    const od_bn_shape shape = bn_shape(&l->bn, net, mode, n, out_pixels(l));
    od_conv_stats stats = {.groups = net->groups};
    od_status status = od_conv_forward_fused(l->conv, u, x, n, mode == OD_MODE_INFER ? NULL : &stats);
    if (status)
        return status;
    if (mode == OD_MODE_INFER)
        return od_bn_running(net->device, &shape, &params, l->bn.saved);
    if (!stats.parts)
        return od_bn_statistics(net->device, &shape, &params, l->bn.saved, u);
    status = od_bn_finish(net->device, &shape, &params, l->bn.saved, stats.partial, stats.parts);
    od_buffer_release(stats.partial.buffer);
    return status;
}

od_conv_input od_conv_bn_output(const od_conv_bn *l, const od_net *net, od_mode mode) {
    return (od_conv_input){.x = od_arena_span(net->arena, l->u),
                           .affine = od_bn_affine(l->bn.saved, l->bn.c),
                           .stride = OD_BN_SAVED * (size_t)l->bn.c,
                           .groups = mode == OD_MODE_INFER ? 1 : net->groups};
}

od_status od_conv_bn_apply(const od_conv_bn *l, const od_net *net, od_mode mode, od_span y, od_span residual,
                           const od_conv_bn *other, int n) {
    const od_bn_shape shape = bn_shape(&l->bn, net, mode, n, out_pixels(l));
    od_bn_fuse fuse = {.relu = l->relu, .residual = residual};
    if (other) {
        fuse.residual = od_arena_span(net->arena, other->u);
        fuse.residual_saved = other->bn.saved;
        fuse.residual_relu = other->relu;
    }
    return od_bn_apply(net->device, &shape, &fuse, y, od_arena_span(net->arena, l->u), l->bn.saved);
}

od_status od_conv_bn_backward_norm(od_conv_bn *l, const od_net *net, od_span d_residual, od_span dy, od_span y, int n,
                                   bool accumulate) {
    const od_span u = od_arena_span(net->arena, l->u);
    return od_bn_layer_backward(&l->bn, net, u, d_residual, dy, y, u, l->relu, n, out_pixels(l), accumulate);
}

od_status od_conv_bn_backward_conv(od_conv_bn *l, const od_net *net, od_span dx, bool add, const od_conv_input *x,
                                   int n, bool accumulate) {
    const od_span du = od_arena_span(net->arena, l->u);
    od_status status = od_conv_backward_weight_fused(l->conv, od_span_at(net->grad, l->w), x, du, n, accumulate);
    if (status || !dx.buffer)
        return status;
    return add ? od_conv_backward_data_add(l->conv, dx, du, n) : od_conv_backward_data(l->conv, dx, du, n);
}

/* ---- two-layer perceptron --------------------------------------------------------------------------------------- */

enum { MLP_SPANS = 6 };

od_status od_mlp_create(od_mlp *l, const od_builder *b, const char *prefix, int in, int hidden, int out, bool out_bias,
                        bool out_bn) {
    const od_net *net = b->net;
    od_status status = OD_OK;
    char bn1[32], bn2[32];
    snprintf(bn1, sizeof bn1, "%s.1", prefix);
    snprintf(bn2, sizeof bn2, "%s.4", prefix);
    *l = (od_mlp){.in = in, .hidden = hidden, .out = out, .out_bias = out_bias, .out_bn = out_bn};
    if ((status = od_param_add_linear(b->params, prefix, ".0.weight", in, hidden, &l->w1)) ||
        (status = od_bn_layer_create(&l->bn1, b, bn1, hidden, true)) ||
        (status = od_param_add_linear(b->params, prefix, ".3.weight", hidden, out, &l->w2)))
        return status;
    if (out_bias && (status = od_param_add_vector(b->params, prefix, ".3.bias", out, &l->bias)))
        return status;
    if (out_bn && (status = od_bn_layer_create(&l->bn2, b, bn2, out, false)))
        return status;
    if (!net->trained)
        return OD_OK;
    size_t rows = net->max_rows;
    od_span *spans[MLP_SPANS] = {&l->u1, &l->y1, &l->d_hidden, &l->u2, &l->d_out, out_bn ? &l->y2 : NULL};
    for (size_t i = 0; i < MLP_SPANS; i++)
        if (spans[i] && (status = od_span_create(net->device, rows * (i < 3 ? hidden : out), spans[i])))
            return od_fail_in(status, "activations of %s for %zu rows: ", prefix, rows);
    return OD_OK;
}

void od_mlp_destroy(od_mlp *l) {
    od_span *spans[MLP_SPANS] = {&l->u1, &l->y1, &l->d_hidden, &l->u2, &l->d_out, &l->y2};
    for (size_t i = 0; i < MLP_SPANS; i++)
        od_buffer_release(spans[i]->buffer);
    od_bn_layer_destroy(&l->bn1);
    od_bn_layer_destroy(&l->bn2);
    *l = (od_mlp){0};
}

od_status od_mlp_forward(od_mlp *l, const od_net *net, od_mode mode, od_span *y, od_span x, int n) {
    od_device *device = net->device;
    od_span u1 = OD_NO_SPAN, y1 = OD_NO_SPAN, u2 = OD_NO_SPAN, y2 = OD_NO_SPAN;
    od_span w1 = od_span_at(net->value, l->w1), w2 = od_span_at(net->value, l->w2);
    od_span bias = l->out_bias ? od_span_at(net->value, l->bias) : OD_NO_SPAN;
    od_status status = OD_OK;
    if ((status = activation(net, mode, &u1, l->u1, (size_t)n * l->hidden)) ||
        (status = activation(net, mode, &y1, l->y1, (size_t)n * l->hidden)) ||
        (status = activation(net, mode, &u2, l->u2, (size_t)n * l->out)))
        goto out;
    if (l->out_bn && (status = activation(net, mode, &y2, l->y2, (size_t)n * l->out)))
        goto out;
    if ((status = od_linear_forward(device, u1, x, w1, OD_NO_SPAN, n, l->in, l->hidden)) ||
        (status = od_bn_layer_forward(&l->bn1, net, mode, y1, u1, true, n, 1)) ||
        (status = od_linear_forward(device, u2, y1, w2, bias, n, l->hidden, l->out)))
        goto out;
    if (l->out_bn)
        status = od_bn_layer_forward(&l->bn2, net, mode, y2, u2, false, n, 1);
out:
    od_activation_drop(mode, u1);
    od_activation_drop(mode, y1);
    if (l->out_bn)
        od_activation_drop(mode, u2);
    if (!status)
        *y = l->out_bn ? y2 : u2;
    else
        od_activation_drop(mode, l->out_bn ? y2 : u2);
    return status;
}

od_status od_mlp_backward(od_mlp *l, const od_net *net, od_span dx, od_span dy, od_span x, int n, bool accumulate) {
    od_device *device = net->device;
    od_span w1 = od_span_at(net->value, l->w1), w2 = od_span_at(net->value, l->w2);
    od_span dw1 = od_span_at(net->grad, l->w1), dw2 = od_span_at(net->grad, l->w2);
    od_span dbias = l->out_bias ? od_span_at(net->grad, l->bias) : OD_NO_SPAN;
    od_status status = OD_OK;
    od_span du2 = dy; /* (n, out) */
    if (l->out_bn) {
        du2 = l->d_out;
        if ((status = od_bn_layer_backward(&l->bn2, net, du2, OD_NO_SPAN, dy, l->y2, l->u2, false, n, 1, accumulate)))
            return status;
    }
    od_span dy1 = l->d_hidden; /* (n, hidden), turned into du1 in place */
    if ((status = od_linear_backward(device, dy1, dw2, dbias, du2, l->y1, w2, n, l->hidden, l->out, accumulate)) ||
        (status = od_bn_layer_backward(&l->bn1, net, dy1, OD_NO_SPAN, dy1, l->y1, l->u1, true, n, 1, accumulate)))
        return status;
    return od_linear_backward(device, dx, dw1, OD_NO_SPAN, dy1, x, w1, n, l->in, l->hidden, accumulate);
}
