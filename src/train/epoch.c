/* What a run reports: losses now and then; evaluation, metrics and a checkpoint at each epoch's end. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "offdiag/ops/pointwise.h"
#include "train/config.h"
#include "train/evaluate.h"
#include "train/schedule.h"
#include "train/shares.h"
#include "train/trainer.h"
#include "train/watch.h"

enum { SPECTRUM_MAX = 256 };

static od_status diverged(const od_trainer *t, uint64_t step, const char *what) {
    bool saved = access(t->record->run.checkpoint, F_OK) == 0;
    return od_fail(
        OD_ERR_NUMERIC, "%s at step %llu; %s %s (a smaller --lr or --head-lr may help)", what, (unsigned long long)step,
        saved ? "the last good checkpoint stays in" : "no checkpoint had been written yet to", t->record->run.dir);
}

/* losses (waiting): alone they are still on the device. */
static od_status take_losses(const od_trainer *t, double *losses) {
    float host[OD_LOSS_SLOTS] = {0};
    od_status status = t->waiting && !t->member ? od_span_read(t->losses, host, (size_t)t->waiting) : OD_OK;
    for (int i = 0; i < t->waiting && !status; i++)
        losses[i] = t->member ? t->sums[i] : host[i];
    return status;
}

static od_status log_step(od_trainer *t, uint64_t step, double loss) {
    if (!isfinite(loss))
        return diverged(t, step, isnan(loss) ? "the loss became NaN" : "the loss became infinite");
    od_optim_rates rates = od_schedule_at(&t->info.config, step - 1, t->total, t->batches);
    t->record->result->loss = loss;
    od_watch_step(t, step, loss, &rates);
    return od_run_log(&t->record->run, json_pack("{s:s, s:I, s:f, s:f, s:f}", "event", "step", "step", (json_int_t)step,
                                                 "loss", loss, "lr", rates.lr, "head_lr", rates.head_lr));
}

od_status od_trainer_flush_losses(od_trainer *t) {
    double losses[OD_LOSS_SLOTS] = {0};
    od_progress_state *p = &t->info.progress;
    od_status status = take_losses(t, losses);
    for (int i = 0; i < t->waiting && !status; i++) {
        if (t->record)
            status = log_step(t, p->step - (uint64_t)t->waiting + (uint64_t)i + 1, losses[i]);
        p->epoch_loss_sum += losses[i];
        p->epoch_loss_count++;
    }
    if (!status && t->online && !t->member)
        status = od_online_hits(t->online, t->waiting, &p->online_correct, &p->online_count);
    t->waiting = 0;
    t->flushed = od_now();
    if (!t->record)
        return status;
    od_watch_flush(t);
    return status ? status : od_run_flush(&t->record->run);
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
    if ((status = od_trainer_flush_losses(t)) || (status = od_replica_sync(t)) || !t->record ||
        (status = check_finite(t)))
        return status;
    char *split = od_trainer_split_text(t);
    status = od_checkpoint_save(t->record->run.checkpoint, &t->info, t->model, od_trainer_classifier(t), split, NULL);
    free(split);
    return status;
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
    return od_run_log(&t->record->run,
                      json_pack("{s:s, s:I, s:I, s:i, s:o}", "event", "spectrum", "epoch", (json_int_t)epoch, "step",
                                (json_int_t)t->info.progress.step, "count", n, "log_singular", values));
}

/* View 1's projections z (rows, d) in the last training pass, of all members in the order of the batch; *all is z, or
 * the team's. */
static od_status gather_projections(od_trainer *t, const float **all, float *z, int rows, int d) {
    const int share = od_trainer_share(t), first = od_shares_first(t->layout.shares, t->layout.index);
    od_status status = od_span_read(od_model_projection(t->model), z, (size_t)share * d);
    *all = z;
    status = od_trainer_settle(t, status);
    if (status || !t->member)
        return status;
    return od_member_gather(t->member, all, z, (size_t)first * d, (size_t)share * d, (size_t)rows * d);
}

