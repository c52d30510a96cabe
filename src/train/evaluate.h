/* What an encoder has learned: features of a split, kNN accuracy, collapse metrics. */
#ifndef TRAIN_EVALUATE_H
#define TRAIN_EVALUATE_H

#include "offdiag/train.h"
#include "train/layout.h"
#include "train/metrics.h"
#include "train/views.h"

/* Where features are computed: on one device (layout NULL), or by all members of a team, each of them a range. */
typedef struct od_encoding {
    od_model *model;
    od_views *views;
    od_member *member; /* NULL: alone */
    const od_layout *layout;
} od_encoding;

/* features (n, F) on the device, of images first .. first+n-1 of `split`, in evaluation mode; the caller releases it.
 */
od_status od_split_features(od_model *model, od_views *views, const od_split *split, int first, int n,
                            od_span *features);

typedef struct od_knn_protocol {
    int k, bank, queries; /* bank, queries: 0 is all */
    double t;
} od_knn_protocol;
od_knn_protocol od_knn_run_protocol(const od_train_config *config);

/* kNN accuracy 0..1 of test queries against training images that have labels (NaN without any), on L2-normalised
 * features, and the effective rank of the queries' features (at most 1,000 of them). bank and queries in `protocol` are
 * replaced by what was used. With a team every member computes its ranges of features and votes on its queries. */
od_status od_knn_accuracy(const od_encoding *encoding, const od_dataset *dataset, od_knn_protocol *protocol,
                          double *accuracy, double *feature_rank);

/* Device memory that it takes: an upper bound, and a trial on zeros (views.x) whose OD_ERR_DEVICE_MEMORY tells early.
 */
size_t od_knn_bytes(const od_model *model, const od_dataset *dataset, const od_knn_protocol *protocol);
od_status od_knn_try(od_model *model, od_views *views, const od_dataset *dataset, const od_knn_protocol *protocol);

#endif
