/* Linear evaluation: a linear classifier trained on frozen features.
 *
 * Protocol: features as the encoder gives them (neither normalised nor standardised), weights from zero, SGD with
 * momentum, no weight decay, cosine schedule per step, a new shuffle each epoch, softmax cross-entropy. The right
 * learning rate is on the features' scale: by default it is chosen among `sweep` by short runs that leave out a slice
 * of the training rows; the classifier is then trained on all of them. The test rows choose nothing. */
#ifndef TRAIN_LINEAR_H
#define TRAIN_LINEAR_H

#include "dist/team.h"
#include "offdiag/device.h"

/* Features on the host, borrowed. */
typedef struct od_features {
    const float *x;        /* (n, d) */
    const int32_t *labels; /* (n), 0 .. classes-1 */
    int n;
} od_features;

typedef struct od_probe_config {
    int epochs, batch;
    float lr; /* 0: swept */
    float momentum, weight_decay;
    const float *sweep; /* (sweep_count) learning rates to choose from */
    int sweep_count, sweep_epochs;
    float held_out; /* part of the training rows that chooses among them */
    uint64_t seed;
    od_member *member; /* NULL: alone; else all members have the same features and divide the rates of a sweep */
} od_probe_config;

/* 100 epochs, batch 256, momentum 0.9, no weight decay; a sweep of 0.01 to 30 with 20 epochs each on 9/10 of the rows.
 */
void od_probe_config_default(od_probe_config *config);

typedef struct od_probe_result {
    double accuracy;          /* on the test rows, 0..1 */
    double held_out_accuracy; /* of the chosen rate in the sweep; NaN without one */
    double train_loss;        /* mean over the last epoch */
    float lr;
} od_probe_result;

/* Two runs with one seed agree bit for bit. With a team the leader trains the classifier in the end: the result is its.
 * (A step of it takes less than members would take to add up.) A loss that is not finite: OD_ERR_NUMERIC with the
 * learning rate. */
od_status od_linear_probe(od_device *device, od_probe_result *out, const od_probe_config *config,
                          const od_features *train, const od_features *test, int d, int classes);

#endif
