#include "train/checkpoint.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/json.h"
#include "od_config.h"
#include "train/config.h"

#define FORMAT "offdiag-checkpoint-1"

/* ---- which tensors ---------------------------------------------------------------------------------------------- */

/* One arena of the model and how its tensors are called in the file. */
typedef struct section {
    const char *prefix;
    const od_param_table *table;
    od_span arena;
    size_t limit;     /* tensors at or past this offset are not in the arena */
    const char *skip; /* names with this prefix are not in the file */
} section;

enum { MAX_SECTIONS = 8 };

static int sections_of(section out[MAX_SECTIONS], const od_model *model, const od_classifier *online, bool training) {
    od_model_arenas a = od_model_get_arenas(model);
    const od_param_table *params = od_model_params(model), *stats = od_model_stats(model);
    int n = 0;
    out[n++] = (section){"", params, a.value, params->count, NULL};
    out[n++] = (section){"", stats, a.stats, stats->count, NULL};
    if (training) {
        out[n++] = (section){"optimizer.momentum.", params, a.momentum, params->count, NULL};
        if (a.second.buffer)
            out[n++] = (section){"optimizer.second.", params, a.second, params->count, NULL};
        if (a.target_value.buffer) {
            out[n++] = (section){"momentum_", params, a.target_value, od_model_head_offset(model), NULL};
            out[n++] = (section){"momentum_", stats, a.target_stats, stats->count, "predictor."};
        }
        if (online) {
            out[n++] = (section){"online_linear.", &online->table, online->param, online->table.count, NULL};
            out[n++] =
                (section){"online_linear.momentum.", &online->table, online->momentum, online->table.count, NULL};
        }
    }
    return n;
}

static bool in_section(const section *s, const od_param *p) {
    return p->offset < s->limit && !(s->skip && strncmp(p->name, s->skip, strlen(s->skip)) == 0);
}

/* The tensor's stored shape, as PyTorch has it; returns the rank. */
static int stored_shape(const od_param *p, size_t shape[4]) {
    switch (p->kind) {
    case OD_PARAM_CONV:
        shape[0] = p->out, shape[1] = p->in_stored, shape[2] = p->kernel_h, shape[3] = p->kernel_w;
        return 4;
    case OD_PARAM_LINEAR:
        shape[0] = p->out, shape[1] = p->in;
        return 2;
    case OD_PARAM_VECTOR:
        break;
    }
    shape[0] = p->out;
    return 1;
}

/* ---- saving ----------------------------------------------------------------------------------------------------- */

/* Adds a section's tensors; *host receives memory that must live until the file is written. */
static od_status add_section(od_safetensors_writer *writer, const section *s, const od_snapshot *values, float **host) {
    od_status status = OD_OK;
    const size_t count = s->limit < s->table->count ? s->limit : s->table->count;
    float *arena = malloc(count * sizeof *arena);
    float *stored = *host = malloc((count ? count : 1) * sizeof *stored);
    if (!arena || !stored) {
        status = od_fail(OD_ERR_MEMORY, "no host memory for %zu values of a checkpoint", count);
        goto out;
    }
    const float *known = values ? od_snapshot_find(values, s->arena) : NULL;
    if (known)
        memcpy(arena, known, count * sizeof *arena);
    else if ((status = od_span_read(s->arena, arena, count)))
        goto out;
    for (size_t i = 0; i < s->table->size; i++) {
        const od_param *p = &s->table->rows[i];
        char name[160];
        size_t shape[4];
        if (!in_section(s, p))
            continue;
        od_param_to_stored(p, stored, arena + p->offset);
        snprintf(name, sizeof name, "%s%s", s->prefix, p->name);
        int rank = stored_shape(p, shape);
        if ((status = od_safetensors_add(writer, name, OD_F32, rank, shape, stored)))
            goto out;
        stored += od_param_stored_count(p);
    }
out:
    free(arena);
    return status;
}

