#include "train/evaluate.h"

#include <math.h>
#include <stdlib.h>

#include "offdiag/ops/knn.h"
#include "offdiag/ops/pointwise.h"

enum { RANK_ROWS = 1000, TRY_QUERIES = 1024 /* more than the vote takes at a time */ };

od_status od_split_features(od_model *model, od_views *views, const od_split *split, int n, od_span *features) {
    int d = od_model_feature_dim(model);
    int chunk = views->capacity < 2 * views->micro ? views->capacity : 2 * views->micro;
    od_status status = od_span_create(views->device, (size_t)n * d, features);
    for (int first = 0; first < n && !status; first += chunk) {
        int count = n - first < chunk ? n - first : chunk;
        status = od_views_plain(views, split, first, count);
        if (!status)
            status = od_model_features(model, od_span_at(*features, (size_t)first * d), OD_NO_SPAN, views->x, count);
    }
    if (status) {
        od_buffer_release(features->buffer);
        *features = OD_NO_SPAN;
    }
    return status;
}

static od_status rank_of_features(od_span features, int n, int d, double *rank) {
    int rows = n < RANK_ROWS ? n : RANK_ROWS;
    od_collapse collapse;
    float *host = malloc((size_t)rows * d * sizeof *host);
    if (!host)
        return od_fail(OD_ERR_MEMORY, "no memory for %d x %d features", rows, d);
    od_status status = od_span_read(features, host, (size_t)rows * d);
    if (!status && !(status = od_collapse_metrics(&collapse, NULL, host, rows, d)))
        *rank = collapse.effective_rank;
    free(host);
    return status;
}

/* Votes and counts; bank (bank, d) and queries (queries, d) have unit rows. */
static od_status vote(od_device *device, const od_knn_shape *shape, od_span queries, od_span bank,
                      const od_dataset *dataset, double *accuracy) {
    od_buffer *labels = NULL;
    int32_t *predicted = malloc((size_t)shape->queries * sizeof *predicted);
    od_status status = OD_OK;
    if (!predicted)
        return od_fail(OD_ERR_MEMORY, "no memory for %d predictions", shape->queries);
    if ((status = od_buffer_create(device, (size_t)shape->bank * sizeof(int32_t), &labels)) ||
        (status = od_buffer_write(labels, 0, dataset->train.labels, (size_t)shape->bank * sizeof(int32_t))) ||
        (status = od_knn_vote(device, shape, predicted, queries, bank, labels)))
        goto out;
    int correct = 0;
    for (int i = 0; i < shape->queries; i++)
        correct += predicted[i] == dataset->test.labels[i];
    *accuracy = (double)correct / shape->queries;
out:
    free(predicted);
    od_buffer_release(labels);
    return status;
}

od_knn_protocol od_knn_run_protocol(const od_train_config *c) {
    return (od_knn_protocol){.k = c->knn_k, .bank = c->knn_bank, .queries = c->knn_queries, .t = c->knn_t};
}

static int all_or(int wanted, int there) {
    return wanted == 0 || wanted > there ? there : wanted;
}

static od_knn_shape shape_of(const od_model *model, const od_dataset *dataset, const od_knn_protocol *protocol) {
    return (od_knn_shape){.queries = all_or(protocol->queries, od_split_labelled(&dataset->test)),
                          .bank = all_or(protocol->bank, od_split_labelled(&dataset->train)),
                          .d = od_model_feature_dim(model),
                          .classes = dataset->classes,
                          .k = protocol->k,
                          .temperature = (float)protocol->t};
}

size_t od_knn_bytes(const od_model *model, const od_dataset *dataset, const od_knn_protocol *protocol) {
    od_knn_shape s = shape_of(model, dataset, protocol);
    size_t block = (size_t)(s.queries < TRY_QUERIES ? s.queries : TRY_QUERIES) * s.bank;
    return (((size_t)s.bank + s.queries) * s.d + block) * sizeof(float);
}

od_status od_knn_try(od_model *model, od_views *views, const od_dataset *dataset, const od_knn_protocol *protocol) {
    od_knn_shape shape = shape_of(model, dataset, protocol);
    int rows = views->capacity < 2 * views->micro ? views->capacity : 2 * views->micro;
    size_t bank_size = (size_t)shape.bank * shape.d, query_size = (size_t)shape.queries * shape.d;
    od_span bank = OD_NO_SPAN, queries = OD_NO_SPAN;
    double unused;
    od_status status = OD_OK;
    if (shape.bank == 0 || shape.queries == 0)
        return OD_OK;
    rows = rows < shape.bank ? rows : shape.bank;
    if ((status = od_span_create(views->device, bank_size, &bank)) ||
        (status = od_span_create(views->device, query_size, &queries)) || (status = od_span_zero(bank, bank_size)) ||
        (status = od_span_zero(queries, query_size)) ||
        (status = od_model_features(model, bank, OD_NO_SPAN, views->x, rows)))
        goto out;
    shape.queries = shape.queries < TRY_QUERIES ? shape.queries : TRY_QUERIES;
    status = vote(views->device, &shape, queries, bank, dataset, &unused);
out:
    od_buffer_release(bank.buffer);
    od_buffer_release(queries.buffer);
    return status;
}

od_status od_knn_accuracy(od_model *model, od_views *views, const od_dataset *dataset, od_knn_protocol *protocol,
                          double *accuracy, double *feature_rank) {
    od_device *device = views->device;
    od_span bank = OD_NO_SPAN, queries = OD_NO_SPAN;
    od_status status = OD_OK;
    od_knn_shape shape = shape_of(model, dataset, protocol);
    int d = shape.d;
    protocol->bank = shape.bank;
    protocol->queries = shape.queries;
    *accuracy = *feature_rank = NAN;
    if (shape.bank == 0 || shape.queries == 0) /* a folder of images without classes */
        return OD_OK;
    if ((status = od_split_features(model, views, &dataset->train, shape.bank, &bank)) ||
        (status = od_split_features(model, views, &dataset->test, shape.queries, &queries)) ||
        (status = rank_of_features(queries, shape.queries, d, feature_rank)) ||
        (status = od_l2_normalize(device, bank, bank, shape.bank, d, 1e-12f)) ||
        (status = od_l2_normalize(device, queries, queries, shape.queries, d, 1e-12f)))
        goto out;
    status = vote(device, &shape, queries, bank, dataset, accuracy);
out:
    od_buffer_release(bank.buffer);
    od_buffer_release(queries.buffer);
    return status;
}
