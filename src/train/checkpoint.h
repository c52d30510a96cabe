/* checkpoint.safetensors: everything that a bit-exact resume needs, in PyTorch's layouts and names.
 *
 *   backbone.*, projector.*, predictor.*                       parameters and BN running statistics
 *   optimizer.momentum.<name>                                  momentum of each parameter
 *   optimizer.second.<name>                                    Adam's mean of squares
 *   online_linear.weight, .bias, .momentum.*                   the online classifier
 *   momentum_backbone.*, momentum_projector.*                  BYOL's target
 * Metadata (strings): format, options (JSON, every option of the run), state (step, epoch_loss_sum, epoch_loss_count,
 * dataset facts), and of a run on several devices split (their names and shares). Written by atomic replacement. The
 * order of batches and all random numbers follow from seed and step, so nothing else is kept. */
#ifndef TRAIN_CHECKPOINT_H
#define TRAIN_CHECKPOINT_H

#include "base/safetensors.h"
#include "offdiag/train.h"
#include "train/classifier.h"
#include "train/snapshot.h"

typedef struct od_progress_state { /* where the run is */
    uint64_t step;                 /* steps done */
    double epoch_loss_sum;         /* over the steps done in the present epoch */
    uint64_t epoch_loss_count;
    double knn_before;     /* NaN: not measured */
    double online_correct; /* hits of the online classifier in the present epoch, among the views it saw */
    uint64_t online_count;
} od_progress_state;

typedef struct od_checkpoint_info { /* what can be known before a model is built */
    od_train_config config;
    od_progress_state progress;
    int micro_batch; /* images of a pass as it was run; 0: not known */
    int image_side, channels, classes;
    float mean[3], std[3];
    char data_dir[1024];
    char device[256];
    char tuning[9]; /* od_tuning_fingerprint of the rows in force; "": not known */
} od_checkpoint_info;

/* online: the classifier that learns beside, or NULL. split: JSON text of devices and their shares; NULL: one device.
 * values: what the model's and the classifier's arenas hold, where their device can't be asked; else NULL. */
od_status od_checkpoint_save(const char *path, const od_checkpoint_info *info, const od_model *model,
                             const od_classifier *online, const char *split, const od_snapshot *values);

/* A run directory or a file -> the file's path (malloc'd). */
od_status od_checkpoint_path(const char *run_or_file, char **path);
/* Open a checkpoint that holds all of the model it describes; needs no device. */
od_status od_checkpoint_open(const char *path, od_safetensors **file, od_checkpoint_info *info);
/* Into a model built with info's configuration. training: the optimiser's state and target too, and the
 * online classifier unless it is NULL. */
od_status od_checkpoint_load(const od_safetensors *file, const char *path, od_model *model, od_classifier *online,
                             bool training);

#endif
