/* From a configuration to a trainer at the right step: device, run, data, replica, and the run's files. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "device/tuning.h"
#include "od_config.h"
#include "od_git.h"
#include "train/config.h"
#include "train/crew.h"
#include "train/shares.h"
#include "train/tensorboard.h"
#include "train/watch.h"

/* ---- data ------------------------------------------------------------------------------------------------------- */

static od_status open_dataset(od_dataset **out, const od_train_config *c) {
    od_status status = OD_OK;
    if ((status = od_dataset_open(c->dataset, c->data, od_train_image_side(c), out)) ||
        (status = od_dataset_downsample(*out, c->downsample)))
        return status;
    od_split_limit(&(*out)->train, (size_t)c->limit);
    if ((*out)->train.n < c->batch)
        return od_fail(OD_ERR_USAGE, "--batch %d is more than the %d training images of %s in use", c->batch,
                       (*out)->train.n, c->dataset);
    return OD_OK;
}

/* All ranks must have found the same images. */
static od_status same_data(od_trainer *t) {
    const od_dataset *d = t->dataset;
    double own[] = {d->train.n, d->test.n, d->h, d->w, d->c, d->classes}, led[sizeof own / sizeof *own];
    memcpy(led, own, sizeof led);
    od_status status = od_member_share(t->member, led, sizeof led);
    if (!status && memcmp(own, led, sizeof led) != 0)
        status =
            od_fail(OD_ERR_USAGE, "%s: %d training and %d test images of %dx%d; rank 0 has %.0f and %.0f of %.0fx%.0f",
                    d->dir, d->train.n, d->test.n, d->h, d->w, led[0], led[1], led[2], led[3]);
    return status;
}

/* The first member of a process opens the data set, the others share it. */
static od_status open_data(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_status status = OD_OK;
    if (!t->member || od_member_leads_process(t->member))
        status = open_dataset(&t->crew->dataset, c);
    if ((status = od_trainer_settle(t, status)))
        return status;
    const od_dataset *d = t->dataset = t->crew->dataset;
    if (t->member && (status = od_trainer_settle(t, same_data(t))))
        return status;
    od_checkpoint_info *info = &t->info;
    info->image_side = d->h;
    info->channels = d->c;
    info->classes = d->classes;
    memcpy(info->mean, d->mean, sizeof info->mean);
    memcpy(info->std, d->std, sizeof info->std);
    snprintf(info->data_dir, sizeof info->data_dir, "%s", d->dir);
    t->batches = (uint64_t)(d->train.n / c->batch);
    t->total = c->steps > 0 ? (uint64_t)c->steps : (uint64_t)c->epochs * t->batches;
    return OD_OK;
}

/* ---- the division of the batch ---------------------------------------------------------------------------------- */

char *od_trainer_split_text(const od_trainer *t) {
    const od_layout *l = &t->layout;
    if (l->count == 1)
        return NULL;
    json_t *devices = json_array(), *shares = json_array();
    for (int i = 0; i < l->count; i++) {
        json_array_append_new(devices, json_string(l->places[i].name));
        json_array_append_new(shares, json_integer(l->shares[i]));
    }
    json_t *split = json_pack("{s:o, s:o}", "devices", devices, "shares", shares);
    char *text = split ? json_dumps(split, JSON_COMPACT) : NULL;
    json_decref(split);
    return text;
}

/* The checkpoint's shares as weights, when it is of the same devices; false and a line when it is not. */
static bool recorded_shares(od_trainer *t, const od_safetensors *file, double *weights) {
    const od_layout *l = &t->layout;
    const char *text = od_safetensors_metadata(file, "split");
    json_t *split = NULL;
    if (text && od_json_parse(text, strlen(text), t->record->run.checkpoint, &split))
        split = NULL;
    const json_t *devices = json_object_get(split, "devices"), *shares = json_object_get(split, "shares");
    const size_t count = split ? json_array_size(devices) : 1;
    bool same = split && count == (size_t)l->count && json_array_size(shares) == count;
    for (int i = 0; i < l->count && same; i++) {
        const char *name = json_string_value(json_array_get(devices, (size_t)i));
        weights[i] = (double)json_integer_value(json_array_get(shares, (size_t)i));
        same = name && strcmp(name, l->places[i].name) == 0 && weights[i] >= 1;
    }
    if (!same && (count > 1 || l->count > 1))
        od_say(t, "This run had %zu device%s, now %d%s: it goes on within tolerance, not bit for bit.", count,
               count == 1 ? "" : "s", l->count, count == (size_t)l->count ? " others" : "");
    json_decref(split);
    return same;
}

