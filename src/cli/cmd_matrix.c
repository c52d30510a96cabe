/* offdiag matrix: on which devices offdiag is right, and how fast. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/text.h"
#include "cli/cli.h"
#include "cli/matrix/run.h"
#include "cli/selftest/runner.h"

static const char *const kernels[] = {"all", "ref", "cpu", "gpu", NULL};

#define T od_matrix_options
static const od_option rows[] = {
    OD_OPT_STRING(T, device, "device", "SPEC,...",
                  "rows to run: devices as elsewhere, or a part of a row's name (default: all rows)"),
    OD_OPT_FLAG(T, quick, "quick", "fewer shapes and steps: under a minute on PoCL"),
    OD_OPT_STRING(T, groups, "groups", "NAME,...",
                  "only these checks: conv, dense, norm, pointwise, pool, loss, optim, augment, knn, theory, training, "
                  "speed"),
    OD_OPT_CHOICE(T, kernels, "kernels", kernels, "kernel family, or each of them"),
    OD_OPT_INT(T, timeout, "timeout", 1, 86400, "seconds that a case, a training run or the timing may take"),
    OD_OPT_FLAG(T, list, "list", "only list the rows"),
    OD_OPT_HEADING("Other forms"),
    OD_OPT_FLAG(T, merge, "merge", "one table from the JSON files of several machines"),
    OD_OPT_FLAG(
        T, offline, "offline",
        "every kernel through the vendors' compilers, no device needed; --device: gfx90a,sm_80,...; --quick: one "
        "target a vendor, only conv, dense and norm"),
    OD_OPT_HEADING("Output"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
    OD_OPT_FLAG(T, markdown, "markdown", "a Markdown table"),
    OD_OPT_FLAG(T, html, "html", "one HTML page, nothing loaded from elsewhere"),
    OD_OPT_STRING(T, out, "out", "FILE", "write there instead of to standard output"),
};
#undef T

od_status od_matrix_write(const od_matrix_options *options, const char *text, size_t bytes) {
    if (options->out[0])
        return od_file_write_atomic(options->out, text, bytes);
    return fwrite(text, 1, bytes, stdout) == bytes ? OD_OK : od_fail(OD_ERR_IO, "standard output: cannot write");
}

static od_status check_groups(const od_matrix_options *o) {
    const char *names[OD_CHECK_GROUPS + 3] = {"training", "speed"};
    char text[sizeof o->groups], *rest = NULL;
    for (size_t i = 0; i < OD_CHECK_GROUPS && od_check_groups[i].name; i++)
        names[i + 2] = od_check_groups[i].name;
    (void)snprintf(text, sizeof text, "%s", o->groups);
    for (const char *group = strtok_r(text, ",", &rest); group; group = strtok_r(NULL, ",", &rest)) {
        size_t i = 0;
        while (names[i] && strcmp(names[i], group) != 0)
            i++;
        if (!names[i])
            return od_fail(OD_ERR_USAGE, "--groups: there is no group '%s'; the nearest one is '%s'", group,
                           od_nearest(group, names));
    }
    return OD_OK;
}

static od_status check(od_matrix_options *o, const od_positionals *files) {
    if (o->json + o->markdown + o->html > 1)
        return od_fail(OD_ERR_USAGE, "--json, --markdown and --html: one of them");
    if (o->merge && o->offline)
        return od_fail(OD_ERR_USAGE, "--merge and --offline: one of them");
    if (o->merge != (files->count > 0))
        return od_fail(OD_ERR_USAGE, o->merge ? "--merge needs the JSON files of earlier runs"
                                              : "files are for --merge: offdiag matrix --merge FILE.json ...");
    o->format = o->json ? OD_MATRIX_JSON : o->markdown ? OD_MATRIX_MARKDOWN : o->html ? OD_MATRIX_HTML : OD_MATRIX_TEXT;
    return check_groups(o);
}

static od_status list_rows(const od_matrix_rows *found) {
    size_t i;
    const json_t *note;
    for (i = 0; i < found->count; i++)
        printf("%-5s %s\n", found->rows[i].id, found->rows[i].label);
    json_array_foreach(found->notes, i, note) {
        (void)fprintf(stderr, "%s\n", json_string_value(note));
    }
    return OD_OK;
}

static od_status run_rows(const od_matrix_options *o, const od_matrix_rows *found) {
    json_t *results = json_array(), *document = NULL;
    od_status status = results ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    for (size_t i = 0; i < found->count && !status; i++) {
        json_t *result = NULL;
        if ((status = od_matrix_run_row(o, &found->rows[i], &result)))
            break;
        (void)fprintf(stderr, "%zu of %zu: %s: %lld cases, %lld failed, %.0f s\n", i + 1, found->count,
                      found->rows[i].label, (long long)json_integer_value(json_object_get(result, "cases")),
                      (long long)json_integer_value(json_object_get(result, "failed")),
                      json_number_value(json_object_get(result, "seconds")));
        if (json_array_append_new(results, result))
            status = od_fail(OD_ERR_MEMORY, "no memory for JSON");
    }
    if (status) {
        json_decref(results);
        return status;
    }
    if (!(status = od_matrix_document(results, &document)) && !o->device[0] &&
        json_object_set(document, "notes", found->notes))
        status = od_fail(OD_ERR_MEMORY, "no memory for JSON");
    if (!status && !(status = od_matrix_report(o, document)))
        status = od_matrix_verdict(document);
    json_decref(document);
    return status;
}

static od_status run(const od_matrix_options *o) {
    od_matrix_rows found;
    od_status status = od_matrix_rows_find(o, &found);
    if (!status)
        status = o->list ? list_rows(&found) : run_rows(o, &found);
    od_matrix_rows_free(&found);
    return status;
}

static od_status merge(const od_matrix_options *o, const od_positionals *files) {
    json_t *document = NULL;
    od_status status = od_matrix_merge(files->values, files->count, &document);
    if (!status && !(status = od_matrix_report(o, document)))
        status = od_matrix_verdict(document);
    json_decref(document);
    return status;
}

od_status cmd_matrix(int argc, char **argv) {
    char program[4096];
    od_matrix_options o = {.timeout = 600, .program = program};
    const od_options table = {rows, sizeof rows / sizeof *rows, &o};
    od_positionals files = {.max = OD_MAX_POSITIONALS,
                            .usage = "[--merge FILE.json...]",
                            .about = "Every operation, variant and shape on every device and driver setting that this "
                                     "machine has, each group of\nchecks in a process of its own."};
    bool help = false;
    if (argc > 1 && strcmp(argv[1], "--worker") == 0)
        return od_matrix_worker(argc - 1, argv + 1);
    od_status status = od_options_parse(&table, 1, &files, argc, argv, &help);
    if (status || help || (status = check(&o, &files)))
        return status;
    if (o.merge)
        return merge(&o, &files);
    if (o.offline)
        return od_matrix_offline(&o);
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0)
        return od_fail(OD_ERR_IO, "/proc/self/exe: cannot find this program's own file");
    program[length] = '\0';
    return run(&o);
}
