/* A member's replica: model, views and classifier on its device, as large as its share asks for. */
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "train/config.h"
#include "train/evaluate.h"
#include "train/shares.h"
#include "train/snapshot.h"
#include "train/trainer.h"

/* What passes and evaluations take for a moment is less than what is there already, the features of kNN, and the
 * scratch of a convolution. Where that may not be left, try both: memory that runs out now makes passes smaller, later
 * it would end the run. */
enum { SCRATCH_BYTES = 512 << 20 };

int od_trainer_share(const od_trainer *t) {
    return t->layout.shares[t->layout.index];
}

/* ---- building --------------------------------------------------------------------------------------------------- */

static od_status try_passes(od_trainer *t, const od_model_config *model_config, int n) {
    od_memory_use use = od_device_memory(t->device);
    od_knn_protocol protocol = od_knn_run_protocol(&t->info.config);
    od_status status = OD_OK;
    if (2 * use.live + od_knn_bytes(t->model, t->dataset, &protocol) + SCRATCH_BYTES <= use.budget)
        return OD_OK;
    if ((status = od_span_zero(t->views.x, (size_t)2 * n * t->views.size * t->views.size * 4)) ||
        (status = od_model_step(t->model, t->losses, t->views.x, n, 1, false)) ||
        (status = od_knn_try(t->model, &t->views, t->dataset, &protocol)))
        return status;
    od_model_destroy(t->model); /* the step moved its statistics */
    t->model = NULL;
    return od_model_create(t->device, model_config, n, &t->model);
}

/* Room for what a step must be able to take back. */
static od_status create_copies(od_trainer *t) {
    const od_model_arenas a = od_model_get_arenas(t->model);
    const size_t n = od_model_stats(t->model)->count;
    od_status status = OD_OK;
    if (!t->member || (status = od_span_create(t->device, n, &t->stats)) || !a.target_stats.buffer)
        return status;
    return od_span_create(t->device, n, &t->target_stats);
}

od_status od_replica_build(od_trainer *t, int capacity) {
    const od_train_config *c = &t->info.config;
    od_model_config model_config;
    od_augment_policy policies[2];
    od_status status = OD_OK;
    capacity = capacity < 2 ? 2 : capacity; /* a trial alone takes two images at least */
    od_replica_destroy(t);
    od_train_model_config(&model_config, c, t->dataset->h);
    od_augment_policies_named(policies, c->augment, c->crop_min, t->dataset->mean, t->dataset->std);
    if ((status = od_span_create(t->device, OD_LOSS_SLOTS, &t->losses)) ||
        (status = od_model_create(t->device, &model_config, capacity, &t->model)) ||
        (status = od_views_create(&t->views, t->device, t->dataset, policies, model_config.image_size,
                                  c->batch < 2 * capacity ? c->batch : 2 * capacity, capacity, c->seed)) ||
        (status = try_passes(t, &model_config, capacity)) ||
        (c->online_linear && (status = od_online_create(&t->online, t->device, od_model_feature_dim(t->model),
                                                        t->dataset->classes, capacity, OD_LOSS_SLOTS))) ||
        (status = create_copies(t)))
        od_replica_destroy(t);
    t->capacity = status ? 0 : capacity;
    return status;
}

void od_replica_destroy(od_trainer *t) {
    od_views_destroy(&t->views);
    od_model_destroy(t->model);
    od_online_destroy(t->online);
    od_buffer_release(t->losses.buffer);
    od_buffer_release(t->stats.buffer);
    od_buffer_release(t->target_stats.buffer);
    t->model = NULL;
    t->online = NULL;
    t->losses = t->stats = t->target_stats = OD_NO_SPAN;
    t->capacity = 0;
}

/* ---- fitting ---------------------------------------------------------------------------------------------------- */

/* The next smaller micro-batch that divides the batch and has an image for each member; 0: none. */
static int smaller_part(const od_trainer *t, int micro) {
    const int least = t->layout.count > 2 ? t->layout.count : 2;
    for (int m = micro - 1; m >= least; m--)
        if (t->info.config.batch % m == 0)
            return m;
    return 0;
}

/* Room to grow without a new replica, where the share may change. */
static int room_for(const od_trainer *t, int share) {
    const bool grows = t->member && !t->layout.fixed && t->info.config.rebalance;
    int wanted = grows ? share + share / 8 + 1 : share;
    return wanted < t->layout.caps[t->layout.index] ? wanted : t->layout.caps[t->layout.index];
}

/* A replica for this member's share, or where memory lacks the largest that there can be; *cap: its images. Alone, less
 * than the share is not worth finding out: the micro-batch must become smaller anyway. */