/* Weights by --split, as recorded, or by measurement. */
static od_status choose_weights(od_trainer *t, const od_safetensors *file) {
    od_train_config *c = &t->info.config;
    od_layout *l = &t->layout;
    od_status status = OD_OK;
    if (!t->member)
        return OD_OK;
    double *weights = calloc((size_t)l->count + 1, sizeof *weights); /* (count), then whether they are known */
    if (!weights)
        return od_fail(OD_ERR_MEMORY, "no memory for a list of devices");
    if (t->record && file)
        weights[l->count] = recorded_shares(t, file, weights);
    status = od_member_share(t->member, weights, ((size_t)l->count + 1) * sizeof *weights);
    const bool recorded = !status && weights[l->count] > 0;
    if (!status && c->split[0]) {
        status = od_shares_parse(weights, c->split, l->count);
        l->fixed = !status;
        if (status && c->resume) { /* it was for the devices of then */
            od_say(t, "--split %s is not for these %d devices, and is left out.", c->split, l->count);
            status = OD_OK;
        }
    }
    status = od_trainer_settle(t, status);
    if (!status && (l->fixed || recorded))
        memcpy(l->weights, weights, (size_t)l->count * sizeof *weights);
    else if (!status)
        status = od_trainer_calibrate(t);
    free(weights);
    return status;
}

/* ---- the run's files -------------------------------------------------------------------------------------------- */

/* The device, or all of them. */
static void describe_devices(const od_trainer *t, json_t *about) {
    const od_layout *l = &t->layout;
    if (l->count == 1 && od_world_ranks() == 1)
        return;
    json_t *devices = json_array();
    for (int i = 0; i < l->count; i++)
        json_array_append_new(devices, json_pack("{s:s, s:s, s:i, s:i}", "id", l->places[i].id, "name",
                                                 l->places[i].name, "rank", l->places[i].rank, "share", l->shares[i]));
    json_object_set_new(about, "devices", devices);
    json_object_set_new(about, "ranks", json_integer(od_world_ranks()));
    if (od_world_version()[0])
        json_object_set_new(about, "mpi", json_string(od_world_version()));
}

/* Everything that says what ran, for config.json. */
static json_t *about_run(const od_trainer *t) {
    const od_device_info *d = od_device_get_info(t->device);
    char tuning[9];
    od_tuning_fingerprint(t->device, tuning);
    return json_pack("{s:s, s:s, s:{s:s, s:s, s:s, s:s, s:s, s:s, s:s}, s:s, s:i, s:i, s:I, s:I, s:I, s:i}", "version",
                     OD_VERSION, "commit", OD_GIT_COMMIT, "device", "id", d->id, "name", d->name, "platform",
                     d->platform, "driver", d->driver, "opencl", d->version, "kernels",
                     od_family_name(od_device_family(t->device)), "tuning", tuning, "data_dir", t->dataset->dir,
                     "train_images", t->dataset->train.n, "test_images", t->dataset->test.n, "parameters",
                     (json_int_t)od_param_table_stored_count(od_model_params(t->model)), "steps_per_epoch",
                     (json_int_t)t->batches, "steps", (json_int_t)t->total, "micro_batch", t->info.micro_batch);
}

od_status od_trainer_write_config(od_trainer *t) {
    json_t *about = about_run(t);
    if (about) {
        describe_devices(t, about);
        if (json_array_size(t->record->splits))
            json_object_set(about, "splits", t->record->splits);
    }
    od_status status = about ? od_run_write_config(&t->record->run, &t->info.config, about)
                             : od_fail(OD_ERR_MEMORY, "no memory for config.json");
    json_decref(about);
    return status;
}

