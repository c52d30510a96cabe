/* The training loop. Read from train_step: micro-batch -> two views -> encoder, projector, head, loss, backward
 * (siamese.c) -> sums over the devices -> optimiser, EMA -> losses to the host now and then -> evaluation, metrics and
 * checkpoint at each epoch's end (epoch.c). setup.c is what comes before, recover.c what follows when a device fails.
 */
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "train/crew.h"
#include "train/schedule.h"

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

/* What members tell each other once their gradients are there: loss, hits of the classifier and its labelled views,
 * whether one was asked to stop; then the classifier's gradients. After it the step is every member's. */
static od_status commit(od_trainer *t) {
    enum { LOSS, HITS, LABELLED, STOP, SUMS };
    const od_classifier *c = t->online ? &t->online->classifier : NULL;
    const size_t weights = c ? c->table.count : 0;
    double *sums = calloc(SUMS + weights, sizeof *sums);
    float *host = malloc((weights + 1) * sizeof *host), hits = 0; /* the loss, or the gradients */
    od_status status = OD_OK;
    if (!sums || !host) {
        status = od_fail(OD_ERR_MEMORY, "no memory for sums over devices");
        goto out;
    }
    if ((status = od_span_read(od_span_at(t->losses, (size_t)t->waiting), host, 1)))
        goto out;
    sums[LOSS] = host[0];
    sums[STOP] = stop_signal != 0;
    if (t->online && ((status = od_span_read(od_span_at(t->online->corrects, (size_t)t->waiting), &hits, 1)) ||
                      (status = od_span_read(c->grad, host, weights))))
        goto out;
    sums[HITS] = hits;
    sums[LABELLED] = t->online ? t->online->labelled[t->waiting] : 0;
    for (size_t i = 0; i < weights; i++)
        sums[SUMS + i] = host[i];
    if ((status = od_member_sum(t->member, sums, SUMS + weights)))
        goto out;
    for (size_t i = 0; i < weights; i++)
        host[i] = (float)sums[SUMS + i];
    if (weights && (status = od_span_write(c->grad, host, weights)))
        goto out;
    t->sums[t->waiting] = sums[LOSS];
    t->info.progress.online_correct += sums[HITS];
    t->info.progress.online_count += (uint64_t)sums[LABELLED];
    t->stop = sums[STOP] > 0;
out:
    free(sums);
    free(host);
    return status;
}

/* This member's images of the next micro-batch, and their labels, to the device. */
static od_status next_images(od_trainer *t, int part, uint32_t *epoch) {
    const od_batch *batch = NULL;
    od_status status = OD_OK;
    if ((status = od_loader_next(t->loader, &batch)) || (status = od_views_upload(&t->views, batch)))
        return status;
    *epoch = batch->epoch;
    return t->online ? od_online_upload(t->online, batch, part, t->waiting) : OD_OK;
}

static od_status train_step(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_progress_state *p = &t->info.progress;
    od_span loss = od_span_at(t->losses, (size_t)t->waiting);
    const int share = od_trainer_share(t);
    const double part_of_all = t->member ? (double)share / t->info.micro_batch : 1;
    uint32_t epoch = 0;
    od_status status = od_trainer_begin_step(t);
    for (int part = 0; part < t->parts && !status; part++) {
        od_model_set_final(t->model, part == t->parts - 1);
        if ((status = next_images(t, part, &epoch)) || (status = od_views_make(&t->views, 0, share, epoch)) ||
            (status = od_model_step(t->model, loss, t->views.x, share, (float)(c->loss_scale / t->parts * part_of_all),
                                    part > 0)))
            break;
        if (t->online)
            status = od_online_part(t->online, od_model_step_features(t->model), share, part, t->waiting,
                                    (float)(1.0 / t->parts * part_of_all));
    }
    if (status || (status = od_model_reduce(t->model)) || (t->member && (status = commit(t))))
        return status;
    od_optim_rates rates = od_schedule_at(c, p->step, t->total, t->batches);
    if ((status = od_model_optimize(t->model, &rates)) ||
        (t->online && (status = od_online_step(t->online, od_schedule_online(c, p->step, t->total)))))
        return status;
    t->in_step = false;
    p->step++;
    t->waiting++;
    if (t->waiting == OD_LOSS_SLOTS || od_now() - t->flushed > 0.5)
        status = od_trainer_flush_losses(t);
    if (!status)
        status = od_device_flush(t->device);
    /* members meet once more, so that one that fails now does so in this step */
    return status || !t->member ? status : od_member_sum(t->member, NULL, 0);
}

