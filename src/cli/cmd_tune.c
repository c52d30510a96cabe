/* offdiag tune: search a device's kernel parameters, keep what wins. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/options.h"
#include "cli/cli.h"
#include "cli/tune/tune.h"
#include "ops/tunable.h"

typedef struct tune_args {
    char device[256], only[128];
    int kernels, budget;
    double margin;
    bool cpu_time, dry_run, print, list, json;
} tune_args;

#define T tune_args
static const od_option rows[] = {
    OD_OPT_STRING(T, device, "device", "SPEC", "device (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_INT(T, budget, "budget", 1, 864000, "seconds that it may take in all"),
    OD_OPT_STRING(T, only, "only", "PATTERN", "only where variant, class or operation hold this text (see --list)"),
    OD_OPT_DOUBLE(T, margin, "margin", 0, 0.9, "part of the time by which a winner must beat the default"),
    OD_OPT_CHOICE(T, kernels, "kernels", od_family_names, "kernel family"),
    OD_OPT_FLAG(T, cpu_time, "cpu-time",
                "processor time over the device's units, for CPU devices of machines that are busy otherwise"),
    OD_OPT_FLAG(T, dry_run, "dry-run", "search, but keep nothing"),
    OD_OPT_HEADING("Without a search"),
    OD_OPT_FLAG(T, print, "print", "print what is kept for this device, as rows for data/tuning/rows.json"),
    OD_OPT_FLAG(T, list, "list", "list the parameters of every variant, their values and default rules"),
    OD_OPT_HEADING("Output"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
};
#undef T

enum { MOST_SEARCHES = 256 };

typedef struct tuner {
    od_device *device;
    const tune_args *args;
    double started, until;
    struct {
        const od_tuning_table *table;
        char shape[64];
    } searched[MOST_SEARCHES];
    size_t count, won;
    bool all; /* every operation was looked at */
    int tried, unbuilt, wrong;
    od_tuning_row *known; /* the user's rows when it began */
    size_t known_count;
    json_t *rows;
} tuner;

/* ---- clocks and signals ------------------------------------------------------------------------------------------ */

static unsigned units = 1;

static double cpu_clock(void) {
    return od_cpu_now() / units;
}

static volatile sig_atomic_t stopped;

static void on_signal(int number) {
    (void)number;
    stopped = 1;
}

static bool is_stopped(void) {
    return stopped;
}

/* The first signal ends the search, the second one the program. */
static void catch_signals(void) {
    const struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    stopped = 0;
    (void)sigaction(SIGINT, &action, NULL);
    (void)sigaction(SIGTERM, &action, NULL);
}

/* ---- what is printed --------------------------------------------------------------------------------------------- */

static void settings_text(const od_tuning_row *row, char *out, size_t size) {
    size_t at = 0;
    out[0] = '\0';
    for (int i = 0; i < row->count && at < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%s%s %d", i ? ", " : "", row->settings[i].name,
                               row->settings[i].value);
}

static od_status report(tuner *t, const od_tune_problem *problem, const od_tune_result *r) {
    char settings[512];
    settings_text(&r->row, settings, sizeof settings);
    fprintf(stderr, "[%4.0f of %d s] %s, %s: %d tried%s%s\n", od_now() - t->started, t->args->budget, r->row.variant,
            r->row.shape, r->tried, r->row.count ? ", won: " : ", the default stays", settings);
    if (!t->args->json && r->row.count)
        printf("%-24s %-28s %9.3f -> %9.3f ms  %.2f x  %s\n", r->row.variant, r->row.shape, 1e3 * r->before,
               1e3 * r->after, r->before / r->after, settings);
    (void)fflush(stdout);
    json_t *row = od_tuning_row_to_json(&r->row);
    if (!row || json_object_set_new(row, "operation", json_string(problem->name)) ||
        json_object_set_new(row, "seconds_before", json_real(r->before)) ||
        json_object_set_new(row, "seconds_after", json_real(r->after)) ||
        json_object_set_new(row, "tried", json_integer(r->tried)) ||
        json_object_set_new(row, "not_built", json_integer(r->unbuilt)) ||
        json_object_set_new(row, "wrong", json_integer(r->wrong)) || json_array_append(t->rows, row)) {
        json_decref(row);
        return od_fail(OD_ERR_MEMORY, "no memory for JSON");
    }
    json_decref(row);
    return OD_OK;
}

