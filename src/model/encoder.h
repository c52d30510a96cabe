/* The encoders: a stem and a row of blocks, then global average pooling.
 *
 *   resnet18   CIFAR stem (3x3, stride 1, no max-pool); basic blocks 2, 2, 2, 2 at widths w, 2w, 4w, 8w (He et al.
 * 2016) cnn4       four 3x3 convolutions w, 2w (stride 2), 2w, 4w (stride 2), each with BN and ReLU: for quick looks */
#ifndef MODEL_ENCODER_H
#define MODEL_ENCODER_H

#include "model/layers.h"

/* One or two convolutions in a row; residual adds the block's input, through `down` where shapes differ. */
typedef struct od_block {
    od_conv_bn conv[2];
    int convs;
    bool residual, has_down;
    od_conv_bn down;
    od_span input; /* of the last TRAIN pass */
} od_block;

typedef struct od_encoder {
    od_conv_bn stem;
    od_block *blocks;
    int block_count;
    int h, w, c;        /* the last block's output */
    od_span input;      /* of the last TRAIN pass */
    od_span features;   /* kept (max_rows, C) */
    od_span scratch[3]; /* gradients, each as large as the largest activation */
} od_encoder;

/* How the initial weights are drawn: He-normal by fan-out (ResNet), or PyTorch's default, uniform +-1/sqrt(fan-in). */
typedef enum od_init_kind { OD_INIT_HE_FAN_OUT, OD_INIT_UNIFORM_FAN_IN } od_init_kind;
od_init_kind od_encoder_init_kind(const char *name);

od_status od_encoder_create(od_encoder *e, const od_builder *b, const char *name, int width, int image_size);
od_status od_encoder_update(od_encoder *e, const od_net *net);
/* features (n, C) of x (n, S, S, 4). */
od_status od_encoder_forward(od_encoder *e, const od_net *net, od_mode mode, od_span *features, od_span x, int n);
/* All weight gradients from dfeatures (n, C). */
od_status od_encoder_backward(od_encoder *e, const od_net *net, od_span dfeatures, int n, bool accumulate);
void od_encoder_destroy(od_encoder *e);

#endif
