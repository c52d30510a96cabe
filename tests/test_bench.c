/* `offdiag bench`: the documents that scripts read, the device's limits, and the work that launches tell. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/limits.h"
#include "offdiag/ops/optim.h"
#include "offdiag/ops/pointwise.h"
#include "run_cli.h"

/* ---- work -------------------------------------------------------------------------------------------------------- */

enum { N = 1000, M = 30, K = 1500 };

static void expect_work(const od_device *device, double flop, double bytes, unsigned launches, unsigned untold) {
    const od_work_done done = od_device_work(device);
    cr_assert_eq(done.work.flop, flop, "%g operations, not %g", done.work.flop, flop);
    cr_assert_eq(done.work.bytes, bytes, "%g bytes, not %g", done.work.bytes, bytes);
    cr_assert_eq(done.launches, launches);
    cr_assert_eq(done.untold, untold);
}

Test(bench_work, is_counted_until_the_next_reset) {
    od_device *device = NULL;
    cr_assert_eq(od_device_open(getenv("OFFDIAG_TEST_DEVICE"), NULL, &device), OD_OK);
    od_span a, b, c;
    cr_assert_eq(od_span_create(device, M * K, &a), OD_OK);
    cr_assert_eq(od_span_create(device, M * K, &b), OD_OK);
    cr_assert_eq(od_span_create(device, M * M, &c), OD_OK);
    cr_assert_eq(od_fill_normal(device, a, M * K, 1, 1, 0), OD_OK);
    cr_assert_eq(od_fill_normal(device, b, M * K, 1, 1, 1), OD_OK);
    expect_work(device, 0, 0, 2, 2);
    od_device_profile_reset(device);
    cr_assert_eq(od_add(device, a, a, b, N), OD_OK);
    expect_work(device, N, 12.0 * N, 1, 0);
    cr_assert_eq(od_scale(device, a, 1, N), OD_OK);
    expect_work(device, 2.0 * N, 20.0 * N, 2, 0);
    cr_assert_eq(od_add(device, a, a, b, 0), OD_OK); /* no launch */
    expect_work(device, 2.0 * N, 20.0 * N, 2, 0);
    od_device_profile_reset(device);
    const od_gemm_shape shape = {.trans_b = true, .m = M, .n = M, .k = K};
    cr_assert_eq(od_gemm_variant(device, "ref", &shape, c, a, b, 1, 0), OD_OK);
    const double flop = 2.0 * M * M * K, bytes = 4.0 * (2 * M * K + M * M);
    expect_work(device, flop, bytes, 1, 0);
    /* Slices of k: the same products, and partial results that are written, read and added up. */
    od_device_profile_reset(device);
    cr_assert_eq(od_gemm_variant(device, "cpu", &shape, c, a, b, 1, 0), OD_OK);
    const od_work_done done = od_device_work(device);
    cr_assert_eq(done.untold, 0);
    cr_assert(done.work.flop >= flop && done.work.flop < 1.1 * flop, "%g", done.work.flop);
    cr_assert(done.work.bytes >= bytes && done.work.bytes < 1.5 * bytes, "%g", done.work.bytes);
    od_buffer_release(a.buffer);
    od_buffer_release(b.buffer);
    od_buffer_release(c.buffer);
    od_device_close(device);
}

Test(bench_work, is_in_the_profile_of_its_kernel) {
    const od_device_options options = {.profile = true};
    od_device *device = NULL;
    od_profile_row *rows = NULL;
    size_t count = 0;
    od_span a;
    cr_assert_eq(od_device_open(getenv("OFFDIAG_TEST_DEVICE"), &options, &device), OD_OK);
    cr_assert_eq(od_span_create(device, N, &a), OD_OK);
    cr_assert_eq(od_fill_normal(device, a, N, 1, 1, 0), OD_OK);
    for (int i = 0; i < 3; i++)
        cr_assert_eq(od_scale(device, a, 2, N), OD_OK);
    cr_assert_eq(od_device_profile(device, &rows, &count), OD_OK);
    cr_assert_eq(count, 2);
    for (size_t i = 0; i < count; i++) {
        const bool scale = strstr(rows[i].kernel, "pointwise:scale") != NULL;
        cr_assert_eq(rows[i].launches, scale ? 3 : 1);
        cr_assert_eq(rows[i].work.flop, scale ? 3.0 * N : 0);
        cr_assert_eq(rows[i].work.bytes, scale ? 24.0 * N : 0);
    }
    free(rows);
    od_buffer_release(a.buffer);
    od_device_close(device);
}

/* ---- limits ------------------------------------------------------------------------------------------------------ */

