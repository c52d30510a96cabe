/* What is done with a finished checkpoint: evaluation and export. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/npy.h"
#include "train/checkpoint.h"
#include "train/config.h"
#include "train/evaluate.h"
#include "train/linear.h"

enum { EVAL_ROWS = 64 }; /* images of a training pass that the model is built for: evaluation works in twice as many */

typedef struct loaded {
    od_checkpoint_info info;
    od_device *device;
    od_dataset *dataset;
    od_model *model;
    od_views views;
} loaded;

static void close_loaded(loaded *l) {
    od_views_destroy(&l->views);
    od_model_destroy(l->model);
    od_dataset_close(l->dataset);
    od_device_close(l->device);
}

/* A checkpoint's model on a device; with its data set unless `data` is NULL. */
static od_status open_loaded(loaded *l, const char *path, const char *device, od_family family, const char *data) {
    od_safetensors *file = NULL;
    char *file_path = NULL;
    od_model_config model_config;
    od_augment_policy policies[2];
    od_device_options options = {.family = family};
    od_status status = OD_OK;
    *l = (loaded){0};
    if ((status = od_checkpoint_path(path, &file_path)) || (status = od_checkpoint_open(file_path, &file, &l->info)))
        goto out;
    const od_checkpoint_info *info = &l->info;
    od_train_model_config(&model_config, &info->config, info->image_side);
    if ((status = od_device_open(device, &options, &l->device)) ||
        (status = od_model_create(l->device, &model_config, EVAL_ROWS, &l->model)) ||
        (status = od_checkpoint_load(file, file_path, l->model, NULL, false)) || !data)
        goto out;
    if ((status = od_dataset_open(info->config.dataset, data[0] ? data : info->data_dir,
                                  od_train_image_side(&info->config), &l->dataset)) ||
        (status = od_dataset_downsample(l->dataset, info->config.downsample)))
        goto out;
    if (l->dataset->h != info->image_side || l->dataset->c != info->channels || l->dataset->classes != info->classes) {
        status = od_fail(OD_ERR_FORMAT, "%s: trained on %dx%d images with %d channels; %s has %dx%d with %d", file_path,
                         info->image_side, info->image_side, info->channels, l->dataset->dir, l->dataset->h,
                         l->dataset->w, l->dataset->c);
        goto out;
    }
    od_split_limit(&l->dataset->train, (size_t)info->config.limit);
    od_augment_policies_named(policies, info->config.augment, info->config.crop_min, info->mean, info->std);
    status = od_views_create(&l->views, l->device, l->dataset, policies, model_config.image_size, 2 * EVAL_ROWS,
                             EVAL_ROWS, info->config.seed);
out:
    od_safetensors_close(file);
    free(file_path);
    if (status)
        close_loaded(l);
    return status;
}

/* ---- evaluation ------------------------------------------------------------------------------------------------- */

/* Features (n, F) of a split's first n images, on the host. */
static od_status host_features(loaded *l, const od_split *split, int n, float **out) {
    size_t count = (size_t)n * od_model_feature_dim(l->model);
    od_span features = OD_NO_SPAN;
    if (n == 0)
        return od_fail(OD_ERR_USAGE, "%s: no %s images %s", l->dataset->dir,
                       split == &l->dataset->test ? "test" : "training",
                       split->n ? "with labels" : "(embed: --split train may have some)");
    od_status status = od_split_features(l->model, &l->views, split, 0, n, &features);
    if (status)
        return status;
    *out = malloc(count * sizeof **out);
    status = *out ? od_span_read(features, *out, count) : od_fail(OD_ERR_MEMORY, "no memory for %d features", n);
    od_buffer_release(features.buffer);
    return status;
}

