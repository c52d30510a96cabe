/* A linear softmax classifier on features: of the linear protocol, and of the one that learns beside a run. */
#ifndef TRAIN_CLASSIFIER_H
#define TRAIN_CLASSIFIER_H

#include "offdiag/device.h"
#include "offdiag/model.h"

typedef struct od_classifier {
    od_device *device;
    int d, classes, rows;
    od_param_table table; /* "weight" (d, classes), "bias" (classes) */
    size_t w, bias;
    od_span param, momentum, grad; /* (table.count) */
    od_span logits, dlogits;       /* (rows, classes) */
} od_classifier;

/* For at most `rows` rows at a time; weights and momentum are zero. */
od_status od_classifier_create(od_classifier *c, od_device *device, int d, int classes, int rows);
void od_classifier_destroy(od_classifier *c);
od_status od_classifier_reset(od_classifier *c);

/* Cross-entropy of x (rows, d) with labels (rows) from labels_offset on: loss[0] += scale * its mean; gradients
 * likewise, added to what is there with accumulate; correct[0] = hits, unless OD_NO_SPAN. */
od_status od_classifier_gradient(od_classifier *c, od_span loss, od_span correct, od_span x, od_buffer *labels,
                                 size_t labels_offset, int rows, float scale, bool accumulate);
od_status od_classifier_step(od_classifier *c, float lr, float momentum, float weight_decay);
/* correct[0] = hits among x (rows, d); loss[0] is overwritten. */
od_status od_classifier_score(od_classifier *c, od_span loss, od_span correct, od_span x, od_buffer *labels, int rows);

#endif
