/* Which devices take part in a run, and with what share: measured before it begins, on random views and with replicas
 * that are thrown away.
 *
 * Each member alone, one after the other; then all together with shares in proportion, corrected twice by the time each
 * one's own work took. Where the fastest alone, or the fastest few, make a step sooner than all, the others are left
 * out. Every rank keeps a member. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "offdiag/ops/optim.h"
#include "train/crew.h"
#include "train/schedule.h"
#include "train/shares.h"

enum { ROUNDS = 3, STEPS_MAX = 8 };
static const double round_seconds = 0.4;

/* One step on n random images; with a team, together with the others. */
static od_status one_step(od_trainer *t, int n, float scale) {
    const od_optim_rates rates = od_schedule_at(&t->info.config, 0, t->total, t->batches);
    od_status status = OD_OK;
    od_model_set_final(t->model, true);
    if ((status = od_model_step(t->model, t->losses, t->views.x, n, scale, false)) ||
        (status = od_model_reduce(t->model)) || (status = od_model_optimize(t->model, &rates)))
        return status;
    return od_device_finish(t->device);
}

static od_status random_views(od_trainer *t) {
    const od_views *v = &t->views;
    return od_fill_normal(t->device, v->x, (size_t)2 * v->micro * v->size * v->size * 4, 1, t->info.config.seed, 0);
}

/* How many steps fill a round, of which one takes `seconds`. */
static int steps_of_round(double seconds) {
    double steps = ceil(round_seconds / fmax(seconds, 1e-6));
    return steps > STEPS_MAX ? STEPS_MAX : steps < 1 ? 1 : (int)steps;
}

/* Seconds of a step of n images on this device, the others at rest: the shortest one after a warm-up. */
static od_status time_alone(od_trainer *t, int n, double *seconds) {
    od_status status = one_step(t, n, 1);
    int steps = 1;
    *seconds = INFINITY;
    for (int i = 0; i < steps && !status; i++) {
        const double began = od_now();
        if (!(status = one_step(t, n, 1))) {
            *seconds = fmin(*seconds, od_now() - began);
            steps = i == 0 ? steps_of_round(*seconds) : steps;
        }
    }
    return status;
}

/* rates (count): images/s of each member alone. */
static od_status each_alone(od_trainer *t, double *rates) {
    od_layout *l = &t->layout;
    const int n = od_trainer_share(t) < 2 ? 2 : od_trainer_share(t);
    double seconds = 0;
    od_status status = random_views(t);
    if (!status)
        status = one_step(t, n, 1); /* all at once: programs are built, caches fill */
    for (int i = 0; i < l->count && !status; i++) {
        if ((status = od_trainer_agree(t, OD_OK)))
            break;
        if (i == l->index)
            status = time_alone(t, n, &seconds);
    }
    return status ? status : od_layout_exchange(l, t->member, n / seconds, rates);
}

/* Seconds that the fastest member needs for a step of the whole micro-batch; 0: its memory does not hold that. */
static od_status best_alone(od_trainer *t, int best, double *seconds) {
    const int n = t->info.micro_batch;
    od_status status = OD_OK;
    *seconds = 0;
    if (t->layout.index == best && t->layout.caps[best] >= n) {
        if (!(status = od_replica_build(t, n)) && !(status = random_views(t)))
            status = time_alone(t, n, seconds);
        if (status == OD_ERR_DEVICE_MEMORY) {
            t->layout.caps[best] = n - 1;
            status = OD_OK;
        }
    }
    return status ? status : od_member_sum(t->member, seconds, 1);
}

