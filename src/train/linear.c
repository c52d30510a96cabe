#include "train/linear.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "train/classifier.h"

static const float default_sweep[] = {0.01f, 0.03f, 0.1f, 0.3f, 1, 3, 10, 30};

void od_probe_config_default(od_probe_config *config) {
    *config = (od_probe_config){.epochs = 100,
                                .batch = 256,
                                .momentum = 0.9f,
                                .sweep = default_sweep,
                                .sweep_count = sizeof default_sweep / sizeof *default_sweep,
                                .sweep_epochs = 20,
                                .held_out = 0.1f};
}

/* The classifier and what one batch needs. */
typedef struct probe {
    od_device *device;
    const od_probe_config *config;
    int d, classes;
    od_classifier classifier;
    od_span x;             /* (batch, d) */
    od_span loss, correct; /* (1), (batches of the larger set) */
    od_buffer *labels;     /* (batch) int32 */
    float *host_x;         /* (batch, d) */
    int32_t *host_labels;  /* (batch) */
    uint32_t *order;       /* (train rows) */
    float *counts;         /* as `correct` */
} probe;

static size_t batches(const probe *p, int n) {
    return ((size_t)n + p->config->batch - 1) / p->config->batch;
}

static od_status probe_create(probe *p, int train_rows, int test_rows) {
    size_t batch = p->config->batch, d = p->d;
    size_t most = batches(p, train_rows > test_rows ? train_rows : test_rows);
    od_status status = OD_OK;
    if ((status = od_classifier_create(&p->classifier, p->device, p->d, p->classes, p->config->batch)) ||
        (status = od_span_create(p->device, batch * d, &p->x)) || (status = od_span_create(p->device, 1, &p->loss)) ||
        (status = od_span_create(p->device, most, &p->correct)) ||
        (status = od_buffer_create(p->device, batch * sizeof(int32_t), &p->labels)))
        return od_fail_in(status, "linear probe of %zu features: ", d);
    p->host_x = malloc(batch * d * sizeof(float));
    p->host_labels = malloc(batch * sizeof(int32_t));
    p->order = malloc(train_rows * sizeof(uint32_t));
    p->counts = malloc(most * sizeof(float));
    if (!p->host_x || !p->host_labels || !p->order || !p->counts)
        return od_fail(OD_ERR_MEMORY, "linear probe: no memory for batches of %zu rows of %zu", batch, d);
    return OD_OK;
}

static void probe_destroy(probe *p) {
    od_buffer *buffers[] = {p->x.buffer, p->loss.buffer, p->correct.buffer, p->labels};
    for (size_t i = 0; i < sizeof buffers / sizeof buffers[0]; i++)
        od_buffer_release(buffers[i]);
    od_classifier_destroy(&p->classifier);
    free(p->host_x);
    free(p->host_labels);
    free(p->order);
    free(p->counts);
}

/* Rows of f onto the device, those that `ids` names. */
static od_status upload(probe *p, const od_features *f, const uint32_t *ids, int rows) {
    for (int i = 0; i < rows; i++) {
        memcpy(p->host_x + (size_t)i * p->d, f->x + (size_t)ids[i] * p->d, p->d * sizeof(float));
        p->host_labels[i] = f->labels[ids[i]];
    }
    od_status status = od_span_write(p->x, p->host_x, (size_t)rows * p->d);
    return status ? status : od_buffer_write(p->labels, 0, p->host_labels, rows * sizeof(int32_t));
}

/* x -> logits -> loss -> gradients -> SGD; the loss adds up on the device. */
static od_status step(probe *p, int rows, float lr) {
    od_status status = od_classifier_gradient(&p->classifier, p->loss, OD_NO_SPAN, p->x, p->labels, 0, rows, 1, false);
    return status ? status : od_classifier_step(&p->classifier, lr, p->config->momentum, p->config->weight_decay);
}

/* Train from zero on the rows ids (n) of f; *loss: the mean of the last epoch. */
static od_status fit(probe *p, double *loss, const od_features *f, const uint32_t *ids, int n, int epochs, float lr) {
    size_t per_epoch = batches(p, n), total = per_epoch * epochs, at = 0;
    int batch = p->config->batch;
    float sum = 0;
    od_status status = OD_OK;
    uint32_t *rows = malloc(batch * sizeof *rows);
    if (!rows)
        return od_fail(OD_ERR_MEMORY, "linear probe: no memory for a batch of %d rows", batch);
    if ((status = od_classifier_reset(&p->classifier)))
        goto out;
    for (int epoch = 0; epoch < epochs; epoch++) {
        od_rng_permutation(p->order, n, p->config->seed, epoch);
        if ((status = od_span_zero(p->loss, 1)))
            goto out;
        for (int first = 0; first < n; first += batch, at++) {
            int count = n - first < batch ? n - first : batch;
            for (int i = 0; i < count; i++)
                rows[i] = ids[p->order[first + i]];
            float scheduled = (float)(lr * 0.5 * (1 + cos(M_PI * (double)at / (double)total)));
            if ((status = upload(p, f, rows, count)) || (status = step(p, count, scheduled)))
                goto out;
        }
    }
    if ((status = od_span_read(p->loss, &sum, 1)))
        goto out;
    *loss = sum / (double)per_epoch;
out:
    free(rows);
    return status;
}

