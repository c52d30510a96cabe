/* What follows when a member fails. All learn of it (od_trainer_agree). Where it was a device, the state of the last
 * complete step still is in all the others: it is written as a checkpoint, or they go on with it (--keep-going). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/tuning.h"
#include "train/crew.h"

/* ---- steps ------------------------------------------------------------------------------------------------------ */

/* The statistics as they are now into their copies, or back. */
static od_status copy_statistics(od_trainer *t, bool back) {
    const od_model_arenas a = od_model_get_arenas(t->model);
    const size_t n = od_model_stats(t->model)->count;
    od_status status = od_span_copy(back ? a.stats : t->stats, back ? t->stats : a.stats, n);
    if (status || !t->target_stats.buffer)
        return status;
    return od_span_copy(back ? a.target_stats : t->target_stats, back ? t->target_stats : a.target_stats, n);
}

od_status od_trainer_begin_step(od_trainer *t) {
    if (!t->member)
        return OD_OK;
    od_status status = copy_statistics(t, false);
    t->in_step = !status;
    return status;
}

static od_status undo_step(od_trainer *t) {
    od_status status = OD_OK;
    if (t->in_step && !(status = copy_statistics(t, true)))
        status = od_model_update(t->model);
    t->in_step = false;
    return status;
}

/* ---- who is left ------------------------------------------------------------------------------------------------ */

static bool failed(const od_trainer *t, int i) {
    return od_member_failed(t->member, i);
}

/* The first member that is well; -1: none. */
static int first_well(const od_trainer *t) {
    for (int i = 0; i < t->layout.count; i++)
        if (!failed(t, i))
            return i;
    return -1;
}

/* Those that are well have all done the same steps; one that failed in its last call of a step does not count it yet,
 * though its losses are there. The leader knows whether an epoch that was ending has been reported. */
static od_status count_step(od_trainer *t, int well) {
    double known[2] = {t->layout.index == well ? (double)t->info.progress.step : 0,
                       t->record ? (double)t->record->reported : 0};
    od_status status = od_member_sum(t->member, known, 2);
    if (status)
        return status;
    if ((uint64_t)known[0] == t->info.progress.step + 1) {
        t->info.progress.step++;
        t->waiting++;
    }
    t->reported = (uint64_t)known[1];
    return OD_OK;
}

/* ---- the end of the run ----------------------------------------------------------------------------------------- */

static od_status write_checkpoint(od_trainer *t, const od_snapshot *state) {
    od_status status = od_trainer_flush_losses(t);
    if (!status && !od_snapshot_finite(state))
        status = od_fail(OD_ERR_NUMERIC, "weights, momentum or BN statistics became infinite or NaN");
    if (status)
        return status;
    char *split = od_trainer_split_text(t);
    status = od_checkpoint_save(t->record->run.checkpoint, &t->info, t->model, od_trainer_classifier(t), split, state);
    free(split);
    return status;
}

/* Member `well` has the state, the leader, whose device may be lost, writes it. *saved: it did. */
static od_status save_last_step(od_trainer *t, int well, bool *saved) {
    od_snapshot state = {0};
    double missing = !t->model, written = 0; /* it failed while it was made */
    od_status status = od_member_sum(t->member, &missing, 1);
    *saved = false;
    if (status || missing > 0)
        return status;
    if (!(status = od_snapshot_gather(&state, t->model, od_trainer_classifier(t), t->member, well)) && t->record)
        written = !(status = write_checkpoint(t, &state));
    od_snapshot_free(&state);
    if (!od_member_sum(t->member, &written, 1))
        *saved = written > 0;
    return status;
}

/* `status` is this member's. */
static od_status end(od_trainer *t, int well, od_status status) {
    bool saved = false;
    od_status save = save_last_step(t, well, &saved);
    if (saved)
        return od_fail(status, "%s; the checkpoint of step %llu is written, --resume --out %s goes on", t->message,
                       (unsigned long long)t->info.progress.step, t->info.config.out);
    return save && t->record ? od_fail(status, "%s; a checkpoint could not be written", t->message)
                             : od_fail(status, "%s", t->message);
}

/* ---- or not ----------------------------------------------------------------------------------------------------- */

static od_status go_on(od_trainer *t, od_status failure) {
    char names[400] = "";
    const od_layout *l = &t->layout;
    const bool leave = failed(t, l->index);
    for (int i = 0; i < l->count; i++)
        if (failed(t, i)) {
            size_t used = strlen(names);
            (void)snprintf(names + used, sizeof names - used, "%s%s", used ? ", " : "", od_layout_name(l, i));
        }
    od_status status = od_trainer_stay(t, !leave);
    if (status)
        return status;
    if (leave) {
        od_trainer_close(t);
        return od_fail(failure, "%s", t->message);
    }
    for (int i = 0; i < l->count; i++)
        l->weights[i] = l->shares[i];
    if ((status = od_replica_refit(t)))
        return t->member ? od_trainer_agree(t, status) : status;
    snprintf(t->info.device, sizeof t->info.device, "%s", od_device_get_info(t->device)->name);
    od_tuning_fingerprint(t->device, t->info.tuning);
    if (!t->record)
        return OD_OK;
    od_say(t, "Step %llu: %s; the run goes on without %s.", (unsigned long long)t->info.progress.step, t->message,
           names);
    od_trainer_note_split(t, "device failed");
    return od_trainer_write_config(t);
}

od_status od_trainer_recover(od_trainer *t, od_status status) {
    if (!t->member)
        return status;
    if (!t->agreed)
        status = od_trainer_agree(t, status);
    t->agreed = false;
    const int well = first_well(t);
    if (!od_trainer_device_failed(t->failure) || well < 0)
        return status;
    od_status undone = failed(t, t->layout.index) ? OD_OK : undo_step(t);
    t->in_step = false;
    if ((undone = od_trainer_agree(t, undone)) || (undone = count_step(t, well)))
        return undone;
    if (!t->info.config.keep_going)
        return end(t, well, status);
    bool visible = true;
    if (t->layout.places[well].rank != t->layout.places[0].rank) { /* the leader's process has no device left */
        if ((undone = od_trainer_hand_over(t, well, &visible)))
            return undone;
    }
    if (!visible) {
        const size_t used = strlen(t->message);
        (void)snprintf(t->message + used, sizeof t->message - used,
                       "; rank %d does not see %s and cannot go on with it, as --keep-going asks",
                       t->layout.places[well].rank, t->info.config.out);
        return end(t, well, status);
    }
    return go_on(t, status);
}
