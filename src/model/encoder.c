#include "model/encoder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "offdiag/ops/pointwise.h"

const char *const od_encoder_names[] = {"resnet18", "cnn4", NULL};

od_init_kind od_encoder_init_kind(const char *name) {
    return strcmp(name, "cnn4") == 0 ? OD_INIT_UNIFORM_FAN_IN : OD_INIT_HE_FAN_OUT;
}

/* ---- construction ----------------------------------------------------------------------------------------------- */

typedef struct cursor { /* the shape that the next layer sees */
    int h, w, c;
} cursor;

static od_status add_conv(od_conv_bn *l, const od_builder *b, cursor *at, const char *conv, const char *bn, int kernel,
                          int stride, int c_out, bool relu) {
    od_conv_shape shape = {.h = at->h,
                           .w = at->w,
                           .c_in = at->c,
                           .c_out = c_out,
                           .kernel_h = kernel,
                           .kernel_w = kernel,
                           .stride = stride,
                           .pad = kernel / 2};
    od_conv_bn_spec spec = {.conv = conv, .bn = bn, .shape = shape, .c_stored = at->c, .relu = relu};
    *at = (cursor){od_conv_out_h(&shape), od_conv_out_w(&shape), c_out};
    return od_conv_bn_create(l, b, &spec);
}

static od_status add_stem(od_encoder *e, const od_builder *b, cursor *at, const char *conv, const char *bn, int c_out) {
    od_conv_shape shape = {
        .h = at->h, .w = at->w, .c_in = 4, .c_out = c_out, .kernel_h = 3, .kernel_w = 3, .stride = 1, .pad = 1};
    od_conv_bn_spec spec = {.conv = conv, .bn = bn, .shape = shape, .c_stored = 3, .relu = true, .first = true};
    at->c = c_out;
    return od_conv_bn_create(&e->stem, b, &spec);
}

static od_status add_basic_block(od_block *k, const od_builder *b, cursor *at, int stage, int index, int c_out,
                                 int stride) {
    od_status status = OD_OK;
    cursor in = *at;
    char conv[64], bn[64];
    k->convs = 2;
    k->residual = true;
    for (int i = 0; i < 2; i++) {
        snprintf(conv, sizeof conv, "backbone.layer%d.%d.conv%d", stage + 1, index, i + 1);
        snprintf(bn, sizeof bn, "backbone.layer%d.%d.bn%d", stage + 1, index, i + 1);
        /* the second ReLU comes after the residual add; BN applies both in one pass */
        if ((status = add_conv(&k->conv[i], b, at, conv, bn, 3, i == 0 ? stride : 1, c_out, true)))
            return status;
    }
    k->has_down = stride != 1 || in.c != c_out;
    if (!k->has_down)
        return OD_OK;
    snprintf(conv, sizeof conv, "backbone.layer%d.%d.downsample.0", stage + 1, index);
    snprintf(bn, sizeof bn, "backbone.layer%d.%d.downsample.1", stage + 1, index);
    return add_conv(&k->down, b, &in, conv, bn, 1, stride, c_out, false);
}

static od_status create_resnet(od_encoder *e, const od_builder *b, cursor *at, int width, const int counts[4]) {
    od_status status = add_stem(e, b, at, "backbone.conv1", "backbone.bn1", width);
    for (int stage = 0; !status && stage < 4; stage++)
        for (int i = 0; !status && i < counts[stage]; i++) {
            int stride = stage > 0 && i == 0 ? 2 : 1;
            status = add_basic_block(&e->blocks[e->block_count++], b, at, stage, i, width << stage, stride);
        }
    return status;
}

static od_status create_cnn4(od_encoder *e, const od_builder *b, cursor *at, int width) {
    static const int scale[] = {2, 2, 4}, stride[] = {2, 1, 2};
    od_status status = add_stem(e, b, at, "backbone.layer0.conv", "backbone.layer0.bn", width);
    for (int i = 0; !status && i < 3; i++) {
        od_block *k = &e->blocks[e->block_count++];
        char conv[64], bn[64];
        snprintf(conv, sizeof conv, "backbone.layer%d.conv", i + 1);
        snprintf(bn, sizeof bn, "backbone.layer%d.bn", i + 1);
        k->convs = 1;
        status = add_conv(&k->conv[0], b, at, conv, bn, 3, stride[i], scale[i] * width, true);
    }
    return status;
}

static size_t largest_activation(const od_encoder *e) {
    size_t size = od_conv_bn_size(&e->stem);
    for (int i = 0; i < e->block_count; i++)
        for (int j = 0; j < e->blocks[i].convs; j++) {
            size_t s = od_conv_bn_size(&e->blocks[i].conv[j]);
            size = s > size ? s : size;
        }
    return size;
}

od_status od_encoder_create(od_encoder *e, const od_builder *b, const char *name, int width, int image_size) {
    static const int resnet18[4] = {2, 2, 2, 2};
    const od_net *net = b->net;
    cursor at = {image_size, image_size, 4};
    *e = (od_encoder){0};
    if (width < 1 || width > 1024 || image_size < 8 || image_size > 1024)
        return od_fail(OD_ERR_ARGUMENT, "encoder %s: width %d (1 to 1024) or image size %d (8 to 1024) out of range",
                       name, width, image_size);
    e->blocks = calloc(8, sizeof *e->blocks);
    if (!e->blocks)
        return od_fail(OD_ERR_MEMORY, "no memory for the encoder's blocks");
    od_status status = OD_OK;
    if (strcmp(name, "resnet18") == 0)
        status = create_resnet(e, b, &at, width, resnet18);
    else if (strcmp(name, "cnn4") == 0)
        status = create_cnn4(e, b, &at, width);
    else
        status = od_fail(OD_ERR_USAGE, "no encoder \"%s\"; there are: resnet18, cnn4", name);
    if (status)
        return status;
    e->h = at.h, e->w = at.w, e->c = at.c;
    if (!net->max_rows)
        return OD_OK;
    status = od_span_create(net->device, (size_t)net->max_rows * e->c, &e->features);
    for (int i = 0; !status && i < 3; i++)
        status = od_span_create(net->device, net->max_rows * largest_activation(e), &e->scratch[i]);
    return status ? od_fail_in(status, "gradients of %s for %d images: ", name, net->max_rows) : OD_OK;
}

