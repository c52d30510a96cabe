/* What a run reports: losses now and then; evaluation, metrics and a checkpoint at each epoch's end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "offdiag/ops/pointwise.h"
#include "train/config.h"
#include "train/evaluate.h"
#include "train/schedule.h"
#include "train/trainer.h"
#include "train/watch.h"

enum { SPECTRUM_MAX = 256 };

static od_status diverged(const od_trainer *t, uint64_t step, const char *what) {
    bool saved = access(t->run.checkpoint, F_OK) == 0;
    return od_fail(OD_ERR_NUMERIC, "%s at step %llu; %s %s (a smaller --lr or --head-lr may help)", what,
                   (unsigned long long)step,
                   saved ? "the last good checkpoint stays in" : "no checkpoint had been written yet to", t->run.dir);
}

/* Read the losses of the last steps, log them, and stop at the first that is no number. */
od_status od_trainer_flush_losses(od_trainer *t) {
    float host[OD_LOSS_SLOTS];
    od_progress_state *p = &t->info.progress;
    od_status status = t->waiting ? od_span_read(t->losses, host, (size_t)t->waiting) : OD_OK;
    for (int i = 0; i < t->waiting && !status; i++) {
        uint64_t step = p->step - (uint64_t)t->waiting + (uint64_t)i + 1;
        if (!isfinite(host[i]))
            return diverged(t, step, isnan(host[i]) ? "the loss became NaN" : "the loss became infinite");
        od_optim_rates rates = od_schedule_at(&t->info.config, step - 1, t->total, t->batches);
        p->epoch_loss_sum += host[i];
        p->epoch_loss_count++;
        t->result->loss = host[i];
        status = od_run_log(&t->run, json_pack("{s:s, s:I, s:f, s:f, s:f}", "event", "step", "step", (json_int_t)step,
                                               "loss", host[i], "lr", rates.lr, "head_lr", rates.head_lr));
        od_watch_step(t, step, host[i], &rates);
    }
    if (!status && t->online)
        status = od_online_hits(t->online, t->waiting, &p->online_correct, &p->online_count);
    t->waiting = 0;
    t->flushed = od_now();
    od_watch_flush(t);
    return status ? status : od_run_flush(&t->run);
}

/* What a checkpoint keeps must be finite: weights, but BN statistics and momentum overflow first. */
static od_status check_finite(od_trainer *t) {
    const od_model_arenas a = od_model_get_arenas(t->model);
    size_t params = od_model_params(t->model)->count, stats = od_model_stats(t->model)->count;
    const struct {
        od_span span;
        size_t count;
    } kept[] = {{a.value, params},
                {a.momentum, params},
                {a.second, params},
                {a.stats, stats},
                {a.target_value, od_model_head_offset(t->model)},
                {a.target_stats, stats}};
    enum { KEPT = sizeof kept / sizeof *kept };
    float bad[KEPT] = {0};
    od_span counts = OD_NO_SPAN;
    od_status status = od_span_create(t->device, KEPT, &counts);
    if (!status)
        status = od_span_zero(counts, KEPT);
    for (size_t i = 0; i < KEPT && !status; i++)
        if (kept[i].span.buffer)
            status = od_count_nonfinite(t->device, od_span_at(counts, i), kept[i].span, kept[i].count);
    if (!status)
        status = od_span_read(counts, bad, KEPT);
    od_buffer_release(counts.buffer);
    for (size_t i = 0; i < KEPT && !status; i++)
        if (bad[i] > 0)
            status = diverged(t, t->info.progress.step, "weights, momentum or BN statistics became infinite or NaN");
    return status;
}

od_status od_trainer_save(od_trainer *t) {
    od_status status = OD_OK;
    if ((status = od_trainer_flush_losses(t)) || (status = check_finite(t)))
        return status;
    return od_checkpoint_save(t->run.checkpoint, &t->info, t->model, t->online ? &t->online->classifier : NULL);
}

/* At most SPECTRUM_MAX of the logarithms of n singular values, evenly chosen, as a line of their own: what reads
 * epochs need not read them. */
static od_status log_spectrum(od_trainer *t, uint64_t epoch, const double *log_singular, int n) {
    json_t *values = json_array();
    int kept = n < SPECTRUM_MAX ? n : SPECTRUM_MAX;
    for (int i = 0; i < kept; i++) {
        int at = kept > 1 ? (int)((int64_t)i * (n - 1) / (kept - 1)) : 0;
        json_array_append_new(values, json_real(round(log_singular[at] * 1e4) / 1e4));
    }
    return od_run_log(&t->run,
                      json_pack("{s:s, s:I, s:I, s:i, s:o}", "event", "spectrum", "epoch", (json_int_t)epoch, "step",
                                (json_int_t)t->info.progress.step, "count", n, "log_singular", values));
}

/* Collapse metrics of view 1's projections in the last training step. */
static od_status projection_metrics(od_trainer *t, od_epoch *e) {
    int rows = t->views.micro, d = t->info.config.proj_dim, n = rows < d ? rows : d;
    float *z = malloc((size_t)rows * d * sizeof *z);   /* (rows, d) */
    double *log_singular = malloc(n * sizeof(double)); /* (n) */
    od_status status = OD_OK;
    if (!z || !log_singular) {
        status = od_fail(OD_ERR_MEMORY, "no memory for %d x %d projections", rows, d);
        goto out;
    }
    if (!(status = od_span_read(od_model_projection(t->model), z, (size_t)rows * d)) &&
        !(status = od_collapse_metrics(&e->collapse, log_singular, z, rows, d)))
        status = log_spectrum(t, e->epoch, log_singular, n);
out:
    free(z);
    free(log_singular);
    return status;
}

