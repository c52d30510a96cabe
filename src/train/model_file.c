/* What is done with a finished checkpoint: evaluation and export. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/npy.h"
#include "train/config.h"
#include "train/linear.h"
#include "train/loaded.h"

/* ---- evaluation ------------------------------------------------------------------------------------------------- */

typedef struct evaluation {
    const od_eval_options *options;
    od_eval_result *result; /* the leader's, and on rank 0 alone */
} evaluation;

/* The mean over the data set's folds: a classifier for each, trained on the fold's rows alone. */
static od_status probe_folds(const od_loaded *l, od_probe_result *mean, const od_probe_config *config,
                             const od_features *train, const od_features *test) {
    const od_folds *f = &l->dataset->folds;
    size_t d = od_model_feature_dim(l->model);
    float *x = malloc((size_t)f->size * d * sizeof *x);         /* (size, d) */
    int32_t *labels = malloc((size_t)f->size * sizeof *labels); /* (size) */
    od_status status = x && labels ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for a fold of %d", f->size);
    double sum = 0;
    for (int fold = 0; fold < f->count && !status; fold++) {
        od_features part = {x, labels, f->size};
        for (int i = 0; i < f->size; i++) {
            const int row = f->indices[(size_t)fold * f->size + i];
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

static od_status evaluate_linear(od_loaded *l, const od_eval_options *o, od_eval_result *r) {
    od_probe_config config;
    od_probe_result probe = {0};
    const float *features = NULL; /* (n_train + n_test, F) */
    float *own = NULL;
    const od_dataset *d = l->dataset;
    const int n_train = od_split_labelled(&d->train), n_test = od_split_labelled(&d->test);
    const int dim = od_model_feature_dim(l->model);
    od_probe_config_default(&config);
    if (o->linear_epochs > 0)
        config.epochs = o->linear_epochs;
    config.lr = (float)o->linear_lr;
    config.seed = o->seed;
    config.member = l->member;
    od_status status = od_loaded_features(l, &features, &own, &d->train, n_train, &d->test, n_test);
    if (status)
        goto out;
    const od_features train_set = {features, d->train.labels, n_train};
    const od_features test_set = {features + (size_t)n_train * dim, d->test.labels, n_test};
    status = o->folds ? probe_folds(l, &probe, &config, &train_set, &test_set)
                      : od_linear_probe(l->device, &probe, &config, &train_set, &test_set, dim, d->classes);
    if (status || !od_loaded_leads(l))
        goto out;
    r->folds = o->folds ? d->folds.count : 0;
    r->accuracy = probe.accuracy;
    r->linear_lr = probe.lr;
    r->linear_epochs = config.epochs;
    r->bank = o->folds ? d->folds.size : n_train;
    r->queries = n_test;
out:
    free(own);
    return status;
}

static od_status evaluate_knn(od_loaded *l, const od_eval_options *o, od_eval_result *r) {
    const od_train_config *c = &l->info.config;
    const od_encoding encoding = {.model = l->model, .views = &l->views, .member = l->member, .layout = &l->layout};
    double accuracy = NAN, rank = NAN;
    od_knn_protocol protocol = {.k = o->k ? o->k : c->knn_k,
                                .bank = o->bank ? o->bank : c->knn_bank,
                                .queries = o->queries ? o->queries : c->knn_queries,
                                .t = o->t > 0 ? o->t : c->knn_t};
    od_status status = od_knn_accuracy(&encoding, l->dataset, &protocol, &accuracy, &rank);
    if (status || !od_loaded_leads(l))
        return status;
    r->accuracy = accuracy;
    r->feature_rank = rank;
    r->k = protocol.k;
    r->t = protocol.t;
    r->bank = protocol.bank;
    r->queries = protocol.queries;
    return OD_OK;
}

static od_status check_evaluation(const od_loaded *l, const void *context) {
    const evaluation *e = context;
    const od_dataset *d = l->dataset;
    const od_folds *f = &d->folds;
    const int n_train = od_split_labelled(&d->train), n_test = od_split_labelled(&d->test);
    if (n_train == 0 || n_test == 0)
        return od_fail(OD_ERR_USAGE, "%s: no %s images with labels", d->dir, n_train ? "test" : "training");
    if (e->options->protocol == 0 || !e->options->folds)
        return OD_OK;
    if (f->count == 0)
        return od_fail(OD_ERR_USAGE, "--folds: %s has no predefined folds (stl10 has, in fold_indices.txt)", d->name);
    for (size_t i = 0; i < (size_t)f->count * f->size; i++)
        if (f->indices[i] >= n_train)
            return od_fail(OD_ERR_USAGE, "--folds needs all labelled training images: the run's --limit has %d",
                           n_train);
    return OD_OK;
}

static od_status evaluate(od_loaded *l, void *context) {
    const evaluation *e = context;
    const od_train_config *c = &l->info.config;
    od_eval_result *r = e->result;
    if (od_loaded_leads(l)) {
        snprintf(r->dataset, sizeof r->dataset, "%s", c->dataset);
        snprintf(r->encoder, sizeof r->encoder, "%s", od_encoder_names[c->encoder]);
        r->width = od_train_width(c);
        r->steps = l->info.progress.step;
    }
    return e->options->protocol == 1 ? evaluate_linear(l, e->options, r) : evaluate_knn(l, e->options, r);
}

od_status od_evaluate(const char *path, const od_eval_options *o, od_eval_result *r) {
    evaluation e = {.options = o, .result = r};
    const od_loading loading = {.path = path,
                                .devices = o->device,
                                .data = o->data,
                                .family = (od_family)o->kernels,
                                .check = check_evaluation,
                                .body = evaluate,
                                .context = &e};
    *r = (od_eval_result){.feature_rank = NAN};
    return od_loaded_run(&loading);
}

/* ---- embedding -------------------------------------------------------------------------------------------------- */

typedef struct embedding {
    const od_embed_options *options;
    int *n, *d;
} embedding;

static od_status check_embedding(const od_loaded *l, const void *context) {
    const embedding *e = context;
    const od_split *split = e->options->split ? &l->dataset->train : &l->dataset->test;
    if (split->n == 0)
        return od_fail(OD_ERR_USAGE, "%s: no %s images", l->dataset->dir,
                       e->options->split ? "training" : "test (--split train may have some)");
    return OD_OK;
}

/* The encoder's inputs (n, S, S, 4) for the first n images of a split, to a file. */
static od_status write_inputs(od_loaded *l, const od_split *split, int n, const char *path) {
    const size_t side = (size_t)l->views.size, image = side * side * 4, shape[] = {(size_t)n, side, side, 4};
    const int chunk = l->views.capacity;
    float *inputs = malloc((size_t)n * image * sizeof *inputs);
    od_status status = inputs ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for %d images", n);
    for (int first = 0; first < n && !status; first += chunk) {
        int count = n - first < chunk ? n - first : chunk;
        if (!(status = od_views_plain(&l->views, split, first, count)))
            status = od_span_read(l->views.x, inputs + (size_t)first * image, (size_t)count * image);
    }
    if (!status)
        status = od_npy_write_f32(path, inputs, 4, shape);
    free(inputs);
    return status;
}

static od_status embed(od_loaded *l, void *context) {
    const embedding *e = context;
    const od_embed_options *o = e->options;
    const od_split *split = o->split ? &l->dataset->train : &l->dataset->test;
    const int n = o->limit && o->limit < split->n ? o->limit : split->n, d = od_model_feature_dim(l->model);
    const size_t shape[] = {(size_t)n, (size_t)d};
    const float *features = NULL;
    float *own = NULL;
    od_status status = od_loaded_features(l, &features, &own, split, n, NULL, 0);
    if (status || !od_loaded_leads(l))
        goto out;
    *e->n = n;
    *e->d = d;
    if ((status = od_npy_write_f32(o->out, features, 2, shape)) ||
        (o->labels[0] && (status = od_npy_write_i32(o->labels, split->labels, 1, shape))))
        goto out;
    if (o->images[0])
        status = write_inputs(l, split, n, o->images);
out:
    free(own);
    return status;
}

od_status od_embed(const char *path, const od_embed_options *o, int *n, int *d) {
    embedding e = {.options = o, .n = n, .d = d};
    const od_loading loading = {.path = path,
                                .devices = o->device,
                                .data = o->data,
                                .family = (od_family)o->kernels,
                                .check = check_embedding,
                                .body = embed,
                                .context = &e};
    return od_loaded_run(&loading);
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
