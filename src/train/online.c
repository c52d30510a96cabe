#include "train/online.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "offdiag/ops/pointwise.h"
#include "train/evaluate.h"

od_status od_online_create(od_online **out, od_device *device, int d, int classes, int n, int slots) {
    size_t labels = 2 * (size_t)n * sizeof(int32_t);
    od_status status = OD_OK;
    od_online *o = calloc(1, sizeof *o);
    if (!o)
        return od_fail(OD_ERR_MEMORY, "no memory for an online classifier");
    *o = (od_online){.slots = slots, .host_labels = malloc(labels), .labelled = calloc(slots, sizeof *o->labelled)};
    if (!o->host_labels || !o->labelled)
        status = od_fail(OD_ERR_MEMORY, "no memory for an online classifier of batches of %d", n);
    if (status || (status = od_classifier_create(&o->classifier, device, d, classes, 2 * n)) ||
        (status = od_buffer_create(device, labels, &o->labels)) || (status = od_span_create(device, 1, &o->loss)) ||
        (status = od_span_zero(o->loss, 1)) || (status = od_span_create(device, slots, &o->corrects)) ||
        (status = od_span_create(device, 1, &o->part))) {
        od_online_destroy(o);
        return status;
    }
    *out = o;
    return OD_OK;
}

void od_online_destroy(od_online *o) {
    if (!o)
        return;
    od_classifier_destroy(&o->classifier);
    od_buffer_release(o->labels);
    od_buffer_release(o->loss.buffer);
    od_buffer_release(o->corrects.buffer);
    od_buffer_release(o->part.buffer);
    free(o->host_labels);
    free(o->labelled);
    free(o);
}

od_status od_online_upload(od_online *o, const od_batch *batch, int part, int slot) {
    o->labelled[slot] = part ? o->labelled[slot] : 0;
    for (int i = 0; i < batch->n; i++) {
        o->host_labels[i] = o->host_labels[batch->n + i] = batch->labels[i];
        o->labelled[slot] += batch->labels[i] >= 0 ? 2 : 0;
    }
    return od_buffer_write(o->labels, 0, o->host_labels, 2 * (size_t)batch->n * sizeof *o->host_labels);
}

od_status od_online_part(od_online *o, od_span features, int n, int part, int slot, float scale) {
    od_span total = od_span_at(o->corrects, slot), correct = part ? o->part : total;
    od_status status =
        od_classifier_gradient(&o->classifier, o->loss, correct, features, o->labels, 0, 2 * n, scale, part > 0);
    return status || part == 0 ? status : od_axpy(o->classifier.device, total, 1, correct, 1);
}

od_status od_online_step(od_online *o, float lr) {
    return od_classifier_step(&o->classifier, lr, 0.9f, 0);
}

od_status od_online_hits(const od_online *o, int count, double *correct, uint64_t *labelled) {
    float host[64];
    if (count > (int)(sizeof host / sizeof *host) || count > o->slots)
        return od_fail(OD_ERR_ARGUMENT, "%d steps of %d slots", count, o->slots);
    od_status status = count ? od_span_read(o->corrects, host, count) : OD_OK;
    for (int i = 0; i < count && !status; i++) {
        *correct += host[i];
        *labelled += o->labelled[i];
    }
    return status;
}

/* Hits among features (n, d), as many at a time as the classifier takes. */
static od_status count_hits(od_online *o, od_span features, const int32_t *labels, int n, double *hits) {
    int rows = o->classifier.rows;
    od_status status = OD_OK;
    for (int first = 0; first < n; first += rows) {
        int count = n - first < rows ? n - first : rows;
        float correct = 0;
        if ((status = od_buffer_write(o->labels, 0, labels + first, count * sizeof *labels)) ||
            (status = od_classifier_score(&o->classifier, o->loss, o->part,
                                          od_span_at(features, (size_t)first * o->classifier.d), o->labels, count)) ||
            (status = od_span_read(o->part, &correct, 1)))
            return status;
        *hits += correct;
    }
    return OD_OK;
}

od_status od_online_test(od_online *o, const od_encoding *e, const od_dataset *dataset, int n, double *accuracy) {
    int there = od_split_labelled(&dataset->test), first = 0, own = 0;
    od_span features = OD_NO_SPAN;
    double hits = 0;
    n = n == 0 || n > there ? there : n;
    *accuracy = NAN;
    if (n == 0)
        return OD_OK;
    od_status status = od_layout_range(e->layout, n, &first, &own);
    if (!status && own && !(status = od_split_features(e->model, e->views, &dataset->test, first, own, &features)))
        status = count_hits(o, features, dataset->test.labels + first, own, &hits);
    od_buffer_release(features.buffer);
    if (!status && e->member)
        status = od_member_sum(e->member, &hits, 1);
    if (!status)
        *accuracy = hits / n;
    return status;
}
