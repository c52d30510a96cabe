/* The training loop. Read from train_step: batch -> two views -> encoder, projector, head, loss, backward (siamese.c)
 * -> optimiser, EMA -> losses to the host now and then -> evaluation, metrics and checkpoint at each epoch's end. */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "od_config.h"
#include "od_git.h"
#include "offdiag/ops/pointwise.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/evaluate.h"
#include "train/progress.h"
#include "train/run.h"
#include "train/schedule.h"

enum { LOSS_SLOTS = 32 }; /* losses that wait on the device until the host reads them in one go */

typedef struct trainer {
    od_checkpoint_info info; /* configuration and progress; saved with each checkpoint */
    od_device *device;
    od_dataset *dataset;
    od_loader *loader;
    od_views views;
    od_model *model;
    od_run run;
    od_progress progress;
    uint64_t total;   /* steps of the whole run */
    uint64_t batches; /* steps of an epoch */
    int parts;        /* micro-batches of a batch */
    od_span losses;   /* (LOSS_SLOTS) */
    int waiting;      /* losses there */
    double flushed;   /* when they were read last */
    bool warned;      /* of a collapse */
    od_train_result *result;
} trainer;

/* ---- signals ---------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_signal;

static void on_signal(int number) {
    stop_signal = number;
}

/* The first SIGINT or SIGTERM asks for a clean end, the second one has its usual effect. */
static void catch_signals(struct sigaction old[2]) {
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    stop_signal = 0;
    sigaction(SIGINT, &action, &old[0]);
    sigaction(SIGTERM, &action, &old[1]);
}

static void restore_signals(const struct sigaction old[2]) {
    sigaction(SIGINT, &old[0], NULL);
    sigaction(SIGTERM, &old[1], NULL);
}

/* ---- setting up ------------------------------------------------------------------------------------------------- */

static od_status open_data(trainer *t) {
    od_train_config *c = &t->info.config;
    od_status status = OD_OK;
    if ((status = od_dataset_open(c->dataset, c->data, &t->dataset)) ||
        (status = od_dataset_downsample(t->dataset, c->downsample)))
        return status;
    od_split_limit(&t->dataset->train, (size_t)c->limit);
    if (t->dataset->train.n < c->batch)
        return od_fail(OD_ERR_USAGE, "--batch %d is more than the %d training images of %s in use", c->batch,
                       t->dataset->train.n, c->dataset);
    const od_dataset *d = t->dataset;
    od_checkpoint_info *info = &t->info;
    info->image_side = d->h;
    info->channels = d->c;
    info->classes = d->classes;
    memcpy(info->mean, d->mean, sizeof info->mean);
    memcpy(info->std, d->std, sizeof info->std);
    snprintf(info->data_dir, sizeof info->data_dir, "%s", d->dir);
    od_loader_options options = {.batch = c->batch, .seed = c->seed, .shuffle = true, .drop_last = true};
    if ((status = od_loader_create(d, &d->train, &options, &t->loader)))
        return status;
    t->batches = od_loader_batches(t->loader);
    t->total = c->steps > 0 ? (uint64_t)c->steps : (uint64_t)c->epochs * t->batches;
    return OD_OK;
}

/* The next smaller micro-batch that divides the batch; 0: none. */
static int smaller_part(int batch, int micro) {
    for (int m = micro - 1; m >= 2; m--)
        if (batch % m == 0)
            return m;
    return 0;
}

static od_knn_protocol knn_protocol(const od_train_config *c) {
    return (od_knn_protocol){.k = c->knn_k, .bank = c->knn_bank, .queries = c->knn_queries, .t = c->knn_t};
}

/* What passes and evaluations take for a moment is less than what is there already, the features of kNN, and the
 * scratch of a convolution. Where that may not be left, try both: memory that runs out now splits the batch, later it
 * would end the run. */
enum { SCRATCH_BYTES = 512 << 20 };