/* Collapse metrics of these projections. */
static od_status projection_metrics(od_trainer *t, od_epoch *e) {
    int rows = t->info.micro_batch, d = t->info.config.proj_dim, n = rows < d ? rows : d;
    float *z = malloc((size_t)od_trainer_share(t) * d * sizeof *z); /* (share, d) */
    double *log_singular = malloc(n * sizeof(double));              /* (n) */
    const float *all = NULL;                                        /* (rows, d) */
    od_status status = OD_OK;
    if (!z || !log_singular) {
        status = od_fail(OD_ERR_MEMORY, "no memory for %d x %d projections", rows, d);
        goto out;
    }
    if (!(status = gather_projections(t, &all, z, rows, d)) && t->record &&
        !(status = od_collapse_metrics(&e->collapse, log_singular, all, rows, d)))
        status = log_spectrum(t, e->epoch, log_singular, n);
out:
    free(z);
    free(log_singular);
    return status;
}

static od_encoding encoding(od_trainer *t) {
    return (od_encoding){.model = t->model, .views = &t->views, .member = t->member, .layout = &t->layout};
}

static void pause_progress(od_trainer *t, double since) {
    if (t->record)
        t->record->progress.paused += od_now() - since;
}

static od_status knn(od_trainer *t, double *accuracy, double *feature_rank) {
    const od_encoding e = encoding(t);
    od_knn_protocol protocol = od_knn_run_protocol(&t->info.config);
    double before = od_now();
    od_status status = od_knn_accuracy(&e, t->dataset, &protocol, accuracy, feature_rank);
    pause_progress(t, before);
    return status;
}

/* The online classifier on the test images that kNN asks. */
static od_status online_test(od_trainer *t, double *accuracy) {
    const od_encoding e = encoding(t);
    double before = od_now();
    od_status status = od_online_test(t->online, &e, t->dataset, t->info.config.knn_queries, accuracy);
    pause_progress(t, before);
    return status;
}

