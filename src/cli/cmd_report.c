/* offdiag report: runs laid over each other on one page. */
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/options.h"
#include "cli/cli.h"
#include "cli/page.h"
#include "cli/report.h"

enum { CELLS = 96, TEXT_MAX = 200, OPTIONS_MAX = 200 };

/* ---- a run's parts as JSON -------------------------------------------------------------------------------------- */

double report_offdiag(const od_history *h, double x) {
    const char *head = od_history_option(h, "head");
    return strcmp(head, "none") == 0 || strcmp(head, "mlp") == 0 ? NAN : x;
}

json_t *report_epochs(const od_history *h) {
    json_t *series = json_object();
    for (int key = 0; key < OD_HISTORY_KEYS; key++) {
        json_t *values = json_array();
        for (size_t i = 0; i < h->epoch_count; i++) {
            double x = h->epochs[i][key];
            x = key == OD_HISTORY_OFFDIAG ? report_offdiag(h, x) : x;
            json_array_append_new(values, key == OD_HISTORY_STEP ? json_integer((json_int_t)x) : page_number(x));
        }
        json_object_set_new(series, od_history_keys[key], values);
    }
    return series;
}

static json_t *losses(const od_history *h) {
    json_t *steps = json_array(), *values = json_array();
    for (size_t i = 0; i < h->loss_count; i++) {
        json_array_append_new(steps, json_integer((json_int_t)h->losses[i][0]));
        json_array_append_new(values, page_number(h->losses[i][1]));
    }
    return json_pack("{s:o, s:o}", "step", steps, "loss", values);
}

/* Logarithms to base 10 beside the largest value. */
json_t *report_spectrum(const od_spectrum *s) {
    json_t *values = json_array();
    for (int i = 0; i < s->kept; i++)
        json_array_append_new(values, page_number((s->log_singular[i] - s->log_singular[0]) / M_LN10));
    return json_pack("{s:o, s:I, s:i, s:o}", "epoch", page_number(s->epoch), "step", (json_int_t)s->step, "count",
                     s->count, "values", values);
}

static json_t *spectra(const od_history *h) {
    json_t *all = json_array();
    for (size_t i = 0; i < h->spectrum_count; i++)
        json_array_append_new(all, report_spectrum(&h->spectra[i]));
    return all;
}

json_t *report_options(const json_t *options) {
    json_t *kept = json_object(), *value;
    const char *key;
    json_object_foreach((json_t *)options, key, value) {
        if (json_object_size(kept) >= OPTIONS_MAX || strlen(key) > TEXT_MAX)
            continue;
        if (json_is_string(value) && json_string_length(value) > TEXT_MAX)
            json_object_set_new(kept, key, json_string("(long text)"));
        else if (!json_is_object(value) && !json_is_array(value))
            json_object_set(kept, key, value);
    }
    return kept;
}

/* The entry of a block that is largest in magnitude, off the diagonal, as -127..127 of scale. */
static int cell(const float *w, int d, int block, int row, int column, double scale) {
    float largest = 0;
    for (int i = row * block; i < (row + 1) * block && i < d; i++)
        for (int j = column * block; j < (column + 1) * block && j < d; j++)
            if (i != j && isfinite(w[(size_t)i * d + j]) && fabsf(w[(size_t)i * d + j]) > fabsf(largest))
                largest = w[(size_t)i * d + j];
    return scale > 0 ? (int)lround(127 * largest / scale) : 0;
}

od_status report_head(json_t **out, const od_history *h, const char *run) {
    float *w = NULL;
    int d = 0;
    double scale = 0;
    *out = NULL;
    od_status status = od_history_head(&w, &d, run);
    if (status || !w) {
        *out = json_null();
        return status;
    }
    int block = (d + CELLS - 1) / CELLS, cells = (d + block - 1) / block;
    json_t *values = json_array();
    for (size_t i = 0; i < (size_t)d * d; i++)
        if (i / d != i % d && isfinite(w[i]))
            scale = fmax(scale, fabsf(w[i]));
    for (int i = 0; i < cells * cells; i++)
        json_array_append_new(values, json_integer(cell(w, d, block, i / cells, i % cells, scale)));
    *out = json_pack("{s:s, s:i, s:i, s:i, s:f, s:o}", "kind", od_history_option(h, "head"), "size", d, "cells", cells,
                     "block", block, "scale", scale, "values", values);
    free(w);
    return OD_OK;
}

/* ---- a run ------------------------------------------------------------------------------------------------------ */

static void note(json_t *notes, const char *run, const char *format, ...) __attribute__((format(printf, 3, 4)));
static void note(json_t *notes, const char *run, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    (void)fprintf(stderr, "%s: %s\n", run, text);
    json_array_append_new(notes, page_text(text));
}