static od_status knn(od_trainer *t, double *accuracy, double *feature_rank) {
    od_knn_protocol protocol = od_knn_run_protocol(&t->info.config);
    double before = od_now();
    od_status status = od_knn_accuracy(t->model, &t->views, t->dataset, &protocol, accuracy, feature_rank);
    t->progress.paused += od_now() - before;
    return status;
}

/* The online classifier on the test images that kNN asks. */
static od_status online_test(od_trainer *t, double *accuracy) {
    double before = od_now();
    od_status status = od_online_test(t->online, t->model, &t->views, t->dataset, t->info.config.knn_queries, accuracy);
    t->progress.paused += od_now() - before;
    return status;
}

static json_t *number_or_null(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

/* The epoch for people. */
static void show_epoch(od_trainer *t, const od_epoch *e) {
    int limit = t->views.micro < t->info.config.proj_dim ? t->views.micro : t->info.config.proj_dim;
    char knn_text[32] = "-", online_text[64] = "";
    if (isfinite(e->knn))
        snprintf(knn_text, sizeof knn_text, "%.2f %%", 100 * e->knn);
    if (isfinite(e->online))
        snprintf(online_text, sizeof online_text, "  linear %.2f %%", 100 * e->online);
    else if (isfinite(e->online_train))
        snprintf(online_text, sizeof online_text, "  linear %.2f %% on views", 100 * e->online_train);
    od_progress_line(&t->progress,
                     "epoch %llu  step %llu  loss %.4f  kNN %s%s  effective rank %.1f  |offdiag| %.3f  %.0f images/s",
                     (unsigned long long)e->epoch, (unsigned long long)t->info.progress.step, e->loss, knn_text,
                     online_text, e->collapse.effective_rank, e->offdiag_norm, e->images_per_s);
    if (!t->warned && e->collapse.effective_rank < 0.1 * limit) {
        od_progress_line(&t->progress, "The projections use %.1f of %d directions: this run is collapsing.",
                         e->collapse.effective_rank, t->info.config.proj_dim);
        t->warned = true;
    }
}

/* The epoch in metrics.jsonl. */
static od_status log_epoch(od_trainer *t, const od_epoch *e) {
    const od_collapse *c = &e->collapse;
    json_t *line =
        json_pack("{s:s, s:I, s:I, s:o, s:o, s:f, s:o, s:f, s:f, s:f, s:o, s:o, s:f}", "event", "epoch", "epoch",
                  (json_int_t)e->epoch, "step", (json_int_t)t->info.progress.step, "loss", number_or_null(e->loss),
                  "knn", number_or_null(e->knn), "effective_rank", c->effective_rank, "feature_rank",
                  number_or_null(e->feature_rank), "z_std", c->z_std, "participation_ratio", c->participation,
                  "mean_correlation", c->mean_correlation, "offdiag_norm", number_or_null(e->offdiag_norm),
                  "offdiag_max", number_or_null(e->offdiag_max), "images_per_s", e->images_per_s);
    if (line && t->online) {
        json_object_set_new(line, "online_linear", number_or_null(e->online));
        json_object_set_new(line, "online_linear_views", number_or_null(e->online_train));
    }
    return od_run_log(&t->run, line);
}

od_status od_trainer_finish_epoch(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_progress_state *p = &t->info.progress;
    od_epoch e = {.epoch = (p->step + t->batches - 1) / t->batches, .knn = NAN, .feature_rank = NAN, .online = NAN};
    float norm = 0, largest = 0;
    od_status status = OD_OK;
    if ((status = od_trainer_flush_losses(t)) || (status = projection_metrics(t, &e)) || (status = od_watch_views(t)) ||
        (status = od_model_offdiag(t->model, &norm, &largest)))
        return status;
    if ((p->step == t->total || (c->eval_every && e.epoch % (uint64_t)c->eval_every == 0)) &&
        ((status = knn(t, &e.knn, &e.feature_rank)) || (t->online && (status = online_test(t, &e.online)))))
        return status;
    e.online_train = p->online_count ? p->online_correct / (double)p->online_count : NAN;
    e.offdiag_norm = norm;
    e.offdiag_max = largest;
    e.loss = p->epoch_loss_count ? p->epoch_loss_sum / (double)p->epoch_loss_count : NAN;
    e.images_per_s = od_progress_rate(&t->progress, p->step);
    show_epoch(t, &e);
    if ((status = log_epoch(t, &e)) || (status = od_watch_epoch(t, &e)))
        return status;
    if (isfinite(e.knn))
        t->result->knn = e.knn;
    if (isfinite(e.online))
        t->result->online = e.online;
    t->result->effective_rank = e.collapse.effective_rank;
    t->result->z_std = e.collapse.z_std;
    t->result->images_per_s = e.images_per_s;
    t->result->epochs = (int)e.epoch;
    p->epoch_loss_sum = 0;
    p->epoch_loss_count = 0;
    p->online_correct = 0;
    p->online_count = 0;
    return od_trainer_save(t);
}

od_status od_trainer_evaluate_before(od_trainer *t) {
    double rank = NAN;
    od_progress_state *p = &t->info.progress;
    od_status status = OD_OK;
    if (p->step == 0) {
        if ((status = knn(t, &p->knn_before, &rank)))
            return status;
        status = od_run_log(&t->run, json_pack("{s:s, s:i, s:o, s:o}", "event", "start", "step", 0, "knn",
                                               number_or_null(p->knn_before), "feature_rank", number_or_null(rank)));
        if (isfinite(p->knn_before)) {
            od_watch_start(t, p->knn_before);
            od_progress_line(&t->progress, "Before training: kNN %.2f %%", 100 * p->knn_before);
        } else {
            od_progress_line(&t->progress, "No test images with labels: kNN accuracy is not measured.");
        }
    }
    t->result->knn_before = p->knn_before;
    return status;
}
