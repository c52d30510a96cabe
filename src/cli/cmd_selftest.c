/* offdiag selftest: known answers of every operation, on one device, for each kernel family. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "base/options.h"
#include "cli/cli.h"
#include "cli/selftest/runner.h"

typedef struct selftest_args {
    char device[256];
    int kernels;
    bool all, json;
} selftest_args;

static const char *const kernels[] = {"all", "ref", "cpu", "gpu", NULL};

#define T selftest_args
static const od_option rows[] = {
    OD_OPT_STRING(T, device, "device", "SPEC", "device (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_CHOICE(T, kernels, "kernels", kernels, "kernel family, or all of them"),
    OD_OPT_FLAG(T, all, "all", "the long case lists, and every variant that takes a shape"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
};
#undef T

static json_t *row_json(const od_check_row *r) {
    json_t *worst = r->cases > 0 && isfinite(r->worst) ? json_real(r->worst) : json_null();
    return json_pack("{s:s, s:s, s:i, s:i, s:o, s:s*}", "operation", r->operation, "family", od_family_name(r->family),
                     "cases", (int)r->cases, "failed", (int)r->failed, "largest_error", worst, "skipped",
                     r->skipped[0] ? r->skipped : NULL);
}

static od_status print_json(const od_check *k, const od_device_info *info) {
    json_t *array = json_array();
    od_status status = OD_OK;
    for (size_t i = 0; i < k->row_count && !status; i++)
        if (json_array_append_new(array, row_json(&k->rows[i])))
            status = od_fail(OD_ERR_MEMORY, "no memory for JSON");
    json_t *root = json_pack("{s:s, s:s, s:s, s:s, s:i, s:i, s:O}", "device", info->name, "id", info->id, "platform",
                             info->platform, "driver", info->driver, "cases", (int)k->cases, "failed", (int)k->failed,
                             "rows", array);
    if (!status)
        status = root ? od_json_print(root) : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    json_decref(root);
    json_decref(array);
    return status;
}

static void print_row(const od_check_row *r) {
    printf("%-22s %-6s ", r->operation, od_family_name(r->family));
    if (r->skipped[0])
        printf("%6s %14s  skipped: %s\n", "-", "-", r->skipped);
    else if (r->failed)
        printf("%6u %14.2g  FAIL (%u)\n", r->cases, r->worst, r->failed);
    else
        printf("%6u %14.2g  pass\n", r->cases, r->worst);
}

static void print_table(const od_check *k, const od_device_info *info) {
    printf("device %s %s (%s), driver %s\n\n", info->id, info->name, info->platform, info->driver);
    printf("%-22s %-6s %6s %14s\n", "operation", "family", "cases", "largest error");
    for (size_t i = 0; i < k->row_count; i++)
        print_row(&k->rows[i]);
    printf("\n%u cases, %u failed\n", k->cases, k->failed);
}

od_status cmd_selftest(int argc, char **argv) {
    selftest_args a = {0};
    const od_options table = {rows, sizeof rows / sizeof *rows, &a};
    od_positionals none = {.usage = "",
                           .about = "Each operation's kernels against known answers in double precision, twice."};
    od_device_info info = {0};
    bool help = false;
    od_status status = od_options_parse(&table, 1, &none, argc, argv, &help);
    if (status || help)
        return status;
    od_check *k = calloc(1, sizeof *k);
    if (!k)
        return od_fail(OD_ERR_MEMORY, "no memory for the self-test");
    k->wide = a.all;
    for (od_family f = OD_FAMILY_REF; f <= OD_FAMILY_GPU && !status; f++) {
        if (a.kernels && a.kernels != (int)f)
            continue;
        const od_device_options options = {.family = f};
        od_device *device = NULL;
        if (!(status = od_device_open(a.device, &options, &device))) {
            info = *od_device_get_info(device);
            status = od_check_family(k, device);
        }
        od_device_close(device);
    }
    if (!status && a.json)
        status = print_json(k, &info);
    else if (!status)
        print_table(k, &info);
    if (!status)
        status = od_check_verdict(k, &info);
    od_check_free(k);
    free(k);
    return status;
}