static od_status add_metadata(od_safetensors_writer *writer, const od_checkpoint_info *info) {
    od_status status = OD_OK;
    json_t *options = od_train_config_to_json(&info->config);
    json_t *state =
        json_pack("{s:I, s:f, s:I, s:i, s:i, s:i, s:[f,f,f], s:[f,f,f], s:s, s:s}", "step",
                  (json_int_t)info->progress.step, "epoch_loss_sum", info->progress.epoch_loss_sum, "epoch_loss_count",
                  (json_int_t)info->progress.epoch_loss_count, "image_side", info->image_side, "channels",
                  info->channels, "classes", info->classes, "mean", info->mean[0], info->mean[1], info->mean[2], "std",
                  info->std[0], info->std[1], info->std[2], "data_dir", info->data_dir, "device", info->device);
    if (state)
        json_object_set_new(state, "micro_batch", json_integer(info->micro_batch));
    if (state)
        json_object_set_new(state, "tuning", json_string(info->tuning));
    if (state && info->progress.online_count) {
        json_object_set_new(state, "online_correct", json_real(info->progress.online_correct));
        json_object_set_new(state, "online_count", json_integer((json_int_t)info->progress.online_count));
    }
    if (state && isfinite(info->progress.knn_before))
        json_object_set_new(state, "knn_before", json_real(info->progress.knn_before));
    char *options_text = options ? json_dumps(options, JSON_COMPACT) : NULL;
    char *state_text = state ? json_dumps(state, JSON_COMPACT | JSON_REAL_PRECISION(17)) : NULL;
    if (!options_text || !state_text)
        status = od_fail(OD_ERR_MEMORY, "no memory for a checkpoint's metadata");
    const char *entries[][2] = {
        {"format", FORMAT}, {"version", OD_VERSION}, {"options", options_text}, {"state", state_text}};
    for (size_t i = 0; i < sizeof entries / sizeof *entries && !status; i++)
        status = od_safetensors_add_metadata(writer, entries[i][0], entries[i][1]);
    free(options_text);
    free(state_text);
    json_decref(options);
    json_decref(state);
    return status;
}

od_status od_checkpoint_save(const char *path, const od_checkpoint_info *info, const od_model *model,
                             const od_classifier *online, const char *split, const od_snapshot *values) {
    section sections[MAX_SECTIONS];
    float *host[MAX_SECTIONS] = {0};
    od_safetensors_writer *writer = NULL;
    int n = sections_of(sections, model, online, true);
    od_status status = od_safetensors_writer_create(&writer);
    for (int i = 0; i < n && !status; i++)
        status = add_section(writer, &sections[i], values, &host[i]);
    if (!status && split)
        status = od_safetensors_add_metadata(writer, "split", split);
    if (!status && !(status = add_metadata(writer, info)))
        status = od_safetensors_write(writer, path);
    od_safetensors_writer_destroy(writer);
    for (int i = 0; i < n; i++)
        free(host[i]);
    return status;
}

/* ---- loading ---------------------------------------------------------------------------------------------------- */

od_status od_checkpoint_path(const char *run_or_file, char **path) {
    struct stat st;
    if (stat(run_or_file, &st))
        return od_fail(OD_ERR_IO, "%s: no such run directory or checkpoint", run_or_file);
    *path = S_ISDIR(st.st_mode) ? od_path_join(run_or_file, "checkpoint.safetensors") : strdup(run_or_file);
    return *path ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for a path");
}

static bool unpack_state(const json_t *state, od_checkpoint_info *info) {
    json_int_t step = -1, count = -1;
    const char *data_dir = NULL, *device = NULL;
    double mean[3], std[3];
    if (json_unpack((json_t *)state, "{s:I, s:F, s:I, s:i, s:i, s:i, s:[F,F,F], s:[F,F,F], s:s, s:s}", "step", &step,
                    "epoch_loss_sum", &info->progress.epoch_loss_sum, "epoch_loss_count", &count, "image_side",
                    &info->image_side, "channels", &info->channels, "classes", &info->classes, "mean", &mean[0],
                    &mean[1], &mean[2], "std", &std[0], &std[1], &std[2], "data_dir", &data_dir, "device", &device))
        return false;
    if (step < 0 || count < 0 || info->image_side < 1 || info->image_side > 4096 || info->classes < 1 ||
        (info->channels != 1 && info->channels != 3) || strlen(data_dir) >= sizeof info->data_dir ||
        strlen(device) >= sizeof info->device)
        return false;
    for (int i = 0; i < 3; i++) {
        if (!isfinite(mean[i]) || !(std[i] > 0))
            return false;
        info->mean[i] = (float)mean[i];
        info->std[i] = (float)std[i];
    }
    info->progress.step = (uint64_t)step;
    info->progress.epoch_loss_count = (uint64_t)count;
    json_int_t micro = json_integer_value(json_object_get(state, "micro_batch"));
    info->micro_batch = micro >= 2 && micro <= info->config.batch && info->config.batch % micro == 0 ? (int)micro : 0;
    const json_t *before = json_object_get(state, "knn_before");
    info->progress.knn_before = json_is_number(before) ? json_number_value(before) : NAN;
    json_int_t online = json_integer_value(json_object_get(state, "online_count"));
    info->progress.online_count = online > 0 ? (uint64_t)online : 0;
    info->progress.online_correct = online > 0 ? json_number_value(json_object_get(state, "online_correct")) : 0;
    snprintf(info->data_dir, sizeof info->data_dir, "%s", data_dir);
    snprintf(info->device, sizeof info->device, "%s", device);
    const char *tuning = json_string_value(json_object_get(state, "tuning"));
    snprintf(info->tuning, sizeof info->tuning, "%s", tuning ? tuning : "");
    return true;
}

