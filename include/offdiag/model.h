/* The model: parameters in one arena, encoder, projector, prediction head, and their Siamese wiring.
 *
 * The two views of a batch of N images travel as one batch of 2N rows, view 1 first; batch-norm statistics are kept
 * apart per view (od_bn_shape.groups = 2), so a step equals the two separate passes of the papers. */
#ifndef OFFDIAG_MODEL_H
#define OFFDIAG_MODEL_H

#include "offdiag/device.h"

/* ---- parameters ------------------------------------------------------------------------------------------------- */

/* How a tensor lies in the arena, and as what it is stored outside (checkpoints and exports use PyTorch's layouts):
 *   CONV    (KH, KW, Cin, Cout)   <-> OIHW; the stem's input channels may be padded with zero rows that are not stored
 *   LINEAR  (in, out)             <-> (out, in)
 *   VECTOR  (C)                   <-> the same */
typedef enum od_param_kind { OD_PARAM_CONV, OD_PARAM_LINEAR, OD_PARAM_VECTOR } od_param_kind;

typedef struct od_param {
    char name[80]; /* torchvision's: "backbone.layer1.0.conv1.weight", "projector.0.weight", "predictor.weight" */
    od_param_kind kind;
    int kernel_h, kernel_w, in, out; /* VECTOR: out = C, the rest 1 */
    int in_stored;                   /* input channels outside; < in where padded */
    size_t offset, count;            /* in the arena, in floats */
} od_param;

/* A table of tensors over one or more arenas of `count` floats: the parameters, and the same way the BN statistics. */
typedef struct od_param_table {
    od_param *rows;
    size_t size, capacity;
    size_t count;
} od_param_table;

const od_param *od_param_find(const od_param_table *table, const char *name); /* NULL: none */
/* The number of values outside (padding left out), and of one tensor. */
size_t od_param_stored_count(const od_param *param);
size_t od_param_table_stored_count(const od_param_table *table);
/* Between an arena's layout (host copy of the tensor, `count` floats) and the stored one (od_param_stored_count
 * floats). */
void od_param_to_stored(const od_param *param, float *stored, const float *arena);
void od_param_from_stored(const od_param *param, float *arena, const float *stored);

/* ---- configuration ---------------------------------------------------------------------------------------------- */

typedef enum od_head_kind {
    OD_HEAD_NONE,
    OD_HEAD_OFFDIAG,
    OD_HEAD_LINEAR,
    OD_HEAD_MLP,
    OD_HEAD_DIRECTPRED
} od_head_kind;
typedef enum od_method { OD_SIMSIAM, OD_BYOL } od_method;
typedef enum od_loss_kind { OD_LOSS_COSINE, OD_LOSS_NORMALIZED } od_loss_kind;
/* What outputs and targets go through before the loss; AUTO: BN for the normalized loss, NONE for cosine. */
typedef enum od_out_norm { OD_OUT_AUTO, OD_OUT_NONE, OD_OUT_BN, OD_OUT_L2 } od_out_norm;
typedef enum od_optimizer { OD_SGD, OD_LARS, OD_ADAM, OD_ADAMW } od_optimizer;
/* How a ResNet begins: a 3x3 convolution with padding 1, or 2 (solo-learn's), or 7x7 with stride 2 and max-pooling. */
typedef enum od_stem { OD_STEM_CIFAR, OD_STEM_CIFAR_PAD2, OD_STEM_IMAGENET } od_stem;
extern const char *const od_stem_names[]; /* in that order; NULL-terminated */

typedef struct od_model_config {
    const char *encoder; /* one of od_encoder_names */
    od_stem stem;
    int width;                              /* channels of the first stage: 64 is the standard ResNet; cnn4's is 32 */
    int image_size;                         /* S: views are (S, S) */
    int proj_layers, proj_hidden, proj_dim; /* layers: 2 or 3; 0: 2 */
    bool proj_bn;                           /* a last BN without affine on the projector's output */
    int head_hidden;                        /* of the MLP head */
    od_head_kind head;
    od_method method;
    od_loss_kind loss;
    od_out_norm out_norm;
    bool one_sided;       /* view 1's outputs against view 2's targets alone; not symmetrised */
    bool target_gradient; /* without stop-gradient, for ablation; SimSiam */
    int directpred_every; /* steps between the eigen-decompositions of that head; 0: 1 */
    float directpred_rho, directpred_eps;
    od_optimizer optimizer;
    uint64_t seed;
} od_model_config;

