/* The state of a training run, which setup.c builds, loop.c steps and epoch.c reports on. */
#ifndef TRAIN_TRAINER_H
#define TRAIN_TRAINER_H

#include "train/checkpoint.h"
#include "train/metrics.h"
#include "train/online.h"
#include "train/progress.h"
#include "train/run.h"
#include "train/views.h"

enum { OD_LOSS_SLOTS = 32 }; /* losses that wait on the device until the host reads them in one go */

typedef struct od_trainer {
    od_checkpoint_info info; /* configuration and progress; saved with each checkpoint */
    od_device *device;
    od_dataset *dataset;
    od_loader *loader;
    od_views views;
    od_model *model;
    od_online *online; /* NULL: not asked for */
    od_run run;
    struct od_tensorboard *tensorboard; /* NULL: not asked for, or given up */
    od_progress progress;
    uint64_t total;   /* steps of the whole run */
    uint64_t batches; /* steps of an epoch */
    int parts;        /* micro-batches of a batch */
    od_span losses;   /* (OD_LOSS_SLOTS) */
    int waiting;      /* losses there */
    double flushed;   /* when they were read last */
    bool warned;      /* of a collapse */
    od_train_result *result;
} od_trainer;

/* What an epoch came to; NaN where it was not measured. */
typedef struct od_epoch {
    uint64_t epoch;
    double loss, knn, feature_rank;
    double online, online_train; /* accuracy on test images, and on views as it learned */
    double offdiag_norm, offdiag_max;
    double images_per_s;
    od_collapse collapse;
} od_epoch;

/* From an open device and run directory to a model at the right step. */
od_status od_trainer_prepare(od_trainer *t);
void od_trainer_close(od_trainer *t);

/* kNN of the untrained encoder; a resumed run knows it already. */
od_status od_trainer_evaluate_before(od_trainer *t);
/* Read the losses of the last steps, log them, and stop at the first that is no number. */
od_status od_trainer_flush_losses(od_trainer *t);
od_status od_trainer_save(od_trainer *t); /* a checkpoint, of finite values only */
/* Evaluation, metrics and checkpoint at an epoch's end. */
od_status od_trainer_finish_epoch(od_trainer *t);

#endif
