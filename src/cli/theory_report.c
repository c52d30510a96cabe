/* The data of the page of `offdiag theory --report`. */
#include <math.h>
#include <stdlib.h>

#include "cli/page.h"
#include "cli/theory.h"

enum { POINTS = 240, PATHS_SHOWN = 8, QUANTILES = 3 };
static const double quantiles[QUANTILES] = {0.1, 0.5, 0.9};

/* Rows at steps that are even on a logarithmic axis over the last three decades; at most POINTS. */
static size_t choose_rows(const od_theory_run *run, size_t *rows) {
    size_t count = 0, row = 0;
    double last = fmax(run->steps[run->rows - 1], 2), first = fmax(1, pow(10, floor(log10(last)) - 3));
    for (int i = 0; i < POINTS; i++) {
        double step =
            i == POINTS - 1 ? run->steps[run->rows - 1] : floor(first * pow(last / first, (double)i / (POINTS - 1)));
        while (row + 1 < run->rows && run->steps[row] < step)
            row++;
        if (count == 0 || rows[count - 1] != row)
            rows[count++] = row;
    }
    return count;
}

/* Series of one seed by name; neurons are named as they are numbered. */
static json_t *path_json(const od_theory_run *run, size_t seed, const size_t *rows, size_t count) {
    const od_theory_config *c = &run->config;
    const od_theory_result *r = &run->results[seed];
    size_t m = (size_t)c->neurons, k = (size_t)c->features;
    json_t *features = json_array(), *head = json_array(), *loss = json_array();
    for (size_t n = 0; n < m * k + m * m + 1; n++) {
        json_t *series = n < m * k ? json_array() : n < m * k + m * m ? json_array() : loss;
        for (size_t i = 0; i < count; i++) {
            const double *row = run->paths + (seed * run->rows + rows[i]) * run->columns;
            double length = row[1 + m * k + n / k % m], x = row[0];
            if (n < m * k)
                x = row[1 + n] / length;
            else if (n < m * k + m * m)
                x = row[1 + m * (k + 1) + n - m * k];
            json_array_append_new(series, page_number(x));
        }
        if (n < m * k)
            json_array_append_new(features, series);
        else if (n < m * k + m * m)
            json_array_append_new(head, series);
    }
    json_t *phases = json_array();
    for (int i = 0; i < 4; i++)
        json_array_append_new(phases, page_number(r->phase[i]));
    return json_pack("{s:I, s:s, s:i, s:i, s:o, s:o, s:o, s:o}", "seed", (json_int_t)r->seed, "outcome",
                     od_theory_outcome_names[r->outcome], "first", r->first, "other", r->other, "phases", phases,
                     "features", features, "head", head, "loss", loss);
}

/* What is compared over seeds, with neurons by their roles a and b: <a,v_l>, <b,v_l>, |E_ba|, |E_ab|, loss. */
static double role_value(const od_theory_run *run, size_t seed, size_t row, size_t which) {
    const od_theory_config *c = &run->config;
    const od_theory_result *r = &run->results[seed];
    const double *x = run->paths + (seed * run->rows + row) * run->columns;
    size_t m = (size_t)c->neurons, k = (size_t)c->features;
    if (which == 2 * k + 2)
        return x[0];
    if (r->first < 0 || r->other < 0)
        return NAN;
    size_t a = (size_t)r->first, b = (size_t)r->other, j = which < k ? a : b;
    if (which < 2 * k)
        return fabs(x[1 + j * k + which % k] / x[1 + m * k + j]);
    return fabs(x[1 + m * (k + 1) + (which == 2 * k ? b * m + a : a * m + b)]);
}

static od_status quantiles_json(const od_theory_run *run, const size_t *rows, size_t count, json_t **out) {
    const od_theory_config *c = &run->config;
    size_t seeds = (size_t)c->seeds;
    double *values = malloc(seeds * sizeof *values);
    *out = json_array();
    if (!values)
        return od_fail(OD_ERR_MEMORY, "no memory for %zu seeds", seeds);
    for (size_t which = 0; which < 2 * (size_t)c->features + 3; which++) {
        json_t *bands[QUANTILES];
        for (int q = 0; q < QUANTILES; q++)
            bands[q] = json_array();
        for (size_t i = 0; i < count; i++) {
            for (size_t s = 0; s < seeds; s++)
                values[s] = role_value(run, s, rows[i], which);
            for (int q = 0; q < QUANTILES; q++)
                json_array_append_new(bands[q], page_number(theory_quantile(values, seeds, quantiles[q])));
        }
        json_array_append_new(*out, json_pack("[o, o, o]", bands[0], bands[1], bands[2]));
    }
    free(values);
    return OD_OK;
}

/* The median step at which each phase ends, over the seeds where it does. */
static json_t *median_phases(const od_theory_run *run) {
    json_t *phases = json_array();
    double *values = malloc((size_t)run->config.seeds * sizeof *values);
    for (int phase = 0; phase < 4 && values; phase++) {
        for (int i = 0; i < run->config.seeds; i++)
            values[i] = run->results[i].phase[phase];
        json_array_append_new(phases, page_number(theory_quantile(values, (size_t)run->config.seeds, 0.5)));
    }
    free(values);
    return phases;
}

static od_status run_json(const od_theory_run *run, json_t **out) {
    const od_theory_config *c = &run->config;
    size_t rows[POINTS], count = choose_rows(run, rows);
    json_t *steps = json_array(), *paths = json_array(), *bands = NULL, *outcomes = json_object();
    double low, high;
    char variant[64];
    int both = theory_count(run, OD_THEORY_BOTH);
    theory_variant(c, variant, sizeof variant);
    od_theory_interval(both, c->seeds, &low, &high);
    for (size_t i = 0; i < count; i++)
        json_array_append_new(steps, json_real(fmax(run->steps[rows[i]], 1)));
    for (size_t i = 0; i < (size_t)c->seeds && i < PATHS_SHOWN; i++)
        json_array_append_new(paths, path_json(run, i, rows, count));
    for (int i = 0; i < OD_THEORY_OUTCOMES; i++)
        json_object_set_new(outcomes, od_theory_outcome_names[i],
                            json_integer(theory_count(run, (od_theory_outcome)i)));
    od_status status = quantiles_json(run, rows, count, &bands);
    *out = json_pack("{s:s, s:i, s:i, s:[f,f], s:o, s:o, s:o, s:o, s:o, s:s, s:o}", "variant", variant, "seeds",
                     c->seeds, "both_learned", both, "both_interval", low, high, "outcomes", outcomes, "steps", steps,
                     "paths", paths, "bands", bands, "phases", median_phases(run), "device", run->device, "config",
                     theory_config_json(c));
    return status;
}

od_status theory_write_report(const char *path, const od_theory_run *runs, int count) {
    json_t *all = json_array();
    od_status status = OD_OK;
    for (int i = 0; i < count && !status; i++) {
        json_t *one = NULL;
        status = run_json(&runs[i], &one);
        json_array_append_new(all, one);
    }
    if (status) {
        json_decref(all);
        return status;
    }
    return page_write(path, page_theory_js, json_pack("{s:s, s:o}", "kind", "runs", "runs", all));
}