static od_status read_metadata(const od_safetensors *file, const char *path, od_checkpoint_info *info) {
    const char *format = od_safetensors_metadata(file, "format");
    const char *options = od_safetensors_metadata(file, "options"), *state = od_safetensors_metadata(file, "state");
    if (!format || strcmp(format, FORMAT) != 0 || !options || !state)
        return od_fail(OD_ERR_FORMAT,
                       "%s: not a checkpoint of offdiag: expected format \"%s\" in its metadata, found %s", path,
                       FORMAT, format ? format : "none");
    json_t *options_json = NULL, *state_json = NULL;
    od_status status = OD_OK;
    od_train_config_default(&info->config);
    if ((status = od_json_parse(options, strlen(options), path, &options_json)) ||
        (status = od_train_config_from_json(&info->config, options_json, path)) ||
        (status = od_json_parse(state, strlen(state), path, &state_json)))
        goto out;
    if (!unpack_state(state_json, info))
        status = od_fail(OD_ERR_FORMAT, "%s: its \"state\" metadata lacks a value or has one out of range", path);
out:
    json_decref(options_json);
    json_decref(state_json);
    return status;
}

static void shape_text(char *to, size_t size, const size_t *shape, int rank) {
    size_t used = (size_t)snprintf(to, size, "(");
    for (int i = 0; i < rank && used < size; i++)
        used += (size_t)snprintf(to + used, size - used, "%s%zu", i ? ", " : "", shape[i]);
    if (used < size)
        snprintf(to + used, size - used, ")");
}

/* The file's tensor `name` must be what p is. */
static od_status check_tensor(const od_safetensors *file, const char *path, const char *name, const od_param *p) {
    size_t shape[4];
    char wanted[128], found[256];
    int rank = stored_shape(p, shape);
    const od_tensor *t = od_safetensors_find(file, name);
    shape_text(wanted, sizeof wanted, shape, rank);
    if (!t)
        return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': expected F32 %s, found none", path, name, wanted);
    shape_text(found, sizeof found, t->shape, t->rank);
    if (t->dtype != OD_F32 || t->rank != rank || memcmp(t->shape, shape, rank * sizeof *shape) != 0)
        return od_fail(OD_ERR_FORMAT, "%s: tensor '%s': expected F32 %s, found %s %s", path, name, wanted,
                       od_dtype_name(t->dtype), found);
    return OD_OK;
}

/* Every tensor of the model that the options describe must be there. */
static od_status check_model(const od_safetensors *file, const char *path, const od_checkpoint_info *info) {
    od_model_config config;
    od_param_table tables[2];
    od_train_model_config(&config, &info->config, info->image_side);
    od_status status = od_model_tables(&config, &tables[0], &tables[1]);
    if (status)
        return od_fail_in(status, "%s: ", path);
    for (int i = 0; i < 2; i++)
        for (size_t j = 0; j < tables[i].size && !status; j++)
            status = check_tensor(file, path, tables[i].rows[j].name, &tables[i].rows[j]);
    od_param_table_free(&tables[0]);
    od_param_table_free(&tables[1]);
    return status;
}

od_status od_checkpoint_open(const char *path, od_safetensors **file, od_checkpoint_info *info) {
    *info = (od_checkpoint_info){0};
    od_status status = od_safetensors_open(path, file);
    if (status)
        return status;
    if ((status = read_metadata(*file, path, info)) || (status = check_model(*file, path, info))) {
        od_safetensors_close(*file);
        *file = NULL;
    }
    return status;
}

static od_status load_section(const od_safetensors *file, const char *path, const section *s) {
    od_status status = OD_OK;
    size_t count = s->limit < s->table->count ? s->limit : s->table->count;
    float *arena = calloc(count ? count : 1, sizeof *arena), *stored = malloc((count ? count : 1) * sizeof *stored);
    if (!arena || !stored) {
        status = od_fail(OD_ERR_MEMORY, "no host memory for %zu values of %s", count, path);
        goto out;
    }
    for (size_t i = 0; i < s->table->size; i++) {
        const od_param *p = &s->table->rows[i];
        char name[160];
        if (!in_section(s, p))
            continue;
        snprintf(name, sizeof name, "%s%s", s->prefix, p->name);
        if ((status = check_tensor(file, path, name, p)) ||
            (status = od_safetensors_read_as(file, name, OD_F32, od_param_stored_count(p), stored)))
            goto out;
        od_param_from_stored(p, arena + p->offset, stored);
    }
    status = od_span_write(s->arena, arena, count);
out:
    free(arena);
    free(stored);
    return status;
}

od_status od_checkpoint_load(const od_safetensors *file, const char *path, od_model *model, od_classifier *online,
                             bool training) {
    section sections[MAX_SECTIONS];
    int n = sections_of(sections, model, online, training);
    od_status status = OD_OK;
    for (int i = 0; i < n && !status; i++)
        status = load_section(file, path, &sections[i]);
    return status ? status : od_model_update(model);
}
