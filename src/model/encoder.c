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

/* Steps of the plan: 0 the stem, 1 + i block i, then pooling, then backwards: two for each block, until its first
 * convolution's output has become a gradient and from there on, and one for the stem. */
typedef struct steps {
    int count;
    bool trained;
    bool keep; /* block sums, for the backward pass */
} steps;
static int forward_step(int i) {
    return 1 + i;
}
static int pool_step(steps s) {
    return s.count + 1;
}
/* Never trained: what a block needs backwards, it needs only until the next block is done. */
static int upper_step(steps s, int i) {
    return s.trained ? s.count + 2 + 2 * (s.count - 1 - i) : forward_step(i) + 1;
}
static int lower_step(steps s, int i) {
    return s.trained ? upper_step(s, i) + 1 : forward_step(i) + 1;
}
static int stem_step(steps s) {
    return upper_step(s, -1);
}

static bool passes_gradient_on(const od_block *k) {
    return k->residual && !k->has_down;
}

/* The place of the gradient at block i's output, or at what comes before the blocks (i = -1). */
static od_place *gradient_place(od_encoder *e, int i) {
    while (i + 1 < e->block_count && passes_gradient_on(&e->blocks[i + 1]))
        i++;
    return i >= 0 ? &e->blocks[i].dy : e->pooled ? &e->d_pool : &e->d_stem;
}

static void plan_stem(od_encoder *e, od_plan *plan, size_t n, steps s) {
    const size_t size = n * od_conv_bn_size(&e->stem);
    const size_t pooled = n * ((e->pool.h - 1) / 2 + 1) * ((e->pool.w - 1) / 2 + 1) * (size_t)e->pool.c;
    od_plan_add(plan, &e->stem.u, size, 0, stem_step(s));
    if (e->pooled) {
        od_plan_add(plan, &e->stem_y, size, 0, 0);
        od_plan_add(plan, &e->pool_y, pooled, 0, lower_step(s, 0));
        od_plan_add(plan, &e->pool_argmax, pooled, 0, stem_step(s));
    }
    if (!s.trained)
        return;
    if (e->pooled)
        od_plan_add(plan, &e->d_stem, size, stem_step(s), stem_step(s));
    if (!passes_gradient_on(&e->blocks[0]))
        od_plan_add(plan, e->pooled ? &e->d_pool : &e->d_stem, e->pooled ? pooled : size, lower_step(s, 0),
                    stem_step(s));
}

static void plan_block(od_encoder *e, od_plan *plan, int i, size_t n, steps s) {
    od_block *k = &e->blocks[i];
    const int last = e->block_count - 1, here = forward_step(i), upper = upper_step(s, i), lower = lower_step(s, i);
    const size_t size = n * od_conv_bn_size(last_conv(k));
    for (int j = 0; j < k->convs; j++)
        od_plan_add(plan, &k->conv[j].u, n * od_conv_bn_size(&k->conv[j]), here, j == 0 ? lower : upper);
    if (k->has_down)
        od_plan_add(plan, &k->down.u, size, here, lower);
    if (has_sum(e, i))
        od_plan_add(plan, &k->y, size, here, s.trained && (s.keep || i == last) ? upper : here + 1);
    if (!s.trained)
        return;
    if (has_sum(e, i) && i != last && !s.keep)
        od_plan_add(plan, &k->y_again, size, lower_step(s, chain_end(e, i) + 1), upper);
    for (int j = 0; j + 1 < k->convs; j++)
        od_plan_add(plan, &k->d_hidden[j], n * od_conv_bn_size(&k->conv[j]), upper, upper);
    if (i < last && passes_gradient_on(&e->blocks[i + 1]))
        return;  /* it is the next block's */
    int end = i; /* the blocks that the gradient is handed down through */
    while (end >= 0 && passes_gradient_on(&e->blocks[end]))
        end--;
    od_plan_add(plan, &k->dy, size, i == last ? pool_step(s) : lower_step(s, i + 1),
                end >= 0 ? lower_step(s, end) : stem_step(s));
}

size_t od_encoder_keep_limit = (size_t)1 << 26;

static od_status solve(od_encoder *e, const od_net *net, bool keep, size_t *total) {
    od_plan plan = {0};
    const steps s = {e->block_count, net->trained, keep};
    plan_stem(e, &plan, (size_t)net->max_rows, s);
    for (int i = 0; i < e->block_count; i++)
        plan_block(e, &plan, i, (size_t)net->max_rows, s);
    od_status status = od_plan_solve(&plan, od_arena_part_size(net->device), total);
    od_plan_free(&plan);
    e->keeps_sums = keep;
    return status;
}

