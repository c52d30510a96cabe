/* offdiag study heads: the comparison of prediction heads over seeds, as one table. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/options.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/page.h"
#include "cli/study.h"
#include "train/config.h"

enum { ROWS_MAX = 160 };

/* ---- options ---------------------------------------------------------------------------------------------------- */

typedef struct study_args {
    char preset[64], config[1024], heads[256], report[1024];
    int seeds, linear_epochs;
    double linear_lr;
    bool linear, json;
} study_args;

#define T study_args
static const od_option arg_rows[] = {
    OD_OPT_STRING(T, preset, "preset", "NAME", "start from data/presets/NAME.json (default: study-cnn4)"),
    OD_OPT_STRING(T, config, "config", "FILE", "then from a JSON file, such as a run's config.json"),
    OD_OPT_STRING(T, heads, "heads", "LIST", "heads to compare, with commas"),
    OD_OPT_INT(T, seeds, "seeds", 1, OD_STUDY_SEEDS, "runs of each head, with the seeds from --seed on"),
    OD_OPT_FLAG(T, linear, "linear", "a linear classifier on each run's features too; =false: kNN only"),
    OD_OPT_INT(T, linear_epochs, "linear-epochs", 0, 1e5, "its passes over the training features; 0: 100"),
    OD_OPT_DOUBLE(T, linear_lr, "linear-lr", 0, 1e4, "its learning rate; 0: chosen on held-out training images"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
    OD_OPT_STRING(T, report, "report", "FILE.html", "a page with the table, and curves by head: mean and band"),
};
#undef T

/* A run's options, without those that the study sets. */
static size_t train_rows(od_option *rows, od_options all) {
    size_t n = 0;
    for (size_t i = 0; i < all.count && n < ROWS_MAX; i++)
        if (!all.rows[i].name || (strcmp(all.rows[i].name, "head") != 0 && strcmp(all.rows[i].name, "resume") != 0))
            rows[n++] = all.rows[i];
    return n;
}

static od_status parse(study_args *args, od_train_config *c, int argc, char **argv, bool *help) {
    od_option rows[ROWS_MAX];
    od_options train = od_train_options(c);
    size_t count = train_rows(rows, train);
    od_options tables[] = {{.rows = arg_rows, .count = sizeof arg_rows / sizeof *arg_rows, .target = args},
                           {.rows = rows, .count = count, .target = c}};
    od_positionals what = {.min = 1,
                           .max = 1,
                           .usage = "heads [options]",
                           .about = "Train with each prediction head and each seed, and compare: one table at the end. "
                                    "Each run is a directory in --out\n(runs/study-heads). A study that was stopped "
                                    "goes on with the same command; --out alone is enough."};
    od_status status = od_options_parse(tables, 2, &what, argc, argv, help);
    if (!status && !*help && strcmp(what.values[0], "heads") != 0)
        return od_fail(OD_ERR_USAGE, "study: expected heads, found '%.64s'", what.values[0]);
    return status;
}

static od_status parse_heads(od_study_config *c, const char *list) {
    char text[256], *rest = NULL;
    (void)snprintf(text, sizeof text, "%s", list);
    c->head_count = 0;
    for (char *name = strtok_r(text, ",", &rest); name; name = strtok_r(NULL, ",", &rest)) {
        od_head_kind head;
        if (!od_head_parse(name, &head))
            return od_fail(OD_ERR_USAGE, "--heads: no head '%.64s'; the nearest one is %s", name,
                           od_nearest(name, od_head_names));
        for (int i = 0; i < c->head_count; i++)
            if (c->heads[i] == head)
                return od_fail(OD_ERR_USAGE, "--heads: %s twice", name);
        if (c->head_count == OD_STUDY_HEADS)
            return od_fail(OD_ERR_USAGE, "--heads: at most %d", OD_STUDY_HEADS);
        c->heads[c->head_count++] = head;
    }
    return c->head_count ? OD_OK : od_fail(OD_ERR_USAGE, "--heads: expected heads with commas, found '%s'", list);
}

/* Defaults, then what the study in --out was, or preset and file, then flags. */
static od_status configure(od_study_config *c, study_args *args, int argc, char **argv, bool *help) {
    od_train_config flags;
    bool found = false;
    od_train_config_default(&flags);
    od_train_config_default(&c->base);
    strcpy(flags.out, "runs/study-heads");
    od_status status = parse(args, &flags, argc, argv, help);
    if (status || *help)
        return status;
    c->seeds = args->seeds;
    c->linear = args->linear;
    if (!args->preset[0] && !args->config[0] && (status = od_study_load(c, flags.out, &found)))
        return status;
    if (found) { /* flags that are not given again stay as they were */
        args->seeds = c->seeds;
        args->linear = c->linear;
        args->linear_epochs = c->linear_epochs;
        args->linear_lr = c->linear_lr;
    } else {
        const char *preset = args->preset[0] ? args->preset : args->config[0] ? "" : "study-cnn4";
        if ((preset[0] && (status = od_train_config_preset(&c->base, preset))) ||
            (args->config[0] && (status = od_train_config_file(&c->base, args->config))))
            return status;
    }
    char *heads = args->heads;
    if (found) {
        heads[0] = '\0';
        for (int i = 0; i < c->head_count; i++)
            (void)snprintf(heads + strlen(heads), sizeof args->heads - strlen(heads), "%s%s", i ? "," : "",
                           od_head_name(c->heads[i]));
    }
    (void)snprintf(c->base.out, sizeof c->base.out, "%s", flags.out);
    c->base.quiet = false;
    if ((status = parse(args, &c->base, argc, argv, help)))
        return status;
    c->base.resume = false;
    c->seeds = args->seeds;
    c->linear = args->linear;
    c->linear_epochs = args->linear_epochs;
    c->linear_lr = args->linear_lr;
    return parse_heads(c, heads);
}

/* ---- the table -------------------------------------------------------------------------------------------------- */

void study_protocol(const od_study *s, char *to, size_t size) {
    const od_train_config *c = &s->config.base;
    char bank[32] = "all", queries[32] = "all", linear[128] = "";
    if (c->knn_bank)
        (void)snprintf(bank, sizeof bank, "%d", c->knn_bank);
    if (c->knn_queries)
        (void)snprintf(queries, sizeof queries, "%d", c->knn_queries);
    if (s->config.linear)
        (void)snprintf(linear, sizeof linear, "; linear: all training images in use, all test images, %d epochs",
                       s->config.linear_epochs ? s->config.linear_epochs : 100);
    (void)snprintf(to, size, "kNN: k %d, T %g, %s training images, %s test images%s; effective rank: of %d projections",
                   c->knn_k, c->knn_t, bank, queries, linear, c->batch);
}

typedef struct column {
    od_study_figure figure;
    const char *title;
    double factor;
    int digits;
} column;
static const column columns[] = {
    {OD_STUDY_KNN_BEFORE, "kNN before, %", 100, 2},  {OD_STUDY_KNN, "kNN, %", 100, 2},
    {OD_STUDY_LINEAR, "linear, %", 100, 2},          {OD_STUDY_RANK, "effective rank", 1, 1},
    {OD_STUDY_OFFDIAG_PEAK, "|offdiag| peak", 1, 3}, {OD_STUDY_OFFDIAG_END, "|offdiag| end", 1, 3},
};
enum { COLUMNS = sizeof columns / sizeof *columns, CELL = 17 };

static void print_table(const od_study *s) {
    char text[256];
    printf("%-11s%-7s", "head", "runs");
    for (int i = 0; i < COLUMNS; i++)
        printf("%-*s", i + 1 < COLUMNS ? CELL : 0, columns[i].title);
    printf("\n");
    for (int head = 0; head < s->config.head_count; head++) {
        printf("%-11s%-7d", od_head_name(s->config.heads[head]), od_study_done(s, head));
        for (int i = 0; i < COLUMNS; i++) {
            od_study_mean m = od_study_of_head(s, head, columns[i].figure);
            int used = 0, width = i + 1 < COLUMNS ? CELL : 0;
            if (m.n)
                used = snprintf(text, sizeof text, "%.*f", columns[i].digits, columns[i].factor * m.mean);
            else
                used = snprintf(text, sizeof text, "-");
            if (m.n > 1) {
                (void)snprintf(text + used, sizeof text - used, " \u00b1 %.*f", columns[i].digits,
                               columns[i].factor * m.std);
                width += width > 0; /* the sign is two bytes */
            }
            printf("%-*s", width, text);
        }
        printf("\n");
    }
    study_protocol(s, text, sizeof text);
    printf("\nMean \u00b1 standard deviation over seeds. %s.\n", text);
    for (int i = 0; i < s->count; i++)
        if (s->runs[i].state == OD_STUDY_FAILED)
            printf("failed: %s: %s\n", s->runs[i].name, s->runs[i].message);
}

json_t *study_json(const od_study *s) {
    json_t *heads = json_array(), *runs = json_array();
    char protocol[256];
    study_protocol(s, protocol, sizeof protocol);
    for (int head = 0; head < s->config.head_count; head++) {
        json_t *row = json_pack("{s:s, s:i}", "head", od_head_name(s->config.heads[head]), "n", od_study_done(s, head));
        for (int i = 0; i < OD_STUDY_FIGURES; i++) {
            od_study_mean m = od_study_of_head(s, head, (od_study_figure)i);
            json_object_set_new(
                row, od_study_figures[i],
                json_pack("{s:o, s:o, s:i}", "mean", page_number(m.mean), "std", page_number(m.std), "n", m.n));
        }
        json_array_append_new(heads, row);
    }
    for (int i = 0; i < s->count; i++) {
        const od_study_run *r = &s->runs[i];
        json_t *row = json_pack("{s:s, s:s, s:I, s:o, s:s}", "name", r->name, "head", od_head_name(r->head), "seed",
                                (json_int_t)r->seed, "dir", page_text(r->dir), "state", od_study_states[r->state]);
        for (int f = 0; f < OD_STUDY_FIGURES; f++)
            json_object_set_new(row, od_study_figures[f], page_number(r->figures[f]));
        if (r->message[0])
            json_object_set_new(row, "message", page_text(r->message));
        json_array_append_new(runs, row);
    }
    return json_pack("{s:s, s:i, s:i, s:s, s:o, s:o, s:o}", "study", "heads", "seeds", s->config.seeds, "failed",
                     s->failed, "protocol", protocol, "heads", heads, "runs", runs, "options",
                     od_train_config_to_json(&s->config.base));
}

/* ---- the command ------------------------------------------------------------------------------------------------ */

static od_status show(const od_study *s, const study_args *args) {
    od_status status = args->report[0] ? study_write_report(args->report, s) : OD_OK;
    if (args->json) {
        json_t *document = study_json(s);
        od_status printed =
            document ? od_json_print(document) : od_fail(OD_ERR_MEMORY, "no memory for a JSON document");
        status = status ? status : printed;
        json_decref(document);
    } else {
        print_table(s);
    }
    if (!status && s->failed)
        status =
            od_fail(OD_ERR_NUMERIC, "%d of %d runs failed; the same command tries them again", s->failed, s->count);
    return status;
}

od_status cmd_study(int argc, char **argv) {
    od_study_config *c = calloc(1, sizeof *c);
    study_args *args = calloc(1, sizeof *args);
    od_study study = {0};
    bool help = false;
    od_status status = OD_OK;
    if (!c || !args) {
        status = od_fail(OD_ERR_MEMORY, "no memory for options");
        goto out;
    }
    strcpy(args->heads, "none,offdiag,linear,mlp");
    args->seeds = 3;
    args->linear = true;
    if ((status = configure(c, args, argc, argv, &help)) || help)
        goto out;
    if (!(status = od_study_heads(&study, c)))
        status = show(&study, args);
out:
    od_study_free(&study);
    free(args);
    free(c);
    return status;
}