static od_status try_passes(trainer *t, const od_model_config *model_config, int micro) {
    od_memory_use use = od_device_memory(t->device);
    od_knn_protocol protocol = knn_protocol(&t->info.config);
    od_status status = OD_OK;
    if (2 * use.live + od_knn_bytes(t->model, t->dataset, &protocol) + SCRATCH_BYTES <= use.budget)
        return OD_OK;
    if ((status = od_span_zero(t->views.x, (size_t)2 * micro * t->views.size * t->views.size * 4)) ||
        (status = od_model_step(t->model, t->losses, t->views.x, micro, 1, false)) ||
        (status = od_knn_try(t->model, &t->views, t->dataset, &protocol)))
        return status;
    od_model_destroy(t->model); /* the step moved its statistics */
    t->model = NULL;
    return od_model_create(t->device, model_config, micro, &t->model);
}

/* Model and views; when the device's memory does not hold the whole batch, the batch is split. */
static od_status build_model(trainer *t) {
    const od_train_config *c = &t->info.config;
    od_model_config model_config;
    od_augment_policy policy;
    od_train_model_config(&model_config, c, t->dataset->h);
    od_augment_policy_named(&policy, c->augment, c->crop_min, t->dataset->mean, t->dataset->std);
    od_status status = od_span_create(t->device, LOSS_SLOTS, &t->losses);
    /* a resumed run keeps its split, as batch norm's statistics depend on it */
    const int wanted = c->micro_batch ? c->micro_batch : t->info.micro_batch ? t->info.micro_batch : c->batch;
    int micro = wanted;
    if (status)
        return status;
    for (;;) {
        status = od_model_create(t->device, &model_config, micro, &t->model);
        if (!status)
            status = od_views_create(&t->views, t->device, t->dataset, &policy, model_config.image_size, c->batch,
                                     micro, c->seed);
        if (!status)
            status = try_passes(t, &model_config, micro);
        const int smaller = c->micro_batch ? 0 : smaller_part(c->batch, micro);
        if (status != OD_ERR_DEVICE_MEMORY || smaller == 0)
            break;
        od_views_destroy(&t->views);
        od_model_destroy(t->model);
        t->model = NULL;
        micro = smaller;
    }
    if (status)
        return status;
    t->parts = c->batch / micro;
    t->info.micro_batch = micro;
    if (micro < wanted)
        od_progress_line(&t->progress,
                         "The batch of %d does not fit this device's memory: it runs in %d parts of %d, with "
                         "batch-norm statistics per part.",
                         c->batch, t->parts, micro);
    return OD_OK;
}

/* Everything that says what ran, for config.json. */
static json_t *about_run(const trainer *t) {
    const od_device_info *d = od_device_get_info(t->device);
    return json_pack("{s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s, s:s}, s:s, s:i, s:i, s:I, s:I, s:I, s:i}", "version",
                     OD_VERSION, "commit", OD_GIT_COMMIT, "device", "id", d->id, "name", d->name, "platform",
                     d->platform, "driver", d->driver, "opencl", d->version, "kernels",
                     od_family_name(od_device_family(t->device)), "data_dir", t->dataset->dir, "train_images",
                     t->dataset->train.n, "test_images", t->dataset->test.n, "parameters",
                     (json_int_t)od_param_table_stored_count(od_model_params(t->model)), "steps_per_epoch",
                     (json_int_t)t->batches, "steps", (json_int_t)t->total, "micro_batch", t->views.micro);
}

static od_status resume_state(trainer *t, const od_safetensors *file) {
    od_status status = OD_OK;
    if ((status = od_checkpoint_load(file, t->run.checkpoint, t->model, true)))
        return status;
    uint64_t step = t->info.progress.step;
    if (step > t->total)
        return od_fail(OD_ERR_FORMAT, "%s: at step %llu of a run of %llu steps", t->run.checkpoint,
                       (unsigned long long)step, (unsigned long long)t->total);
    const char *device = od_device_get_info(t->device)->name;
    if (strcmp(device, t->info.device) != 0)
        od_progress_line(&t->progress,
                         "This run began on another device (%s): it goes on within tolerance, not bit for bit.",
                         t->info.device);
    return od_loader_seek(t->loader, (uint32_t)(step / t->batches), (uint32_t)(step % t->batches));
}

/* ---- losses, metrics, checkpoint -------------------------------------------------------------------------------- */

