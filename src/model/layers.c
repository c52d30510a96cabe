#include "model/layers.h"

#include <stdio.h>

#include "model/batch_norm.h"
#include "model/params.h"

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
    od_status status = od_bn_all_statistics(net->device, net->member, &shape, &params, l->saved, x);
    return status ? status : od_bn_apply(net->device, &shape, &fuse, y, x, l->saved);
}

od_status od_bn_layer_backward(const od_bn_layer *l, const od_net *net, od_span dx, od_span d_residual, od_span dy,
                               od_span y, od_span x, bool relu, int n, int pixels, bool accumulate) {
    const od_bn_fuse fuse = {.relu = relu};
    const od_bn_shape shape = bn_shape(l, net, OD_MODE_TRAIN, n, pixels);
    od_span dgamma = l->affine ? od_span_at(net->grad, l->gamma) : OD_NO_SPAN;
    od_span dbeta = l->affine ? od_span_at(net->grad, l->beta) : OD_NO_SPAN;
    return od_bn_all_backward(net->device, net->member, &shape, &fuse, dx, d_residual, dgamma, dbeta, dy, y, x,
                              l->saved, accumulate);
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
    od_buffer_release(l->grads.partial.buffer);
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
        return od_bn_all_statistics(net->device, net->member, &shape, &params, l->bn.saved, u);
    status = od_bn_all_finish(net->device, net->member, &shape, &params, l->bn.saved, stats.partial, stats.parts);
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

static void drop_grads(od_conv_bn *l) {
    od_buffer_release(l->grads.partial.buffer);
    l->grads = (od_conv_grads){0};
}

/* dy is behind the ReLU already, and its sums are there in parts. */
static od_status backward_from_parts(od_conv_bn *l, const od_net *net, od_span dy, int n, bool accumulate) {
    const od_bn_shape shape = bn_shape(&l->bn, net, OD_MODE_TRAIN, n, out_pixels(l));
    const od_span u = od_arena_span(net->arena, l->u);
    od_span sums = OD_NO_SPAN; // (groups, 2, C)
    int all_rows = 0;
    od_status status = od_span_create(net->device, (size_t)shape.groups * 2 * (size_t)shape.c, &sums);
    if (!status)
        status = od_bn_backward_finish(net->device, &shape, sums, od_span_at(net->grad, l->bn.gamma),
                                       od_span_at(net->grad, l->bn.beta), l->grads.partial, l->grads.parts, accumulate);
    if (!status)
        status = od_bn_all_sums(net->member, &shape, sums, &all_rows);
    if (!status)
        status = od_bn_backward_input(net->device, &shape, all_rows, NULL, u, OD_NO_SPAN, dy, OD_NO_SPAN, u,
                                      l->bn.saved, sums);
    od_buffer_release(sums.buffer);
    return status;
}

od_status od_conv_bn_backward_norm(od_conv_bn *l, const od_net *net, od_span d_residual, od_span dy, od_span y, int n,
                                   bool accumulate) {
    const od_span u = od_arena_span(net->arena, l->u);
    if (!l->grads.parts)
        return od_bn_layer_backward(&l->bn, net, u, d_residual, dy, y, u, l->relu, n, out_pixels(l), accumulate);
    od_status status = backward_from_parts(l, net, dy, n, accumulate);
    drop_grads(l);
    return status;
}

od_status od_conv_bn_backward_conv(od_conv_bn *l, const od_net *net, od_span dx, bool add, const od_conv_input *x,
                                   od_conv_bn *below, od_span y, int n, bool accumulate) {
    const od_span du = od_arena_span(net->arena, l->u);
    od_status status = od_conv_backward_weight_fused(l->conv, od_span_at(net->grad, l->w), x, du, n, accumulate);
    if (status || !dx.buffer)
        return status;
    if (!below || !below->relu)
        return od_conv_backward_data_fused(l->conv, dx, du, n, add, NULL);
    drop_grads(below);
    below->grads = (od_conv_grads){
        .groups = net->groups, .u = od_arena_span(net->arena, below->u), .saved = below->bn.saved, .y = y};
    return od_conv_backward_data_fused(l->conv, dx, du, n, add, &below->grads);
}
