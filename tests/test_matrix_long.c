/* `offdiag matrix` trains; and a run that begins on one device and goes on on another: other drivers, other kernel
 * families, other rounding. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "run_cli.h"

TestSuite(matrix_long, .init = cli_setup, .fini = cli_teardown);

enum { STEPS = 40, EARLY = 6 };

static const struct {
    const char *name, *variable, *value, *options;
    bool fetched; /* its driver is there after tools/setup_drivers; value: its place in that folder */
} others[] = {
    {"PoCL, basic", "POCL_DEVICES", "basic", "--kernels ref", false},
    {"Intel's CPU runtime", "OCL_ICD_VENDORS", "intel/vendors", "--kernels gpu", true},
    {"rusticl", "RUSTICL_ENABLE", "llvmpipe", "--device llvmpipe", false},
};

/* A run on the first device, stopped in the middle; the step it came to. */
static int stopped_run(const char *name, const char *options) {
    cli_child child = tiny_start(name, options);
    for (int ms = 0; ms < 60000 && metrics_count(name, "step") < EARLY; ms += 2)
        (void)usleep(2000);
    (void)kill(child.pid, SIGTERM);
    cli_result stopped = cli_wait(child);
    cli_expect(&stopped, 130, "interrupted at step");
    const int at = (int)json_integer_value(json_object_get(metrics_line(name, "step", -1), "step"));
    cr_assert_lt(at, STEPS, "it was stopped in the middle");
    return at;
}

static double loss_of(const char *run, int step) {
    return json_number_value(json_object_get(metrics_line(run, "step", step), "loss"));
}

/* The same run, and from step `at` on one that is the same within tolerance. */
static void compare(const char *name, const char *run, int at) {
    int differ = 0;
    cr_assert_eq(metrics_count(run, "step"), STEPS, "%s", name);
    for (int i = 0; i < STEPS; i++) {
        const double a = loss_of("whole", i), b = loss_of(run, i);
        cr_assert(i >= at || a == b, "%s, step %d, before the change: %.9g and %.9g", name, i + 1, a, b);
        cr_assert_lt(fabs(a - b), 1e-3 * fabs(a), "%s, step %d: %.9g and %.9g", name, i + 1, a, b);
        differ += a != b;
    }
    cr_assert_gt(differ, 0, "%s: it did run elsewhere", name);
}

Test(matrix_long, a_row_trains) {
    cli_set_patience(900);
    cli_result r = cli("matrix --quick --device auto --kernels cpu --groups training --json");
    cli_expect(&r, 0, "1 of 1: ");
    const json_t *row = json_array_get(json_object_get(json_loads(r.out, 0, NULL), "devices"), 0);
    const json_t *run = json_array_get(json_object_get(row, "training"), 0);
    cr_assert(json_is_number(json_object_get(run, "largest_difference")) && !json_object_get(run, "failed"), "%s",
              r.out);
}

Test(matrix_long, a_run_goes_on_on_another_device_and_says_so) {
    static const char options[] = "--steps 40 --checkpoint-every 3 --lr 0.002 --head-lr 1";
    const char *home = getenv("HOME");
    cli_set_patience(900); /* rusticl compiles for a minute */
    cli_result devices = cli("devices");
    if (!strstr(devices.out, "Portable Computing Language") || getenv("OFFDIAG_DEVICE"))
        cr_skip_test("needs PoCL");
    cli_result whole = tiny_train("whole", options);
    cli_expect(&whole, 0, "");
    for (size_t i = 0; i < OD_COUNT(others); i++) {
        char value[512], run[8];
        (void)snprintf(value, sizeof value, "%s%s%s", others[i].fetched ? home ? home : "" : "",
                       others[i].fetched ? "/.cache/offdiag/drivers/" : "", others[i].value);
        (void)snprintf(run, sizeof run, "run%zu", i);
        if (others[i].fetched && access(value, R_OK) != 0) {
            cr_log_warn("%s is not here (tools/setup_drivers)", others[i].name);
            continue;
        }
        const int at = stopped_run(run, options);
        (void)setenv(others[i].variable, value, 1);
        devices = cli("devices");
        if (!strstr(others[i].options, "llvmpipe") || strstr(devices.out, "llvmpipe")) {
            cli_result resumed = cli("train --resume %s --out %s", others[i].options, in_scratch("%s", run));
            cli_expect(&resumed, 0, "another device|pthread|within tolerance");
            compare(others[i].name, run, at);
        } else
            cr_log_warn("%s is not here (tools/setup --with-tests)", others[i].name);
        (void)unsetenv(others[i].variable);
    }
}
