#include "train/study.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/json.h"
#include "offdiag/data.h"
#include "train/config.h"
#include "train/history.h"
#include "train/progress.h"

const char *const od_study_figures[OD_STUDY_FIGURES] = {"knn_before", "knn",          "linear",     "effective_rank",
                                                        "z_std",      "offdiag_peak", "offdiag_end"};
const char *const od_study_states[] = {"waiting", "done", "failed", NULL};

/* ---- statistics ------------------------------------------------------------------------------------------------- */

od_study_mean od_study_mean_of(const double *values, size_t count) {
    od_study_mean m = {.mean = NAN, .std = NAN};
    double sum = 0, squares = 0;
    for (size_t i = 0; i < count; i++)
        if (isfinite(values[i])) {
            sum += values[i];
            m.n++;
        }
    if (m.n)
        m.mean = sum / m.n;
    for (size_t i = 0; i < count; i++)
        if (isfinite(values[i]))
            squares += (values[i] - m.mean) * (values[i] - m.mean);
    if (m.n > 1)
        m.std = sqrt(squares / (m.n - 1));
    return m;
}

od_study_mean od_study_of_head(const od_study *s, int head, od_study_figure figure) {
    double values[OD_STUDY_SEEDS];
    size_t n = 0;
    for (int i = head * s->config.seeds; i < (head + 1) * s->config.seeds; i++)
        if (s->runs[i].state == OD_STUDY_DONE)
            values[n++] = s->runs[i].figures[figure];
    return od_study_mean_of(values, n);
}

int od_study_done(const od_study *s, int head) {
    int n = 0;
    for (int i = head * s->config.seeds; i < (head + 1) * s->config.seeds; i++)
        n += s->runs[i].state == OD_STUDY_DONE;
    return n;
}

/* ---- study.json ------------------------------------------------------------------------------------------------- */

static od_status save(const od_study_config *c) {
    char *path = od_path_join(c->base.out, "study.json");
    json_t *options = od_train_config_to_json(&c->base), *heads = json_array();
    for (int i = 0; i < c->head_count; i++)
        json_array_append_new(heads, json_string(od_head_name(c->heads[i])));
    json_t *document =
        options ? json_pack("{s:O, s:O, s:i, s:b, s:i, s:f}", "options", options, "heads", heads, "seeds", c->seeds,
                            "linear", c->linear, "linear_epochs", c->linear_epochs, "linear_lr", c->linear_lr)
                : NULL;
    od_status status = path && document ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for study.json");
    if (!status && !(status = od_dir_make(c->base.out)))
        status = od_json_write_atomic(path, document);
    json_decref(document);
    json_decref(options);
    json_decref(heads);
    free(path);
    return status;
}

static bool unpack(od_study_config *c, json_t *document) {
    json_t *heads = NULL, *head;
    size_t i;
    int linear = 0;
    double lr = 0;
    if (json_unpack(document, "{s:o, s:i, s:b, s:i, s:F}", "heads", &heads, "seeds", &c->seeds, "linear", &linear,
                    "linear_epochs", &c->linear_epochs, "linear_lr", &lr) ||
        c->seeds < 1 || c->seeds > OD_STUDY_SEEDS || c->linear_epochs < 0 || !(lr >= 0) || json_array_size(heads) < 1 ||
        json_array_size(heads) > OD_STUDY_HEADS)
        return false;
    c->linear = linear;
    c->linear_lr = lr;
    c->head_count = 0;
    json_array_foreach(heads, i, head) {
        if (!json_is_string(head) || !od_head_parse(json_string_value(head), &c->heads[c->head_count++]))
            return false;
    }
    return true;
}

od_status od_study_load(od_study_config *config, const char *out, bool *found) {
    char *path = od_path_join(out, "study.json");
    json_t *document = NULL;
    od_study_config read = *config;
    od_status status = OD_OK;
    if (!path)
        return od_fail(OD_ERR_MEMORY, "no memory for a path");
    *found = access(path, F_OK) == 0;
    if (*found && !(status = od_json_read(path, &document))) {
        if (!unpack(&read, document))
            status = od_fail(OD_ERR_FORMAT, "%s: not what a study writes there", path);
        else if (!(status = od_train_config_from_json(&read.base, json_object_get(document, "options"), path)))
            *config = read;
    }
    json_decref(document);
    free(path);
    return status;
}

