/* The weighted k-nearest-neighbour vote of Wu et al. 2018: cosine similarity, weights exp(sim / T). */
#ifndef OFFDIAG_OPS_KNN_H
#define OFFDIAG_OPS_KNN_H

#include "offdiag/device.h"

typedef struct od_knn_shape {
    int queries, bank, d, classes, k;
    float temperature;
} od_knn_shape;

/* predicted (queries) int32, host memory: the class with the largest sum of exp(sim/T) over the k nearest bank rows;
 * ties go to the lower class, equal similarities to the lower bank index. queries_x (queries, d) and bank_x (bank, d)
 * must have rows of length 1 (od_l2_normalize). bank_labels (bank) int32 on the device. Works in tiles: device memory
 * stays bounded. k is clamped to bank. */
od_status od_knn_vote(od_device *device, const od_knn_shape *shape, int32_t *predicted, od_span queries_x,
                      od_span bank_x, const od_buffer *bank_labels);

#endif