static json_t *figures(const od_history *h) {
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:I, s:I}", "knn_before", page_number(h->knn_before), "knn",
                     page_number(h->last[OD_HISTORY_KNN]), "effective_rank", page_number(h->last[OD_HISTORY_RANK]),
                     "z_std", page_number(h->last[OD_HISTORY_Z_STD]), "offdiag_peak",
                     page_number(report_offdiag(h, h->offdiag_peak)), "offdiag_end",
                     page_number(report_offdiag(h, h->last[OD_HISTORY_OFFDIAG])), "images_per_s",
                     page_number(h->last[OD_HISTORY_RATE]), "step", (json_int_t)h->last_step, "steps",
                     json_integer_value(json_object_get(h->about, "steps")));
}

static od_status run_json(json_t **out, const char *run, const char *name) {
    od_history h;
    json_t *head = NULL, *notes = json_array();
    const json_t *device = NULL;
    od_status status = od_history_read(&h, run);
    *out = NULL;
    if (status) {
        json_decref(notes);
        return status;
    }
    if (h.skipped)
        note(notes, run, "%zu lines of metrics.jsonl cannot be used", h.skipped);
    if (!h.options)
        note(notes, run, "no usable config.json: its settings are not known");
    if (report_head(&head, &h, run)) /* a report without it is of use too */
        note(notes, run, "its head is not shown: %s", od_error_message());
    device = json_object_get(json_object_get(h.about, "device"), "name");
    *out = json_pack("{s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o}", "name", page_text(name), "path",
                     page_text(run), "notes", notes, "options", report_options(h.options), "device",
                     device ? page_text(json_string_value(device) ? json_string_value(device) : "") : json_null(),
                     "figures", figures(&h), "losses", losses(&h), "epochs", report_epochs(&h), "spectra", spectra(&h),
                     "head", head);
    od_history_free(&h);
    return *out ? OD_OK : od_fail(OD_ERR_MEMORY, "%s: no memory for its report", run);
}

/* ---- the command ------------------------------------------------------------------------------------------------ */

typedef struct report_args {
    char out[1024];
} report_args;

static const od_option rows[] = {
    OD_OPT_STRING(report_args, out, "out", "FILE.html", "the page (default: report.html in the run's directory)"),
};

/* The last part of a path. */
static void name_of(char *to, size_t size, const char *path) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/')
        end--;
    size_t start = end;
    while (start > 0 && path[start - 1] != '/')
        start--;
    (void)snprintf(to, size, "%.*s", (int)(end - start), path + start);
}

/* Runs are told apart by the last part of their path, or by all of it where that is not enough. */
static bool names_differ(const od_positionals *runs) {
    char a[256], b[256];
    for (int i = 0; i < runs->count; i++)
        for (int j = 0; j < i; j++) {
            name_of(a, sizeof a, runs->values[i]);
            name_of(b, sizeof b, runs->values[j]);
            if (strcmp(a, b) == 0)
                return false;
        }
    return true;
}

od_status cmd_report(int argc, char **argv) {
    report_args args = {0};
    od_options table = {.rows = rows, .count = 1, .target = &args};
    od_positionals runs = {.min = 1,
                           .max = OD_MAX_POSITIONALS,
                           .usage = "RUN... [--out FILE.html]",
                           .about = "One page of curves, heads, spectra and settings of runs, laid over each other. "
                                    "It loads nothing from elsewhere."};
    bool help = false;
    json_t *all = NULL;
    char *path = NULL;
    od_status status = od_options_parse(&table, 1, &runs, argc, argv, &help);
    if (status || help)
        return status;
    if (!args.out[0] && runs.count > 1)
        return od_fail(OD_ERR_USAGE, "report: several runs need --out FILE.html");
    path = args.out[0] ? strdup(args.out) : od_path_join(runs.values[0], "report.html");
    all = json_array();
    if (!path || !all)
        status = od_fail(OD_ERR_MEMORY, "no memory for a report");
    bool differ = names_differ(&runs);
    for (int i = 0; i < runs.count && !status; i++) {
        char name[256];
        json_t *run = NULL;
        name_of(name, sizeof name, runs.values[i]);
        if (!(status = run_json(&run, runs.values[i], differ ? name : runs.values[i])))
            json_array_append_new(all, run);
    }
    if (!status)
        status = page_write(path, page_report_js, json_pack("{s:s, s:O}", "kind", "runs", "runs", all));
    if (!status)
        printf("%s\n", path);
    json_decref(all);
    free(path);
    return status;
}