/* The history of divisions that config.json has of the run so far, up to its present step. */
static void load_splits(od_trainer *t) {
    json_t *document = NULL, *split;
    size_t i;
    if (od_json_read(t->record->run.config_path, &document))
        return;
    json_array_foreach(json_object_get(json_object_get(document, "run"), "splits"), i, split) {
        const json_t *step = json_object_get(split, "step");
        if (json_is_integer(step) && (uint64_t)json_integer_value(step) <= t->info.progress.step)
            json_array_append(t->record->splits, split);
    }
    json_decref(document);
}

void od_trainer_note_split(od_trainer *t, const char *why) {
    json_t *shares = json_array(), *devices = json_array();
    for (int i = 0; i < t->layout.count; i++) {
        json_array_append_new(shares, json_integer(t->layout.shares[i]));
        json_array_append_new(devices, json_string(t->layout.places[i].id));
    }
    json_t *split = json_pack("{s:I, s:s, s:o, s:o}", "step", (json_int_t)t->info.progress.step, "why", why, "devices",
                              devices, "shares", shares);
    if (split)
        json_array_append_new(t->record->splits, split);
}

static void compare_devices(od_trainer *t) {
    const char *device = od_device_get_info(t->device)->name;
    char tuning[9];
    if (strcmp(device, t->info.device) != 0)
        od_say(t, "This run began on another device (%s): it goes on within tolerance, not bit for bit.",
               t->info.device);
    od_tuning_fingerprint(t->device, tuning);
    if (t->info.tuning[0] && strcmp(tuning, t->info.tuning) != 0)
        od_say(t, "This run began with other tuning rows (%s, now %s): it goes on within tolerance, not bit for bit.",
               t->info.tuning, tuning);
}

/* The leader reads the checkpoint, the others have it from there. */
static od_status resume_state(od_trainer *t, const od_safetensors *file) {
    const uint64_t step = t->info.progress.step;
    od_status status = OD_OK;
    if (file && t->record) {
        const char *path = t->record->run.checkpoint;
        if ((status = od_checkpoint_load(file, path, t->model, t->online ? &t->online->classifier : NULL, true)))
            return status;
        if (step > t->total)
            return od_fail(OD_ERR_FORMAT, "%s: at step %llu of a run of %llu steps", path, (unsigned long long)step,
                           (unsigned long long)t->total);
        compare_devices(t);
    }
    return od_replica_sync(t);
}

static void describe(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    const od_device_info *d = od_device_get_info(t->device);
    const od_layout *l = &t->layout;
    if (l->count == 1)
        od_say(t, "Device %s: %s (%s), %s kernels", d->id, d->name, d->platform,
               od_family_name(od_device_family(t->device)));
    for (int i = 0; i < l->count && l->count > 1; i++)
        od_say(t, "Device %s: %d of %d images", od_layout_name(l, i), l->shares[i], t->info.micro_batch);
    od_say(t, "Data: %s, %d training and %d test images of %dx%d", c->dataset, t->dataset->train.n, t->dataset->test.n,
           t->dataset->h, t->dataset->w);
    od_say(t, "Model: %s width %d, %zu parameters; %s, head %s, %s loss%s%s", od_encoder_names[c->encoder],
           od_train_width(c), od_param_table_stored_count(od_model_params(t->model)), od_method_name(c->method),
           od_head_name(c->head), od_loss_name(c->loss), c->optimizer == OD_SGD ? "" : ", ",
           c->optimizer == OD_SGD ? "" : od_optimizer_names[c->optimizer]);
    od_say(t, "Run: %s, %llu steps of %d images, %llu an epoch", c->out, (unsigned long long)t->total, c->batch,
           (unsigned long long)t->batches);
}

/* From an open device to a model at the right step. */

/* ---- all of it -------------------------------------------------------------------------------------------------- */

static od_status open_device(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_device_options options = {.family = (od_family)c->kernels,
                                 .memory_bytes = (uint64_t)c->memory << 20,
                                 .processes = (unsigned)od_world_here()};
    od_status status = od_trainer_settle(t, od_device_open(t->spec, &options, &t->device));
    if (status)
        return status;
    return od_layout_create(&t->layout, t->member, od_device_get_info(t->device));
}