static od_status build_share(od_trainer *t, int *cap) {
    const int share = od_trainer_share(t);
    int n = room_for(t, share);
    od_status status = OD_OK;
    *cap = t->layout.caps[t->layout.index];
    while ((status = od_replica_build(t, n)) == OD_ERR_DEVICE_MEMORY) {
        *cap = n - 1;
        if (n <= 2 || !t->member)
            break;
        n = n > share ? share : n - n / 8 - 1;
        n = n < 2 ? 2 : n;
    }
    if (!status && n < share)
        *cap = n;
    return status;
}

/* Whether all members' replicas hold their shares; caps become what was found out. */
static od_status exchange_caps(od_trainer *t, int cap, bool *fits) {
    od_layout *l = &t->layout;
    double *caps = calloc((size_t)l->count, sizeof *caps);
    if (!caps)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    od_status status = od_layout_exchange(l, t->member, cap, caps);
    *fits = true;
    for (int i = 0; i < l->count && !status; i++) {
        l->caps[i] = (int)caps[i];
        *fits = *fits && l->caps[i] >= l->shares[i];
    }
    free(caps);
    return status;
}

/* A resumed run keeps its micro-batch, as batch norm's statistics depend on it. */
static int wanted_micro(const od_trainer *t) {
    const od_train_config *c = &t->info.config;
    return c->micro_batch ? c->micro_batch : t->info.micro_batch ? t->info.micro_batch : c->batch;
}

od_status od_replica_fit(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_layout *l = &t->layout;
    const int wanted = wanted_micro(t);
    int micro = wanted, cap = 0;
    od_status status = OD_OK, own = OD_OK;
    for (bool fits = false; !fits;) {
        if (micro < l->count)
            return od_fail(OD_ERR_USAGE, "%d images at a time are fewer than the %d devices", micro, l->count);
        if (!od_shares_divide(l->shares, micro, l->weights, l->caps, l->count)) {
            const int smaller = c->micro_batch ? 0 : smaller_part(t, micro);
            if (smaller == 0)
                return own ? own
                           : od_fail(OD_ERR_DEVICE_MEMORY, "the memory of %d devices does not hold %d images at a time",
                                     l->count, micro);
            micro = smaller;
            continue;
        }
        own = build_share(t, &cap);
        if (own && (own != OD_ERR_DEVICE_MEMORY || cap < 1))
            return own;
        if ((status = exchange_caps(t, cap, &fits)))
            return status;
    }
    t->parts = c->batch / micro;
    t->info.micro_batch = micro;
    if (micro < wanted)
        od_say(
            t,
            "The batch of %d does not fit %s memory: it runs in %d parts of %d, with batch-norm statistics per part.",
            c->batch, l->count > 1 ? "these devices'" : "this device's", t->parts, micro);
    t->busy = 0;
    t->timed = 0;
    return t->member ? od_model_join(t->model, t->member) : OD_OK;
}

/* ---- in mid-run ------------------------------------------------------------------------------------------------- */

od_status od_replica_sync(od_trainer *t) {
    od_status status = t->member ? od_model_sync(t->model) : OD_OK;
    if (status || !t->member || !t->online)
        return status;
    const od_classifier *c = &t->online->classifier;
    const od_span spans[] = {c->param, c->momentum};
    float *host = malloc(c->table.count * sizeof *host);
    status = host ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for a classifier's weights");
    for (int i = 0; i < 2 && !status; i++)
        if (!(status = od_span_read(spans[i], host, c->table.count)) &&
            !(status = od_member_share(t->member, host, c->table.count * sizeof *host)))
            status = od_span_write(spans[i], host, c->table.count);
    free(host);
    return status;
}

od_status od_replica_refit(od_trainer *t) {
    od_snapshot kept = {0};
    od_status status = od_snapshot_take(&kept, t->model, od_trainer_classifier(t));
    if (!status && !(status = od_replica_fit(t)) &&
        !(status = od_snapshot_put(&kept, t->model, od_trainer_classifier(t))))
        status = od_replica_sync(t);
    od_snapshot_free(&kept);
    return status ? status : od_trainer_seek(t);
}

od_status od_trainer_seek(od_trainer *t) {
    const uint64_t step = t->info.progress.step;
    od_loader_options options = {.batch = t->info.micro_batch,
                                 .seed = t->info.config.seed,
                                 .shuffle = true,
                                 .drop_last = true,
                                 .first = od_shares_first(t->layout.shares, t->layout.index),
                                 .count = od_trainer_share(t)};
    od_loader_destroy(t->loader);
    t->loader = NULL;
    od_status status = od_loader_create(t->dataset, &t->dataset->train, &options, &t->loader);
    if (status)
        return status;
    return od_loader_seek(t->loader, (uint32_t)(step / t->batches), (uint32_t)(step % t->batches) * (uint32_t)t->parts);
}
