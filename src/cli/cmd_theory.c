/* offdiag theory: the paper's theory in the small, watched over seeds. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/options.h"
#include "cli/cli.h"
#include "cli/theory.h"

typedef struct theory_args {
    od_theory_config c;
    char strengths[256], csv[1024], report[1024], x[256], y[256];
    bool json, alone;
} theory_args;

static const char *const levels[] = {"expected", "sampled", NULL};
static const char *const integrators[] = {"steps", "flow", NULL};
static const char *const starts[] = {"controlled", "gaussian", NULL};
static const char *const draws[] = {"projected", "all", NULL};

#define T theory_args
static const od_option rows[] = {
    OD_OPT_HEADING("What is trained"),
    OD_OPT_CHOICE(T, c.head, "head", od_theory_head_names,
                  "none: E stays the identity; offdiag; full; random: full, from N(0, 1/m)"),
    OD_OPT_FLAG(T, c.no_bn, "no-bn", "outputs without batch norm"),
    OD_OPT_FLAG(T, c.no_stopgrad, "no-stopgrad", "the gradient flows into the target too"),
    OD_OPT_FLAG(T, c.detach_std, "detach-std", "no gradient of the neurons through the standard deviation"),
    OD_OPT_DOUBLE(T, c.drop_head, "drop-head", 0, 1e9,
                  "set E to the identity for good at X times the step at which phase I ends; 0: never"),
    OD_OPT_INT(T, c.neurons, "neurons", 1, OD_THEORY_NEURONS, "m"),
    OD_OPT_INT(T, c.degree, "degree", 1, 9, "of the activation; expected gradients need an odd one"),
    OD_OPT_HEADING("Data"),
    OD_OPT_STRING(T, strengths, "strengths", "LIST", "of the features, strongest first; as many as there are features"),
    OD_OPT_DOUBLE(T, c.noise, "noise", 0, 1e6, "standard deviation of the noise patches"),
    OD_OPT_FLAG(T, c.noise_everywhere, "noise-everywhere", "noise along the features too"),
    OD_OPT_INT(T, c.dimension, "dimension", 2, 1 << 20, "d"),
    OD_OPT_INT(T, c.patches, "patches", 2, 4096, "P, half of them in each view"),
    OD_OPT_INT(T, c.feature_patches, "feature-patches", 1, 4096, "P0, those that hold the feature"),
    OD_OPT_HEADING("Training"),
    OD_OPT_CHOICE(T, c.level, "level", levels, "exact expected gradients, or sampled data on a device"),
    OD_OPT_CHOICE(T, c.integrator, "integrator", integrators, "expected: plain steps, or the flow (adaptive, to 1e-9)"),
    OD_OPT_CHOICE(T, c.start, "start", starts, "controlled: |<w, v>| within --spread of 1/sqrt(d)"),
    OD_OPT_DOUBLE(T, c.spread, "spread", 0, 1, "of the controlled start"),
    OD_OPT_DOUBLE(T, c.eta, "eta", 0, 1e6, "learning rate of the neurons; 0: 0.05, without batch norm 5e-4"),
    OD_OPT_DOUBLE(T, c.eta_head, "eta-head", 0, 1e6, "learning rate of the head; 0: --eta-ratio times eta"),
    OD_OPT_DOUBLE(T, c.head_ratio, "eta-ratio", 0, 1e6, "eta-head / eta"),
    OD_OPT_U64(T, c.steps, "steps", "0: 100000, sampled 15000"),
    OD_OPT_INT(T, c.seeds, "seeds", 1, OD_THEORY_SEEDS, "how many"),
    OD_OPT_U64(T, c.seed, "seed", "the first"),
    OD_OPT_INT(T, c.rows, "rows", 0, 65536, "observations for each doubling of the step; 0: 512, flow 64, sampled 128"),
    OD_OPT_INT(T, c.threads, "threads", 0, 256, "expected: processors to use; 0: all"),
    OD_OPT_HEADING("Sampled training"),
    OD_OPT_INT(T, c.batch, "batch", 2, 1 << 20, "samples a step, each in four antithetic copies"),
    OD_OPT_FLAG(T, c.plain_batch, "plain-batch", "without the antithetic copies"),
    OD_OPT_CHOICE(T, c.draw, "draw", draws, "the noise that matters (the same distribution), or every component"),
    OD_OPT_STRING(T, c.device, "device", "SPEC", "device (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_CHOICE(T, c.kernels, "kernels", od_family_names, "kernel family"),
    OD_OPT_HEADING("Output"),
    OD_OPT_FLAG(T, alone, "alone", "the tables and the page without the frozen head for comparison"),
    OD_OPT_FLAG(T, json, "json", "one JSON document on standard output"),
    OD_OPT_STRING(T, csv, "csv", "FILE", "every seed's path"),
    OD_OPT_STRING(T, report, "report", "FILE.html", "a page with the paths, phases shaded"),
};
static const od_option sweep_rows[] = {
    OD_OPT_HEADING("Sweep"),
    OD_OPT_STRING(T, x, "x", "NAME[=LIST]", "eta-ratio, strength-ratio, noise or dimension"),
    OD_OPT_STRING(T, y, "y", "NAME[=LIST]", "another of them"),
};
#undef T

int theory_numbers(const char *text, double *values, int most) {
    for (int count = 0; count < most;) {
        char *end;
        values[count++] = strtod(text, &end);
        if (end == text || !isfinite(values[count - 1]) || (*end && *end != ','))
            return 0;
        if (!*end)
            return count;
        text = end + 1;
    }
    return 0;
}

static od_status parse(theory_args *args, bool sweep, int argc, char **argv, bool *help) {
    const od_options tables[] = {{sweep_rows, sizeof sweep_rows / sizeof *sweep_rows, args},
                                 {rows, sizeof rows / sizeof *rows, args}};
    od_positionals none = {
        .usage = sweep ? "sweep [options]" : "[sweep] [options]",
        .about = sweep
                     ? "The share of seeds that learn both features, over two parameters."
                     : "The paper's theory in the small: with the head frozen both neurons learn the strong feature; "
                       "with its\noff-diagonal entries trained each learns its own, in four phases, and the head goes "
                       "back to the identity.\n`offdiag theory sweep` varies two parameters."};
    od_status status = od_options_parse(tables + !sweep, sweep ? 2 : 1, &none, argc, argv, help);
    if (status || *help)
        return status;
    if (sweep && args->csv[0])
        return od_fail(OD_ERR_USAGE, "--csv: a sweep keeps no paths");
    if (!(args->c.features = theory_numbers(args->strengths, args->c.strength, OD_THEORY_FEATURES)))
        return od_fail(OD_ERR_USAGE, "--strengths: expected 1 to %d numbers with commas, found '%.100s'",
                       OD_THEORY_FEATURES, args->strengths);
    return od_theory_check(&args->c);
}

static od_status run(const theory_args *args) {
    od_theory_run runs[2] = {0}; /* with the frozen head first, to compare */
    int count = 0;
    od_status status = OD_OK;
    bool compare = !args->alone && args->c.head != OD_THEORY_NONE && (!args->json || args->report[0]);
    if (compare) {
        od_theory_config frozen = args->c;
        frozen.head = OD_THEORY_NONE;
        frozen.drop_head = 0;
        status = od_theory_train(&frozen, NULL, args->report[0], &runs[count++]);
    }
    if (!status)
        status = od_theory_train(&args->c, NULL, args->report[0] || args->csv[0], &runs[count++]);
    const od_theory_run *asked = &runs[count - 1];
    if (!status && args->csv[0])
        status = theory_write_csv(args->csv, asked);
    if (!status && args->report[0])
        status = theory_write_report(args->report, runs, count);
    if (!status && args->json) {
        json_t *document = theory_json(asked);
        status = document ? od_json_print(document) : od_fail(OD_ERR_MEMORY, "no memory for a JSON document");
        json_decref(document);
    } else if (!status) {
        status = theory_print(runs, count);
    }
    for (int i = 0; i < count; i++)
        od_theory_run_free(&runs[i]);
    return status;
}

od_status cmd_theory(int argc, char **argv) {
    theory_args *args = calloc(1, sizeof *args);
    bool help = false, sweep = argc > 1 && strcmp(argv[1], "sweep") == 0;
    if (!args)
        return od_fail(OD_ERR_MEMORY, "no memory for options");
    od_theory_config_default(&args->c);
    strcpy(args->strengths, "2,1.25");
    strcpy(args->x, "eta-ratio");
    strcpy(args->y, "strength-ratio");
    od_status status;
    if (sweep) {
        argv[1] = argv[0];
        status = parse(args, true, argc - 1, argv + 1, &help);
    } else {
        status = parse(args, false, argc, argv, &help);
    }
    if (!status && !help && sweep)
        status = theory_sweep(&args->c, &(theory_sweep_args){args->x, args->y, args->report, args->json});
    else if (!status && !help)
        status = run(args);
    free(args);
    return status;
}
