/* One model over drivers that have nothing in common, in one process: PoCL beside rusticl/llvmpipe and beside Intel's
 * CPU runtime. tools/setup_drivers installs them; a pair that is not here is skipped. */
#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "harness.h"
#include "offdiag/device.h"
#include "replicas.h"
#include "run_cli.h"

/* Every driver file of a folder, into the scratch folder that the loader reads. */
static void add_vendors(const char *from) {
    DIR *dir = opendir(from);
    for (const struct dirent *e = dir ? readdir(dir) : NULL; e; e = readdir(dir)) {
        char path[1024];
        size_t bytes = 0;
        (void)snprintf(path, sizeof path, "%s/%s", from, e->d_name);
        char *text = strstr(e->d_name, ".icd") ? slurp(path, &bytes) : NULL;
        if (text)
            spew(in_scratch("vendors/%s", e->d_name), text, bytes);
        free(text);
    }
    if (dir)
        (void)closedir(dir);
}

/* Before the first OpenCL call of the test's process: all drivers in one. */
static void setup(void) {
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char intel[1024];
    if (cache && *cache)
        (void)snprintf(intel, sizeof intel, "%s/offdiag/drivers/intel/vendors", cache);
    else
        (void)snprintf(intel, sizeof intel, "%s/.cache/offdiag/drivers/intel/vendors", home ? home : "");
    cli_setup();
    cr_assert_eq(mkdir(in_scratch("vendors"), 0700), 0);
    add_vendors("/etc/OpenCL/vendors");
    add_vendors(intel);
    (void)setenv("OCL_ICD_VENDORS", in_scratch("vendors"), 1);
    (void)setenv("RUSTICL_ENABLE", "llvmpipe", 1);
}

TestSuite(unlike, .init = setup, .fini = cli_teardown, .timeout = 3600);

/* Ids of the first usable device of PoCL and of this platform; the test is skipped where one is missing. */
static void find_pair(const char *platform, char ids[2][24]) {
    const char *const wanted[] = {"portable computing", platform};
    od_device_info *infos = NULL;
    size_t count = 0;
    OD_MUST(od_device_list(&infos, &count));
    for (int w = 0; w < 2; w++) {
        ids[w][0] = '\0';
        for (size_t i = 0; i < count && !ids[w][0]; i++)
            if (infos[i].usable && strcasestr(infos[i].platform, wanted[w]))
                memcpy(ids[w], infos[i].id, sizeof ids[w]);
        if (!ids[w][0]) {
            free(infos);
            cr_skip_test("no device of %s here (tools/setup_drivers)", wanted[w]);
        }
    }
    free(infos);
}

static void open_pair(const char *platform, od_device **devices) {
    char ids[2][24];
    find_pair(platform, ids);
    for (int i = 0; i < 2; i++)
        OD_MUST(od_device_open(ids[i], NULL, &devices[i]));
}

/* One step: each head with SimSiam and with BYOL, beside PoCL alone. */
static void check_step(const char *platform) {
    od_device *devices[2];
    open_pair(platform, devices);
    for (size_t m = 0; m < replica_method_count; m++) {
        const od_model_config c = replica_config(m, "cnn4", 8);
        replica_outcome alone = replica_alone(devices[0], &c, 1, 1);
        for (size_t s = 0; s < 2; s++) {
            replica_outcome out = replica_team(devices, &c, &replica_splits[s], 1);
            const double apart = replica_compare(replica_method_name(m), replica_splits[s].name, &out, &alone, 1e-5);
            cr_log_info("%s, %s: %.1e", replica_method_name(m), replica_splits[s].name, apart);
            replica_outcome_free(&out);
        }
        replica_outcome_free(&alone);
    }
    for (int i = 0; i < 2; i++)
        od_device_close(devices[i]);
}

static void check_fifty(const char *platform) {
    od_device *devices[2];
    open_pair(platform, devices);
    for (size_t m = 1; m < replica_method_count; m += 5) { /* SimSiam with offdiag, BYOL with mlp */
        const od_model_config c = replica_config(m, "cnn4", 8);
        replica_outcome alone = replica_alone(devices[0], &c, 1, 50);
        replica_outcome out = replica_team(devices, &c, &replica_splits[1], 50);
        const double loss = fabs(out.loss - alone.loss) / fabs(alone.loss);
        const double values = replica_distance(&out.value, &alone.value);
        cr_log_info("%s: loss %.1e, weights %.1e", replica_method_name(m), loss, values);
        cr_expect_lt(loss, 1e-3, "%s: loss %.6f, alone %.6f", replica_method_name(m), out.loss, alone.loss);
        cr_expect_lt(values, 1e-3, "%s: weights differ by %.2g", replica_method_name(m), values);
        replica_outcome_free(&out);
        replica_outcome_free(&alone);
    }
    for (int i = 0; i < 2; i++)
        od_device_close(devices[i]);
}

Test(unlike, a_step_of_pocl_and_rusticl_is_that_of_one) {
    check_step("rusticl");
}

Test(unlike, a_step_of_pocl_and_intel_is_that_of_one) {
    check_step("intel(r) opencl");
}

Test(unlike, fifty_steps_of_pocl_and_rusticl) {
    check_fifty("rusticl");
}

Test(unlike, fifty_steps_of_pocl_and_intel) {
    check_fifty("intel(r) opencl");
}

/* A whole run over the pair. */
static void check_run(const char *platform) {
    char ids[2][24];
    find_pair(platform, ids);
    char more[200];
    (void)snprintf(more, sizeof more,
                   "--steps 4 --method byol --head mlp --loss cosine --quiet --split 5:3 --device %s,%s", ids[0],
                   ids[1]);
    cli_result r = tiny_train("pair", more);
    cli_expect(&r, 0, "");
    (void)snprintf(more, sizeof more, "--steps 4 --method byol --head mlp --loss cosine --quiet --device %s", ids[0]);
    r = tiny_train("one", more);
    cli_expect(&r, 0, "");
    for (int step = 0; step < 4; step++) {
        json_t *a = metrics_line("pair", "step", step), *b = metrics_line("one", "step", step);
        const double pair = json_number_value(json_object_get(a, "loss")),
                     one = json_number_value(json_object_get(b, "loss"));
        cr_expect_lt(fabs(pair - one), 1e-3 * fmax(1, fabs(one)), "step %d: %g and %g", step, pair, one);
        json_decref(a);
        json_decref(b);
    }
    json_t *about = json_object_get(read_json(in_scratch("pair/config.json")), "run");
    cr_assert_eq(json_array_size(json_object_get(about, "devices")), 2);
}

Test(unlike, a_run_on_pocl_and_intel) {
    check_run("intel(r) opencl");
}

/* rusticl compiles for minutes before it can be measured. */
Test(unlike, a_device_that_does_not_pay_is_left_out) {
    char ids[2][24], more[200];
    cli_set_patience(900);
    find_pair("rusticl", ids);
    (void)snprintf(more, sizeof more, "--steps 30 --eval-every 0 --device %s,%s", ids[0], ids[1]);
    cli_result r = tiny_train("run", more);
    cli_expect(&r, 0, "llvmpipe|does not pay and is left out");
    cr_assert_eq(metrics_count("run", "step"), 30);
}