extern const char *const od_head_names[]; /* in the order of od_head_kind, ends with NULL */
bool od_head_parse(const char *text, od_head_kind *out);
const char *od_head_name(od_head_kind head);
extern const char *const od_out_norm_names[];  /* in the order of od_out_norm, ends with NULL */
extern const char *const od_optimizer_names[]; /* in the order of od_optimizer, ends with NULL */
extern const char *const od_encoder_names[];   /* NULL-terminated */

/* ---- the model -------------------------------------------------------------------------------------------------- */

typedef struct od_model od_model;

/* The tables alone, without a device: which tensors a model of this configuration has. Release with
 * od_param_table_free. */
od_status od_model_tables(const od_model_config *config, od_param_table *params, od_param_table *stats);
void od_param_table_free(od_param_table *table);

/* Build for at most max_n images (of each of two views; 2 or more, 1 for a team's member) in a training pass: allocates
 * parameters, gradients, momentum and activations, initialises the weights from config->seed. OD_ERR_DEVICE_MEMORY
 * tells what it needed. */
od_status od_model_create(od_device *device, const od_model_config *config, int max_n, od_model **out);
void od_model_destroy(od_model *model);

const od_model_config *od_model_get_config(const od_model *model);
int od_model_feature_dim(const od_model *model);
/* Tables: parameters (encoder, projector, then head: the head's are the last `od_model_head_offset` onwards), BN
 * statistics. */
const od_param_table *od_model_params(const od_model *model);
const od_param_table *od_model_stats(const od_model *model);
size_t od_model_head_offset(const od_model *model); /* first float of the head in the parameter arena */
/* The arenas. target_*: BYOL only (else OD_NO_SPAN): encoder and projector, od_model_head_offset floats. */
typedef struct od_model_arenas {
    od_span value, grad, momentum; /* (params.count) */
    od_span second;                /* (params.count) Adam's mean of squares; else OD_NO_SPAN */
    od_span stats;                 /* (stats.count) */
    od_span target_value;          /* (head_offset) */
    od_span target_stats;          /* (stats.count); the head's part is unused */
} od_model_arenas;
od_model_arenas od_model_get_arenas(const od_model *model);

/* Tell the layers that values changed (packs convolution weights, makes W = I + offdiag(V)). After loading or stepping.
 */
od_status od_model_update(od_model *model);

/* Forward and backward of the loss on views x (2n, S, S, 4). loss[0] on the device gets (accumulate ? + :
 * =) scale * loss; gradients likewise. BN running statistics move once per view. */
od_status od_model_step(od_model *model, od_span loss, od_span x, int n, float scale, bool accumulate);

/* ---- one model on several devices ------------------------------------------------------------------------------- */

/* This model is the replica of a team's member (dist/team.h): batch norm, normalised losses and DirectPred count the
 * images of all members, and gradients are summed over them. All make the same calls. od_model_step's n is then of this
 * member, 1 or more, and its loss this member's part of the sum: scale is to be multiplied by its share of the images.
 * Before the first step; the member outlives the model. Holds the gradients on the host too. */
struct od_member;
od_status od_model_join(od_model *model, struct od_member *member);
/* Whether the next od_model_step makes the gradients final, as it is the only or the last of a step: their sum over
 * members then begins while its backward pass goes on. Before every od_model_step; without a team it does nothing. */
void od_model_set_final(od_model *model, bool final);
/* Gradients of all members, in all of them; between the last od_model_step and od_model_optimize. Waits; without a team
 * it does nothing. */
od_status od_model_reduce(od_model *model);
/* The leader's values, optimiser state and statistics, to all members. Without a team it does nothing. */
od_status od_model_sync(od_model *model);

/* Projections z (2n, proj_dim) and features h (2n, feature_dim) of the last od_model_step; valid until the next one. */
od_span od_model_projection(const od_model *model);
od_span od_model_step_features(const od_model *model);

/* A step of the optimiser on all parameters (the head at head_lr, head_weight_decay), which moves BYOL's target with
 * tau in the same pass, then od_model_update. */
typedef struct od_optim_rates {
    float lr, momentum, weight_decay; /* momentum: Adam's beta1 */
    float head_lr, head_weight_decay;
    float ema_tau;
    float beta2, lars_eta; /* Adam; LARS */
    uint64_t step;         /* steps done before this one */
} od_optim_rates;
od_status od_model_optimize(od_model *model, const od_optim_rates *rates);

/* Evaluation mode: features (n, feature_dim) of images x (n, S, S, 4), any n; projections z (n, proj_dim) when not
 * OD_NO_SPAN. */
od_status od_model_features(od_model *model, od_span features, od_span z, od_span x, int n);

/* Frobenius norm and largest entry of offdiag(head), for the heads that are a matrix; zeros otherwise. Waits. */
od_status od_model_offdiag(od_model *model, float *norm, float *largest);

#endif