/* Accuracy on the rows ids (n) of f; the counts of all batches come back in one read. */
static od_status score(probe *p, double *accuracy, const od_features *f, const uint32_t *ids, int n) {
    od_status status = OD_OK;
    int batch = p->config->batch;
    double correct = 0;
    for (int first = 0; first < n; first += batch) {
        int count = n - first < batch ? n - first : batch;
        if ((status = upload(p, f, ids + first, count)) ||
            (status = od_classifier_score(&p->classifier, p->loss, od_span_at(p->correct, first / batch), p->x,
                                          p->labels, count)))
            return status;
    }
    if ((status = od_span_read(p->correct, p->counts, batches(p, n))))
        return status;
    for (size_t i = 0; i < batches(p, n); i++)
        correct += p->counts[i];
    *accuracy = correct / n;
    return OD_OK;
}

/* accuracies (sweep_count): on the last rows of ids (train->n) after training on the others; -1 where the loss is not
 * finite. Each member of a team tries every so many-th rate. */
static od_status try_rates(probe *p, double *accuracies, const od_features *train, const uint32_t *ids, int held) {
    const od_probe_config *c = p->config;
    const int members = c->member ? od_member_count(c->member) : 1, own = c->member ? od_member_index(c->member) : 0;
    const int kept = train->n - held;
    for (int i = own; i < c->sweep_count; i += members) {
        double loss = 0;
        od_status status = fit(p, &loss, train, ids, kept, c->sweep_epochs, c->sweep[i]);
        if (status || (status = score(p, &accuracies[i], train, ids + kept, held)))
            return status;
        accuracies[i] = isfinite(loss) ? accuracies[i] : -1;
    }
    return c->member ? od_member_sum(c->member, accuracies, (size_t)c->sweep_count) : OD_OK;
}

/* The rate with the best accuracy on held-out rows; the first of equals. */
static od_status sweep(probe *p, od_probe_result *out, const od_features *train, const uint32_t *ids) {
    const od_probe_config *c = p->config;
    int held = (int)((float)train->n * c->held_out);
    held = held < 1 ? 1 : held;
    if (train->n - held < 1)
        return od_fail(OD_ERR_ARGUMENT, "linear probe: a sweep needs at least 2 training rows, not %d", train->n);
    double *accuracies = calloc((size_t)c->sweep_count, sizeof *accuracies);
    od_status status = accuracies ? try_rates(p, accuracies, train, ids, held)
                                  : od_fail(OD_ERR_MEMORY, "linear probe: no memory for %d rates", c->sweep_count);
    out->held_out_accuracy = -1;
    for (int i = 0; i < c->sweep_count && !status; i++)
        if (accuracies[i] > out->held_out_accuracy) {
            out->held_out_accuracy = accuracies[i];
            out->lr = c->sweep[i];
        }
    free(accuracies);
    if (!status && out->held_out_accuracy < 0)
        status = od_fail(OD_ERR_NUMERIC, "linear probe: the loss is not finite at any learning rate of the sweep");
    return status;
}

static od_status check(const od_probe_config *c, const od_features *f, const char *which, int d, int classes) {
    if (f->n < 1 || d < 1 || classes < 2 || c->epochs < 1 || c->batch < 1 || !(c->lr >= 0) ||
        (c->lr == 0 && (c->sweep_count < 1 || c->sweep_epochs < 1 || !(c->held_out > 0 && c->held_out < 1))))
        return od_fail(OD_ERR_ARGUMENT,
                       "linear probe: %d %s rows of %d features, %d classes, %d epochs, batch %d, lr %g", f->n, which,
                       d, classes, c->epochs, c->batch, c->lr);
    for (int i = 0; i < f->n; i++)
        if (f->labels[i] < 0 || f->labels[i] >= classes)
            return od_fail(OD_ERR_ARGUMENT, "linear probe: label %d of %s row %d is not below %d", f->labels[i], which,
                           i, classes);
    return OD_OK;
}

od_status od_linear_probe(od_device *device, od_probe_result *out, const od_probe_config *config,
                          const od_features *train, const od_features *test, int d, int classes) {
    probe p = {.device = device, .config = config, .d = d, .classes = classes};
    od_probe_result result = {.held_out_accuracy = NAN, .lr = config->lr};
    uint32_t *ids = NULL;
    od_status status = OD_OK;
    if ((status = check(config, train, "training", d, classes)) || (status = check(config, test, "test", d, classes)))
        return status;
    int most = train->n > test->n ? train->n : test->n;
    ids = malloc(most * sizeof *ids);
    if (!ids)
        return od_fail(OD_ERR_MEMORY, "linear probe: no memory for %d rows", most);
    if ((status = probe_create(&p, train->n, test->n)))
        goto out;
    od_rng_permutation(ids, train->n, config->seed, UINT64_MAX); /* no epoch's: it picks the held-out rows */
    if (config->lr == 0 && (status = sweep(&p, &result, train, ids)))
        goto out;
    if (config->member && !od_member_leads(config->member))
        goto out;
    if ((status = fit(&p, &result.train_loss, train, ids, train->n, config->epochs, result.lr)))
        goto out;
    if (!isfinite(result.train_loss)) {
        status = od_fail(OD_ERR_NUMERIC, "linear probe: the loss is not finite with learning rate %g", result.lr);
        goto out;
    }
    for (int i = 0; i < test->n; i++)
        ids[i] = i;
    if ((status = score(&p, &result.accuracy, test, ids, test->n)))
        goto out;
    *out = result;
out:
    probe_destroy(&p);
    free(ids);
    return status;
}
