#include "train/evaluate.h"

#include <math.h>
#include <stdlib.h>

#include "offdiag/ops/knn.h"
#include "offdiag/ops/pointwise.h"

enum { RANK_ROWS = 1000, TRY_QUERIES = 1024 /* more than the vote takes at a time */ };

od_status od_split_features(od_model *model, od_views *views, const od_split *split, int first, int n,
                            od_span *features) {
    int d = od_model_feature_dim(model);
    int chunk = views->capacity < 2 * views->micro ? views->capacity : 2 * views->micro;
    od_status status = od_span_create(views->device, (size_t)n * d, features);
    for (int done = 0; done < n && !status; done += chunk) {
        int count = n - done < chunk ? n - done : chunk;
        status = od_views_plain(views, split, first + done, count);
        if (!status)
            status = od_model_features(model, od_span_at(*features, (size_t)done * d), OD_NO_SPAN, views->x, count);
    }
    if (status) {
        od_buffer_release(features->buffer);
        *features = OD_NO_SPAN;
    }
    return status;
}

/* features (n, d) on the host */
static od_status rank_of_features(const float *features, int n, int d, double *rank) {
    od_collapse collapse;
    od_status status = od_collapse_metrics(&collapse, NULL, features, n < RANK_ROWS ? n : RANK_ROWS, d);
    if (!status)
        *rank = collapse.effective_rank;
    return status;
}

static od_status rank_of_span(od_span features, int n, int d, double *rank) {
    int rows = n < RANK_ROWS ? n : RANK_ROWS;
    float *host = malloc((size_t)rows * d * sizeof *host);
    if (!host)
        return od_fail(OD_ERR_MEMORY, "no memory for %d x %d features", rows, d);
    od_status status = od_span_read(features, host, (size_t)rows * d);
    if (!status)
        status = rank_of_features(host, rows, d, rank);
    free(host);
    return status;
}

/* Votes and counts hits; bank (bank, d) and queries (queries, d) have unit rows. */
static od_status vote(od_device *device, const od_knn_shape *shape, od_span queries, od_span bank,
                      const int32_t *bank_labels, const int32_t *query_labels, double *hits) {
    od_buffer *labels = NULL;
    int32_t *predicted = malloc((size_t)shape->queries * sizeof *predicted);
    od_status status = OD_OK;
    if (!predicted)
        return od_fail(OD_ERR_MEMORY, "no memory for %d predictions", shape->queries);
    if ((status = od_buffer_create(device, (size_t)shape->bank * sizeof(int32_t), &labels)) ||
        (status = od_buffer_write(labels, 0, bank_labels, (size_t)shape->bank * sizeof(int32_t))) ||
        (status = od_knn_vote(device, shape, predicted, queries, bank, labels)))
        goto out;
    for (int i = 0; i < shape->queries; i++)
        *hits += predicted[i] == query_labels[i];
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
    double unused = 0;
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
    status = vote(views->device, &shape, queries, bank, dataset->train.labels, dataset->test.labels, &unused);
out:
    od_buffer_release(bank.buffer);
    od_buffer_release(queries.buffer);
    return status;
}

/* Features (total, d) of the first images of `split`, computed by all members, in all: *host is shared by those of a
 * process until the next gather. */
static od_status gather_features(const od_encoding *e, const od_split *split, int total, const float **host) {
    int first = 0, n = 0, d = od_model_feature_dim(e->model);
    od_span features = OD_NO_SPAN;
    float *own = NULL; /* (n, d) */
    od_status status = od_layout_range(e->layout, total, &first, &n);
    if (!status && n) {
        own = malloc((size_t)n * d * sizeof *own);
        status = own ? od_split_features(e->model, e->views, split, first, n, &features)
                     : od_fail(OD_ERR_MEMORY, "no memory for %d x %d features", n, d);
    }
    if (!status && n)
        status = od_span_read(features, own, (size_t)n * d);
    od_buffer_release(features.buffer);
    if (!status)
        status = od_member_gather(e->member, host, own, (size_t)first * d, (size_t)n * d, (size_t)total * d);
    free(own);
    return status;
}

/* values (n, d) on the device, with unit rows. */
static od_status upload_unit(od_device *device, od_span *out, const float *values, int n, int d) {
    od_status status = od_span_create(device, (size_t)n * d, out);
    if (!status && !(status = od_span_write(*out, values, (size_t)n * d)))
        status = od_l2_normalize(device, *out, *out, n, d, 1e-12f);
    return status;
}

/* Every member has the bank, and votes on its range of the queries. */
static od_status team_accuracy(const od_encoding *e, const od_dataset *dataset, od_knn_shape shape, double *accuracy,
                               double *feature_rank) {
    const int total = shape.queries, d = shape.d;
    od_device *device = e->views->device;
    od_span bank = OD_NO_SPAN, queries = OD_NO_SPAN;
    const float *host = NULL;
    double hits = 0;
    int first = 0;
    od_status status = OD_OK;
    if ((status = gather_features(e, &dataset->train, shape.bank, &host)) ||
        (status = upload_unit(device, &bank, host, shape.bank, d)) ||
        (status = gather_features(e, &dataset->test, total, &host)) ||
        (od_member_leads(e->member) && (status = rank_of_features(host, total, d, feature_rank))) ||
        (status = od_layout_range(e->layout, total, &first, &shape.queries)))
        goto out;
    if (shape.queries &&
        ((status = upload_unit(device, &queries, host + (size_t)first * d, shape.queries, d)) ||
         (status = vote(device, &shape, queries, bank, dataset->train.labels, dataset->test.labels + first, &hits))))
        goto out;
    if (!(status = od_member_sum(e->member, &hits, 1)))
        *accuracy = hits / total;
out:
    od_buffer_release(bank.buffer);
    od_buffer_release(queries.buffer);
    return status;
}

od_status od_knn_accuracy(const od_encoding *e, const od_dataset *dataset, od_knn_protocol *protocol, double *accuracy,
                          double *feature_rank) {
    od_device *device = e->views->device;
    od_span bank = OD_NO_SPAN, queries = OD_NO_SPAN;
    od_status status = OD_OK;
    od_knn_shape shape = shape_of(e->model, dataset, protocol);
    int d = shape.d;
    double hits = 0;
    protocol->bank = shape.bank;
    protocol->queries = shape.queries;
    *accuracy = *feature_rank = NAN;
    if (shape.bank == 0 || shape.queries == 0) /* a folder of images without classes */
        return OD_OK;
    if (e->member)
        return team_accuracy(e, dataset, shape, accuracy, feature_rank);
    if ((status = od_split_features(e->model, e->views, &dataset->train, 0, shape.bank, &bank)) ||
        (status = od_split_features(e->model, e->views, &dataset->test, 0, shape.queries, &queries)) ||
        (status = rank_of_span(queries, shape.queries, d, feature_rank)) ||
        (status = od_l2_normalize(device, bank, bank, shape.bank, d, 1e-12f)) ||
        (status = od_l2_normalize(device, queries, queries, shape.queries, d, 1e-12f)))
        goto out;
    status = vote(device, &shape, queries, bank, dataset->train.labels, dataset->test.labels, &hits);
    *accuracy = hits / shape.queries;
out:
    od_buffer_release(bank.buffer);
    od_buffer_release(queries.buffer);
    return status;
}