/* Seconds of a step of all, and of each one's own work in it (count). */
static od_status time_together(od_trainer *t, double *own, double *seconds) {
    const int n = od_trainer_share(t);
    const float scale = (float)n / (float)t->info.micro_batch;
    int steps = 1;
    double total = 0, waited = 0;
    od_status status = random_views(t);
    for (int i = -1; i < steps && !status; i++) { /* the first one is a warm-up */
        double began = od_now(), waited_before = od_member_waited(t->member);
        if ((status = one_step(t, n, scale)) || (status = od_trainer_agree(t, OD_OK)) || i < 0)
            continue;
        total += od_now() - began;
        waited += od_member_waited(t->member) - waited_before;
        if (i == 0) { /* the leader's count, for all */
            double first = t->record ? total : 0;
            if (!(status = od_member_sum(t->member, &first, 1)))
                steps = steps_of_round(first);
        }
    }
    if (!status)
        status = od_layout_exchange(&t->layout, t->member, (total - waited) / steps, own);
    *seconds = total / steps;
    return status ? status : od_member_share(t->member, seconds, sizeof *seconds);
}

/* The layout's weights with which a step of all was shortest. own (count): each one's seconds then. */
static od_status all_together(od_trainer *t, double *own, double *shortest) {
    od_layout *l = &t->layout;
    const size_t bytes = (size_t)l->count * sizeof(double);
    double *best = calloc((size_t)l->count, sizeof *best), *times = malloc(bytes), seconds = 0;
    od_status status = OD_OK;
    *shortest = INFINITY;
    if (!best || !times) {
        free(best);
        free(times);
        return od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    }
    for (int round = 0; round < ROUNDS && !status; round++) {
        if ((status = od_replica_fit(t)) || (status = time_together(t, times, &seconds)))
            break;
        if (seconds < *shortest) {
            *shortest = seconds;
            for (int i = 0; i < l->count; i++)
                best[i] = l->shares[i];
            memcpy(own, times, bytes);
        }
        od_shares_rates(l->weights, l->shares, times, l->count);
    }
    if (!status) {
        memcpy(l->weights, best, bytes);
        for (int i = 0; i < l->count; i++)
            l->shares[i] = (int)best[i];
    }
    free(best);
    free(times);
    return status;
}

/* Members that do not pay leave. */
static od_status leave_out(od_trainer *t, const bool *pays, double together, double without) {
    const od_layout *l = &t->layout;
    const double n = t->info.micro_batch;
    bool all = true;
    for (int i = 0; i < l->count; i++)
        if (!pays[i]) {
            all = false;
            od_say(t, "Device %s does not pay and is left out: with it %.0f images/s, without %.0f.",
                   od_layout_name(l, i), n / together, n / without);
        }
    return all ? OD_OK : od_trainer_stay(t, pays[l->index]);
}

od_status od_trainer_calibrate(od_trainer *t) {
    od_layout *l = &t->layout;
    const size_t count = (size_t)l->count;
    double *rates = calloc(2 * count, sizeof *rates), *own = rates ? rates + count : NULL, alone = 0, together = 0;
    bool *needed = calloc(2 * count, sizeof *needed), *pays = needed ? needed + count : NULL;
    int best = 0;
    od_status status = OD_OK;
    if (!rates || !needed) {
        status = od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
        goto out;
    }
    if ((status = od_replica_fit(t)) || (status = od_model_join(t->model, NULL)) || (status = each_alone(t, rates)))
        goto out;
    for (int i = 0; i < l->count; i++) {
        best = rates[i] > rates[best] ? i : best;
        needed[i] = i == 0 || l->places[i].rank != l->places[i - 1].rank;
    }
    const bool one_process = l->places[l->count - 1].rank == 0;
    needed[0] = !one_process;
    if (one_process && (status = best_alone(t, best, &alone)))
        goto out;
    memcpy(l->weights, rates, count * sizeof *rates);
    if ((status = all_together(t, own, &together)))
        goto out;
    od_shares_rates(rates, l->shares, own, l->count);
    double longest = 0;
    for (int i = 0; i < l->count; i++)
        longest = fmax(longest, own[i]);
    const od_shares_measured measured = {.n = t->info.micro_batch,
                                         .count = l->count,
                                         .rates = rates,
                                         .needed = needed,
                                         .together = together,
                                         .overhead = fmax(0, together - longest),
                                         .best = best,
                                         .best_alone = alone};
    const double without = od_shares_paying(pays, &measured);
    status = leave_out(t, pays, together, without);
out:
    free(rates);
    free(needed);
    od_replica_destroy(t);
    return status;
}
