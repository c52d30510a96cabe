/* The perceptron of projector and prediction head: (linear, BN, ReLU) once or twice, then linear (, bias) (, BN without
 * affine). */
#ifndef MODEL_MLP_H
#define MODEL_MLP_H

#include "model/layers.h"

enum { OD_MLP_LAYERS = 3 };

typedef struct od_mlp_layer {
    int in, out;
    size_t w; /* (in, out) */
    bool bn, relu;
    od_bn_layer norm;
    od_span u, y; /* kept: linear output, and what comes after BN and ReLU (max_rows, out) */
    od_span d;    /* backward scratch: gradient at y, then at u; unused where there is no BN */
} od_mlp_layer;

typedef struct od_mlp {
    od_mlp_layer layer[OD_MLP_LAYERS];
    int depth;
    bool out_bias;
    size_t bias; /* (out) */
} od_mlp;

/* depth 2 or 3 linear layers, named as torch.nn.Sequential does: "<prefix>.0.weight", "<prefix>.1" (BN), ... */
od_status od_mlp_create(od_mlp *l, const od_builder *b, const char *prefix, int depth, int in, int hidden, int out,
                        bool out_bias, bool out_bn);
/* *y (n, out) from x (n, in): kept by the layer in TRAIN mode, else a buffer that od_activation_drop gives back. */
od_status od_mlp_forward(od_mlp *l, const od_net *net, od_mode mode, od_span *y, od_span x, int n);
/* dx (n, in) from dy (n, out), x (n, in). */
od_status od_mlp_backward(od_mlp *l, const od_net *net, od_span dx, od_span dy, od_span x, int n, bool accumulate);
void od_mlp_destroy(od_mlp *l);

#endif
