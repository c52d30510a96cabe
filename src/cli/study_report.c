/* The page of `offdiag study heads --report`: means and bands over the seeds of each head. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/page.h"
#include "cli/report.h"
#include "cli/study.h"
#include "train/config.h"

static const od_history_key curve_keys[] = {OD_HISTORY_LOSS, OD_HISTORY_KNN,   OD_HISTORY_ONLINE,
                                            OD_HISTORY_RANK, OD_HISTORY_Z_STD, OD_HISTORY_OFFDIAG};

/* Mean and deviation of a figure at each epoch; the runs' epochs end at the same steps. */
static json_t *curve(const od_history *h, size_t count, od_history_key key) {
    json_t *steps = json_array(), *means = json_array(), *stds = json_array();
    double values[OD_STUDY_SEEDS];
    for (size_t i = 0; count && i < h[0].epoch_count; i++) {
        double step = h[0].epochs[i][OD_HISTORY_STEP];
        size_t n = 0;
        for (size_t r = 0; r < count; r++)
            if (i < h[r].epoch_count && h[r].epochs[i][OD_HISTORY_STEP] == step) {
                double x = h[r].epochs[i][key];
                values[n++] = key == OD_HISTORY_OFFDIAG ? report_offdiag(&h[r], x) : x;
            }
        od_study_mean m = od_study_mean_of(values, n);
        json_array_append_new(steps, json_integer((json_int_t)step));
        json_array_append_new(means, page_number(m.mean));
        json_array_append_new(stds, page_number(m.std));
    }
    return json_pack("{s:o, s:o, s:o}", "step", steps, "mean", means, "std", stds);
}

/* The last spectra, each beside its largest value, averaged (in logarithms) over the runs. */
static json_t *spectrum(const od_history *h, size_t count) {
    od_spectrum sum = {0};
    int n = 0;
    for (size_t r = 0; r < count; r++) {
        const od_spectrum *s = h[r].spectrum_count ? &h[r].spectra[h[r].spectrum_count - 1] : NULL;
        if (!s || (n && (s->kept != sum.kept || s->count != sum.count)))
            continue;
        for (int i = 0; i < s->kept; i++)
            sum.log_singular[i] += s->log_singular[i] - s->log_singular[0];
        sum.epoch = s->epoch;
        sum.step = s->step;
        sum.kept = s->kept;
        sum.count = s->count;
        n++;
    }
    for (int i = 0; i < sum.kept; i++)
        sum.log_singular[i] /= (float)n;
    return n ? report_spectrum(&sum) : json_null();
}

/* Histories of a head's finished runs; *matrix: the head of the first that has one. */
static od_status read_runs(od_history *h, size_t *n, json_t **matrix, const od_study *s, int head) {
    od_status status = OD_OK;
    for (int i = head * s->config.seeds; i < (head + 1) * s->config.seeds; i++) {
        const od_study_run *r = &s->runs[i];
        if (r->state != OD_STUDY_DONE)
            continue;
        if ((status = od_history_read(&h[*n], r->dir)))
            return status;
        if (!*matrix && report_head(matrix, &h[*n], r->dir))
            (void)fprintf(stderr, "%s: its head is not shown: %s\n", r->dir, od_error_message());
        ++*n;
    }
    return OD_OK;
}

static od_status head_json(json_t **out, const od_study *s, int head) {
    od_history *h = calloc(s->config.seeds, sizeof *h);
    json_t *curves = NULL, *matrix = NULL;
    size_t n = 0;
    int failed = 0;
    od_status status = OD_OK;
    *out = NULL;
    if (!h)
        return od_fail(OD_ERR_MEMORY, "no memory for %d histories", s->config.seeds);
    if ((status = read_runs(h, &n, &matrix, s, head)))
        goto out;
    curves = json_object();
    for (size_t k = 0; k < sizeof curve_keys / sizeof *curve_keys; k++)
        json_object_set_new(curves, od_history_keys[curve_keys[k]], curve(h, n, curve_keys[k]));
    for (int i = head * s->config.seeds; i < (head + 1) * s->config.seeds; i++)
        failed += s->runs[i].state == OD_STUDY_FAILED;
    *out = json_pack("{s:s, s:i, s:i, s:o, s:o, s:O?}", "head", od_head_name(s->config.heads[head]), "n", (int)n,
                     "failed", failed, "curves", curves, "spectrum", spectrum(h, n), "matrix", matrix);
    for (int f = 0; f < OD_STUDY_FIGURES && *out; f++) {
        od_study_mean m = od_study_of_head(s, head, (od_study_figure)f);
        json_object_set_new(*out, od_study_figures[f],
                            json_pack("{s:o, s:o}", "mean", page_number(m.mean), "std", page_number(m.std)));
    }
out:
    json_decref(matrix);
    for (size_t i = 0; i < n; i++)
        od_history_free(&h[i]);
    free(h);
    return status;
}

od_status study_write_report(const char *path, const od_study *s) {
    const od_train_config *c = &s->config.base;
    json_t *document = study_json(s), *heads = json_array(), *options = NULL;
    char about[512], protocol[256], images[64] = "all images", length[64];
    od_status status = OD_OK;
    for (int i = 0; i < s->config.head_count && !status; i++) {
        json_t *head = NULL;
        status = head_json(&head, s, i);
        json_array_append_new(heads, head);
    }
    if (status) {
        json_decref(document);
        json_decref(heads);
        return status;
    }
    if (c->limit)
        (void)snprintf(images, sizeof images, "%d images", c->limit);
    (void)snprintf(length, sizeof length, c->steps ? "%d steps" : "%d epochs", c->steps ? c->steps : c->epochs);
    (void)snprintf(about, sizeof about, "%s, %s; %s of width %d; %s, %s loss; %s of %d images, %d seeds.", c->dataset,
                   images, od_encoder_names[c->encoder], od_train_width(c), od_method_name(c->method),
                   od_loss_name(c->loss), length, c->batch, s->config.seeds);
    study_protocol(s, protocol, sizeof protocol);
    options = report_options(json_object_get(document, "options"));
    static const char *const not_its[] = {"head", "seed", "out", "resume", "quiet", NULL};
    for (int i = 0; not_its[i]; i++)
        json_object_del(options, not_its[i]);
    json_t *page = json_pack("{s:s, s:s, s:s, s:o, s:O, s:o}", "kind", "study", "about", about, "protocol", protocol,
                             "heads", heads, "runs", json_object_get(document, "runs"), "options", options);
    json_decref(document);
    return page_write(path, page_report_js, page);
}
