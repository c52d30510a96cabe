/* What `offdiag theory` says: tables, JSON, CSV. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "cli/theory.h"

void theory_variant(const od_theory_config *c, char *to, size_t size) {
    snprintf(to, size, "%s%s%s%s%s", od_theory_head_names[c->head], c->no_bn ? ", no-bn" : "",
             c->no_stopgrad ? ", no-stopgrad" : "", c->detach_std ? ", detach-std" : "",
             c->drop_head > 0 ? ", drop-head" : "");
}

int theory_count(const od_theory_run *run, od_theory_outcome outcome) {
    int count = 0;
    for (int i = 0; i < run->config.seeds; i++)
        count += run->results[i].outcome == outcome;
    return count;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double theory_quantile(double *values, size_t count, double q) {
    size_t finite = 0;
    for (size_t i = 0; i < count; i++)
        if (isfinite(values[i]))
            values[finite++] = values[i];
    if (finite == 0)
        return NAN;
    qsort(values, finite, sizeof *values, ascending);
    double at = q * (double)(finite - 1);
    size_t low = (size_t)at, high = low + 1 < finite ? low + 1 : low;
    return values[low] + (at - (double)low) * (values[high] - values[low]);
}

/* ---- tables -------------------------------------------------------------------------------------------------------
 */

static void print_setting(const od_theory_run *run) {
    const od_theory_config *c = &run->config;
    printf("Features of strength");
    for (int l = 0; l < c->features; l++)
        printf("%s %g", l ? "," : "", c->strength[l]);
    printf("; %d neurons of degree %d; dimension %d, %d patches with %d of the feature, noise %g%s\n", c->neurons,
           c->degree, c->dimension, c->patches, c->feature_patches, c->noise,
           c->noise_everywhere ? " along the features too" : "");
    if (c->level == OD_THEORY_SAMPLED)
        printf("Sampled data on %s, batch %d%s", run->device, c->batch, c->plain_batch ? "" : " x 4");
    else
        printf("Expected gradients, %s", c->integrator == OD_THEORY_FLOW ? "flow" : "plain steps");
    printf("; %" PRIu64 " steps, eta %g, eta_E %g; %s start, seeds %" PRIu64 " to %" PRIu64 "\n\n", c->steps, c->eta,
           c->eta_head, c->start == OD_THEORY_GAUSSIAN ? "Gaussian" : "controlled", c->seed,
           c->seed + (uint64_t)c->seeds - 1);
}

static void print_share(int count, int n) {
    double low, high;
    char text[64];
    od_theory_interval(count, n, &low, &high);
    snprintf(text, sizeof text, "%d/%d %.1f %% [%.1f, %.1f]", count, n, 100. * count / n, 100 * low, 100 * high);
    printf("  %-28s", text);
}

static double mean_peak(const od_theory_run *run, od_theory_outcome outcome) {
    double sum = 0;
    int count = 0;
    for (int i = 0; i < run->config.seeds; i++) {
        const od_theory_result *r = &run->results[i];
        if (r->outcome == outcome && r->first >= 0 && r->other >= 0) {
            sum += r->peak[r->other][r->first];
            count++;
        }
    }
    return sum / count;
}

static void print_outcomes(const od_theory_run *runs, int count) {
    printf("%-18s  %-28s  %-28s  %5s  %9s  %13s  %s\n", "head", "learned both (95 % interval)", "collapsed on v_1",
           "mixed", "unlearned", "rise and fall", "mean peak |E_ba|");
    for (int n = 0; n < count; n++) {
        char name[64];
        int rises = 0, seeds = runs[n].config.seeds, diverged = theory_count(&runs[n], OD_THEORY_DIVERGED);
        double peak = mean_peak(&runs[n], OD_THEORY_BOTH);
        theory_variant(&runs[n].config, name, sizeof name);
        for (int i = 0; i < seeds; i++)
            rises += runs[n].results[i].rise_and_fall;
        printf("%-18s", name);
        print_share(theory_count(&runs[n], OD_THEORY_BOTH), seeds);
        print_share(theory_count(&runs[n], OD_THEORY_COLLAPSE), seeds);
        printf("  %5d  %9d  %13d  ", theory_count(&runs[n], OD_THEORY_MIXED),
               theory_count(&runs[n], OD_THEORY_UNLEARNED), rises);
        if (isfinite(peak))
            printf("%.3f", peak);
        else
            printf("-");
        if (diverged)
            printf("  (%d diverged)", diverged);
        printf("\n");
    }
}