/* The mean over the data set's folds: a classifier for each, trained on the fold's rows alone. */
static od_status probe_folds(loaded *l, od_probe_result *mean, const od_probe_config *config, const od_features *train,
                             const od_features *test) {
    const od_folds *f = &l->dataset->folds;
    size_t d = od_model_feature_dim(l->model);
    float *x = malloc((size_t)f->size * d * sizeof *x);         /* (size, d) */
    int32_t *labels = malloc((size_t)f->size * sizeof *labels); /* (size) */
    od_status status = x && labels ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for a fold of %d", f->size);
    double sum = 0;
    for (int fold = 0; fold < f->count && !status; fold++) {
        od_features part = {x, labels, f->size};
        for (int i = 0; i < f->size && !status; i++) {
            int row = f->indices[(size_t)fold * f->size + i];
            if (row >= train->n) {
                status = od_fail(OD_ERR_USAGE, "--folds needs all labelled training images: the run's --limit has %d",
                                 train->n);
                break;
            }
            memcpy(x + i * d, train->x + row * d, d * sizeof *x);
            labels[i] = train->labels[row];
        }
        if (!status && !(status = od_linear_probe(l->device, mean, config, &part, test, (int)d, l->dataset->classes)))
            sum += mean->accuracy;
    }
    mean->accuracy = sum / f->count;
    free(x);
    free(labels);
    return status;
}

static od_status evaluate_linear(loaded *l, const od_eval_options *o, od_eval_result *r) {
    od_probe_config config;
    od_probe_result probe;
    float *train = NULL, *test = NULL;
    od_status status = OD_OK;
    const od_dataset *d = l->dataset;
    od_probe_config_default(&config);
    if (o->linear_epochs > 0)
        config.epochs = o->linear_epochs;
    config.lr = (float)o->linear_lr;
    config.seed = o->seed;
    int n_train = od_split_labelled(&d->train), n_test = od_split_labelled(&d->test);
    if (o->folds && d->folds.count == 0)
        return od_fail(OD_ERR_USAGE, "--folds: %s has no predefined folds (stl10 has, in fold_indices.txt)", d->name);
    if ((status = host_features(l, &d->train, n_train, &train)) || (status = host_features(l, &d->test, n_test, &test)))
        goto out;
    od_features train_set = {train, d->train.labels, n_train}, test_set = {test, d->test.labels, n_test};
    status = o->folds ? probe_folds(l, &probe, &config, &train_set, &test_set)
                      : od_linear_probe(l->device, &probe, &config, &train_set, &test_set,
                                        od_model_feature_dim(l->model), d->classes);
    if (status)
        goto out;
    r->folds = o->folds ? d->folds.count : 0;
    r->accuracy = probe.accuracy;
    r->linear_lr = probe.lr;
    r->linear_epochs = config.epochs;
    r->bank = o->folds ? d->folds.size : n_train;
    r->queries = n_test;
out:
    free(train);
    free(test);
    return status;
}

od_status od_evaluate(const char *path, const od_eval_options *o, od_eval_result *r) {
    loaded l;
    *r = (od_eval_result){.feature_rank = NAN};
    od_status status = open_loaded(&l, path, o->device, (od_family)o->kernels, o->data);
    if (status)
        return status;
    const od_train_config *c = &l.info.config;
    snprintf(r->dataset, sizeof r->dataset, "%s", c->dataset);
    snprintf(r->encoder, sizeof r->encoder, "%s", od_encoder_names[c->encoder]);
    r->width = od_train_width(c);
    r->steps = l.info.progress.step;
    if (o->protocol == 1) {
        status = evaluate_linear(&l, o, r);
    } else {
        od_knn_protocol protocol = {.k = o->k ? o->k : c->knn_k,
                                    .bank = o->bank ? o->bank : c->knn_bank,
                                    .queries = o->queries ? o->queries : c->knn_queries,
                                    .t = o->t > 0 ? o->t : c->knn_t};
        const od_encoding encoding = {.model = l.model, .views = &l.views};
        status = od_knn_accuracy(&encoding, l.dataset, &protocol, &r->accuracy, &r->feature_rank);
        if (!status && !isfinite(r->accuracy))
            status = od_fail(OD_ERR_USAGE, "%s: kNN needs training and test images with labels", l.dataset->dir);
        r->k = protocol.k;
        r->t = protocol.t;
        r->bank = protocol.bank;
        r->queries = protocol.queries;
    }
    close_loaded(&l);
    return status;
}

/* ---- embedding -------------------------------------------------------------------------------------------------- */

/* The encoder's inputs (n, S, S, 4) for the first images of a split, on the host. */
static od_status host_inputs(loaded *l, const od_split *split, float **out) {
    size_t image = (size_t)l->views.size * l->views.size * 4;
    int chunk = l->views.capacity;
    od_status status = OD_OK;
    *out = malloc(split->n * image * sizeof **out);
    if (!*out)
        return od_fail(OD_ERR_MEMORY, "no memory for %d images", split->n);
    for (int first = 0; first < split->n && !status; first += chunk) {
        int count = split->n - first < chunk ? split->n - first : chunk;
        if (!(status = od_views_plain(&l->views, split, first, count)))
            status = od_span_read(l->views.x, *out + first * image, count * image);
    }
    return status;
}

