/* A row: its groups of checks one after the other, each in a child process, put together as one object. */
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/text.h"
#include "cli/matrix/run.h"
#include "cli/selftest/runner.h"
#include "od_config.h"

enum { MAX_FAILURES = 60, MAX_HANGS = 2 };

typedef struct collector {
    const od_matrix_options *options;
    const od_matrix_row *row;
    const char *family, *group; /* of the child that runs */
    char at[200];               /* its open case */
    char error[600];            /* its own message */
    bool done;
    unsigned cases, failed, skipped, hangs;
    json_t *operations, *failures, *stopped, *training, *speed;
    od_status status; /* of our own */
} collector;

static const char *text_of(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static void append(collector *c, json_t *array, json_t *value) {
    if (!value || json_array_append_new(array, value))
        c->status = od_fail(OD_ERR_MEMORY, "no memory for JSON");
}

static void add_failure(collector *c, const char *operation, const char *name, const char *why) {
    c->failed++;
    if (json_array_size(c->failures) < MAX_FAILURES)
        append(
            c, c->failures,
            json_pack("{s:s, s:s, s:s, s:s}", "operation", operation, "family", c->family, "case", name, "why", why));
}

/* ---- a child's lines --------------------------------------------------------------------------------------------- */

/* The row of an operation in the family that runs, made when it is first told of. */
static json_t *operation_row(collector *c, const char *operation) {
    size_t i;
    json_t *row;
    json_array_foreach(c->operations, i, row) {
        if (strcmp(text_of(row, "operation"), operation) == 0 && strcmp(text_of(row, "family"), c->family) == 0)
            return row;
    }
    row = json_pack("{s:s, s:s, s:i, s:i, s:f}", "operation", operation, "family", c->family, "cases", 0, "failed", 0,
                    "largest_error", 0.0);
    append(c, c->operations, row);
    return c->status ? NULL : row;
}

static void count(json_t *row, const char *key) {
    json_t *number = json_object_get(row, key);
    (void)json_integer_set(number, json_integer_value(number) + 1);
}

static void take_case(collector *c, const json_t *line) {
    const char *failed = json_string_value(json_object_get(line, "failed"));
    const json_t *error = json_object_get(line, "error");
    json_t *row = operation_row(c, text_of(line, "operation"));
    if (!row)
        return;
    if (!json_is_true(json_object_get(line, "again"))) {
        count(row, "cases");
        c->cases++;
    }
    if (json_is_number(error) && json_number_value(error) > json_number_value(json_object_get(row, "largest_error")))
        (void)json_object_set_new(row, "largest_error", json_real(json_number_value(error)));
    if (failed) {
        count(row, "failed");
        add_failure(c, text_of(line, "operation"), text_of(line, "case"), failed);
    }
}

static void take_training(collector *c, const json_t *line) {
    size_t i;
    json_t *run;
    json_array_foreach(json_object_get(line, "rows"), i, run) {
        const char *failed = json_string_value(json_object_get(run, "failed"));
        c->cases++;
        append(c, c->training, json_incref(run));
        if (failed)
            add_failure(c, "training", text_of(run, "run"), failed);
    }
}

static void take_skip(collector *c, const json_t *line) {
    json_t *row = operation_row(c, text_of(line, "operation"));
    c->skipped++;
    if (row)
        (void)json_object_set(row, "skipped", json_object_get(line, "why"));
}

static void on_line(void *listener, char *text) {
    collector *c = listener;
    json_t *line = json_loads(text, 0, NULL);
    const char *event = text_of(line, "event");
    if (strcmp(event, "at") == 0)
        (void)snprintf(c->at, sizeof c->at, "%s: %s", text_of(line, "operation"), text_of(line, "case"));
    else if (strcmp(event, "case") == 0)
        take_case(c, line);
    else if (strcmp(event, "skip") == 0)
        take_skip(c, line);
    else if (strcmp(event, "training") == 0)
        take_training(c, line);
    else if (strcmp(event, "speed") == 0)
        (void)json_array_extend(c->speed, json_object_get(line, "rows"));
    else if (strcmp(event, "error") == 0)
        (void)snprintf(c->error, sizeof c->error, "%s", text_of(line, "text"));
    else if (strcmp(event, "done") == 0)
        c->done = true;
    json_decref(line);
}

/* ---- children ---------------------------------------------------------------------------------------------------- */

/* It broke off: one failure, with the case that was open and what was said last. */
static void add_stopped(collector *c, const od_child *child) {
    char how[700];
    od_child_outcome(child, how, sizeof how);
    if (c->error[0])
        (void)snprintf(how, sizeof how, "%s", c->error);
    else if (!how[0])
        (void)snprintf(how, sizeof how, "ended before its checks did");
    c->hangs += child->timed_out;
    append(c, c->stopped,
           json_pack("{s:s, s:s, s:s, s:s, s:s}", "group", c->group, "family", c->family, "how", how, "case", c->at,
                     "said", child->said));
    add_failure(c, c->group, c->at[0] ? c->at : "-", how);
}

static void progress(const collector *c, const od_child *child) {
    if (isatty(STDERR_FILENO))
        (void)fprintf(stderr, "\r\033[K%s: %s (%s), %.1f s; %u cases, %u failed", c->row->label, c->group, c->family,
                      child->seconds, c->cases, c->failed);
}

/* false: the rest of the row makes no sense. */
static bool run_child(collector *c, const char *group, od_family family, const char *scratch) {
    char setting[16];
    od_child child = {.setting = c->row->setting,
                      .timeout = c->options->timeout,
                      .on_line = on_line,
                      .listener = c,
                      .words = {c->options->program, "matrix", "--worker", "--group", group, "--kernels",
                                od_family_name(family), "--device", c->row->id, "--setting", setting, "--scratch",
                                scratch, c->options->quick ? "--quick" : NULL}};
    (void)snprintf(setting, sizeof setting, "%d", (int)(c->row->setting - od_settings));
    c->family = od_family_name(family);
    c->group = group;
    c->at[0] = c->error[0] = '\0';
    c->done = false;
    const od_status status = od_child_run(&child);
    if (status) {
        c->status = status;
        return false;
    }
    if (child.unknown)
        return false;
    if (!c->done || child.code != 0)
        add_stopped(c, &child);
    progress(c, &child);
    return !c->status && c->hangs < MAX_HANGS;
}

static bool is_wanted(const collector *c, const char *group) {
    return od_list_holds(c->options->groups, group);
}

static bool is_family_wanted(const collector *c, od_family family) {
    return !c->options->kernels || c->options->kernels == (int)family;
}

/* The groups of the families; all of a family in one child where the lists are short. */
static bool run_checks(collector *c, const char *scratch) {
    for (od_family f = OD_FAMILY_REF; f <= OD_FAMILY_GPU; f++) {
        if (!is_family_wanted(c, f))
            continue;
        if (c->options->quick && !c->options->groups[0]) {
            if (!run_child(c, "all", f, scratch))
                return false;
            continue;
        }
        for (const od_check_group *g = od_check_groups; g->name; g++)
            if (is_wanted(c, g->name) && !run_child(c, g->name, f, scratch))
                return false;
    }
    return true;
}

/* The device's own family (or the one that was asked for) trains and is timed; on a row that can afford it, the others
 * train too. */
static bool run_training(collector *c, const char *scratch) {
    const bool gpu = strcmp(text_of(c->row->device, "type"), "gpu") == 0;
    const od_family own = c->options->kernels ? (od_family)c->options->kernels : gpu ? OD_FAMILY_GPU : OD_FAMILY_CPU;
    if (!c->row->setting->training) {
        c->skipped++;
        return true;
    }
    for (od_family f = OD_FAMILY_REF; f <= OD_FAMILY_GPU; f++)
        if (is_wanted(c, "training") && is_family_wanted(c, f) && (f == own || !c->options->quick) &&
            !run_child(c, "training", f, scratch))
            return false;
    return !is_wanted(c, "speed") || run_child(c, "speed", own, scratch);
}

/* ---- the row ----------------------------------------------------------------------------------------------------- */

/* Its name; virtual machines show one name for many generations, so family and model too. */
static void processor_name(char *to, size_t size) {
    char line[512], name[160] = "unknown processor", family[16] = "", model[16] = "";
    const struct {
        const char *key;
        char *value;
        size_t size;
    } wanted[] = {
        {"model name\t", name, sizeof name}, {"cpu family\t", family, sizeof family}, {"model\t", model, sizeof model}};
    FILE *file = fopen("/proc/cpuinfo", "re");
    while (file && fgets(line, sizeof line, file) && line[0] != '\n') { /* of the first */
        const char *colon = strstr(line, ": ");
        for (size_t i = 0; i < sizeof wanted / sizeof *wanted && colon; i++)
            if (strncmp(line, wanted[i].key, strlen(wanted[i].key)) == 0)
                (void)snprintf(wanted[i].value, wanted[i].size, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
    }
    if (file)
        (void)fclose(file);
    if (family[0] && model[0])
        (void)snprintf(to, size, "%s (family %s, model %s)", name, family, model);
    else
        (void)snprintf(to, size, "%s", name);
}

static json_t *host_json(void) {
    struct utsname system = {0};
    char processor[200];
    (void)uname(&system);
    processor_name(processor, sizeof processor);
    return json_pack("{s:s, s:s, s:s, s:i}", "processor", processor, "system", system.sysname, "machine",
                     system.machine, "processors", (int)sysconf(_SC_NPROCESSORS_ONLN));
}

static od_status make_row(const collector *c, bool unknown, double seconds, json_t **out) {
    char date[32] = "";
    const time_t now = time(NULL);
    struct tm utc;
    if (gmtime_r(&now, &utc))
        (void)strftime(date, sizeof date, "%Y-%m-%d", &utc);
    *out = json_pack("{s:s, s:s, s:s, s:s, s:b, s:o, s:O, s:i, s:i, s:i, s:O, s:O, s:O, s:O, s:O, s:f}", "row",
                     c->row->label, "settings", c->row->setting->name, "offdiag", OD_VERSION, "date", date, "quick",
                     c->options->quick, "host", host_json(), "device", c->row->device, "cases", (int)c->cases, "failed",
                     (int)c->failed, "skipped", (int)c->skipped, "operations", c->operations, "failures", c->failures,
                     "stopped", c->stopped, "training", c->training, "speed", c->speed, "seconds", seconds);
    if (*out && (c->options->groups[0] || c->options->kernels))
        (void)json_object_set_new(
            *out, "only",
            json_sprintf("%s%s%s%s%s", c->options->groups[0] ? "--groups " : "", c->options->groups,
                         c->options->groups[0] && c->options->kernels ? " " : "",
                         c->options->kernels ? "--kernels " : "",
                         c->options->kernels ? od_family_name((od_family)c->options->kernels) : ""));
    if (*out && unknown)
        (void)json_object_set_new(*out, "left_out", json_string("the driver doesn't know this setting"));
    return *out ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
}

static int remove_one(const char *path, const struct stat *about, int kind, struct FTW *place) {
    (void)about;
    (void)kind;
    (void)place;
    (void)remove(path);
    return 0;
}

od_status od_matrix_run_row(const od_matrix_options *options, const od_matrix_row *row, json_t **out) {
    const char *parent = getenv("TMPDIR");
    char scratch[900];
    collector c = {.options = options,
                   .row = row,
                   .family = "",
                   .group = "",
                   .operations = json_array(),
                   .failures = json_array(),
                   .stopped = json_array(),
                   .training = json_array(),
                   .speed = json_array()};
    const double began = od_now();
    (void)snprintf(scratch, sizeof scratch, "%s/offdiag-matrix-XXXXXX", parent && *parent ? parent : "/tmp");
    *out = NULL;
    if (!mkdtemp(scratch))
        return od_fail(OD_ERR_IO, "%s: cannot make a folder there", scratch);
    const bool whole = run_checks(&c, scratch) && run_training(&c, scratch);
    const bool unknown = !whole && !c.status && c.hangs < MAX_HANGS;
    if (unknown) { /* what ran was another row's, under this one's name */
        c.cases = c.failed = c.skipped = 0;
        (void)json_array_clear(c.operations);
        (void)json_array_clear(c.failures);
    }
    if (unknown || c.hangs >= MAX_HANGS)
        c.skipped++; /* what was left of the row */
    od_status status = c.status ? c.status : make_row(&c, unknown, od_now() - began, out);
    (void)nftw(scratch, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    if (isatty(STDERR_FILENO))
        (void)fprintf(stderr, "\r\033[K");
    json_decref(c.operations);
    json_decref(c.failures);
    json_decref(c.stopped);
    json_decref(c.training);
    json_decref(c.speed);
    return status;
}
