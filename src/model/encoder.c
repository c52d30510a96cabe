/* Where an encoder's tensors lie, and its passes. */
#include "model/encoder.h"

/* ---- the plan --------------------------------------------------------------------------------------------------- */

static od_conv_bn *last_conv(od_block *k) {
    return &k->conv[k->convs - 1];
}

/* Whether block i's sum can be made without the sum of the block before it. */
static bool starts_chain(const od_encoder *e, int i) {
    return i == 0 || e->blocks[i].has_down || !e->blocks[i - 1].residual;
}

/* The last block whose sum is made again together with block i's; the encoder's last block keeps its own. */
static int chain_end(const od_encoder *e, int i) {
    while (i + 1 < e->block_count - 1 && !starts_chain(e, i + 1))
        i++;
    return i;
}

/* Whether block i writes its output y; if not, the next block normalises what it reads. */
static bool has_sum(const od_encoder *e, int i) {
    return e->blocks[i].residual || i == e->block_count - 1;
}

/* Steps: 0 the stem, 1 + i block i, then pooling, then the blocks backwards and the stem. */
typedef struct steps {
    int count;
    bool trained;
} steps;
static int pool_step(steps s) {
    return s.count + 1;
}
static int forward_step(int i) {
    return 1 + i;
}
/* i = -1: the stem. Never trained: what a block needs backwards, it needs only until the next block is done. */
static int backward_step(steps s, int i) {
    return s.trained ? s.count + 1 + s.count - i : forward_step(i) + 1;
}

static void plan_stem(od_encoder *e, od_plan *plan, size_t n, steps s) {
    const size_t size = n * od_conv_bn_size(&e->stem),
                 pooled = n * ((e->pool.h - 1) / 2 + 1) * ((e->pool.w - 1) / 2 + 1) * (size_t)e->pool.c;
    od_plan_add(plan, &e->stem.u, size, 0, backward_step(s, -1));
    if (e->pooled) {
        od_plan_add(plan, &e->stem_y, size, 0, 0);
        od_plan_add(plan, &e->pool_y, pooled, 0, s.trained ? backward_step(s, 0) : forward_step(0));
        od_plan_add(plan, &e->pool_argmax, pooled, 0, backward_step(s, -1));
    }
    if (!s.trained)
        return;
    od_plan_add(plan, &e->d_stem, size, e->pooled ? backward_step(s, -1) : backward_step(s, 0), backward_step(s, -1));
    if (e->pooled)
        od_plan_add(plan, &e->d_pool, pooled, backward_step(s, 0), backward_step(s, -1));
}

static void plan_block(od_encoder *e, od_plan *plan, int i, size_t n, steps s) {
    od_block *k = &e->blocks[i];
    const bool last = i == e->block_count - 1;
    const int here = forward_step(i), back = backward_step(s, i);
    const size_t size = n * od_conv_bn_size(last_conv(k));
    const size_t in = n * k->conv[0].shape.h * k->conv[0].shape.w * (size_t)k->conv[0].shape.c_in;
    for (int j = 0; j < k->convs; j++)
        od_plan_add(plan, &k->conv[j].u, n * od_conv_bn_size(&k->conv[j]), here, back);
    if (k->has_down)
        od_plan_add(plan, &k->down.u, size, here, back);
    if (has_sum(e, i))
        od_plan_add(plan, &k->y, size, here, last && s.trained ? back : here + 1);
    if (!s.trained)
        return;
    if (has_sum(e, i) && !last)
        od_plan_add(plan, &k->y_again, size, backward_step(s, chain_end(e, i) + 1), back);
    od_plan_add(plan, &k->dy, size, last ? pool_step(s) : backward_step(s, i + 1), back);
    for (int j = 0; j + 1 < k->convs; j++)
        od_plan_add(plan, &k->d_hidden[j], n * od_conv_bn_size(&k->conv[j]), back, back);
    if (k->has_down)
        od_plan_add(plan, &k->d_down, in, back, back);
}