static json_t *number_or_null(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

/* The epoch for people. */
static void show_epoch(od_trainer *t, const od_epoch *e) {
    int limit = t->info.micro_batch < t->info.config.proj_dim ? t->info.micro_batch : t->info.config.proj_dim;
    char knn_text[32] = "-", online_text[64] = "", rank_text[32] = "-";
    if (isfinite(e->knn))
        snprintf(knn_text, sizeof knn_text, "%.2f %%", 100 * e->knn);
    if (isfinite(e->online))
        snprintf(online_text, sizeof online_text, "  linear %.2f %%", 100 * e->online);
    else if (isfinite(e->online_train))
        snprintf(online_text, sizeof online_text, "  linear %.2f %% on views", 100 * e->online_train);
    if (isfinite(e->collapse.effective_rank))
        snprintf(rank_text, sizeof rank_text, "%.1f", e->collapse.effective_rank);
    od_say(t, "epoch %llu  step %llu  loss %.4f  kNN %s%s  effective rank %s  |offdiag| %.3f  %.0f images/s",
           (unsigned long long)e->epoch, (unsigned long long)t->info.progress.step, e->loss, knn_text, online_text,
           rank_text, e->offdiag_norm, e->images_per_s);
    if (!t->record->warned && e->collapse.effective_rank < 0.1 * limit) {
        od_say(t, "The projections use %.1f of %d directions: this run is collapsing.", e->collapse.effective_rank,
               t->info.config.proj_dim);
        t->record->warned = true;
    }
}

/* The epoch in metrics.jsonl. */
static od_status log_epoch(od_trainer *t, const od_epoch *e) {
    const od_collapse *c = &e->collapse;
    json_t *line =
        json_pack("{s:s, s:I, s:I, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:f}", "event", "epoch", "epoch",
                  (json_int_t)e->epoch, "step", (json_int_t)t->info.progress.step, "loss", number_or_null(e->loss),
                  "knn", number_or_null(e->knn), "effective_rank", number_or_null(c->effective_rank), "feature_rank",
                  number_or_null(e->feature_rank), "z_std", number_or_null(c->z_std), "participation_ratio",
                  number_or_null(c->participation), "mean_correlation", number_or_null(c->mean_correlation),
                  "offdiag_norm", number_or_null(e->offdiag_norm), "offdiag_max", number_or_null(e->offdiag_max),
                  "images_per_s", e->images_per_s);
    if (line && t->online) {
        json_object_set_new(line, "online_linear", number_or_null(e->online));
        json_object_set_new(line, "online_linear_views", number_or_null(e->online_train));
    }
    return od_run_log(&t->record->run, line);
}

/* The leader's part: the epoch for people, for files, and as the run's result. */
static od_status report_epoch(od_trainer *t, od_epoch *e) {
    const od_progress_state *p = &t->info.progress;
    od_train_result *r = t->record->result;
    float norm = 0, largest = 0;
    od_status status = od_model_offdiag(t->model, &norm, &largest);
    if (status)
        return status;
    e->online_train = p->online_count ? p->online_correct / (double)p->online_count : NAN;
    e->offdiag_norm = norm;
    e->offdiag_max = largest;
    e->loss = p->epoch_loss_count ? p->epoch_loss_sum / (double)p->epoch_loss_count : NAN;
    e->images_per_s = od_progress_rate(&t->record->progress, p->step);
    show_epoch(t, e);
    if ((status = log_epoch(t, e)) || (status = od_watch_epoch(t, e)))
        return status;
    if (isfinite(e->knn))
        r->knn = e->knn;
    if (isfinite(e->online))
        r->online = e->online;
    r->effective_rank = e->collapse.effective_rank;
    r->z_std = e->collapse.z_std;
    r->images_per_s = e->images_per_s;
    r->epochs = (int)e->epoch;
    t->record->reported = p->step;
    return OD_OK;
}

/* What the epoch came to, to people and files. */
static od_status evaluate_epoch(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_progress_state *p = &t->info.progress;
    od_epoch e = {.epoch = (p->step + t->batches - 1) / t->batches,
                  .knn = NAN,
                  .feature_rank = NAN,
                  .online = NAN,
                  .collapse = {NAN, NAN, NAN, NAN}};
    const bool passed = od_model_projection(t->model).buffer; /* replicas that a lost device made new have not */
    od_status status = OD_OK;
    if (passed && ((status = projection_metrics(t, &e)) || (status = od_watch_views(t))))
        return status;
    if ((p->step == t->total || (c->eval_every && e.epoch % (uint64_t)c->eval_every == 0)) &&
        ((status = knn(t, &e.knn, &e.feature_rank)) || (t->online && (status = online_test(t, &e.online)))))
        return status;
    return t->record ? report_epoch(t, &e) : OD_OK;
}

od_status od_trainer_finish_epoch(od_trainer *t) {
    od_progress_state *p = &t->info.progress;
    od_status status = OD_OK;
    if ((status = od_trainer_settle(t, od_trainer_flush_losses(t))) ||
        (t->reported != p->step && (status = evaluate_epoch(t))))
        return status;
    p->epoch_loss_sum = 0;
    p->epoch_loss_count = 0;
    p->online_correct = 0;
    p->online_count = 0;
    if (p->step < t->total && (status = od_trainer_rebalance(t)))
        return status;
    return od_trainer_save(t);
}

od_status od_trainer_evaluate_before(od_trainer *t) {
    double rank = NAN;
    od_progress_state *p = &t->info.progress;
    od_status status = OD_OK;
    if (p->step == 0 && !t->evaluated && (status = knn(t, &p->knn_before, &rank)))
        return status;
    if (p->step == 0 && !t->evaluated && t->record) {
        status =
            od_run_log(&t->record->run, json_pack("{s:s, s:i, s:o, s:o}", "event", "start", "step", 0, "knn",
                                                  number_or_null(p->knn_before), "feature_rank", number_or_null(rank)));
        if (isfinite(p->knn_before)) {
            od_watch_start(t, p->knn_before);
            od_say(t, "Before training: kNN %.2f %%", 100 * p->knn_before);
        } else {
            od_say(t, "No test images with labels: kNN accuracy is not measured.");
        }
    }
    t->evaluated = true;
    if (t->record)
        t->record->result->knn_before = p->knn_before;
    return status;
}
