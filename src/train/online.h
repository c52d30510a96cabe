/* A linear classifier that learns beside a run, on the training batches' features (of augmented views, with batch
 * statistics) and their labels. Nothing of it reaches the encoder. */
#ifndef TRAIN_ONLINE_H
#define TRAIN_ONLINE_H

#include "offdiag/data.h"
#include "train/classifier.h"
#include "train/evaluate.h"

typedef struct od_online {
    od_classifier classifier;
    int slots;
    od_buffer *labels;      /* (2, n) int32 of a micro-batch: as its views lie */
    int32_t *host_labels;   /* the same */
    od_span loss;           /* (1) */
    od_span corrects, part; /* (slots), (1) */
    int *labelled;          /* (slots): views with a label */
} od_online;

/* For micro-batches of at most n images, and `slots` steps whose hits wait on the device. */
od_status od_online_create(od_online **out, od_device *device, int d, int classes, int n, int slots);
void od_online_destroy(od_online *o); /* NULL is fine */

/* The labels of micro-batch `part` (from 0) of a step. */
od_status od_online_upload(od_online *o, const od_batch *batch, int part, int slot);
/* After the model's step of it: features (2 n, d); gradients of scale times the mean loss. */
od_status od_online_part(od_online *o, od_span features, int n, int part, int slot, float scale);
od_status od_online_step(od_online *o, float lr);
/* Adds hits and labelled views of the first `count` slots. Waits. */
od_status od_online_hits(const od_online *o, int count, double *correct, uint64_t *labelled);

/* Accuracy 0..1 on the first n test images that have labels (0: all), in evaluation mode; NaN without any. */
od_status od_online_test(od_online *o, const od_encoding *encoding, const od_dataset *dataset, int n, double *accuracy);

#endif