/* The step and how long this member worked on it. */
static od_status timed_step(od_trainer *t) {
    const double began = od_now(), waited = t->member ? od_member_waited(t->member) : 0;
    od_status status = OD_OK;
    if (t->info.progress.step % t->batches == 0 && od_loader_batches(t->loader) != t->batches * (uint64_t)t->parts)
        status = od_loader_seek(t->loader, (uint32_t)(t->info.progress.step / t->batches), 0);
    if (status || (status = train_step(t)))
        return status;
    if (t->member) {
        t->busy += od_now() - began - (od_member_waited(t->member) - waited);
        t->timed++;
    }
    return OD_OK;
}

static bool stop_asked(const od_trainer *t) {
    return t->member ? t->stop : stop_signal != 0;
}

static bool ends_epoch(const od_trainer *t) {
    return t->info.progress.step % t->batches == 0 || t->info.progress.step == t->total;
}

static od_status end_epoch(od_trainer *t) {
    od_status status = od_trainer_finish_epoch(t);
    if (!status)
        t->closed = t->info.progress.step;
    return status;
}

static od_status run_loop(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_progress_state *p = &t->info.progress;
    od_status status = OD_OK;
    t->flushed = od_now();
    /* a device that is not here any more failed as the epoch ended */
    if (p->step > t->closed && ends_epoch(t) && (status = end_epoch(t)))
        return status;
    while (p->step < t->total && !stop_asked(t)) {
        if ((status = timed_step(t)))
            return status;
        if (t->record)
            od_progress_step(&t->record->progress, p->step, p->step / t->batches + 1, t->record->result->loss);
        if (ends_epoch(t))
            status = end_epoch(t);
        else if (c->checkpoint_every && p->step % (uint64_t)c->checkpoint_every == 0)
            status = od_trainer_save(t);
        if (status)
            return status;
    }
    return p->step == t->total ? OD_OK : od_trainer_save(t);
}

/* A member from its device to the end of the run. */
static od_status take_part(od_trainer *t) {
    od_status status = od_trainer_prepare(t);
    if (status || t->left)
        return status && !t->agreed ? od_trainer_agree(t, status) : status;
    if (t->record)
        od_progress_begin(&t->record->progress, t->info.config.quiet, t->info.progress.step, t->total,
                          t->info.config.batch);
    do {
        if (!(status = od_trainer_evaluate_before(t)) && !(status = run_loop(t)))
            status = od_trainer_agree(t, OD_OK);
    } while (status && !(status = od_trainer_recover(t, status)) && !t->left);
    if (t->record)
        od_progress_end(&t->record->progress);
    return status;
}

/* What every rank knows of the run's end. */
static void conclude(const od_crew *crew, od_train_result *result, double seconds) {
    for (int i = crew->count - 1; i >= 0; i--) {
        const od_trainer *t = &crew->trainers[i];
        if (t->left)
            continue;
        result->steps = t->info.progress.step;
        result->interrupted = result->steps < t->total;
    }
    result->seconds = seconds;
}

od_status od_train(const od_train_config *config, od_train_result *result) {
    struct sigaction old[2];
    char message[2000];
    od_crew crew;
    const double began = od_now();
    od_status status = od_train_config_check(config);
    if (status)
        return status;
    *result = (od_train_result){
        .knn_before = NAN, .knn = NAN, .online = NAN, .effective_rank = NAN, .z_std = NAN, .loss = NAN};
    catch_signals(old);
    if (!(status = od_crew_create(&crew, config, result)))
        status = od_crew_run(&crew, take_part);
    if (!status)
        conclude(&crew, result, od_now() - began);
    restore_signals(old);
    (void)snprintf(message, sizeof message, "%s", od_error_message());
    od_crew_destroy(&crew); /* closing a lost device fails too */
    return status ? od_fail(status, "%s", message) : OD_OK;
}