static od_status print_phases(const od_theory_run *run) {
    static const char *const names[] = {"I   a learned v_1", "II  |E_ba| passes 90 % of its peak", "III b learned v_2",
                                        "IV  |E_ba| is under 20 % of its peak"};
    int both = theory_count(run, OD_THEORY_BOTH), seeds = run->config.seeds;
    double *values = malloc((size_t)seeds * sizeof *values);
    if (!values)
        return od_fail(OD_ERR_MEMORY, "no memory for %d seeds", seeds);
    if (both > 0)
        printf(
            "\nThe step at which each phase ends, over the %d seeds that learned both (median, 10 %% to 90 %%); a is "
            "the first\nneuron to learn the strong feature, b the other\n",
            both);
    for (int phase = 0; phase < 4 && both > 0; phase++) {
        size_t count = 0;
        for (int i = 0; i < seeds; i++)
            if (run->results[i].outcome == OD_THEORY_BOTH)
                values[count++] = run->results[i].phase[phase];
        double median = theory_quantile(values, count, 0.5);
        if (isfinite(median))
            printf("  %-38s %8.0f   %.0f to %.0f\n", names[phase], median, theory_quantile(values, count, 0.1),
                   theory_quantile(values, count, 0.9));
    }
    free(values);
    return OD_OK;
}

static void print_step(double step) {
    if (isfinite(step))
        printf(" %8.0f", step);
    else
        printf(" %8s", "-");
}

static void print_seed(const od_theory_config *c, const od_theory_result *r) {
    printf("%-6" PRIu64 " %-11s", r->seed, od_theory_outcome_names[r->outcome]);
    for (int j = 0; j < c->neurons; j++) {
        for (int l = 0; l < c->features; l++)
            printf(" %5.2f", r->cosine[j][l]);
        printf(" ");
    }
    if (r->first >= 0 && r->other >= 0)
        printf(" %d>%d  %.3f %6.3f  %-4s", r->first + 1, r->other + 1, r->peak[r->other][r->first],
               r->head[r->other][r->first], r->rise_and_fall ? "yes" : "no");
    else
        printf(" %-3s  %5s %6s  %-4s", "-", "-", "-", "no");
    for (int phase = 0; phase < 4; phase++)
        print_step(r->phase[phase]);
    printf("  %.4f\n", r->loss);
}

static void print_seeds(const od_theory_run *run) {
    enum { MOST = 40 };
    const od_theory_config *c = &run->config;
    char name[64];
    int wide = c->neurons * (c->features * 6 + 1);
    theory_variant(c, name, sizeof name);
    printf("\nSeeds with head %s: cosines of each neuron with the features; E_ba at its peak and at the end\n", name);
    printf("%-6s %-11s %-*s %-4s  %5s %5s  %-4s %8s %8s %8s %8s  loss\n", "seed", "outcome", wide, "cosines", "a>b",
           "peak", "end", "fell", "I ends", "II ends", "III ends", "IV ends");
    for (int i = 0; i < c->seeds && i < MOST; i++)
        print_seed(c, &run->results[i]);
    if (c->seeds > MOST)
        printf("... and %d more: --json has them all\n", c->seeds - MOST);
}

od_status theory_print(const od_theory_run *runs, int count) {
    const od_theory_run *last = &runs[count - 1];
    double seconds = 0, steps = 0;
    print_setting(last);
    print_outcomes(runs, count);
    od_status status = print_phases(last);
    if (status)
        return status;
    print_seeds(last);
    for (int i = 0; i < count; i++) {
        seconds += runs[i].seconds;
        steps += (double)runs[i].config.steps * runs[i].config.seeds;
    }
    printf("\n%.2f s, %.3g seeds x steps per second\n", seconds, steps / seconds);
    return OD_OK;
}

/* ---- JSON ---------------------------------------------------------------------------------------------------------
 */

/* null where there is no number. */
static json_t *number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *numbers(const double *x, int count) {
    json_t *array = json_array();
    for (int i = 0; i < count; i++)
        json_array_append_new(array, number(x[i]));
    return array;
}

static json_t *matrix(const double *x, int m, int n, int stride) {
    json_t *array = json_array();
    for (int i = 0; i < m; i++)
        json_array_append_new(array, numbers(x + (size_t)i * stride, n));
    return array;
}