void od_encoder_destroy(od_encoder *e) {
    od_conv_bn_destroy(&e->stem);
    for (int i = 0; i < e->block_count; i++) {
        for (int j = 0; j < 2; j++)
            od_conv_bn_destroy(&e->blocks[i].conv[j]);
        od_conv_bn_destroy(&e->blocks[i].down);
    }
    free(e->blocks);
    od_buffer_release(e->features.buffer);
    for (int i = 0; i < 3; i++)
        od_buffer_release(e->scratch[i].buffer);
    *e = (od_encoder){0};
}

od_status od_encoder_update(od_encoder *e, const od_net *net) {
    od_status status = od_conv_bn_update(&e->stem, net);
    for (int i = 0; i < e->block_count && !status; i++) {
        od_block *k = &e->blocks[i];
        for (int j = 0; j < k->convs && !status; j++)
            status = od_conv_bn_update(&k->conv[j], net);
        if (!status && k->has_down)
            status = od_conv_bn_update(&k->down, net);
    }
    return status;
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static od_status block_forward(od_block *k, const od_net *net, od_mode mode, od_span *y, od_span x, int n) {
    od_status status = OD_OK;
    if (mode == OD_MODE_TRAIN)
        k->input = x;
    if (!k->residual)
        return od_conv_bn_forward(&k->conv[0], net, mode, y, x, OD_NO_SPAN, n);
    od_span hidden = OD_NO_SPAN, shortcut = x;
    if ((status = od_conv_bn_forward(&k->conv[0], net, mode, &hidden, x, OD_NO_SPAN, n)))
        return status;
    if (k->has_down && (status = od_conv_bn_forward(&k->down, net, mode, &shortcut, x, OD_NO_SPAN, n))) {
        shortcut = x;
        goto out;
    }
    status = od_conv_bn_forward(&k->conv[1], net, mode, y, hidden, shortcut, n);
out:
    od_activation_drop(mode, hidden);
    if (shortcut.buffer != x.buffer)
        od_activation_drop(mode, shortcut);
    return status;
}

od_status od_encoder_forward(od_encoder *e, const od_net *net, od_mode mode, od_span *features, od_span x, int n) {
    od_span at = OD_NO_SPAN, next = OD_NO_SPAN, out = e->features;
    od_status status = od_conv_bn_forward(&e->stem, net, mode, &at, x, OD_NO_SPAN, n);
    if (status)
        return status;
    if (mode == OD_MODE_TRAIN)
        e->input = x;
    for (int i = 0; i < e->block_count; i++) {
        if ((status = block_forward(&e->blocks[i], net, mode, &next, at, n)))
            goto out;
        od_activation_drop(mode, at);
        at = next;
    }
    if (mode != OD_MODE_TRAIN && (status = od_span_create(net->device, (size_t)n * e->c, &out)))
        goto out;
    if ((status = od_avgpool_forward(net->device, out, at, n, e->h, e->w, e->c)))
        od_activation_drop(mode, out);
    else
        *features = out;
out:
    od_activation_drop(mode, at);
    return status;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* The gradient at the block's output is in s[0] and gives way to the one at its input, in s[0] again; s[1] and s[2] are
 * scratch. */
static od_status block_backward(od_block *k, const od_net *net, od_span s[3], int n, bool accumulate) {
    od_status status = OD_OK;
    if (!k->residual) {
        status = od_conv_bn_backward(&k->conv[0], net, s[2], s[1], s[0], k->input, n, accumulate);
    } else {
        size_t in_size = (size_t)n * k->conv[0].shape.h * k->conv[0].shape.w * k->conv[0].shape.c_in;
        /* conv2: s[0] becomes the gradient at the residual input, s[2] the one at conv1's activation ... */
        if ((status = od_conv_bn_backward(&k->conv[1], net, s[2], s[1], s[0], k->conv[0].y, n, accumulate)))
            return status;
        /* ... conv1 takes s[2] and, no longer needing it, writes its input gradient there */
        if ((status = od_conv_bn_backward(&k->conv[0], net, s[2], s[1], s[2], k->input, n, accumulate)))
            return status;
        if (k->has_down && (status = od_conv_bn_backward(&k->down, net, s[0], s[1], s[0], k->input, n, accumulate)))
            return status;
        status = od_add(net->device, s[2], s[2], s[0], in_size);
    }
    od_span result = s[2];
    s[2] = s[0];
    s[0] = result;
    return status;
}

od_status od_encoder_backward(od_encoder *e, const od_net *net, od_span dfeatures, int n, bool accumulate) {
    od_span s[3] = {e->scratch[0], e->scratch[1], e->scratch[2]};
    od_status status = od_avgpool_backward(net->device, s[0], dfeatures, n, e->h, e->w, e->c);
    for (int i = e->block_count - 1; i >= 0 && !status; i--)
        status = block_backward(&e->blocks[i], net, s, n, accumulate);
    if (status)
        return status;
    return od_conv_bn_backward(&e->stem, net, OD_NO_SPAN, s[1], s[0], e->input, n, accumulate);
}