static od_status print_json(const tuner *t) {
    const od_device_info *info = od_device_get_info(t->device);
    json_t *document =
        json_pack("{s:s, s:s, s:s, s:f, s:i, s:i, s:i, s:i, s:i, s:b, s:b, s:O}", "device", info->name, "architecture",
                  info->architecture, "driver", info->driver, "seconds", od_now() - t->started, "searches",
                  (int)t->count, "won", (int)t->won, "tried", t->tried, "not_built", t->unbuilt, "wrong", t->wrong,
                  "interrupted", (int)stopped, "kept", !t->args->dry_run, "rows", t->rows);
    od_status status = document ? od_json_print(document) : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    json_decref(document);
    return status;
}

static od_status print_summary(const tuner *t) {
    char *path = NULL;
    if (t->args->json)
        return print_json(t);
    od_status status = od_tuning_user_path(&path);
    printf("%zu searches in %.0f s, %d candidates tried (%d did not build or run, %d were wrong): %zu won%s%s\n",
           t->count, od_now() - t->started, t->tried, t->unbuilt, t->wrong, t->won,
           t->args->dry_run ? "" : ", kept in ",
           t->args->dry_run ? "; nothing was kept"
           : path           ? path
                            : "");
    free(path);
    return t->args->dry_run ? OD_OK : status;
}

static od_status print_rows(const od_device_info *info) {
    od_tuning_row *list = NULL;
    size_t count = 0, printed = 0;
    od_status status = od_tuning_user_rows(&list, &count);
    for (size_t i = 0; i < count && !status; i++) {
        if (!od_tuning_row_matches(&list[i], info))
            continue;
        json_t *row = od_tuning_row_to_json(&list[i]);
        char *text = row ? json_dumps(row, JSON_REAL_PRECISION(4)) : NULL;
        if (text)
            printf("%s    %s", printed++ ? ",\n" : "", text);
        else
            status = od_fail(OD_ERR_MEMORY, "no memory for JSON");
        free(text);
        json_decref(row);
    }
    if (printed)
        printf("\n");
    else if (!status)
        fprintf(stderr, "Nothing is kept for %s; `offdiag tune` searches.\n", info->name);
    free(list);
    return status;
}

static void print_tables(void) {
    for (const od_tuning_table *const *table = od_tuning_tables; *table; table++) {
        printf("%s\n    classes: %s\n", (*table)->variant, (*table)->shape);
        for (int p = 0; p < (*table)->count; p++) {
            const od_tuning_parameter *one = &(*table)->parameters[p];
            printf("    %-12s", one->name);
            for (int i = 0; i < one->count; i++)
                printf(" %d", one->values[i]);
            printf("    (default: %s)\n", one->rule);
        }
    }
}

/* ---- the search -------------------------------------------------------------------------------------------------- */

static bool is_wanted(const tuner *t, const od_tune_problem *problem, const od_tuning_asked *asked) {
    const char *only = t->args->only;
    if (problem->variant ? strcmp(problem->variant, asked->table->variant) != 0
                         : strncmp(asked->table->variant, "clblast", 7) == 0)
        return false; /* CLBlast's parameters have problems of their own */
    for (size_t i = 0; i < t->count; i++)
        if (t->searched[i].table == asked->table && strcmp(t->searched[i].shape, asked->shape) == 0)
            return false;
    return !only[0] || strstr(asked->table->variant, only) || strstr(asked->shape, only) || strstr(problem->name, only);
}

static const od_tuning_row *find_known(const tuner *t, const char *name, const od_tuning_asked *asked) {
    for (size_t i = 0; i < t->known_count; i++)
        if (t->known[i].key == OD_TUNING_DEVICE && strcmp(t->known[i].match, name) == 0 &&
            strcmp(t->known[i].variant, asked->table->variant) == 0 && strcmp(t->known[i].shape, asked->shape) == 0)
            return &t->known[i];
    return NULL;
}

static od_status keep(tuner *t, od_tuning_row *row, const od_tuning_row *known, bool complete) {
    od_status status = OD_OK;
    if (row->count) {
        t->won++;
        status = od_tuning_add(t->device, row);
    }
    if (!status && !t->args->dry_run && (row->count || (known && complete)))
        status = od_tuning_user_keep(row);
    return status;
}

static od_status search_one(tuner *t, const od_tune_problem *problem, const od_tuning_asked *asked, double until) {
    char name[OD_TUNING_TEXT];
    (void)snprintf(name, sizeof name, "%.*s", OD_TUNING_TEXT - 1, od_device_get_info(t->device)->name);
    const od_tune_limits limits = {.until = until,
                                   .stop = is_stopped,
                                   .clock = t->args->cpu_time ? cpu_clock : od_now,
                                   .margin = t->args->margin,
                                   .known = find_known(t, name, asked)};
    od_tune_result result;
    od_status status = od_tune_search(t->device, problem, asked, &limits, &result);
    if (status)
        return status;
    t->searched[t->count].table = asked->table;
    (void)snprintf(t->searched[t->count++].shape, sizeof t->searched[0].shape, "%s", asked->shape);
    t->tried += result.tried;
    t->unbuilt += result.unbuilt;
    t->wrong += result.wrong;
    result.row.key = OD_TUNING_DEVICE;
    (void)snprintf(result.row.match, sizeof result.row.match, "%s", name);
    status = keep(t, &result.row, limits.known, result.complete);
    return status ? status : report(t, problem, &result);
}

