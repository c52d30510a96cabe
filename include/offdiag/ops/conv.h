/* 2-D convolution, NHWC float32, forward and both backward passes.
 *
 * A plan (od_conv) is made once per layer: it picks a kernel variant for each pass, resolves its kernels and tuning
 * parameters. The batch size is a run-time argument: one plan serves any n.
 *   x  (N, H, W, Cin)    y  (N, Hout, Wout, Cout)    w  (KH, KW, Cin, Cout)
 *   y[n,p,q,o] = sum_{r,s,i} x[n, p*stride - pad + r, q*stride - pad + s, i] * w[r,s,i,o]      (zero outside the image)
 * Any positive sizes are valid, channel counts that are no multiples of a vector included. */
#ifndef OFFDIAG_OPS_CONV_H
#define OFFDIAG_OPS_CONV_H

#include "offdiag/device.h"

typedef struct od_conv_shape {
    int h, w;               /* input height and width */
    int c_in, c_out;        /* channels */
    int kernel_h, kernel_w; /* window */
    int stride, pad;        /* the same in both directions */
} od_conv_shape;

static inline int od_conv_out_h(const od_conv_shape *s) {
    return (s->h + 2 * s->pad - s->kernel_h) / s->stride + 1;
}
static inline int od_conv_out_w(const od_conv_shape *s) {
    return (s->w + 2 * s->pad - s->kernel_w) / s->stride + 1;
}

typedef struct od_conv od_conv;

enum { OD_CONV_FORWARD = 1, OD_CONV_BACKWARD_DATA = 2, OD_CONV_BACKWARD_WEIGHT = 4, OD_CONV_ALL = 7 };

/* `passes`: which passes will run (packed copies are kept for those only). Errors: OD_ERR_ARGUMENT for a shape without
 * output, OD_ERR_DEVICE_MEMORY, OD_ERR_BUILD. */
od_status od_conv_create(od_device *device, const od_conv_shape *shape, unsigned passes, od_conv **out);
void od_conv_destroy(od_conv *conv);

/* Name the weights w (KH, KW, Cin, Cout) that forward and backward by data read; they must stay in place. A variant
 * packs them at each run into memory that it borrows, so nothing has to be said when their values change. */
od_status od_conv_set_weights(od_conv *conv, od_span w);

od_status od_conv_forward(od_conv *conv, od_span y, od_span x, int n);
od_status od_conv_backward_data(od_conv *conv, od_span dx, od_span dy, int n);
od_status od_conv_backward_data_add(od_conv *conv, od_span dx, od_span dy, int n); /* dx += the gradient */
/* dw = (accumulate ? dw : 0) + gradient; deterministic (two-stage sum in a fixed order). */
od_status od_conv_backward_weight(od_conv *conv, od_span dw, od_span x, od_span dy, int n, bool accumulate);

/* ---- with batch norm around them -------------------------------------------------------------------------------- */

/* An input that batch norm and ReLU make as it is read: relu(x * slope + shift), 0 outside the image. The images are
 * `groups` equal parts with their own statistics; affine holds, for each, slope (Cin) then shift (Cin), `stride` floats
 * from group to group. Without affine.buffer it is x itself. */
typedef struct od_conv_input {
    od_span x; /* (N, H, W, Cin) */
    od_span affine;
    size_t stride;
    int groups;
} od_conv_input;

/* What the output's batch norm needs, found as the output is written: for each of `groups` equal parts of the images,
 * partial statistics (groups, parts, 3, Cout): how many values, their mean, their sum of squares about that mean. In:
 * groups. Out: partial, from the pool (od_buffer_release), and parts; parts 0: this variant leaves them to a pass over
 * y. */
typedef struct od_conv_stats {
    int groups;
    od_span partial;
    int parts;
} od_conv_stats;

/* What the backward pass of the batch norm in front of x needs, found as dx is written: dx behind the ReLU, g = dx
 * where the ReLU let something through and else 0, takes dx's place, and the sums of g and of g (u - mean) rstd come
 * with it, as partial sums (groups, parts, 2, Cin). In: u (N, H, W, Cin), the convolution output that was normalised;
 * saved (groups, 4, Cin), see od_bn_statistics; y, x itself, where something was added before the ReLU: it let through
 * what is positive there, and else where the normalised u is. Out: partial, from the pool, and parts; parts 0: this
 * variant leaves both to batch norm's own passes, and dx is what it would be without. */
typedef struct od_conv_grads {
    int groups;
    od_span u, saved, y;
    od_span partial;
    int parts;
} od_conv_grads;

/* As above; where a variant cannot fuse the input, it is made in memory that is given back. stats may be NULL. */
od_status od_conv_forward_fused(od_conv *conv, od_span y, const od_conv_input *x, int n, od_conv_stats *stats);
/* dx = (add ? dx : 0) + the gradient; grads may be NULL. */
od_status od_conv_backward_data_fused(od_conv *conv, od_span dx, od_span dy, int n, bool add, od_conv_grads *grads);
od_status od_conv_backward_weight_fused(od_conv *conv, od_span dw, const od_conv_input *x, od_span dy, int n,
                                        bool accumulate);

/* The variant that a pass (one of the enum) runs, e.g. "cpu_direct"; its work in floating-point operations for n. */
const char *od_conv_variant(const od_conv *conv, unsigned pass);
double od_conv_flop(const od_conv_shape *shape, int n);

#endif