/* ---- results ---------------------------------------------------------------------------------------------------- */

static od_status save_result(const od_study *s, const od_study_run *r) {
    char *path = od_path_join(r->dir, "result.json");
    json_t *document = json_pack("{s:s, s:I, s:i, s:f}", "head", od_head_name(r->head), "seed", (json_int_t)r->seed,
                                 "linear_epochs", s->config.linear_epochs, "linear_lr", s->config.linear_lr);
    for (int i = 0; i < OD_STUDY_FIGURES && document; i++)
        if (isfinite(r->figures[i]))
            json_object_set_new(document, od_study_figures[i], json_real(r->figures[i]));
    od_status status = path && document ? od_json_write_atomic(path, document)
                                        : od_fail(OD_ERR_MEMORY, "%s: no memory for its result", r->dir);
    json_decref(document);
    free(path);
    return status;
}

/* Whether result.json holds all that is asked for. */
static bool load_result(const od_study *s, od_study_run *r) {
    char *path = od_path_join(r->dir, "result.json");
    json_t *document = NULL;
    bool done = path && access(path, F_OK) == 0 && !od_json_read(path, &document);
    for (int i = 0; i < OD_STUDY_FIGURES && done; i++) {
        const json_t *value = json_object_get(document, od_study_figures[i]);
        r->figures[i] = json_is_number(value) ? json_number_value(value) : NAN;
    }
    if (done && s->config.linear) /* by the same protocol */
        done = isfinite(r->figures[OD_STUDY_LINEAR]) &&
               json_integer_value(json_object_get(document, "linear_epochs")) == s->config.linear_epochs &&
               json_number_value(json_object_get(document, "linear_lr")) == s->config.linear_lr;
    json_decref(document);
    free(path);
    return done;
}

static od_train_config config_of(const od_study *s, const od_study_run *r) {
    od_train_config c = s->config.base;
    c.head = r->head;
    c.seed = r->seed;
    (void)snprintf(c.out, sizeof c.out, "%s", r->dir);
    return c;
}

/* A run that is there already must be this study's. */
static od_status check_run(const od_study *s, const od_study_run *r) {
    const od_train_config wanted = config_of(s, r);
    od_train_config found;
    char *path = od_path_join(r->dir, "config.json");
    od_status status = OD_OK;
    if (!path)
        return od_fail(OD_ERR_MEMORY, "no memory for a path");
    od_train_config_default(&found);
    if (access(path, F_OK) == 0 && !(status = od_train_config_file(&found, path))) {
        const char *differs = od_train_config_difference(&wanted, &found);
        if (differs)
            status = od_fail(OD_ERR_USAGE, "%s was run with another --%s: another --out, or the options of then",
                             r->dir, differs);
    }
    free(path);
    return status;
}

static od_status list_runs(od_study *s) {
    const od_study_config *c = &s->config;
    od_status status = OD_OK;
    s->count = c->head_count * c->seeds;
    s->runs = calloc(s->count, sizeof *s->runs);
    if (!s->runs)
        return od_fail(OD_ERR_MEMORY, "no memory for %d runs", s->count);
    for (int i = 0; i < s->count && !status; i++) {
        od_study_run *r = &s->runs[i];
        r->head = c->heads[i / c->seeds];
        r->seed = c->base.seed + i % c->seeds;
        (void)snprintf(r->name, sizeof r->name, "%s-seed%llu", od_head_name(r->head), (unsigned long long)r->seed);
        int length = snprintf(r->dir, sizeof r->dir, "%s/%s", c->base.out, r->name);
        if (length >= (int)sizeof r->dir)
            return od_fail(OD_ERR_USAGE, "--out: too long a name for its runs: %.80s...", c->base.out);
        for (int f = 0; f < OD_STUDY_FIGURES; f++)
            r->figures[f] = NAN;
        if (!(status = check_run(s, r)) && load_result(s, r))
            r->state = OD_STUDY_DONE;
    }
    return status;
}

/* ---- running ---------------------------------------------------------------------------------------------------- */