static od_status diverged(const trainer *t, uint64_t step, const char *what) {
    bool saved = access(t->run.checkpoint, F_OK) == 0;
    return od_fail(OD_ERR_NUMERIC, "%s at step %llu; %s %s (a smaller --lr or --head-lr may help)", what,
                   (unsigned long long)step,
                   saved ? "the last good checkpoint stays in" : "no checkpoint had been written yet to", t->run.dir);
}

/* Read the losses of the last steps, log them, and stop at the first that is no number. */
static od_status flush_losses(trainer *t) {
    float host[LOSS_SLOTS];
    od_progress_state *p = &t->info.progress;
    od_status status = t->waiting ? od_span_read(t->losses, host, (size_t)t->waiting) : OD_OK;
    for (int i = 0; i < t->waiting && !status; i++) {
        uint64_t step = p->step - (uint64_t)t->waiting + (uint64_t)i + 1;
        if (!isfinite(host[i]))
            return diverged(t, step, isnan(host[i]) ? "the loss became NaN" : "the loss became infinite");
        od_sgd_config rates = od_schedule_at(&t->info.config, step - 1, t->total);
        p->epoch_loss_sum += host[i];
        p->epoch_loss_count++;
        t->result->loss = host[i];
        status = od_run_log(&t->run, json_pack("{s:s, s:I, s:f, s:f, s:f}", "event", "step", "step", (json_int_t)step,
                                               "loss", host[i], "lr", rates.lr, "head_lr", rates.head_lr));
    }
    t->waiting = 0;
    t->flushed = od_now();
    return status ? status : od_run_flush(&t->run);
}