/* The leader's: the run's directory, and the checkpoint where there is one to go on from. */
static od_status open_run(od_trainer *t, od_safetensors **file) {
    const od_train_config asked = t->info.config;
    od_run *run = &t->record->run;
    od_status status = od_run_open(run, &asked);
    if (status || !asked.resume)
        return status;
    if ((status = od_checkpoint_open(run->checkpoint, file, &t->info)))
        return status;
    const char *differs = od_train_config_difference(&t->info.config, &asked);
    t->info.config = asked;
    return differs ? od_fail(OD_ERR_USAGE, "--%s differs from the run in %s, which --resume continues as it was",
                             differs, run->dir)
                   : OD_OK;
}

/* The leader's: what it writes from here on. */
static od_status open_files(od_trainer *t) {
    od_status status = OD_OK;
    load_splits(t);
    if (t->layout.count > 1)
        od_trainer_note_split(t, t->info.progress.step ? "resumed" : "start");
    if ((status = od_trainer_write_config(t)) || (status = od_run_open_metrics(&t->record->run, t->info.progress.step)))
        return status;
    return od_watch_open(t);
}

od_status od_trainer_prepare(od_trainer *t) {
    od_safetensors *file = NULL;
    od_status status = OD_OK;
    if ((status = open_device(t)) || (status = od_trainer_settle(t, t->record ? open_run(t, &file) : OD_OK)) ||
        (t->member && (status = od_member_share(t->member, &t->info, sizeof t->info))) || (status = open_data(t)) ||
        (status = choose_weights(t, file)) || t->left || (status = od_replica_fit(t)))
        goto out;
    if (t->record)
        describe(t);
    if ((status = resume_state(t, file)))
        goto out;
    snprintf(t->info.device, sizeof t->info.device, "%s", od_device_get_info(t->device)->name);
    od_tuning_fingerprint(t->device, t->info.tuning);
    if (t->record)
        status = open_files(t);
    t->closed = t->info.progress.step;
    if (!status)
        status = od_trainer_seek(t);
out:
    od_safetensors_close(file);
    return status;
}

void od_trainer_close(od_trainer *t) {
    od_loader_destroy(t->loader);
    t->loader = NULL;
    od_replica_destroy(t);
    od_device_close(t->device);
    t->device = NULL;
    od_layout_destroy(&t->layout);
}

void od_record_close(od_record *record) {
    od_tensorboard_close(record->tensorboard);
    od_run_close(&record->run);
    json_decref(record->splits);
    record->tensorboard = NULL;
    record->splits = NULL;
}

/* ---- another leader ---------------------------------------------------------------------------------------------- */

static bool sees_run(const od_trainer *t) {
    char *path = od_path_join(t->info.config.out, "config.json");
    const bool sees = path && access(path, R_OK | W_OK) == 0;
    free(path);
    return sees;
}

static od_status take_over(od_trainer *t) {
    od_train_config config = t->info.config;
    config.resume = true;
    t->record = &t->crew->record;
    od_progress_begin(&t->record->progress, config.quiet, t->info.progress.step, t->total, config.batch);
    od_status status = od_run_open(&t->record->run, &config);
    if (status)
        return status;
    t->record->reported = t->reported;
    load_splits(t);
    status = od_run_open_metrics(&t->record->run, t->info.progress.step);
    return status ? status : od_watch_open(t);
}

od_status od_trainer_hand_over(od_trainer *t, int to, bool *visible) {
    double sees = t->layout.index == to && sees_run(t);
    od_status status = od_member_sum(t->member, &sees, 1);
    *visible = sees > 0;
    if (status || !*visible)
        return status;
    status = od_trainer_flush_losses(t); /* the leader logs them still, the others take note */
    if (t->record) {
        od_progress_end(&t->record->progress);
        od_record_close(t->record);
        t->record = NULL;
    }
    if ((status = od_trainer_agree(t, status)))
        return status;
    return od_trainer_agree(t, t->layout.index == to ? take_over(t) : OD_OK);
}