static od_status take_figures(od_study_run *r) {
    od_history h;
    od_status status = od_history_read(&h, r->dir);
    if (status)
        return status;
    bool matrix = r->head != OD_HEAD_NONE && r->head != OD_HEAD_MLP;
    r->figures[OD_STUDY_KNN_BEFORE] = h.knn_before;
    r->figures[OD_STUDY_KNN] = h.last[OD_HISTORY_KNN];
    r->figures[OD_STUDY_RANK] = h.last[OD_HISTORY_RANK];
    r->figures[OD_STUDY_Z_STD] = h.last[OD_HISTORY_Z_STD];
    r->figures[OD_STUDY_OFFDIAG_PEAK] = matrix ? h.offdiag_peak : NAN;
    r->figures[OD_STUDY_OFFDIAG_END] = matrix ? h.last[OD_HISTORY_OFFDIAG] : NAN;
    od_history_free(&h);
    return OD_OK;
}

static od_status evaluate(const od_study *s, od_study_run *r) {
    od_eval_result result;
    od_eval_options options = {.kernels = s->config.base.kernels,
                               .protocol = 1,
                               .linear_epochs = s->config.linear_epochs,
                               .linear_lr = s->config.linear_lr};
    (void)snprintf(options.device, sizeof options.device, "%s", s->config.base.device);
    (void)snprintf(options.data, sizeof options.data, "%s", s->config.base.data);
    od_status status = s->config.linear ? od_evaluate(r->dir, &options, &result) : OD_OK;
    r->figures[OD_STUDY_LINEAR] = s->config.linear && !status ? result.accuracy : NAN;
    return status;
}

static od_status do_run(const od_study *s, od_study_run *r) {
    od_train_config c = config_of(s, r);
    od_train_result result;
    od_status status = OD_OK;
    char *checkpoint = od_path_join(r->dir, "checkpoint.safetensors");
    if (!checkpoint)
        return od_fail(OD_ERR_MEMORY, "%s: no memory for a path", r->dir);
    c.resume = access(checkpoint, F_OK) == 0;
    free(checkpoint);
    if ((status = od_train(&c, &result)))
        return status;
    if (result.interrupted)
        return od_fail(OD_ERR_INTERRUPTED, "interrupted in %s; the same command goes on", r->name);
    if ((status = take_figures(r)) || (status = evaluate(s, r)))
        return status;
    return save_result(s, r);
}

/* Images that cannot be read would fail every run in turn: said once, before the first. */
static od_status check_data(const od_study *s) {
    const od_train_config *c = &s->config.base;
    od_dataset *dataset = NULL;
    bool needed = false;
    for (int i = 0; i < s->count; i++)
        needed = needed || s->runs[i].state == OD_STUDY_WAITING;
    od_status status = needed ? od_dataset_open(c->dataset, c->data, od_train_image_side(c), &dataset) : OD_OK;
    od_dataset_close(dataset);
    return status;
}

od_status od_study_heads(od_study *s, const od_study_config *config) {
    od_progress progress;
    *s = (od_study){.config = *config};
    od_status status = od_train_config_check(&config->base);
    if (status || (status = list_runs(s)) || (status = check_data(s)) || (status = save(config)))
        return status;
    od_progress_begin(&progress, config->base.quiet, 0, 1, 1);
    for (int i = 0; i < s->count; i++) {
        od_study_run *r = &s->runs[i];
        od_progress_line(&progress, "Run %d of %d: %s%s", i + 1, s->count, r->dir,
                         r->state == OD_STUDY_DONE ? ": done before" : "");
        if (r->state == OD_STUDY_DONE)
            continue;
        status = do_run(s, r);
        /* What would end every run, and what a person asked for, ends the study. */
        if (status == OD_ERR_INTERRUPTED || status == OD_ERR_USAGE || status == OD_ERR_NO_DEVICE)
            return status;
        r->state = status ? OD_STUDY_FAILED : OD_STUDY_DONE;
        s->failed += status != OD_OK;
        if (status) {
            (void)snprintf(r->message, sizeof r->message, "%s", od_error_message());
            od_progress_line(&progress, "%s failed: %s", r->name, r->message);
        }
    }
    return OD_OK;
}

void od_study_free(od_study *s) {
    free(s->runs);
    *s = (od_study){0};
}
