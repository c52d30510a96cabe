/* The building block of every encoder here: convolution + BN (+ residual) (+ ReLU). */
#ifndef MODEL_LAYERS_H
#define MODEL_LAYERS_H

#include "model/arena.h"
#include "model/reduction.h"
#include "offdiag/model.h"
#include "offdiag/ops/conv.h"
#include "offdiag/ops/norm.h"

/* How a network runs. TRAIN keeps what the backward pass needs; TARGET has batch statistics too but keeps nothing;
 * INFER takes the running statistics. */
typedef enum od_mode { OD_MODE_TRAIN, OD_MODE_TARGET, OD_MODE_INFER } od_mode;

/* The memory that one network instance (online or target) works in. Layers hold offsets into it. */
typedef struct od_net {
    od_device *device;
    od_span value, grad, stats; /* arenas; a target has no grad */
    const od_arena *arena;      /* the encoder's activations and their gradients */
    int max_rows;               /* images of both views that a pass may hold */
    bool trained;               /* false: a target */
    int groups;                 /* 2 views */
    od_member *member;          /* batch norm counts the images of all members; NULL: alone */
    od_reduction *reduction;    /* of grad; NULL: alone */
} od_net;

/* While a network is built: where its tensors are listed. Without a device (net->device NULL) nothing else is made. */
typedef struct od_builder {
    const od_net *net;
    od_param_table *params, *stats;
} od_builder;

/* ---- batch norm's tensors --------------------------------------------------------------------------------------- */

typedef struct od_bn_layer {
    bool affine;
    int c;
    size_t gamma, beta; /* in value and grad (C) */
    size_t mean, var;   /* in stats (C) */
    od_span saved;      /* (groups, 4, C), see od_bn_statistics */
} od_bn_layer;

od_status od_bn_layer_create(od_bn_layer *l, const od_builder *b, const char *prefix, int c, bool affine);
/* x (n, rows, C) -> y, with n images of `pixels` positions each. */
od_status od_bn_layer_forward(const od_bn_layer *l, const od_net *net, od_mode mode, od_span y, od_span x, bool relu,
                              int n, int pixels);
/* As od_bn_backward, y may be OD_NO_SPAN. */
od_status od_bn_layer_backward(const od_bn_layer *l, const od_net *net, od_span dx, od_span d_residual, od_span dy,
                               od_span y, od_span x, bool relu, int n, int pixels, bool accumulate);
void od_bn_layer_destroy(od_bn_layer *l);

/* ---- convolution + BN ------------------------------------------------------------------------------------------- */

/* What is kept of a layer is the convolution's output u; whoever reads the layer normalises it on the way, and the
 * backward pass turns it into the gradient at u in place. */
typedef struct od_conv_bn {
    od_conv_shape shape;
    od_conv *conv;
    bool relu;
    size_t w; /* (KH, KW, Cin, Cout) in value and grad */
    od_bn_layer bn;
    od_place u;          /* (max_rows, Hout, Wout, Cout) */
    od_conv_grads grads; /* what the reader's backward pass gave for the batch norm here, if anything */
} od_conv_bn;

/* prefix_conv "backbone.conv1", prefix_bn "backbone.bn1". c_stored: input channels outside (3 of 4 in the stem). first:
 * no gradient at the input is wanted. */
typedef struct od_conv_bn_spec {
    const char *conv, *bn;
    od_conv_shape shape;
    int c_stored;
    bool relu, first;
} od_conv_bn_spec;
od_status od_conv_bn_create(od_conv_bn *l, const od_builder *b, const od_conv_bn_spec *spec);
od_status od_conv_bn_update(od_conv_bn *l, const od_net *net);
/* u and the statistics of its batch norm. */
od_status od_conv_bn_forward(od_conv_bn *l, const od_net *net, od_mode mode, const od_conv_input *x, int n);
/* The layer's output relu(bn(u)), to be made by its reader. */
od_conv_input od_conv_bn_output(const od_conv_bn *l, const od_net *net, od_mode mode);
/* y (n, Hout, Wout, Cout) = relu(bn(u) + residual); the residual is a tensor, or the output of a convolution `other`
 * (with its ReLU, if it has one), or absent. */
od_status od_conv_bn_apply(const od_conv_bn *l, const od_net *net, od_mode mode, od_span y, od_span residual,
                           const od_conv_bn *other, int n);
/* Backward through batch norm and ReLU: u becomes the gradient at u. dy: gradient at the layer's output; y: that output
 * where a residual was added before the ReLU, else OD_NO_SPAN. d_residual: gradient at the residual, may be dy's own
 * memory, OD_NO_SPAN without one. */
od_status od_conv_bn_backward_norm(od_conv_bn *l, const od_net *net, od_span d_residual, od_span dy, od_span y, int n,
                                   bool accumulate);
/* Then through the convolution. dx: gradient at x, OD_NO_SPAN in the first layer; add: to what is there. Weight
 * gradients go to the parameters' arena. below: the layer whose output x is, where this is the last part of dx: its
 * batch norm's sums are then found on the way where a variant can, and od_conv_bn_backward_norm goes on from them; y:
 * x as it is, where a residual was added to it. */
od_status od_conv_bn_backward_conv(od_conv_bn *l, const od_net *net, od_span dx, bool add, const od_conv_input *x,
                                   od_conv_bn *below, od_span y, int n, bool accumulate);
size_t od_conv_bn_size(const od_conv_bn *l); /* elements of one image's output */
void od_conv_bn_destroy(od_conv_bn *l);

static inline void od_activation_drop(od_mode mode, od_span s) {
    if (mode != OD_MODE_TRAIN)
        od_buffer_release(s.buffer);
}

#endif
