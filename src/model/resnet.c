/* Which convolutions an encoder is made of. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/text.h"
#include "model/encoder.h"

const char *const od_encoder_names[] = {"resnet18", "cnn4", "resnet34", "resnet50", NULL};
const char *const od_stem_names[] = {"cifar", "cifar-pad2", "imagenet", NULL};

od_init_kind od_encoder_init_kind(const char *name) {
    return strcmp(name, "cnn4") == 0 ? OD_INIT_UNIFORM_FAN_IN : OD_INIT_HE_FAN_OUT;
}

typedef struct cursor { /* the shape that the next layer sees */
    int h, w, c;
} cursor;

/* Names of a layer: "backbone.", then conv and bn. */
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

static od_status add_stem(od_encoder *e, const od_builder *b, cursor *at, const char *conv, const char *bn, int c_out,
                          int kernel, int stride, int pad) {
    od_conv_shape shape = {.h = at->h,
                           .w = at->w,
                           .c_in = 4,
                           .c_out = c_out,
                           .kernel_h = kernel,
                           .kernel_w = kernel,
                           .stride = stride,
                           .pad = pad};
    od_conv_bn_spec spec = {.conv = conv, .bn = bn, .shape = shape, .c_stored = 3, .relu = true, .first = true};
    *at = (cursor){od_conv_out_h(&shape), od_conv_out_w(&shape), c_out};
    return od_conv_bn_create(&e->stem, b, &spec);
}

/* ---- ResNet ----------------------------------------------------------------------------------------------------- */

typedef struct resnet {
    int counts[4]; /* blocks of each stage */
    bool bottleneck;
} resnet;

/* One block: 3x3, 3x3; or 1x1, 3x3, 1x1 to four times the channels. The last ReLU comes after the residual add. */
static od_status add_block(od_block *k, const od_builder *b, cursor *at, const resnet *r, int stage, int index,
                           int channels) {
    const int stride = stage > 0 && index == 0 ? 2 : 1, c_out = r->bottleneck ? 4 * channels : channels;
    const int strided = r->bottleneck ? 1 : 0; /* torchvision's ResNet v1.5: in the 3x3 */
    od_status status = OD_OK;
    cursor in = *at;
    char conv[64], bn[64];
    k->convs = r->bottleneck ? 3 : 2;
    k->residual = true;
    for (int i = 0; i < k->convs; i++) {
        snprintf(conv, sizeof conv, "backbone.layer%d.%d.conv%d", stage + 1, index, i + 1);
        snprintf(bn, sizeof bn, "backbone.layer%d.%d.bn%d", stage + 1, index, i + 1);
        if ((status = add_conv(&k->conv[i], b, at, conv, bn, r->bottleneck && i != 1 ? 1 : 3, i == strided ? stride : 1,
                               i == k->convs - 1 ? c_out : channels, true)))
            return status;
    }
    k->has_down = stride != 1 || in.c != c_out;
    if (!k->has_down)
        return OD_OK;
    snprintf(conv, sizeof conv, "backbone.layer%d.%d.downsample.0", stage + 1, index);
    snprintf(bn, sizeof bn, "backbone.layer%d.%d.downsample.1", stage + 1, index);
    return add_conv(&k->down, b, &in, conv, bn, 1, stride, c_out, false);
}

static od_status create_resnet(od_encoder *e, const od_builder *b, cursor *at, const resnet *r, int width,
                               od_stem stem) {
    const bool imagenet = stem == OD_STEM_IMAGENET;
    const int pad = imagenet ? 3 : stem == OD_STEM_CIFAR_PAD2 ? 2 : 1;
    od_status status =
        add_stem(e, b, at, "backbone.conv1", "backbone.bn1", width, imagenet ? 7 : 3, imagenet ? 2 : 1, pad);
    if (!status && imagenet) {
        e->pooled = true;
        e->pool = (od_pool_shape){.h = at->h, .w = at->w, .c = at->c, .size = 3, .stride = 2, .pad = 1};
        at->h = (at->h - 1) / 2 + 1;
        at->w = (at->w - 1) / 2 + 1;
    }
    for (int stage = 0; !status && stage < 4; stage++)
        for (int i = 0; !status && i < r->counts[stage]; i++)
            status = add_block(&e->blocks[e->block_count++], b, at, r, stage, i, width << stage);
    return status;
}

static od_status create_cnn4(od_encoder *e, const od_builder *b, cursor *at, int width) {
    static const int scale[] = {2, 2, 4}, stride[] = {2, 1, 2};
    od_status status = add_stem(e, b, at, "backbone.layer0.conv", "backbone.layer0.bn", width, 3, 1, 1);
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

od_status od_encoder_create(od_encoder *e, const od_builder *b, const od_model_config *config) {
    static const struct {
        const char *name;
        resnet r;
    } resnets[] = {
        {"resnet18", {{2, 2, 2, 2}, false}}, {"resnet34", {{3, 4, 6, 3}, false}}, {"resnet50", {{3, 4, 6, 3}, true}}};
    enum { MOST_BLOCKS = 16 };
    const od_net *net = b->net;
    const int size = config->image_size, width = config->width;
    cursor at = {size, size, 4};
    *e = (od_encoder){0};
    if (width < 1 || width > 1024 || size < 8 || size > 1024)
        return od_fail(OD_ERR_ARGUMENT, "encoder %s: width %d (1 to 1024) or image size %d (8 to 1024) out of range",
                       config->encoder, width, size);
    e->blocks = calloc(MOST_BLOCKS, sizeof *e->blocks);
    if (!e->blocks)
        return od_fail(OD_ERR_MEMORY, "no memory for the encoder's blocks");
    od_status status = OD_OK;
    const bool cnn4 = strcmp(config->encoder, "cnn4") == 0;
    size_t i = 0;
    while (i < sizeof resnets / sizeof *resnets && strcmp(config->encoder, resnets[i].name) != 0)
        i++;
    if (cnn4 && config->stem != OD_STEM_CIFAR)
        status = od_fail(OD_ERR_ARGUMENT, "encoder cnn4 has no stem \"%s\"; only the ResNets do",
                         od_stem_names[config->stem]);
    else if (cnn4)
        status = create_cnn4(e, b, &at, width);
    else if (i < sizeof resnets / sizeof *resnets)
        status = create_resnet(e, b, &at, &resnets[i].r, width, config->stem);
    else
        status =
            od_fail(OD_ERR_USAGE, "no encoder \"%s\"; there are: resnet18, resnet34, resnet50, cnn4", config->encoder);
    if (status)
        return status;
    e->h = at.h, e->w = at.w, e->c = at.c;
    return net->trained ? od_span_create(net->device, (size_t)net->max_rows * e->c, &e->features) : OD_OK;
}

void od_encoder_destroy(od_encoder *e) {
    od_conv_bn_destroy(&e->stem);
    for (int i = 0; i < e->block_count; i++) {
        for (int j = 0; j < OD_BLOCK_CONVS; j++)
            od_conv_bn_destroy(&e->blocks[i].conv[j]);
        od_conv_bn_destroy(&e->blocks[i].down);
    }
    free(e->blocks);
    od_buffer_release(e->features.buffer);
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