od_status od_embed(const char *path, const od_embed_options *o, int *n, int *d) {
    loaded l;
    float *features = NULL, *inputs = NULL;
    od_status status = open_loaded(&l, path, o->device, (od_family)o->kernels, o->data);
    if (status)
        return status;
    od_split *split = o->split ? &l.dataset->train : &l.dataset->test;
    od_split_limit(split, (size_t)o->limit);
    *n = split->n;
    *d = od_model_feature_dim(l.model);
    size_t side = (size_t)l.views.size;
    const size_t features_shape[] = {(size_t)*n, (size_t)*d}, inputs_shape[] = {(size_t)*n, side, side, 4};
    if ((status = host_features(&l, split, split->n, &features)) ||
        (status = od_npy_write_f32(o->out, features, 2, features_shape)))
        goto out;
    if (o->labels[0] && (status = od_npy_write_i32(o->labels, split->labels, 1, features_shape)))
        goto out;
    if (o->images[0] && !(status = host_inputs(&l, split, &inputs)))
        status = od_npy_write_f32(o->images, inputs, 4, inputs_shape);
out:
    free(features);
    free(inputs);
    close_loaded(&l);
    return status;
}

/* ---- export ----------------------------------------------------------------------------------------------------- */

/* Copies the file's backbone tensors into the writer without their prefix. Each *host[i] lives until the file is
 * written. */
static od_status export_tensors(od_safetensors_writer *writer, const od_safetensors *file, uint64_t steps,
                                void **host) {
    static const char prefix[] = "backbone.";
    static int64_t batches;
    batches = (int64_t)steps * 2; /* each view moved the statistics once */
    for (size_t i = 0; i < od_safetensors_count(file); i++) {
        const od_tensor *t = od_safetensors_at(file, i);
        if (strncmp(t->name, prefix, sizeof prefix - 1) != 0)
            continue;
        const char *name = t->name + sizeof prefix - 1;
        host[i] = malloc(t->bytes ? t->bytes : 1);
        if (!host[i])
            return od_fail(OD_ERR_MEMORY, "no memory for tensor %s", name);
        od_status status = od_safetensors_read(file, t, host[i]);
        if (!status)
            status = od_safetensors_add(writer, name, t->dtype, t->rank, t->shape, host[i]);
        const char *suffix = strstr(name, "running_mean");
        if (!status && suffix) {
            char counter[160];
            snprintf(counter, sizeof counter, "%.*snum_batches_tracked", (int)(suffix - name), name);
            status = od_safetensors_add(writer, counter, OD_I64, 0, NULL, &batches);
        }
        if (status)
            return status;
    }
    return OD_OK;
}

od_status od_export(const char *path, const char *out) {
    od_checkpoint_info info;
    od_safetensors *file = NULL;
    od_safetensors_writer *writer = NULL;
    char *file_path = NULL;
    void **host = NULL;
    size_t count = 0;
    od_status status = OD_OK;
    if ((status = od_checkpoint_path(path, &file_path)) || (status = od_checkpoint_open(file_path, &file, &info)) ||
        (status = od_safetensors_writer_create(&writer)))
        goto out;
    count = od_safetensors_count(file);
    host = calloc(count ? count : 1, sizeof *host);
    if (!host) {
        status = od_fail(OD_ERR_MEMORY, "no memory for %zu tensors", count);
        goto out;
    }
    if ((status = export_tensors(writer, file, info.progress.step, host)) ||
        (status = od_safetensors_add_metadata(writer, "format", "pt")) ||
        (status = od_safetensors_add_metadata(writer, "encoder", od_encoder_names[info.config.encoder])) ||
        (status = od_safetensors_add_metadata(writer, "stem", od_stem_names[info.config.stem])) ||
        (status = od_safetensors_add_metadata(writer, "dataset", info.config.dataset)))
        goto out;
    status = od_safetensors_write(writer, out);
out:
    for (size_t i = 0; host && i < count; i++)
        free(host[i]);
    free(host);
    od_safetensors_writer_destroy(writer);
    od_safetensors_close(file);
    free(file_path);
    return status;
}