od_status od_encoder_plan(od_encoder *e, const od_net *net, size_t *total) {
    od_status status = solve(e, net, true, total);
    return !status && *total <= od_encoder_keep_limit ? OD_OK : solve(e, net, false, total);
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

static od_span gradient_at(od_encoder *e, const od_net *net, int i) {
    return od_arena_span(net->arena, *gradient_place(e, i));
}

/* From the block's output down to the gradient at its first convolution's output, which is then in that one's place. */
static od_status upper_backward(od_encoder *e, const od_net *net, int i, int n, bool accumulate) {
    od_block *k = &e->blocks[i];
    /* dy: the gradient at the output; behind the last ReLU, which the residual shares, it is in the same place */
    od_span dy = gradient_at(e, net, i), shared = k->residual ? dy : OD_NO_SPAN;
    od_span y = k->residual ? k->sum : OD_NO_SPAN;
    od_status status = OD_OK;
    for (int j = k->convs - 1; j >= 0 && !status; j--, shared = y = OD_NO_SPAN) {
        status = od_conv_bn_backward_norm(&k->conv[j], net, shared, dy, y, n, accumulate);
        if (status || j == 0)
            break;
        const od_conv_input in = od_conv_bn_output(&k->conv[j - 1], net, OD_MODE_TRAIN);
        dy = od_arena_span(net->arena, k->d_hidden[j - 1]);
        status = od_conv_bn_backward_conv(&k->conv[j], net, dy, false, &in, &k->conv[j - 1], OD_NO_SPAN, n, accumulate);
    }
    return status;
}

/* From there to the gradient at the block's input. Without `down` it is added to what came through the residual. */
static od_status lower_backward(od_encoder *e, const od_net *net, int i, int n, bool accumulate) {
    od_block *k = &e->blocks[i];
    const od_span dy = gradient_at(e, net, i), dx = gradient_at(e, net, i - 1);
    od_status status = need_sum(e, net, i - 1, n);
    if (status)
        return status;
    const od_conv_input in = input_of(e, net, OD_MODE_TRAIN, i);
    const bool summed = i > 0 && e->blocks[i - 1].residual; /* block i - 1 added something before its last ReLU */
    od_conv_bn *below = i > 0 ? last_conv(&e->blocks[i - 1]) : e->pooled ? NULL : &e->stem;
    const od_span y = summed ? in.x : OD_NO_SPAN;
    if (!k->has_down)
        return od_conv_bn_backward_conv(&k->conv[0], net, dx, k->residual, &in, below, y, n, accumulate);
    /* `down` comes last: it adds to a quarter of the pixels */
    if ((status = od_conv_bn_backward_conv(&k->conv[0], net, dx, false, &in, NULL, OD_NO_SPAN, n, accumulate)) ||
        (status = od_conv_bn_backward_norm(&k->down, net, OD_NO_SPAN, dy, OD_NO_SPAN, n, accumulate)))
        return status;
    return od_conv_bn_backward_conv(&k->down, net, dx, true, &in, below, y, n, accumulate);
}

static od_status stem_backward(od_encoder *e, const od_net *net, int n, bool accumulate) {
    const od_conv_input in = {.x = e->input};
    od_span dy = gradient_at(e, net, -1);
    od_status status = OD_OK;
    if (e->pooled) {
        const od_span d_stem = od_arena_span(net->arena, e->d_stem), argmax = od_arena_span(net->arena, e->pool_argmax);
        if ((status = od_maxpool_backward(net->device, &e->pool, d_stem, dy, argmax, n)))
            return status;
        dy = d_stem;
    }
    status = od_conv_bn_backward_norm(&e->stem, net, OD_NO_SPAN, dy, OD_NO_SPAN, n, accumulate);
    return status ? status
                  : od_conv_bn_backward_conv(&e->stem, net, OD_NO_SPAN, false, &in, NULL, OD_NO_SPAN, n, accumulate);
}

od_status od_encoder_backward(od_encoder *e, const od_net *net, od_span dfeatures, int n, bool accumulate) {
    const int last = e->block_count - 1;
    od_status status = od_avgpool_backward(net->device, gradient_at(e, net, last), dfeatures, n, e->h, e->w, e->c);
    for (int i = 0; i < last && !e->keeps_sums; i++)
        e->blocks[i].sum = OD_NO_SPAN;
    for (int i = last; i >= 0 && !status; i--)
        if (!(status = upper_backward(e, net, i, n, accumulate)) &&
            !(status = lower_backward(e, net, i, n, accumulate)))
            status = od_reduction_advance(net->reduction, net->device, net->grad, e->blocks[i].conv[0].w);
    return status ? status : stem_backward(e, net, n, accumulate);
}
