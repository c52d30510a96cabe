/* What an encoder has learned: features of a split, kNN accuracy, collapse metrics. */
#ifndef TRAIN_EVALUATE_H
#define TRAIN_EVALUATE_H

#include "offdiag/train.h"
#include "train/metrics.h"
#include "train/views.h"

/* features (n, F) on the device, of the first n images of `split`, in evaluation mode; the caller releases it. */
od_status od_split_features(od_model *model, od_views *views, const od_split *split, int n, od_span *features);

typedef struct od_knn_protocol {
    int k, bank, queries; /* bank, queries: 0 is all */
    double t;
} od_knn_protocol;
od_knn_protocol od_knn_run_protocol(const od_train_config *config);

/* kNN accuracy 0..1 of test queries against training images that have labels (NaN without any), on L2-normalised
 * features, and the effective rank of the queries' features (at most 1,000 of them). bank and queries in `protocol` are
 * replaced by what was used. */
od_status od_knn_accuracy(od_model *model, od_views *views, const od_dataset *dataset, od_knn_protocol *protocol,
                          double *accuracy, double *feature_rank);

/* Device memory that it takes: an upper bound, and a trial on zeros (views.x) whose OD_ERR_DEVICE_MEMORY tells early.
 */
size_t od_knn_bytes(const od_model *model, const od_dataset *dataset, const od_knn_protocol *protocol);
od_status od_knn_try(od_model *model, od_views *views, const od_dataset *dataset, const od_knn_protocol *protocol);

#endif
