/* A linear classifier that learns beside a run, on the training batches' features (of augmented views, with batch
 * statistics) and their labels. Nothing of it reaches the encoder. */
#ifndef TRAIN_ONLINE_H
#define TRAIN_ONLINE_H

#include "offdiag/data.h"
#include "train/classifier.h"
#include "train/views.h"

typedef struct od_online {
    od_classifier classifier;
    int batch, parts, slots;
    od_buffer *labels;      /* (parts, 2, batch / parts) int32: as the views of a part lie */
    int32_t *host_labels;   /* the same */
    od_span loss;           /* (1) */
    od_span corrects, part; /* (slots), (1) */
    int *labelled;          /* (slots): views with a label */
} od_online;

/* For batches in `parts` micro-batches, and `slots` steps whose hits wait on the device. */
od_status od_online_create(od_online **out, od_device *device, int d, int classes, int batch, int parts, int slots);
void od_online_destroy(od_online *o); /* NULL is fine */

od_status od_online_upload(od_online *o, const od_batch *batch, int slot);
/* After the model's step of micro-batch `part`: features (2 batch / parts, d). */
od_status od_online_part(od_online *o, od_span features, int part, int slot);
od_status od_online_step(od_online *o, float lr);
/* Adds hits and labelled views of the first `count` slots. Waits. */
od_status od_online_hits(const od_online *o, int count, double *correct, uint64_t *labelled);

/* Accuracy 0..1 on the first n test images that have labels (0: all), in evaluation mode; NaN without any. */
od_status od_online_test(od_online *o, od_model *model, od_views *views, const od_dataset *dataset, int n,
                         double *accuracy);

#endif