/* Either cut of the kernels, and within a budget that is smaller than what a pass takes by itself. */
Test(bench_limits, are_positive_for_each_shape_and_keep_to_the_budget) {
    const od_device_options options = {.memory_bytes = 32 << 20};
    od_device *device = NULL;
    cr_assert_eq(od_device_open(getenv("OFFDIAG_TEST_DEVICE"), &options, &device), OD_OK);
    const od_family shapes[] = {OD_FAMILY_AUTO, OD_FAMILY_CPU, OD_FAMILY_GPU};
    for (size_t i = 0; i < OD_COUNT(shapes); i++) {
        od_limits limits = {0};
        cr_assert_eq(od_limits_measure(device, shapes[i], &limits), OD_OK, "%s", od_error_message());
        cr_assert(isfinite(limits.gflop_per_s) && limits.gflop_per_s > 0.1, "%g GFLOP/s", limits.gflop_per_s);
        cr_assert(isfinite(limits.gb_per_s) && limits.gb_per_s > 0.05, "%g GB/s", limits.gb_per_s);
    }
    const od_memory_use use = od_device_memory(device);
    cr_assert_eq(use.live, 0, "no buffer is left");
    cr_assert(use.peak <= use.budget);
    od_device_close(device);
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

TestSuite(bench, .init = cli_setup, .fini = cli_teardown);

static json_t *document_of(const char *arguments) {
    const char *device = getenv("OFFDIAG_TEST_DEVICE");
    cli_result r = cli("bench %s --json --device %s", arguments, device && *device ? device : "auto");
    cli_expect(&r, 0, "");
    json_t *root = json_loads(r.out, JSON_REJECT_DUPLICATES, NULL);
    cr_assert(json_is_object(root), "one JSON document and nothing else: %s", r.out);
    cr_assert(json_is_string(json_object_get(root, "device")));
    return root;
}

static double number(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    cr_assert(json_is_number(value) && isfinite(json_number_value(value)), "%s is no number", key);
    return json_number_value(value);
}

/* The keys are there; numbers where the kernels told their work (caches can beat the memory, nothing the arithmetic).
 */
static bool rates_are_sound(const json_t *object) {
    cr_assert_not_null(json_object_get(object, "gb_per_s"));
    cr_assert_not_null(json_object_get(object, "percent_of_arithmetic"));
    cr_assert_not_null(json_object_get(object, "percent_of_bandwidth"));
    if (json_is_null(json_object_get(object, "gb_per_s"))) {
        cr_assert(json_is_null(json_object_get(object, "percent_of_arithmetic")));
        cr_assert(json_is_null(json_object_get(object, "percent_of_bandwidth")));
        return false;
    }
    const double arithmetic = number(object, "percent_of_arithmetic");
    cr_assert(arithmetic >= 0 && arithmetic < 150, "%g %% of the arithmetic limit", arithmetic);
    cr_assert(number(object, "percent_of_bandwidth") > 0 && number(object, "gb_per_s") > 0);
    return true;
}

/* Rates follow from each other and from the limits. */
static void limits_fit(const json_t *root, const json_t *object) {
    cr_assert(number(root, "limit_gflop_per_s") > 0 && number(root, "limit_gb_per_s") > 0);
    const double percent = 100 * number(object, "gb_per_s") / number(root, "limit_gb_per_s");
    cr_assert_float_eq(number(object, "percent_of_bandwidth"), percent, 1e-6 * percent);
}

static json_t *rows_of(const char *arguments, bool told) {
    json_t *root = document_of(arguments), *rows = json_object_get(root, "rows"), *row;
    size_t i;
    cr_assert_gt(json_array_size(rows), 10);
    json_array_foreach(rows, i, row) {
        static const char *const texts[] = {"op", "shape", "variant"};
        for (size_t t = 0; t < OD_COUNT(texts); t++)
            cr_assert(json_is_string(json_object_get(row, texts[t])), "%s", texts[t]);
        cr_assert(number(row, "seconds") > 0 && number(row, "gflop_per_s") > 0);
        if (rates_are_sound(row))
            limits_fit(root, row);
        else
            cr_assert(!told, "a row without its work");
    }
    return root;
}

Test(bench, gemm) {
    json_t *root = rows_of("gemm --runs 3", true), *row = json_array_get(json_object_get(root, "rows"), 0);
    /* Of a product, the operations are those of its definition: the same rate from both. */
    const double percent = 100 * number(row, "gflop_per_s") / number(root, "limit_gflop_per_s");
    cr_assert_float_eq(number(row, "percent_of_arithmetic"), percent, 0.05 * percent);
}

Test(bench, conv) {
    rows_of("conv --width 4 --batch 2 --runs 1", false);
}

enum { PARAMETERS = 703748 }; /* of width 4 */

Test(bench, step) {
    static const char *const numbers[] = {
        "width",          "batch",      "parameters",     "seconds", "cpu_seconds", "gflop_per_s", "limit_gflop_per_s",
        "limit_gb_per_s", "peak_bytes", "peak_rss_bytes", "gflop",   "launches",    "images_per_s"};
    json_t *root = document_of("step --width 4 --batch 4 --runs 5 --profile"), *row;
    for (size_t i = 0; i < OD_COUNT(numbers); i++)
        cr_assert_gt(number(root, numbers[i]), 0, "%s", numbers[i]);
    cr_assert(json_is_array(json_object_get(root, "ref_variants_used")));
    cr_assert(json_is_string(json_object_get(root, "device_type")));
    cr_assert_eq(number(root, "parameters"), PARAMETERS, "torch_step.py counts as many");
    cr_assert_lt(number(root, "last_loss"), number(root, "first_loss") - 0.1, "it learns");
    cr_assert(rates_are_sound(root));
    limits_fit(root, root);
    cr_assert_leq(number(root, "untold_launches"), number(root, "launches"));
    size_t i, gemm = 0;
    double sgd = 0;
    json_array_foreach(json_object_get(root, "profile"), i, row) {
        cr_assert(json_is_string(json_object_get(row, "kernel")));
        cr_assert(number(row, "seconds") > 0 && number(row, "launches") > 0);
        cr_assert_eq(rates_are_sound(row), number(row, "bytes") > 0);
        if (strstr(json_string_value(json_object_get(row, "kernel")), "optim:sgd"))
            sgd += number(row, "bytes");
        gemm += strstr(json_string_value(json_object_get(row, "kernel")), "gemm") && number(row, "gflop_per_s") > 0;
    }
    cr_assert(gemm > 0, "matrix products tell their work");
    cr_assert(sgd >= 20.0 * PARAMETERS && sgd < 20.2 * PARAMETERS, "%g bytes: each weight read and written once", sgd);
}

Test(bench, text_says_the_limits_and_the_percents) {
    cli_result r = cli("bench step --width 4 --batch 2 --runs 1 --profile");
    cli_expect(&r, 0, "");
    cr_assert(strstr(r.out, ": at most ") && strstr(r.out, " images/s") && strstr(r.out, " % of arithmetic") &&
                  strstr(r.out, "GFLOP/s     %     GB/s     %"),
              "%s", r.out);
}

/* ---- several devices --------------------------------------------------------------------------------------------- */

TestSuite(bench_team, .init = cli_setup, .fini = cli_teardown);

Test(bench_team, step_over_two_devices) {
    cli_result r = cli("bench step --device 0:0,0:0 --split 5:3 --width 4 --batch 8 --runs 1 --json");
    json_error_t error;
    cli_expect(&r, 0, "");
    json_t *root = json_loads(r.out, JSON_REJECT_DUPLICATES, &error);
    const json_t *devices = json_object_get(root, "devices");
    cr_assert_eq(json_array_size(devices), 2, "%s", r.out);
    for (size_t i = 0; i < 2; i++) {
        const json_t *d = json_array_get(devices, i);
        cr_assert_eq(json_integer_value(json_object_get(d, "share")), i ? 3 : 5);
        cr_assert_gt(json_real_value(json_object_get(d, "images_per_s_alone")), 0);
        cr_assert_gt(json_real_value(json_object_get(d, "work_seconds")), 0);
        cr_assert_eq(strncmp(json_string_value(json_object_get(d, "device")), "0:0: ", 5), 0);
    }
    const double seconds = json_real_value(json_object_get(root, "seconds"));
    cr_assert_float_eq(json_real_value(json_object_get(root, "images_per_s")) * seconds, 8, 1e-6);
    cr_assert_gt(json_real_value(json_object_get(root, "efficiency")), 0);
    cr_assert_gt(json_real_value(json_object_get(root, "reduction_seconds")), 0);
    const double hidden = json_real_value(json_object_get(root, "overlapped"));
    cr_assert(hidden >= 0 && hidden <= 1);
    /* width 4: 220,000 parameters at least, four bytes each */
    cr_assert_gt(json_real_value(json_object_get(root, "gradient_bytes")), 4 * 100000);
}

Test(bench_team, wrong_use) {
    cli_result r = cli("bench step --device 0:0,0:0 --profile");
    cli_expect(&r, 2, "--profile");
    r = cli("bench step --device 0:0 --split 1:1");
    cli_expect(&r, 2, "--split");
    r = cli("bench step --device 0:0,0:0 --split 1:1:1 --width 4 --batch 8");
    cli_expect(&r, 2, "--split");
    r = cli("bench step --device 0:0,0:0 --width 4 --batch 2 --split 1:0");
    cli_expect(&r, 2, "--split");
}