static json_t *row_json(const od_theory_config *c, const od_theory_result *r) {
    const double begins[] = {0, r->phase[0], r->phase[1], r->phase[2]};
    return json_pack("{s:I, s:s, s:b, s:o, s:o, s:o, s:b, s:o, s:o, s:o, s:o, s:o}", "seed", (json_int_t)r->seed,
                     "outcome", od_theory_outcome_names[r->outcome], "learned_both", r->outcome == OD_THEORY_BOTH,
                     "cosines", matrix(&r->cosine[0][0], c->neurons, c->features, OD_THEORY_FEATURES), "head",
                     matrix(&r->head[0][0], c->neurons, c->neurons, OD_THEORY_NEURONS), "peak",
                     matrix(&r->peak[0][0], c->neurons, c->neurons, OD_THEORY_NEURONS), "rise_and_fall",
                     r->rise_and_fall, "first", r->first < 0 ? json_null() : json_integer(r->first + 1), "other",
                     r->other < 0 ? json_null() : json_integer(r->other + 1), "phase_begins", numbers(begins, 4),
                     "phase_ends", numbers(r->phase, 4), "loss", number(r->loss));
}

json_t *theory_config_json(const od_theory_config *c) {
    return json_pack(
        "{s:s, s:s, s:s, s:b, s:b, s:b, s:b, s:f, s:o, s:i, s:i, s:i, s:i, s:i, s:i, s:b, s:s, s:f, s:f, s:f, s:f, "
        "s:I, "
        "s:I, s:i}",
        "head", od_theory_head_names[c->head], "level", c->level == OD_THEORY_SAMPLED ? "sampled" : "expected",
        "integrator", c->integrator == OD_THEORY_FLOW ? "flow" : "steps", "bn", !c->no_bn, "stopgrad", !c->no_stopgrad,
        "detach_std", c->detach_std, "noise_everywhere", c->noise_everywhere, "drop_head", c->drop_head, "strengths",
        numbers(c->strength, c->features), "neurons", c->neurons, "dimension", c->dimension, "patches", c->patches,
        "feature_patches", c->feature_patches, "degree", c->degree, "batch", c->batch, "antithetic", !c->plain_batch,
        "start", c->start == OD_THEORY_GAUSSIAN ? "gaussian" : "controlled", "noise", c->noise, "spread", c->spread,
        "eta", c->eta, "eta_head", c->eta_head, "steps", (json_int_t)c->steps, "seed", (json_int_t)c->seed, "seeds",
        c->seeds);
}

json_t *theory_json(const od_theory_run *run) {
    const od_theory_config *c = &run->config;
    json_t *rows = json_array(), *outcomes = json_object();
    char name[64];
    double low, high;
    int both = theory_count(run, OD_THEORY_BOTH);
    theory_variant(c, name, sizeof name);
    od_theory_interval(both, c->seeds, &low, &high);
    for (int i = 0; i < c->seeds; i++)
        json_array_append_new(rows, row_json(c, &run->results[i]));
    for (int i = 0; i < OD_THEORY_OUTCOMES; i++)
        json_object_set_new(outcomes, od_theory_outcome_names[i],
                            json_integer(theory_count(run, (od_theory_outcome)i)));
    return json_pack("{s:s, s:i, s:i, s:f, s:[f,f], s:o, s:o, s:s, s:f, s:o}", "variant", name, "seeds", c->seeds,
                     "both_learned", both, "both_share", (double)both / c->seeds, "both_interval", low, high,
                     "outcomes", outcomes, "config", theory_config_json(c), "device", run->device, "seconds",
                     run->seconds, "rows", rows);
}

/* ---- CSV ----------------------------------------------------------------------------------------------------------
 */

od_status theory_write_csv(const char *path, const od_theory_run *run) {
    const od_theory_config *c = &run->config;
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return od_fail(OD_ERR_MEMORY, "no memory for %s", path);
    (void)fprintf(out, "seed,step,loss");
    for (int j = 0; j < c->neurons; j++)
        for (int l = 0; l < c->features; l++)
            (void)fprintf(out, ",w%d_v%d", j + 1, l + 1);
    for (int j = 0; j < c->neurons; j++)
        (void)fprintf(out, ",length_w%d", j + 1);
    for (int j = 0; j < c->neurons; j++)
        for (int r = 0; r < c->neurons; r++)
            (void)fprintf(out, ",E_%d%d", j + 1, r + 1);
    (void)fprintf(out, "\n");
    for (size_t i = 0; i < (size_t)c->seeds * run->rows; i++) {
        (void)fprintf(out, "%" PRIu64 ",%.0f", run->results[i / run->rows].seed, run->steps[i % run->rows]);
        for (size_t k = 0; k < run->columns; k++)
            (void)fprintf(out, ",%.9g", run->paths[i * run->columns + k]);
        (void)fprintf(out, "\n");
    }
    bool failed = ferror(out);
    failed |= fclose(out) != 0;
    od_status status =
        failed ? od_fail(OD_ERR_MEMORY, "no memory for %s", path) : od_file_write_atomic(path, text, bytes);
    free(text);
    return status;
}
