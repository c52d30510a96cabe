/* The training loop. Read from train_step: batch -> two views -> encoder, projector, head, loss, backward (siamese.c)
 * -> optimiser, EMA -> losses to the host now and then -> evaluation, metrics and checkpoint at each epoch's end
 * (epoch.c). setup.c is what comes before. */
#include <math.h>
#include <signal.h>

#include "train/schedule.h"
#include "train/trainer.h"

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

/* ---- the loop --------------------------------------------------------------------------------------------------- */

static od_status train_step(od_trainer *t) {
    od_progress_state *p = &t->info.progress;
    const od_batch *batch = NULL;
    od_span loss = od_span_at(t->losses, (size_t)t->waiting);
    int micro = t->views.micro;
    od_status status = OD_OK;
    if ((status = od_loader_next(t->loader, &batch)) || (status = od_views_upload(&t->views, batch)) ||
        (t->online && (status = od_online_upload(t->online, batch, t->waiting))))
        return status;
    for (int part = 0; part < t->parts; part++) {
        if ((status = od_views_make(&t->views, part * micro, micro, batch->epoch)) ||
            (status = od_model_step(t->model, loss, t->views.x, micro, (float)(t->info.config.loss_scale / t->parts),
                                    part > 0)) ||
            (t->online && (status = od_online_part(t->online, od_model_step_features(t->model), part, t->waiting))))
            return status;
    }
    od_optim_rates rates = od_schedule_at(&t->info.config, p->step, t->total, t->batches);
    if ((status = od_model_optimize(t->model, &rates)) ||
        (t->online && (status = od_online_step(t->online, od_schedule_online(&t->info.config, p->step, t->total)))))
        return status;
    p->step++;
    t->waiting++;
    if (t->waiting == OD_LOSS_SLOTS || od_now() - t->flushed > 0.5)
        status = od_trainer_flush_losses(t);
    return status ? status : od_device_flush(t->device);
}

static od_status run_loop(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_progress_state *p = &t->info.progress;
    od_status status = OD_OK;
    t->flushed = od_now();
    while (p->step < t->total && !stop_signal) {
        if ((status = train_step(t)))
            return status;
        od_progress_step(&t->progress, p->step, p->step / t->batches + 1, t->result->loss);
        if (p->step % t->batches == 0 || p->step == t->total)
            status = od_trainer_finish_epoch(t);
        else if (c->checkpoint_every && p->step % (uint64_t)c->checkpoint_every == 0)
            status = od_trainer_save(t);
        if (status)
            return status;
    }
    if (p->step == t->total)
        return OD_OK;
    t->result->interrupted = true;
    return od_trainer_save(t);
}

od_status od_train(const od_train_config *config, od_train_result *result) {
    struct sigaction old[2];
    od_status status = od_train_config_check(config);
    if (status)
        return status;
    *result = (od_train_result){
        .knn_before = NAN, .knn = NAN, .online = NAN, .effective_rank = NAN, .z_std = NAN, .loss = NAN};
    od_trainer t = {
        .info = {.config = *config, .progress = {.knn_before = NAN}}, .result = result, .run = {.lock = -1}};
    od_device_options options = {.family = (od_family)config->kernels, .memory_bytes = (uint64_t)config->memory << 20};
    od_progress_begin(&t.progress, config->quiet, 0, 1, config->batch);
    double began = od_now();
    catch_signals(old);
    if ((status = od_device_open(config->device, &options, &t.device)) || (status = od_run_open(&t.run, config)) ||
        (status = od_trainer_prepare(&t)))
        goto out;
    od_progress_begin(&t.progress, config->quiet, t.info.progress.step, t.total, config->batch);
    if (!(status = od_trainer_evaluate_before(&t)))
        status = run_loop(&t);
    od_progress_end(&t.progress);
    result->steps = t.info.progress.step;
    result->seconds = od_now() - began;
out:
    restore_signals(old);
    od_trainer_close(&t);
    return status;
}
