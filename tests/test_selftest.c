/* The self-test finds what it is there to find: faults planted in its runner, and the command on a sound device. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "cli/selftest/runner.h"
#include "harness.h"
#include "run_cli.h"

/* ---- the runner -------------------------------------------------------------------------------------------------- */

enum { N = 100 };

typedef enum fault {
    NONE,
    WRONG,        /* one element off by 1 % */
    WRONG_LITTLE, /* all of them by 2e-5 */
    ONE_BIT,      /* where bits are compared */
    NOT_A_NUMBER,
    INFINITE,
    UNWRITTEN, /* the last element */
    PAST_END,
    BEFORE_BEGIN,
    INPUT_CHANGED,
    REFUSED, /* the operation itself fails */
    NOTHING_COMPARED,
    FAULTS
} fault;

static void put(od_check *k, od_span at, size_t element, float value) {
    (void)od_check_ran(k, od_span_write(od_span_at(at, element), &value, 1));
}

/* A case whose operation is a copy on the host, right but for the fault. */
static void run_case(od_check *k, fault f) {
    od_check_operation(k, "copy");
    od_check_case(k, "fault %d", f);
    float *x = od_check_normals(k, N, 0);
    double *ref = od_check_alloc(k, N * sizeof *ref);
    od_span in = od_check_input(k, x, N), out = od_check_output(k, N), same = od_check_output(k, N);
    cr_assert(od_check_ready(k));
    for (int i = 0; i < N; i++)
        ref[i] = x[i] * (f == WRONG_LITTLE ? 1 + 2e-5 : 1);
    (void)od_check_ran(k, od_span_write(out, x, f == UNWRITTEN ? N - 1 : N));
    (void)od_check_ran(k, od_span_write(same, x, N));
    if (f == WRONG)
        put(k, out, N / 2, x[N / 2] * 1.01f);
    if (f == ONE_BIT)
        put(k, same, N - 1, nextafterf(x[N - 1], 9));
    if (f == NOT_A_NUMBER || f == INFINITE)
        put(k, out, 3, f == INFINITE ? INFINITY : NAN);
    if (f == PAST_END)
        put(k, out, N, 0);
    if (f == BEFORE_BEGIN)
        put(k, (od_span){out.buffer, out.offset - 1}, 0, 0);
    if (f == INPUT_CHANGED)
        put(k, in, 0, x[0] + 1);
    if (f == REFUSED)
        (void)od_check_ran(k, od_fail(OD_ERR_UNSUPPORTED, "no such kernel"));
    if (f != NOTHING_COMPARED) {
        od_check_near(k, "out", out, ref, 1e-5);
        od_check_words(k, "same", same, x);
    }
    od_check_end(k);
}

Test(selftest, planted_faults_are_found) {
    static const char *const words[FAULTS] = {
        [WRONG] = "relative error",
        [WRONG_LITTLE] = "relative error",
        [ONE_BIT] = "word 99 of 100",
        [NOT_A_NUMBER] = "nan, not",
        [INFINITE] = "inf, not",
        [UNWRITTEN] = "largest at 99 of 100: nan",
        [PAST_END] = "written outside",
        [BEFORE_BEGIN] = "written outside",
        [INPUT_CHANGED] = "an input",
        [REFUSED] = "no such kernel",
        [NOTHING_COMPARED] = "nothing was compared",
    };
    od_device *device = od_test_device(OD_FAMILY_REF);
    const od_device_info *info = od_device_get_info(device);
    for (int aligned = 0; aligned < 2; aligned++)
        for (fault f = NONE; f < FAULTS; f++) {
            od_check k = {0};
            od_check_begin(&k, device, aligned);
            run_case(&k, f);
            cr_assert_eq(k.cases, 1);
            cr_assert_eq(k.failed, f != NONE, "fault %d: %u failed", f, k.failed);
            cr_assert_eq(k.rows[0].failed, k.failed);
            od_status status = od_check_verdict(&k, info);
            cr_assert_eq(status, f == NONE ? OD_OK : OD_ERR_NUMERIC);
            if (f != NONE) {
                cr_assert(strstr(k.told[0], words[f]), "fault %d: %s", f, k.told[0]);
                cr_assert(strstr(od_error_message(), k.told[0]) && strstr(od_error_message(), info->name) &&
                              strstr(od_error_message(), "1 of 1 cases failed"),
                          "%s", od_error_message());
            }
            bool unbounded = f == NOT_A_NUMBER || f == INFINITE || f == UNWRITTEN || f == ONE_BIT;
            cr_assert_eq(isinf(k.rows[0].worst) != 0, unbounded, "fault %d: worst %g", f, k.rows[0].worst);
            od_check_free(&k);
        }
    cr_assert_eq(od_device_memory(device).live, 0, "no tensor is left");
}

Test(selftest, one_failure_does_not_hide_others) {
    od_check k = {0};
    od_check_begin(&k, od_test_device(OD_FAMILY_REF), false);
    for (int i = 0; i < OD_CHECK_TOLD + 2; i++) {
        run_case(&k, WRONG);
        run_case(&k, NONE);
    }
    cr_assert_eq(k.cases, 2 * (OD_CHECK_TOLD + 2));
    cr_assert_eq(k.failed, OD_CHECK_TOLD + 2);
    cr_assert_eq(k.row_count, 1);
    cr_assert_eq(od_check_verdict(&k, od_device_get_info(k.device)), OD_ERR_NUMERIC);
    cr_assert(strstr(od_error_message(), "..."), "that there are more is said: %s", od_error_message());
    od_check_free(&k);
}

