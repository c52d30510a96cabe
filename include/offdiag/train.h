/* Training: configuration, the run, its checkpoint, evaluation and export. */
#ifndef OFFDIAG_TRAIN_H
#define OFFDIAG_TRAIN_H

#include "offdiag/data.h"
#include "offdiag/device.h"
#include "offdiag/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- configuration ---------------------------------------------------------------------------------------------- */

/* Every option of a run. One table (src/train/config.c) gives each field its flag, its JSON key, its default, its range
 * and its help; presets, --config files, flags and config.json all go through it. */
typedef struct od_train_config {
    /* data */
    char dataset[64], data[1024]; /* name; folder ("": search) */
    int limit;                    /* training images used; 0: all */
    int image_side;               /* of a folder's images as they are kept; 0: image_size, or 64 */
    int downsample;               /* images averaged down by this factor first */
    int image_size;               /* side of the views; 0: the image's own */
    int augment;                  /* index in od_augment_names */
    double crop_min;              /* the smallest crop area; 0: the policy's own */
    /* model */
    int encoder; /* index in od_encoder_names */
    od_stem stem;
    int width;        /* 0: the encoder's own */
    od_method method; /* enums, each with its names in config.c */
    od_head_kind head;
    od_loss_kind loss;
    od_out_norm out_norm;
    double loss_scale;
    bool symmetric, stop_gradient;
    int proj_layers, proj_hidden, proj_dim, head_hidden;
    bool proj_bn;
    int directpred_every;
    double directpred_rho, directpred_eps;
    /* optimisation */
    int epochs, steps, batch, micro_batch; /* steps > 0 replaces epochs; micro_batch 0: as much as fits */
    od_optimizer optimizer;
    double lr, momentum, weight_decay; /* momentum: Adam's beta1 */
    int lr_batch;                      /* lr is for batches of so many images; 0: used as it is */
    double beta2, lars_eta;
    double head_lr;  /* times lr; constant after the warm-up */
    bool head_decay; /* no: it follows the cosine too */
    double head_weight_decay;
    int warmup, warmup_epochs; /* steps; epochs, if not 0, instead */
    double warmup_lr;          /* where the warm-up starts */
    bool cosine_after_warmup;  /* the cosine begins where the warm-up ends */
    double ema;                /* BYOL: tau at the start, rises to 1 by a cosine over the run */
    bool ema_constant;
    bool online_linear; /* a linear classifier learns beside, on features that get no gradient from it */
    double online_lr;
    uint64_t seed;
    /* evaluation */
    int knn_k, knn_bank, knn_queries; /* bank, queries: 0 is all */
    double knn_t;
    int eval_every; /* epochs; 0: only before and after */
    /* the run */
    char out[1024], device[1024]; /* device: one, or several with commas between */
    char split[1024];             /* "5:3": how a batch is divided over them; "": by what was measured */
    bool rebalance;               /* divide again at the ends of epochs where their times came to differ */
    bool keep_going;              /* a device that fails drops out, the others go on */
    int kernels;                  /* an od_family */
    int memory;                   /* budget of each device in MiB; 0: most of what the device reports */
    int checkpoint_every;         /* steps, besides the end of each epoch; 0: epochs only */
    bool tensorboard;             /* event files in the run's directory */
    bool resume, quiet;
} od_train_config;

void od_train_config_default(od_train_config *config);

/* Fill from the preset `name`: a JSON file in the presets folder ($OFFDIAG_DATADIR/presets, the source's or the
 * installed data/presets). An unknown name: OD_ERR_USAGE with the nearest one. */
od_status od_train_config_preset(od_train_config *config, const char *name);
/* Fill from a JSON object in a file; keys are the flags' names with _ for -. An unknown key or a value of the wrong
 * kind or out of range: OD_ERR_FORMAT naming file and key. Keys of config.json that are not options are ignored under
 * "run". */
od_status od_train_config_file(od_train_config *config, const char *path);
/* What no single option can check: names that exist, sizes that go together. */
od_status od_train_config_check(const od_train_config *config);

/* ---- the run ---------------------------------------------------------------------------------------------------- */

typedef struct od_train_result {
    uint64_t steps;
    int epochs;
    bool interrupted;       /* by a signal: a checkpoint was written; call it exit code 130 */
    double knn_before, knn; /* accuracy 0..1; NaN where it was not measured */
    double online;          /* of the online classifier on test images, likewise */
    double effective_rank, z_std;
    double loss, images_per_s, seconds;
} od_train_result;

/* Train as configured, into config->out (config.json, metrics.jsonl, checkpoint.safetensors). SIGINT and SIGTERM end it
 * after a checkpoint. OD_ERR_NUMERIC: the loss became NaN or infinite; the last good checkpoint stays. */
od_status od_train(const od_train_config *config, od_train_result *result);

/* ---- evaluation of a checkpoint --------------------------------------------------------------------------------- */

typedef struct od_eval_options {
    char device[1024];    /* several with commas: each computes a part of the features */
    char data[1024];      /* "": where the run found it */
    int kernels;          /* an od_family */
    int protocol;         /* 0 kNN, 1 linear */
    int k, bank, queries; /* 0: the run's own */
    double t;             /* 0: the run's own */
    int linear_epochs;
    double linear_lr; /* 0: sweep */
    bool folds;       /* linear: the mean over the data set's predefined folds */
    uint64_t seed;
} od_eval_options;

typedef struct od_eval_result {
    double accuracy;      /* 0..1 on the test split */
    int k, bank, queries; /* as used; linear: k 0, training and test images */
    double t;             /* kNN */
    int linear_epochs;    /* linear */
    double linear_lr;     /* linear: as given, or chosen by the sweep (of the last fold) */
    int folds;            /* linear: folds averaged over; 0: none */
    double feature_rank;  /* effective rank of the queries' features; NaN: not measured */
    char dataset[64], encoder[32];
    int width;
    uint64_t steps;
} od_eval_result;

/* path: a run directory or a checkpoint file. Over several devices and MPI ranks features, kNN's votes and the sweep of
 * the linear protocol are divided; every rank reads checkpoint and data, and rank 0 has the result. */
od_status od_evaluate(const char *path, const od_eval_options *options, od_eval_result *result);

typedef struct od_embed_options {
    char device[1024]; /* several with commas: each computes a part of the features */
    char data[1024];   /* "": where the run found it */
    int kernels;       /* an od_family */
    int split;         /* 0 test, 1 train (all of it, the run's --limit aside) */
    int limit;         /* the first N images; 0: all */
    char out[1024];    /* features (n, F) float32 .npy */
    char labels[1024]; /* labels (n) int32 .npy; "": none */
    char images[1024]; /* the encoder's inputs (n, S, S, 4) float32 .npy, normalised; "": none */
} od_embed_options;

/* Write the features of a checkpoint's encoder, in evaluation mode, as NumPy arrays. *n: images, *d: F; rank 0
 * writes. */
od_status od_embed(const char *path, const od_embed_options *options, int *n, int *d);

/* The encoder of a checkpoint under torchvision's names (no prefix, num_batches_tracked included), as safetensors. */
od_status od_export(const char *path, const char *out);

#ifdef __cplusplus
}
#endif
#endif