/* What a checkpoint keeps must be finite: weights, but BN statistics and momentum overflow first. */
static od_status check_finite(trainer *t) {
    const od_model_arenas a = od_model_get_arenas(t->model);
    size_t params = od_model_params(t->model)->count, stats = od_model_stats(t->model)->count;
    const struct {
        od_span span;
        size_t count;
    } kept[] = {{a.value, params},
                {a.momentum, params},
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

static od_status save_checkpoint(trainer *t) {
    od_status status = OD_OK;
    if ((status = flush_losses(t)) || (status = check_finite(t)))
        return status;
    return od_checkpoint_save(t->run.checkpoint, &t->info, t->model);
}

/* Collapse metrics of view 1's projections in the last training step. */
static od_status projection_metrics(trainer *t, od_collapse *out) {
    int rows = t->views.micro, d = t->info.config.proj_dim;
    float *z = malloc((size_t)rows * d * sizeof *z);
    if (!z)
        return od_fail(OD_ERR_MEMORY, "no memory for %d x %d projections", rows, d);
    od_status status = od_span_read(od_model_projection(t->model), z, (size_t)rows * d);
    if (!status)
        status = od_collapse_metrics(out, NULL, z, rows, d);
    free(z);
    return status;
}

static od_status knn(trainer *t, double *accuracy, double *feature_rank) {
    od_knn_protocol protocol = knn_protocol(&t->info.config);
    double before = od_now();
    od_status status = od_knn_accuracy(t->model, &t->views, t->dataset, &protocol, accuracy, feature_rank);
    t->progress.paused += od_now() - before;
    return status;
}

static json_t *number_or_null(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

/* The line of an epoch, in metrics.jsonl and for people. */
static od_status log_epoch(trainer *t, uint64_t epoch, double accuracy, double feature_rank, const od_collapse *c) {
    od_progress_state *p = &t->info.progress;
    float norm = 0, largest = 0;
    od_status status = od_model_offdiag(t->model, &norm, &largest);
    if (status)
        return status;
    double loss = p->epoch_loss_count ? p->epoch_loss_sum / (double)p->epoch_loss_count : NAN;
    double rate = od_progress_rate(&t->progress, p->step);
    char knn_text[32] = "-";
    if (isfinite(accuracy))
        snprintf(knn_text, sizeof knn_text, "%.2f %%", 100 * accuracy);
    od_progress_line(
        &t->progress, "epoch %llu  step %llu  loss %.4f  kNN %s  effective rank %.1f  |offdiag| %.3f  %.0f images/s",
        (unsigned long long)epoch, (unsigned long long)p->step, loss, knn_text, c->effective_rank, norm, rate);
    int limit = t->views.micro < t->info.config.proj_dim ? t->views.micro : t->info.config.proj_dim;
    if (!t->warned && c->effective_rank < 0.1 * limit) {
        od_progress_line(&t->progress, "The projections use %.1f of %d directions: this run is collapsing.",
                         c->effective_rank, t->info.config.proj_dim);
        t->warned = true;
    }
    t->result->effective_rank = c->effective_rank;
    t->result->z_std = c->z_std;
    t->result->images_per_s = rate;
    return od_run_log(&t->run,
                      json_pack("{s:s, s:I, s:I, s:o, s:o, s:f, s:o, s:f, s:f, s:f, s:o, s:o, s:f}", "event", "epoch",
                                "epoch", (json_int_t)epoch, "step", (json_int_t)p->step, "loss", number_or_null(loss),
                                "knn", number_or_null(accuracy), "effective_rank", c->effective_rank, "feature_rank",
                                number_or_null(feature_rank), "z_std", c->z_std, "participation_ratio",
                                c->participation, "mean_correlation", c->mean_correlation, "offdiag_norm",
                                number_or_null(norm), "offdiag_max", number_or_null(largest), "images_per_s", rate));
}

static od_status finish_epoch(trainer *t) {
    const od_train_config *c = &t->info.config;
    od_progress_state *p = &t->info.progress;
    uint64_t epoch = (p->step + t->batches - 1) / t->batches;
    double accuracy = NAN, feature_rank = NAN;
    od_collapse collapse = {0};
    od_status status = OD_OK;
    if ((status = flush_losses(t)) || (status = projection_metrics(t, &collapse)))
        return status;
    if (p->step == t->total || (c->eval_every && epoch % (uint64_t)c->eval_every == 0)) {
        if ((status = knn(t, &accuracy, &feature_rank)))
            return status;
        t->result->knn = accuracy;
    }
    if ((status = log_epoch(t, epoch, accuracy, feature_rank, &collapse)))
        return status;
    p->epoch_loss_sum = 0;
    p->epoch_loss_count = 0;
    t->result->epochs = (int)epoch;
    return save_checkpoint(t);
}

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static od_status train_step(trainer *t) {
    od_progress_state *p = &t->info.progress;
    const od_batch *batch = NULL;
    od_span loss = od_span_at(t->losses, (size_t)t->waiting);
    int micro = t->views.micro;
    od_status status = OD_OK;
    if ((status = od_loader_next(t->loader, &batch)) || (status = od_views_upload(&t->views, batch)))
        return status;
    for (int part = 0; part < t->parts; part++) {
        if ((status = od_views_make(&t->views, part * micro, micro, batch->epoch)) ||
            (status = od_model_step(t->model, loss, t->views.x, micro, 1.0f / (float)t->parts, part > 0)))
            return status;
    }
    od_sgd_config rates = od_schedule_at(&t->info.config, p->step, t->total);
    if ((status = od_model_sgd(t->model, &rates)))
        return status;
    p->step++;
    t->waiting++;
    if (t->waiting == LOSS_SLOTS || od_now() - t->flushed > 0.5)
        status = flush_losses(t);
    return status ? status : od_device_flush(t->device);
}

static od_status run_loop(trainer *t) {
    const od_train_config *c = &t->info.config;
    od_progress_state *p = &t->info.progress;
    od_status status = OD_OK;
    t->flushed = od_now();
    while (p->step < t->total && !stop_signal) {
        if ((status = train_step(t)))
            return status;
        od_progress_step(&t->progress, p->step, p->step / t->batches + 1, t->result->loss);
        if (p->step % t->batches == 0 || p->step == t->total)
            status = finish_epoch(t);
        else if (c->checkpoint_every && p->step % (uint64_t)c->checkpoint_every == 0)
            status = save_checkpoint(t);
        if (status)
            return status;
    }
    if (p->step == t->total)
        return OD_OK;
    t->result->interrupted = true;
    return save_checkpoint(t);
}

static void describe(trainer *t) {
    const od_train_config *c = &t->info.config;
    const od_device_info *d = od_device_get_info(t->device);
    od_progress_line(&t->progress, "Device %s: %s (%s), %s kernels", d->id, d->name, d->platform,
                     od_family_name(od_device_family(t->device)));
    od_progress_line(&t->progress, "Data: %s, %d training and %d test images of %dx%d", c->dataset, t->dataset->train.n,
                     t->dataset->test.n, t->dataset->h, t->dataset->w);
    od_progress_line(&t->progress, "Model: %s width %d, %zu parameters; %s, head %s, %s loss",
                     od_encoder_names[c->encoder], od_train_width(c),
                     od_param_table_stored_count(od_model_params(t->model)), od_method_name(c->method),
                     od_head_name(c->head), od_loss_name(c->loss));
    od_progress_line(&t->progress, "Run: %s, %llu steps of %d images, %llu an epoch", c->out,
                     (unsigned long long)t->total, c->batch, (unsigned long long)t->batches);
}

/* From an open device to a model at the right step. */
static od_status prepare(trainer *t) {
    od_train_config *c = &t->info.config;
    od_safetensors *file = NULL;
    od_status status = OD_OK;
    if (c->resume) {
        od_train_config asked = *c;
        if ((status = od_checkpoint_open(t->run.checkpoint, &file, &t->info)))
            return status;
        const char *differs = od_train_config_difference(&t->info.config, &asked);
        if (differs) {
            status = od_fail(OD_ERR_USAGE, "--%s differs from the run in %s, which --resume continues as it was",
                             differs, t->run.dir);
            goto out;
        }
        t->info.config = asked;
    }
    if ((status = open_data(t)) || (status = build_model(t)))
        goto out;
    describe(t);
    if (file && (status = resume_state(t, file)))
        goto out;
    snprintf(t->info.device, sizeof t->info.device, "%s", od_device_get_info(t->device)->name);
    json_t *about = about_run(t);
    status = about ? od_run_write_config(&t->run, c, about) : od_fail(OD_ERR_MEMORY, "no memory for config.json");
    json_decref(about);
    if (!status)
        status = od_run_open_metrics(&t->run, t->info.progress.step);
out:
    od_safetensors_close(file);
    return status;
}

static od_status evaluate_before(trainer *t) {
    double rank = NAN;
    od_progress_state *p = &t->info.progress;
    od_status status = OD_OK;
    if (p->step == 0) {
        if ((status = knn(t, &p->knn_before, &rank)))
            return status;
        status = od_run_log(&t->run, json_pack("{s:s, s:i, s:f, s:f}", "event", "start", "step", 0, "knn",
                                               p->knn_before, "feature_rank", rank));
        od_progress_line(&t->progress, "Before training: kNN %.2f %%", 100 * p->knn_before);
    }
    t->result->knn_before = p->knn_before;
    return status;
}

static void close_trainer(trainer *t) {
    od_loader_destroy(t->loader);
    od_views_destroy(&t->views);
    od_model_destroy(t->model);
    od_buffer_release(t->losses.buffer);
    od_dataset_close(t->dataset);
    od_device_close(t->device);
    od_run_close(&t->run);
}

od_status od_train(const od_train_config *config, od_train_result *result) {
    struct sigaction old[2];
    od_status status = od_train_config_check(config);
    if (status)
        return status;
    *result = (od_train_result){.knn_before = NAN, .knn = NAN, .effective_rank = NAN, .z_std = NAN, .loss = NAN};
    trainer t = {.info = {.config = *config, .progress = {.knn_before = NAN}}, .result = result, .run = {.lock = -1}};
    od_device_options options = {.family = (od_family)config->kernels, .memory_bytes = (uint64_t)config->memory << 20};
    od_progress_begin(&t.progress, config->quiet, 0, 1, config->batch);
    double began = od_now();
    catch_signals(old);
    if ((status = od_device_open(config->device, &options, &t.device)) || (status = od_run_open(&t.run, config)) ||
        (status = prepare(&t)))
        goto out;
    od_progress_begin(&t.progress, config->quiet, t.info.progress.step, t.total, config->batch);
    if (!(status = evaluate_before(&t)))
        status = run_loop(&t);
    od_progress_end(&t.progress);
    result->steps = t.info.progress.step;
    result->seconds = od_now() - began;
out:
    restore_signals(old);
    close_trainer(&t);
    return status;
}
