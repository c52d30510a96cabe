/* From a configuration to a trainer at the right step: data, model, views, and the run's files. */
#include <stdio.h>
#include <string.h>

#include "device/tuning.h"
#include "od_config.h"
#include "od_git.h"
#include "train/config.h"
#include "train/evaluate.h"
#include "train/tensorboard.h"
#include "train/trainer.h"
#include "train/watch.h"

static od_status open_data(od_trainer *t) {
    od_train_config *c = &t->info.config;
    od_status status = OD_OK;
    if ((status = od_dataset_open(c->dataset, c->data, od_train_image_side(c), &t->dataset)) ||
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

/* What passes and evaluations take for a moment is less than what is there already, the features of kNN, and the
 * scratch of a convolution. Where that may not be left, try both: memory that runs out now splits the batch, later it
 * would end the run. */
enum { SCRATCH_BYTES = 512 << 20 };

static od_status try_passes(od_trainer *t, const od_model_config *model_config, int micro) {
    od_memory_use use = od_device_memory(t->device);
    od_knn_protocol protocol = od_knn_run_protocol(&t->info.config);
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
static od_status build_model(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    od_model_config model_config;
    od_augment_policy policies[2];
    od_train_model_config(&model_config, c, t->dataset->h);
    od_augment_policies_named(policies, c->augment, c->crop_min, t->dataset->mean, t->dataset->std);
    od_status status = od_span_create(t->device, OD_LOSS_SLOTS, &t->losses);
    /* a resumed run keeps its split, as batch norm's statistics depend on it */
    const int wanted = c->micro_batch ? c->micro_batch : t->info.micro_batch ? t->info.micro_batch : c->batch;
    int micro = wanted;
    if (status)
        return status;
    for (;;) {
        status = od_model_create(t->device, &model_config, micro, &t->model);
        if (!status)
            status = od_views_create(&t->views, t->device, t->dataset, policies, model_config.image_size, c->batch,
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
    if (c->online_linear && (status = od_online_create(&t->online, t->device, od_model_feature_dim(t->model),
                                                       t->dataset->classes, c->batch, t->parts, OD_LOSS_SLOTS)))
        return status;
    if (micro < wanted)
        od_progress_line(&t->progress,
                         "The batch of %d does not fit this device's memory: it runs in %d parts of %d, with "
                         "batch-norm statistics per part.",
                         c->batch, t->parts, micro);
    return OD_OK;
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
                     (json_int_t)t->batches, "steps", (json_int_t)t->total, "micro_batch", t->views.micro);
}

static od_status resume_state(od_trainer *t, const od_safetensors *file) {
    od_status status = OD_OK;
    if ((status =
             od_checkpoint_load(file, t->run.checkpoint, t->model, t->online ? &t->online->classifier : NULL, true)))
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
    char tuning[9];
    od_tuning_fingerprint(t->device, tuning);
    if (t->info.tuning[0] && strcmp(tuning, t->info.tuning) != 0)
        od_progress_line(&t->progress,
                         "This run began with other tuning rows (%s, now %s): it goes on within tolerance, not bit for "
                         "bit.",
                         t->info.tuning, tuning);
    return od_loader_seek(t->loader, (uint32_t)(step / t->batches), (uint32_t)(step % t->batches));
}

static void describe(od_trainer *t) {
    const od_train_config *c = &t->info.config;
    const od_device_info *d = od_device_get_info(t->device);
    od_progress_line(&t->progress, "Device %s: %s (%s), %s kernels", d->id, d->name, d->platform,
                     od_family_name(od_device_family(t->device)));
    od_progress_line(&t->progress, "Data: %s, %d training and %d test images of %dx%d", c->dataset, t->dataset->train.n,
                     t->dataset->test.n, t->dataset->h, t->dataset->w);
    od_progress_line(&t->progress, "Model: %s width %d, %zu parameters; %s, head %s, %s loss%s%s",
                     od_encoder_names[c->encoder], od_train_width(c),
                     od_param_table_stored_count(od_model_params(t->model)), od_method_name(c->method),
                     od_head_name(c->head), od_loss_name(c->loss), c->optimizer == OD_SGD ? "" : ", ",
                     c->optimizer == OD_SGD ? "" : od_optimizer_names[c->optimizer]);
    od_progress_line(&t->progress, "Run: %s, %llu steps of %d images, %llu an epoch", c->out,
                     (unsigned long long)t->total, c->batch, (unsigned long long)t->batches);
}

/* From an open device to a model at the right step. */
od_status od_trainer_prepare(od_trainer *t) {
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
    od_tuning_fingerprint(t->device, t->info.tuning);
    json_t *about = about_run(t);
    status = about ? od_run_write_config(&t->run, c, about) : od_fail(OD_ERR_MEMORY, "no memory for config.json");
    json_decref(about);
    if (!status)
        status = od_run_open_metrics(&t->run, t->info.progress.step);
    if (!status)
        status = od_watch_open(t);
out:
    od_safetensors_close(file);
    return status;
}

void od_trainer_close(od_trainer *t) {
    od_loader_destroy(t->loader);
    od_views_destroy(&t->views);
    od_model_destroy(t->model);
    od_online_destroy(t->online);
    od_buffer_release(t->losses.buffer);
    od_dataset_close(t->dataset);
    od_device_close(t->device);
    od_tensorboard_close(t->tensorboard);
    od_run_close(&t->run);
}
