/* The other side of a child process: one group of checks on one device, told as a JSON object a line.
 *
 *   {"event":"at", "case"}                                                  before each case: where a crash happened
 *   {"event":"case", "operation", "case", "error", "failed"}                after it; failed: why, if it did
 *   {"event":"skip", "operation", "why"}
 *   {"event":"training", ...}, {"event":"speed", "rows":[...]}
 *   {"event":"error", "text"}, {"event":"done"}                             the last line: without it, it broke off */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/json.h"
#include "cli/matrix/run.h"
#include "cli/selftest/runner.h"

typedef struct worker_args {
    char device[256], group[64], scratch[1024];
    int kernels, setting;
    bool quick;
} worker_args;

#define T worker_args
static const od_option rows[] = {
    OD_OPT_STRING(T, device, "device", "SPEC", "device"),
    OD_OPT_STRING(T, group, "group", "NAME", "conv, dense, ..., all, training or speed"),
    OD_OPT_CHOICE(T, kernels, "kernels", od_family_names, "kernel family"),
    OD_OPT_STRING(T, scratch, "scratch", "DIR", "folder for files"),
    OD_OPT_INT(T, setting, "setting", 0, 1000, "place in the table of settings"),
    OD_OPT_FLAG(T, quick, "quick", "the short lists"),
};
#undef T

typedef struct teller {
    FILE *to; /* our parent: what was our stdout, so that a driver's chatter goes to stderr instead */
    const od_setting *setting;
    off_t heard; /* bytes of stderr that were looked at */
    char complaint[240];
} teller;

static void tell(teller *t, json_t *object) {
    if (object && json_dumpf(object, t->to, JSON_COMPACT) == 0 && fputc('\n', t->to) != EOF && fflush(t->to) == 0) {
        json_decref(object);
        return;
    }
    (void)fprintf(stderr, "cannot tell the result of a check\n");
    json_decref(object);
}

static void case_name(char *to, size_t size, const od_check *k) {
    (void)snprintf(to, size, "%s, %s offsets", k->name, k->aligned ? "aligned" : "odd");
}

static void tell_case(od_check *k) {
    char name[160];
    case_name(name, sizeof name, k);
    tell(k->listener, json_pack("{s:s, s:s, s:s}", "event", "at", "operation", k->row->operation, "case", name));
}

static void tell_result(od_check *k) {
    char name[160], why[320] = "";
    const bool failed = k->counted;
    if (k->again && !failed) /* the first run's line stands */
        return;
    case_name(name, sizeof name, k);
    (void)snprintf(why, sizeof why, "%s%s", k->again ? "the second run: " : "", k->why);
    tell(k->listener, json_pack("{s:s, s:s, s:s, s:o, s:s*, s:b}", "event", "case", "operation", k->row->operation,
                                "case", name, "error", isfinite(k->case_worst) ? json_real(k->case_worst) : json_null(),
                                "failed", failed ? why : NULL, "again", k->again));
}

/* What a driver that watches kernels has said on stderr since we looked last. */
static const char *find_complaint(od_check *k) {
    teller *t = k->listener;
    char text[8192];
    struct stat about;
    if (fstat(STDERR_FILENO, &about) || !S_ISREG(about.st_mode) || about.st_size <= t->heard)
        return NULL;
    const ssize_t got = pread(STDERR_FILENO, text, sizeof text - 1, t->heard);
    text[got > 0 ? got : 0] = '\0';
    t->heard = about.st_size;
    for (size_t i = 0; i < OD_SETTING_WORDS && t->setting->complaints[i]; i++) {
        const char *found = strstr(text, t->setting->complaints[i]);
        if (!found)
            continue;
        (void)snprintf(t->complaint, sizeof t->complaint, "%.220s", found);
        for (char *c = t->complaint; *c; c++)
            if (*c == '\n' || *c == '\t')
                *c = ' ';
        return t->complaint;
    }
    return NULL;
}

/* The groups named: one, or all. */
static od_status run_checks(teller *t, const worker_args *a, od_device *device) {
    od_check *k = calloc(1, sizeof *k);
    if (!k)
        return od_fail(OD_ERR_MEMORY, "no memory for the checks");
    k->wide = !a->quick;
    k->work_limit = t->setting->work_limit;
    k->on_case = tell_case;
    k->on_result = tell_result;
    k->complaint = find_complaint;
    k->listener = t;
    od_status status = OD_OK;
    bool found = false;
    for (const od_check_group *g = od_check_groups; g->name && !status; g++)
        if (strcmp(a->group, g->name) == 0 || strcmp(a->group, "all") == 0) {
            found = true;
            status = od_check_run(k, device, g);
        }
    for (size_t i = 0; i < k->row_count; i++)
        if (k->rows[i].skipped[0])
            tell(t, json_pack("{s:s, s:s, s:s}", "event", "skip", "operation", k->rows[i].operation, "why",
                              k->rows[i].skipped));
    od_check_free(k);
    free(k);
    return status || found ? status : od_fail(OD_ERR_USAGE, "there is no group of checks '%s'", a->group);
}

static od_status run_group(teller *t, const worker_args *a) {
    const od_device_options options = {.family = (od_family)a->kernels};
    od_device *device = NULL;
    json_t *result = NULL;
    od_status status = OD_OK;
    if (strcmp(a->group, "training") == 0) {
        if (!(status = od_matrix_train(a->device, (od_family)a->kernels, a->quick, a->scratch, &result)))
            tell(t, json_pack("{s:s, s:o}", "event", "training", "rows", result));
        return status;
    }
    if ((status = od_device_open(a->device, &options, &device)))
        return status;
    if (strcmp(a->group, "speed") != 0)
        status = run_checks(t, a, device);
    else if (!(status = od_matrix_speed(device, a->quick, &result)))
        tell(t, json_pack("{s:s, s:o}", "event", "speed", "rows", result));
    od_device_close(device);
    return status;
}

od_status od_matrix_worker(int argc, char **argv) {
    worker_args a = {0};
    const od_options table = {rows, sizeof rows / sizeof *rows, &a};
    od_positionals none = {.usage = "", .about = "One group of checks, for `offdiag matrix`."};
    bool help = false;
    int settings = 0;
    od_status status = od_options_parse(&table, 1, &none, argc, argv, &help);
    if (status || help)
        return status;
    while (od_settings[settings].name)
        settings++;
    if (a.setting >= settings)
        return od_fail(OD_ERR_USAGE, "there is no setting %d", a.setting);
    const int report = dup(STDOUT_FILENO);
    teller t = {.to = report >= 0 ? fdopen(report, "w") : NULL, .setting = &od_settings[a.setting]};
    if (!t.to || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
        return od_fail(OD_ERR_IO, "standard output: cannot write");
    status = run_group(&t, &a);
    tell(&t, status ? json_pack("{s:s, s:s}", "event", "error", "text", od_error_message())
                    : json_pack("{s:s}", "event", "done"));
    (void)fclose(t.to);
    return status;
}