/* The tables that an operation asked, each a search; they share what time the operation has. */
static od_status search_problem(tuner *t, size_t index, double until) {
    od_tune_problem problem;
    od_tuning_asked wanted;
    const od_tuning_asked *asked;
    od_tuning_forget(t->device);
    od_status status = od_tune_problem_create(t->device, index, &problem);
    if (status == OD_ERR_DEVICE_MEMORY || status == OD_ERR_UNSUPPORTED) {
        fprintf(stderr, "%s: left out: %s\n", problem.name, od_error_message());
        return OD_OK;
    }
    if (status)
        return status;
    while (!status && t->count < MOST_SEARCHES && !stopped) {
        const size_t all = od_tuning_asked_list(t->device, &asked);
        size_t count = 0;
        for (size_t i = 0; i < all; i++)
            if (is_wanted(t, &problem, &asked[i]) && count++ == 0)
                wanted = asked[i];
        if (count == 0)
            break;
        const double now = od_now();
        status = search_one(t, &problem, &wanted, now + (until - now) / (double)count);
        /* what won may let another variant run, which asks other tables */
        od_tuning_forget(t->device);
        if (!status)
            status = problem.prepare(problem.context);
        if (!status)
            status = problem.run(problem.context);
    }
    problem.destroy(problem.context);
    return status;
}

static od_status search_all(tuner *t) {
    const size_t count = od_tune_problem_count(t->device, strncmp(t->args->only, "clblast", 7) == 0);
    double weight = 0;
    od_status status = OD_OK;
    for (size_t i = 0; i < count; i++)
        weight += od_tune_problem_weight(i);
    size_t i = 0;
    for (; i < count && !status && !stopped && od_now() < t->until; i++) {
        const double now = od_now(), part = od_tune_problem_weight(i) / weight;
        weight -= od_tune_problem_weight(i);
        status = search_problem(t, i, now + (t->until - now) * part);
    }
    t->all = i == count;
    return status;
}

static od_status run_search(tuner *t) {
    const od_device_info *info = od_device_get_info(t->device);
    units = info->compute_units ? info->compute_units : 1;
    t->started = od_now();
    t->until = t->started + t->args->budget;
    fprintf(stderr, "Device %s: %s (%s), %s kernels; at most %d s. Ctrl-C ends it and keeps what was won.\n", info->id,
            info->name, info->platform, od_family_name(od_device_family(t->device)), t->args->budget);
    od_status status = od_tuning_user_rows(&t->known, &t->known_count);
    if (status)
        return status;
    od_tuning_clear(t->device);
    catch_signals();
    if ((status = search_all(t)))
        return status;
    if (t->count == 0 && !stopped && t->args->only[0])
        return t->all ? od_fail(OD_ERR_USAGE, "--only %s: no variant, class or operation holds it (see --list)",
                                t->args->only)
                      : od_fail(OD_ERR_ARGUMENT,
                                "--only %s: the time ended before an operation that holds it; give --budget more",
                                t->args->only);
    if ((status = print_summary(t)))
        return status;
    return stopped ? od_fail(OD_ERR_INTERRUPTED, "interrupted; what was won before is kept") : OD_OK;
}

od_status cmd_tune(int argc, char **argv) {
    tune_args a = {.budget = 600, .margin = 0.03};
    const od_options table = {rows, sizeof rows / sizeof *rows, &a};
    od_positionals none = {.usage = "",
                           .about =
                               "Search kernel parameters that are faster on this device than the defaults. Each is\n"
                               "checked against double precision; what wins is kept for this user."};
    bool help = false;
    od_status status = od_options_parse(&table, 1, &none, argc, argv, &help);
    if (status || help)
        return status;
    if (a.list) {
        print_tables();
        return OD_OK;
    }
    tuner t = {.args = &a, .rows = json_array()};
    const od_device_options options = {.family = (od_family)a.kernels,
                                       .cache = a.print ? OD_CACHE_AUTO : OD_CACHE_NEVER};
    if (!t.rows)
        return od_fail(OD_ERR_MEMORY, "no memory for JSON");
    if (!(status = od_device_open(a.device, &options, &t.device)))
        status = a.print ? print_rows(od_device_get_info(t.device)) : run_search(&t);
    od_device_close(t.device);
    json_decref(t.rows);
    free(t.known);
    return status;
}
