/* The encoders: a stem and a row of blocks, then global average pooling.
 *
 *   resnet18, resnet34  basic blocks (2, 2, 2, 2 and 3, 4, 6, 3) at widths w, 2w, 4w, 8w (He et al. 2016)
 *   resnet50            bottleneck blocks 3, 4, 6, 3 with 4w, 8w, 16w, 32w channels between them, stride in the 3x3
 *   cnn4                four 3x3 convolutions w, 2w (stride 2), 2w, 4w (stride 2), each with BN and ReLU: for quick
 * looks
 *
 * A ResNet's stem is a 3x3 convolution (CIFAR; padding 1, or 2 as in solo-learn), or 7x7 with stride 2 and max-pooling
 * (ImageNet).
 *
 * Of every convolution its output is kept and nothing else: batch norm, ReLU and residual add are made where a tensor
 * is read. A block's sum is made in the forward pass, for the next block to read, and, where all sums together would
 * take much memory, once more for a whole stage in the backward pass. */
#ifndef MODEL_ENCODER_H
#define MODEL_ENCODER_H

#include "model/layers.h"
#include "offdiag/ops/pointwise.h"

enum { OD_BLOCK_CONVS = 3 };

/* Convolutions in a row; residual adds the block's input, through `down` where shapes differ. */
typedef struct od_block {
    od_conv_bn conv[OD_BLOCK_CONVS], down;
    int convs;
    bool residual, has_down;
    od_place y;                            /* the sum, made in the forward pass */
    od_place y_again;                      /* and in the backward pass, unless it was kept */
    od_place dy;                           /* gradient at the output; without `down` it becomes the input's */
    od_place d_hidden[OD_BLOCK_CONVS - 1]; /* at the outputs of all convolutions but the last */
    od_span sum;                           /* where y is now; no buffer: lost */
} od_block;

typedef struct od_encoder {
    od_conv_bn stem;
    bool pooled; /* the ImageNet stem: max-pooling behind the convolution */
    od_pool_shape pool;
    od_place stem_y, pool_y, pool_argmax; /* pooled only */
    od_place d_stem, d_pool;              /* gradients at the stem's and the pooling's output */
    od_block *blocks;
    int block_count;
    bool keeps_sums;
    int h, w, c;      /* the last block's output */
    od_span input;    /* of the last TRAIN pass */
    od_span features; /* kept (max_rows, C) */
} od_encoder;

/* Elements of all activations up to which block sums are kept: making them again takes 1 to 3 % of a step. For tests.
 */
extern size_t od_encoder_keep_limit;

/* How the initial weights are drawn: He-normal by fan-out (ResNet), or PyTorch's default, uniform +-1/sqrt(fan-in). */
typedef enum od_init_kind { OD_INIT_HE_FAN_OUT, OD_INIT_UNIFORM_FAN_IN } od_init_kind;
od_init_kind od_encoder_init_kind(const char *name);

od_status od_encoder_create(od_encoder *e, const od_builder *b, const od_model_config *config);
/* Places for net->max_rows images in an arena of *total elements, which net->arena must then be. */
od_status od_encoder_plan(od_encoder *e, const od_net *net, size_t *total);
od_status od_encoder_update(od_encoder *e, const od_net *net);
/* features (n, C) of x (n, S, S, 4), n <= max_rows. What an earlier pass left in the arena is lost. */
od_status od_encoder_forward(od_encoder *e, const od_net *net, od_mode mode, od_span *features, od_span x, int n);
/* All weight gradients from dfeatures (n, C), after a TRAIN pass; once. */
od_status od_encoder_backward(od_encoder *e, const od_net *net, od_span dfeatures, int n, bool accumulate);
void od_encoder_destroy(od_encoder *e);

#endif