/* Right both times, but other bits at the second: the kind of result that a race or a sum in any order gives. */
static unsigned runs_until_odd, runs;
static void unsteady_group(od_check *k) {
    od_check_operation(k, "copy");
    for (int i = 0; i < 3; i++) {
        od_check_case(k, "number %d", i);
        float *x = od_check_normals(k, N, 0);
        double *ref = od_check_alloc(k, N * sizeof *ref);
        od_span out = od_check_output(k, N);
        cr_assert(od_check_ready(k));
        for (int j = 0; j < N; j++)
            ref[j] = x[j];
        (void)od_check_ran(k, od_span_write(out, x, N));
        if (++runs == runs_until_odd)
            put(k, out, 7, nextafterf(x[7], 9));
        od_check_near(k, "out", out, ref, 1e-5);
    }
}

Test(selftest, every_case_must_repeat_its_bits) {
    static const od_check_group group = {"unsteady", unsteady_group};
    od_device *device = od_test_device(OD_FAMILY_REF);
    for (unsigned odd = 0; odd <= 12; odd++) { /* two kinds of offset, twice three cases each */
        od_check k = {0};
        runs = 0;
        runs_until_odd = odd;
        cr_assert_eq(od_check_run(&k, device, &group), OD_OK);
        cr_assert_eq(runs, 12);
        cr_assert_eq(k.cases, 6, "the second run is no case of its own");
        cr_assert_eq(k.failed, odd > 0);
        cr_assert(odd == 0 || (strstr(k.told[0], "differ in their bits") && strstr(k.told[0], "copy (ref): number ")),
                  "%s", k.told[0]);
        od_check_free(&k);
    }
}

/* ---- the command ------------------------------------------------------------------------------------------------- */

TestSuite(selftest_command, .init = cli_setup, .fini = cli_teardown);

static const char *spec(void) {
    const char *device = getenv("OFFDIAG_TEST_DEVICE");
    return device && *device ? device : "auto";
}

static const char *const families[] = {"ref", "cpu", "gpu"};

/* One after the other, so that no run has to build all programs. The quick form takes one: the operations' own tests
 * cover all, and so does `offdiag matrix --quick` in tools/test. */
static void run_each_family(size_t count) {
    for (size_t f = 0; f < count; f++) {
        cli_result r = cli("selftest --device %s --kernels %s", spec(), families[f]);
        cli_expect(&r, 0, "");
        cr_assert(strstr(r.out, "driver ") && strstr(r.out, " cases, 0 failed\n") && !strstr(r.out, "FAIL"), "%s",
                  r.out);
        for (size_t other = 0; other < OD_COUNT(families); other++) {
            char row[40];
            (void)snprintf(row, sizeof row, "\nconv_forward           %s ", families[other]);
            cr_assert_eq(strstr(r.out, row) != NULL, other == f, "%s", r.out);
        }
    }
}

Test(selftest_command, tables_then_json_with_the_keys_that_scripts_read) {
    static const char *const operations[] = {
        "conv_forward",    "conv_backward_data", "conv_backward_weight", "gemm",
        "linear_backward", "bn_backward",        "maxpool_backward",     "augment",
        "offdiag_head",    "cosine_loss",        "fill_normal",          "knn_vote"};
    size_t i, cases = 0, found = 0;
    const size_t family_count = od_test_is_whole() ? OD_COUNT(families) : 1;
    run_each_family(family_count);
    cli_result r = cli("selftest --json --device %s%s", spec(), od_test_is_whole() ? "" : " --kernels ref");
    cli_expect(&r, 0, "");
    json_t *root = json_loads(r.out, JSON_REJECT_DUPLICATES, NULL), *row;
    cr_assert(json_is_object(root), "one JSON document and nothing else: %s", r.out);
    cr_assert(json_is_string(json_object_get(root, "device")) && json_is_string(json_object_get(root, "driver")));
    cr_assert_eq(json_integer_value(json_object_get(root, "failed")), 0);
    json_array_foreach(json_object_get(root, "rows"), i, row) {
        const char *operation = json_string_value(json_object_get(row, "operation"));
        const char *family = json_string_value(json_object_get(row, "family"));
        json_int_t count = json_integer_value(json_object_get(row, "cases"));
        json_t *error = json_object_get(row, "largest_error");
        cases += (size_t)count;
        cr_assert_neq(count > 0, json_is_string(json_object_get(row, "skipped")), "%s", operation);
        cr_assert(count == 0 || (json_is_number(error) && json_number_value(error) < 1e-5), "%s", operation);
        for (size_t o = 0; o < OD_COUNT(operations); o++)
            for (size_t f = 0; f < family_count; f++)
                found += count > 0 && !strcmp(operation, operations[o]) && !strcmp(family, families[f]);
    }
    cr_assert_eq(found, OD_COUNT(operations) * family_count, "each operation once in each family: %zu", found);
    cr_assert_eq((json_int_t)cases, json_integer_value(json_object_get(root, "cases")));
}

Test(selftest_command, wrong_device_and_usage) {
    cli_result r = cli("selftest --device voodoo"), list = cli("devices --json");
    json_t *root = json_loads(list.out, 0, NULL);
    json_t *first = json_array_get(json_object_get(root, "devices"), 0);
    cli_expect(&r, 1, "voodoo");
    cli_expect(&r, 1, json_string_value(json_object_get(first, "name"))); /* a candidate */
    cr_assert_str_eq(r.out, "");
    r = cli("selftest --kernels cgpu");
    cli_expect(&r, 2, "--kernels|gpu");
    r = cli("selftest --jsom");
    cli_expect(&r, 2, "--json");
}