od_status od_encoder_plan(od_encoder *e, const od_net *net, size_t *total) {
    od_plan plan = {0};
    const steps s = {e->block_count, net->trained};
    plan_stem(e, &plan, (size_t)net->max_rows, s);
    for (int i = 0; i < e->block_count; i++)
        plan_block(e, &plan, i, (size_t)net->max_rows, s);
    od_status status = od_plan_solve(&plan, od_arena_part_size(net->device), total);
    od_plan_free(&plan);
    return status;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

/* What block i reads; i = block_count: what pooling reads. */
static od_conv_input input_of(od_encoder *e, const od_net *net, od_mode mode, int i) {
    if (i == 0 && e->pooled)
        return (od_conv_input){.x = od_arena_span(net->arena, e->pool_y)};
    if (i == 0)
        return od_conv_bn_output(&e->stem, net, mode);
    if (has_sum(e, i - 1))
        return (od_conv_input){.x = e->blocks[i - 1].sum};
    return od_conv_bn_output(last_conv(&e->blocks[i - 1]), net, mode);
}

/* Block i's output y (n, H, W, C), from what its convolutions gave. */
static od_status make_sum(od_encoder *e, const od_net *net, od_mode mode, int i, od_place y, int n) {
    od_block *k = &e->blocks[i];
    const od_conv_input in = input_of(e, net, mode, i);
    const od_conv_bn *other = NULL;
    od_span residual = OD_NO_SPAN;
    if (k->has_down)
        other = &k->down;
    else if (k->residual && in.affine.buffer)
        other = i == 0 ? &e->stem : last_conv(&e->blocks[i - 1]);
    else if (k->residual)
        residual = in.x;
    k->sum = od_arena_span(net->arena, y);
    return od_conv_bn_apply(last_conv(k), net, mode, k->sum, residual, other, n);
}

static od_status block_forward(od_encoder *e, const od_net *net, od_mode mode, int i, int n) {
    od_block *k = &e->blocks[i];
    od_conv_input in = input_of(e, net, mode, i);
    od_status status = k->has_down ? od_conv_bn_forward(&k->down, net, mode, &in, n) : OD_OK;
    for (int j = 0; j < k->convs && !status; j++) {
        status = od_conv_bn_forward(&k->conv[j], net, mode, &in, n);
        in = od_conv_bn_output(&k->conv[j], net, mode);
    }
    return status || !has_sum(e, i) ? status : make_sum(e, net, mode, i, k->y, n);
}

static od_status stem_forward(od_encoder *e, const od_net *net, od_mode mode, od_span x, int n) {
    od_status status = od_conv_bn_forward(&e->stem, net, mode, &(od_conv_input){.x = x}, n);
    if (status || !e->pooled)
        return status;
    const od_span y = od_arena_span(net->arena, e->stem_y);
    status = od_conv_bn_apply(&e->stem, net, mode, y, OD_NO_SPAN, NULL, n);
    return status ? status
                  : od_maxpool_forward(net->device, &e->pool, od_arena_span(net->arena, e->pool_y),
                                       od_arena_span(net->arena, e->pool_argmax), y, n);
}

od_status od_encoder_forward(od_encoder *e, const od_net *net, od_mode mode, od_span *features, od_span x, int n) {
    od_span out = e->features;
    od_status status = OD_OK;
    if (n > net->max_rows)
        return od_fail(OD_ERR_ARGUMENT, "%d images in an encoder planned for %d", n, net->max_rows);
    e->input = x;
    if ((status = stem_forward(e, net, mode, x, n)))
        return status;
    for (int i = 0; i < e->block_count; i++)
        if ((status = block_forward(e, net, mode, i, n)))
            return status;
    if (mode != OD_MODE_TRAIN && (status = od_span_create(net->device, (size_t)n * e->c, &out)))
        return status;
    const od_span y = input_of(e, net, mode, e->block_count).x;
    if ((status = od_avgpool_forward(net->device, out, y, n, e->h, e->w, e->c)))
        od_activation_drop(mode, out);
    else
        *features = out;
    return status;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* See to it that the sum of block i is there: make it again, and those before it that it needs. */
static od_status need_sum(od_encoder *e, const od_net *net, int i, int n) {
    od_status status = OD_OK;
    int first = i;
    if (i < 0 || !has_sum(e, i) || e->blocks[i].sum.buffer)
        return OD_OK;
    while (!starts_chain(e, first))
        first--;
    for (int j = first; j <= i && !status; j++)
        if (!e->blocks[j].sum.buffer)
            status = make_sum(e, net, OD_MODE_TRAIN, j, e->blocks[j].y_again, n);
    return status;
}

/* The gradient at block i's output, or at what comes before the blocks (i = -1). */
static od_span gradient_at(const od_encoder *e, const od_net *net, int i) {
    return od_arena_span(net->arena, i >= 0 ? e->blocks[i].dy : e->pooled ? e->d_pool : e->d_stem);
}

static od_status block_backward(od_encoder *e, const od_net *net, int i, int n, bool accumulate) {
    od_block *k = &e->blocks[i];
    const od_conv_input block_in = input_of(e, net, OD_MODE_TRAIN, i);
    const od_span dx = gradient_at(e, net, i - 1);
    /* dy: the gradient at the output; behind the last ReLU, which the residual shares, it is in the same place */
    const od_span dy = gradient_at(e, net, i), shared = k->residual ? dy : OD_NO_SPAN;
    od_status status = OD_OK;
    for (int j = k->convs - 1; j >= 0 && !status; j--) {
        const bool last = j == k->convs - 1;
        const od_conv_input in = j == 0 ? block_in : od_conv_bn_output(&k->conv[j - 1], net, OD_MODE_TRAIN);
        status = od_conv_bn_backward(&k->conv[j], net, j == 0 ? dx : od_arena_span(net->arena, k->d_hidden[j - 1]),
                                     last ? shared : OD_NO_SPAN, last ? dy : od_arena_span(net->arena, k->d_hidden[j]),
                                     last && k->residual ? k->sum : OD_NO_SPAN, &in, n, accumulate);
    }
    if (status || !k->residual)
        return status;
    od_span through = dy;
    if (k->has_down) {
        through = od_arena_span(net->arena, k->d_down);
        status = od_conv_bn_backward(&k->down, net, through, OD_NO_SPAN, dy, OD_NO_SPAN, &block_in, n, accumulate);
    }
    const size_t in_size = (size_t)n * k->conv[0].shape.h * k->conv[0].shape.w * k->conv[0].shape.c_in;
    return status ? status : od_add(net->device, dx, dx, through, in_size);
}

od_status od_encoder_backward(od_encoder *e, const od_net *net, od_span dfeatures, int n, bool accumulate) {
    const int last = e->block_count - 1;
    od_status status = od_avgpool_backward(net->device, gradient_at(e, net, last), dfeatures, n, e->h, e->w, e->c);
    for (int i = 0; i < last; i++)
        e->blocks[i].sum = OD_NO_SPAN;
    for (int i = last; i >= 0 && !status; i--)
        if (!(status = need_sum(e, net, i - 1, n)))
            status = block_backward(e, net, i, n, accumulate);
    const od_span dy = od_arena_span(net->arena, e->d_stem);
    if (!status && e->pooled)
        status = od_maxpool_backward(net->device, &e->pool, dy, gradient_at(e, net, -1),
                                     od_arena_span(net->arena, e->pool_argmax), n);
    return status ? status
                  : od_conv_bn_backward(&e->stem, net, OD_NO_SPAN, OD_NO_SPAN, dy, OD_NO_SPAN,
                                        &(od_conv_input){.x = e->input}, n, accumulate);
}
