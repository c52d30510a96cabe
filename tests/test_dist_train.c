/* One run over several devices: what it comes to beside one device, resuming on another number of them, and devices
 * that fail. The same device opened several times stands for several. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/safetensors.h"
#include "harness.h"
#include "offdiag/device.h"
#include "run_cli.h"
#include "train/shares.h"

TestSuite(dist_train, .init = cli_setup, .fini = cli_teardown);

/* The test device's id, `count` times, with commas between. */
static const char *devices(int count) {
    static char text[256];
    od_device_info *infos = NULL;
    size_t found = 0, index = 0;
    const char *spec = getenv("OFFDIAG_TEST_DEVICE");
    OD_MUST(od_device_list(&infos, &found));
    OD_MUST(od_device_select(infos, found, spec ? spec : "auto", &index, NULL));
    text[0] = '\0';
    for (int i = 0; i < count; i++) {
        size_t used = strlen(text);
        (void)snprintf(text + used, sizeof text - used, "%s%s", i ? "," : "", infos[index].id);
    }
    free(infos);
    return text;
}

/* The largest difference of two checkpoints' tensors, each relative to its tensor's largest value. */
static double largest_difference(const char *a, const char *b, const char *prefix) {
    od_safetensors *file = NULL;
    double largest = 0;
    OD_MUST(od_safetensors_open(in_scratch("%s/checkpoint.safetensors", a), &file));
    cr_assert_gt(od_safetensors_count(file), 0);
    for (size_t i = 0; i < od_safetensors_count(file); i++) {
        const od_tensor *t = od_safetensors_at(file, i);
        size_t count = 0, others = 0;
        double apart = 0, scale = 1e-3; /* gradients that are zero but for rounding count as such */
        if (strncmp(t->name, prefix, strlen(prefix)) != 0)
            continue;
        float *x = read_tensor(in_scratch("%s", a), t->name, &count);
        float *y = read_tensor(in_scratch("%s", b), t->name, &others);
        cr_assert_eq(count, others);
        for (size_t j = 0; j < count; j++) {
            apart = fmax(apart, fabs(x[j] - y[j]));
            scale = fmax(scale, fabs(x[j]));
        }
        largest = fmax(largest, apart / scale);
        free(x);
        free(y);
    }
    od_safetensors_close(file);
    return largest;
}

static cli_result train_on(const char *run, int count, const char *more) {
    char arguments[600];
    (void)snprintf(arguments, sizeof arguments, "%s --device %s", more, devices(count));
    return tiny_train(run, arguments);
}

/* ---- the division ----------------------------------------------------------------------------------------------- */

Test(shares, are_in_proportion_with_at_least_one_and_never_past_a_cap) {
    int shares[4];
    cr_assert(od_shares_divide(shares, 16, (double[]){5, 3}, NULL, 2));
    cr_assert(shares[0] == 10 && shares[1] == 6, "%d:%d", shares[0], shares[1]);
    cr_assert(od_shares_divide(shares, 10, (double[]){1000, 1, 1}, NULL, 3));
    cr_assert(shares[0] == 8 && shares[1] == 1 && shares[2] == 1);
    cr_assert(od_shares_divide(shares, 100, (double[]){3, 1, 1, 1}, (int[]){20, 100, 30, 100}, 4));
    cr_assert_eq(shares[0], 20);
    cr_assert_eq(shares[0] + shares[1] + shares[2] + shares[3], 100);
    cr_assert(shares[1] >= 26 && shares[2] >= 26 && shares[3] >= 26);
    cr_assert_not(od_shares_divide(shares, 3, (double[]){1, 1, 1, 1}, NULL, 4));
    cr_assert_not(od_shares_divide(shares, 100, (double[]){1, 1}, (int[]){49, 50}, 2));
    cr_assert(od_shares_divide(shares, 99, (double[]){1, 1}, (int[]){49, 50}, 2));
    for (int n = 4; n < 200; n++) { /* nobody is later than need be: one image less never helps the slowest */
        const double weights[] = {7.3, 2.2, 11.9, 0.4};
        cr_assert(od_shares_divide(shares, n, weights, NULL, 4));
        double latest = 0;
        int sum = 0;
        for (int i = 0; i < 4; i++) {
            cr_assert_geq(shares[i], 1);
            sum += shares[i];
            latest = fmax(latest, shares[i] > 1 ? shares[i] / weights[i] : 0);
        }
        cr_assert_eq(sum, n);
        for (int i = 0; i < 4; i++)
            cr_assert_geq((shares[i] + 1) / weights[i], latest * (1 - 1e-12));
    }
    cr_assert_eq(od_shares_first((int[]){5, 3, 2}, 2), 8);
}

Test(shares, a_split_is_as_many_numbers_as_devices) {
    static const char *const bad[] = {"", "5", "5:3:1", "5:", ":3", "5:0", "5:-3", "5:x", "5;3", "5:inf", "nan:1"};
    double weights[2];
    OD_MUST(od_shares_parse(weights, "5:3", 2));
    cr_assert(weights[0] == 5 && weights[1] == 3);
    OD_MUST(od_shares_parse(weights, "0.5:1e2", 2));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(od_shares_parse(weights, bad[i], 2), OD_ERR_USAGE, "'%s' was taken", bad[i]);
        cr_assert(strstr(od_error_message(), "--split"), "%s", od_error_message());
    }
}

Test(shares, rates_and_spread_follow_from_times) {
    double rates[2];
    od_shares_rates(rates, (int[]){10, 6}, (double[]){2, 3}, 2);
    cr_assert(rates[0] == 5 && rates[1] == 2);
    cr_assert_float_eq(od_shares_spread((double[]){2, 3}, 2), 1.0 / 3, 1e-12);
    cr_assert_eq(od_shares_spread((double[]){2, 2, 2}, 3), 0);
}

Test(shares, devices_that_do_not_pay_are_left_out) {
    bool pays[3];
    od_shares_measured m = {.n = 100,
                            .count = 3,
                            .rates = (double[]){100, 90, 1},
                            .needed = (bool[]){false, false, false},
                            .together = 1.2, /* the third needs a second for one image */
                            .overhead = 0.1,
                            .best = 0,
                            .best_alone = 1};
    double seconds = od_shares_paying(pays, &m);
    cr_assert(pays[0] && pays[1] && !pays[2]);
    cr_assert(seconds > 0.6 && seconds < 0.7, "%g s", seconds);
    m.needed = (bool[]){true, false, true}; /* the third is the only one of its rank */
    m.together = 1.1;
    (void)od_shares_paying(pays, &m);
    cr_assert(pays[0] && pays[1] && pays[2]);
    m.needed = (bool[]){false, false, false};
    m.together = 1.2;
    m.overhead = 0.9; /* exchange costs more than the second one gives */
    cr_assert_float_eq(od_shares_paying(pays, &m), 1, 1e-12);
    cr_assert(pays[0] && !pays[1] && !pays[2]);
    m.together = 0.6;
    cr_assert_float_eq(od_shares_paying(pays, &m), 0.6, 1e-12);
    cr_assert(pays[0] && pays[1] && pays[2]);
}

/* ---- several devices beside one --------------------------------------------------------------------------------- */

/* One step: parameters, statistics and target. The optimiser's momentum is the gradient. */
Test(dist_train, a_step_on_two_devices_is_that_of_one) {
    static const char *const settings[] = {"--head none", "--head offdiag --method byol --micro-batch 8",
                                           "--head linear --loss cosine --online-linear",
                                           "--head mlp --method byol --loss cosine", "--head directpred --out-norm l2"};
    for (int i = 0; i < 5; i++) {
        char one[32], two[32], more[200];
        (void)snprintf(one, sizeof one, "one%d", i);
        (void)snprintf(two, sizeof two, "two%d", i);
        (void)snprintf(more, sizeof more, "%s --steps 1 --eval-every 0 --quiet --warmup 0", settings[i]);
        cli_result r = train_on(one, 1, more);
        cli_expect(&r, 0, "");
        (void)snprintf(more, sizeof more, "%s --steps 1 --eval-every 0 --quiet --warmup 0 --split 5:3", settings[i]);
        r = train_on(two, 2, more);
        cli_expect(&r, 0, "");
        double parameters = largest_difference(one, two, ""), gradients = largest_difference(one, two, "optimizer.");
        cr_log_info("%s: %.1e, gradients %.1e", settings[i], parameters, gradients);
        cr_expect_lt(parameters, 2e-5, "%s: tensors %g apart", settings[i], parameters);
        cr_expect_gt(largest_difference(one, two, ""), 0, "%s: the second device took no part", settings[i]);
    }
}

static double figure(const char *run, const char *event, int index, const char *key) {
    json_t *line = metrics_line(run, event, index);
    double value = json_number_value(json_object_get(line, key));
    json_decref(line);
    return value;
}

/* Losses of 50 steps, and what the epochs tell. On real images: with the made-up ones one device does not stay with
 * itself to 1e-3 when its kernels round otherwise. */
Test(dist_train, fifty_steps_on_three_devices_stay_with_one) {
    static const char data[] = "/usr/share/datasets/fashion-mnist";
    static const char *const settings[] = {"--head offdiag --lr 0.01 --head-lr 1 --online-linear",
                                           "--head mlp --method byol --loss cosine --lr 0.001 --head-lr 1"};
    od_test_needs_whole();
    if (access(data, R_OK) != 0)
        cr_skip_test("dataset-fashion-mnist is not installed");
    for (int i = 0; i < 2; i++) {
        char one[32], three[32], more[300];
        (void)snprintf(one, sizeof one, "one%d", i);
        (void)snprintf(three, sizeof three, "three%d", i);
        const int used =
            snprintf(more, sizeof more, "%s --steps 50 --dataset fashion-mnist --data %s --limit 256 --knn-queries %d",
                     settings[i], data, TINY_TEST);
        cli_result r = train_on(one, 1, more);
        cli_expect(&r, 0, "");
        (void)snprintf(more + used, sizeof more - (size_t)used, " --split 8:5:3");
        r = train_on(three, 3, more);
        cli_expect(&r, 0, "8 of 16 images|5 of 16 images|3 of 16 images");
        for (int step = 0; step < 50; step++) {
            double a = figure(one, "step", step, "loss"), b = figure(three, "step", step, "loss");
            cr_assert_lt(fabs(a - b), 1e-3 * fmax(1, fabs(a)), "%s: step %d: %g and %g", settings[i], step, a, b);
        }
        cr_assert_float_eq(figure(one, "epoch", -1, "effective_rank"), figure(three, "epoch", -1, "effective_rank"),
                           0.05);
        cr_assert_float_eq(figure(one, "epoch", -1, "knn"), figure(three, "epoch", -1, "knn"), 2.0 / TINY_TEST);
        cr_assert_float_eq(figure(one, "epoch", -1, "feature_rank"), figure(three, "epoch", -1, "feature_rank"), 0.05);
        if (i == 0)
            cr_assert_float_eq(figure(one, "epoch", -1, "online_linear"), figure(three, "epoch", -1, "online_linear"),
                               2.0 / TINY_TEST);
    }
}

/* A recorded split gives the same bits each time, and is in config.json. */
Test(dist_train, one_split_gives_the_same_bits) {
    for (int i = 0; i < 2; i++) {
        cli_result r = train_on(i ? "b" : "a", 2, "--steps 20 --split 5:3 --method byol --quiet");
        cli_expect(&r, 0, "");
    }
    cr_assert_eq(differing_tensors(in_scratch("a"), in_scratch("b"), ""), 0);
    json_t *run = json_object_get(read_json(in_scratch("a/config.json")), "run");
    const json_t *first = json_array_get(json_object_get(run, "devices"), 0);
    cr_assert_eq(json_array_size(json_object_get(run, "devices")), 2);
    cr_assert_eq(json_integer_value(json_object_get(first, "share")), 10);
    cr_assert_eq(json_array_size(json_object_get(run, "splits")), 1);
}

/* Without --split: measured first; whether the second one pays is the machine's affair, but it is said. */
Test(dist_train, a_split_is_found_by_measurement) {
    cli_result r = train_on("run", 2, "--steps 20");
    cli_expect(&r, 0, "");
    cr_assert(strstr(r.err, "of 16 images") || strstr(r.err, "does not pay and is left out"), "%s", r.err);
}

/* ---- resuming --------------------------------------------------------------------------------------------------- */

Test(dist_train, resumes_on_another_number_of_devices) {
    od_test_needs_whole();
    char more[200];
    (void)snprintf(more, sizeof more, "%s --online-linear --method byol --quiet", tiny_long);
    cli_result r = train_on("whole", 1, more);
    cli_expect(&r, 0, "");
    (void)snprintf(more, sizeof more, "--online-linear --method byol --device %s --split 5:3", devices(2));
    r = tiny_interrupt("parts", more, 8, SIGTERM);
    cli_expect(&r, 130, "interrupted at step");
    int at = metrics_count("parts", "step");
    r = cli("train --resume --out %s --device %s --split 1:1:2", in_scratch("parts"), devices(3));
    cli_expect(&r, 0, "This run had 2 devices, now 3");
    cr_assert_eq(metrics_count("parts", "step"), metrics_count("whole", "step"));
    for (int step = 0; step < at + 20 && step < metrics_count("whole", "step"); step++) {
        double a = figure("whole", "step", step, "loss"), b = figure("parts", "step", step, "loss");
        cr_assert_lt(fabs(a - b), 2e-3 * fmax(1, fabs(a)), "step %d: %g and %g", step, a, b);
    }
}

/* With the same devices a resumed run is bit for bit the whole one. */
Test(dist_train, resumes_on_the_same_devices_with_the_same_bits) {
    char more[200];
    (void)snprintf(more, sizeof more, "--device %s --split 5:3 --rebalance=false", devices(2));
    cli_result r = tiny_interrupt("parts", more, 8, SIGTERM);
    cli_expect(&r, 130, "interrupted at step");
    r = cli("train --resume --quiet --out %s", in_scratch("parts"));
    cli_expect(&r, 0, "");
    (void)snprintf(more, sizeof more, "%s --split 5:3 --quiet --rebalance=false", tiny_long);
    r = train_on("whole", 2, more);
    cli_expect(&r, 0, "");
    cr_assert_eq(differing_tensors(in_scratch("whole"), in_scratch("parts"), ""), 0);
}

/* Shares that are far from the devices' speeds are corrected at the first epoch's end, and stay where they are right.
 */
Test(dist_train, a_split_follows_the_devices_own_times) {
    char more[200];
    (void)snprintf(more, sizeof more, "--device %s --split 15:1 --eval-every 0", devices(2));
    cli_result r = tiny_interrupt("run", more, 8, SIGTERM);
    cli_expect(&r, 130, "interrupted at step");
    (void)setenv("OFFDIAG_IMAGE_SECONDS", "0.1:0.3", 1); /* in place of the clock */
    r = cli("train --resume --out %s --split=", in_scratch("run"));
    (void)unsetenv("OFFDIAG_IMAGE_SECONDS");
    cli_expect(&r, 0, "own times differed by 80 %: from here on they take 12:4 of 16 images");
    cr_assert_eq(metrics_count("run", "split"), 1);
    json_t *line = metrics_line("run", "split", 0);
    cr_assert_eq(json_integer_value(json_object_get(line, "step")) % TINY_EPOCH, 0);
    const json_t *about = json_object_get(read_json(in_scratch("run/config.json")), "run");
    const json_t *splits = json_object_get(about, "splits"), *last = json_array_get(splits, 2);
    cr_assert_eq(json_array_size(splits), 3, "the start, the resumption, the correction");
    cr_assert_eq(json_integer_value(json_array_get(json_object_get(last, "shares"), 0)), 12);
}

/* ---- failures --------------------------------------------------------------------------------------------------- */

static void fault(const char *what, int device, int n) {
    char text[64];
    (void)snprintf(text, sizeof text, "%s:%d:%d", what, device, n);
    (void)setenv("OFFDIAG_FAULT", text, 1);
}

/* The run undisturbed; launches (count): half of each device's. Setup and the last evaluation together are shorter than
 * 60 steps: a fault there is in a step. */
static void count_launches(const char *run, int count, const char *more, int *launches) {
    char text[200] = "";
    for (int i = 0; i < count; i++) {
        const size_t used = strlen(text);
        (void)snprintf(text + used, sizeof text - used, "%slaunch:%d:1000000000", i ? "," : "", i);
    }
    (void)setenv("OFFDIAG_FAULT", text, 1);
    (void)setenv("OFFDIAG_LOG", "fault", 1);
    cli_result r = train_on(run, count, more);
    (void)unsetenv("OFFDIAG_LOG");
    (void)unsetenv("OFFDIAG_FAULT");
    cli_expect(&r, 0, "");
    for (int i = 0; i < count; i++) {
        (void)snprintf(text, sizeof text, "launch:%d: ", i);
        const char *line = strstr(r.err, text);
        cr_assert_not_null(line, "no \"%s\" in: %s", text, r.err);
        launches[i] = (int)strtol(line + strlen(text), NULL, 10) / 2;
        cr_assert_gt(launches[i], 100);
    }
}

/* A device that is lost ends the run after a checkpoint of the last complete step: what follows is what would have
 * followed. The leader's own is no exception. */
Test(dist_train, a_lost_device_leaves_a_checkpoint_and_is_named) {
    static const char more[] = "--steps 60 --eval-every 0 --split 5:3 --quiet --method byol";
    int launches[2];
    count_launches("whole", 2, more, launches);
    for (int device = 0; device < 2; device++) {
        char run[32];
        (void)snprintf(run, sizeof run, "lost%d", device);
        fault("launch", device, launches[device]);
        cli_result r = train_on(run, 2, more);
        (void)unsetenv("OFFDIAG_FAULT");
        cli_expect(&r, 1, "device |the checkpoint of step |goes on");
        int at = metrics_count(run, "step");
        cr_assert(at > 0 && at < 60, "lost at step %d", at);
        r = cli("train --resume --quiet --out %s", in_scratch("%s", run));
        cli_expect(&r, 0, "");
        cr_assert_eq(metrics_count(run, "step"), 60);
        cr_assert_eq(differing_tensors(in_scratch("whole"), in_scratch("%s", run), ""), 0, "device %d", device);
    }
}

/* With --keep-going the others take its share, and no step is lost. */
Test(dist_train, the_others_go_on_without_a_lost_device) {
    int launches[3];
    count_launches("whole", 3, "--steps 60 --split 5:3:8 --quiet --method byol --online-linear", launches);
    for (int device = 0; device < 2; device++) {
        char run[32];
        (void)snprintf(run, sizeof run, "lost%d", device);
        fault("launch", device, launches[device]);
        cli_result r = train_on(run, 3, "--steps 60 --split 5:3:8 --method byol --online-linear --keep-going");
        (void)unsetenv("OFFDIAG_FAULT");
        cli_expect(&r, 0, "the run goes on without");
        cr_assert_eq(metrics_count(run, "step"), 60);
        for (int step = 0; step < 60; step++) {
            double a = figure("whole", "step", step, "loss"), b = figure(run, "step", step, "loss");
            cr_assert_lt(fabs(a - b), 2e-3 * fmax(1, fabs(a)), "step %d: %g and %g", step, a, b);
        }
        json_t *about = json_object_get(read_json(in_scratch("%s/config.json", run)), "run");
        cr_assert_eq(json_array_size(json_object_get(about, "devices")), 2);
        cr_assert_eq(json_array_size(json_object_get(about, "splits")), 2);
    }
}

/* A device whose memory does not hold its share gets less. */
Test(dist_train, a_device_with_too_little_memory_gets_less) {
    fault("memory", 1, 8);
    cli_result r = train_on("run", 2, "--steps 3 --split 1:1");
    (void)unsetenv("OFFDIAG_FAULT");
    cli_expect(&r, 0, "of 16 images");
    cr_assert_null(strstr(r.err, "8 of 16"), "%s", r.err);
}

/* ---- evaluation ------------------------------------------------------------------------------------------------- */

/* Features in ranges, votes and the sweep's rates divided: what one device finds. */
Test(dist_train, several_devices_evaluate_as_one) {
    cli_result r = train_on("run", 1, "--steps 20 --eval-every 0 --quiet");
    cli_expect(&r, 0, "");
    static const char *const protocols[] = {"knn", "linear --epochs 5"};
    for (int i = 0; i < 2; i++) {
        double found[2];
        for (int count = 1; count <= 2; count++) {
            r = cli("eval %s --json --device %s --protocol %s", in_scratch("run"), devices(count), protocols[i]);
            cli_expect(&r, 0, "");
            found[count - 1] = cli_accuracy(&r);
        }
        cr_assert_gt(found[0], 0.1, "%s: %g", protocols[i], found[0]);
        cr_assert_eq(found[0], found[1], "%s: %g on one, %g on two", protocols[i], found[0], found[1]);
    }
    for (int count = 1; count <= 3; count += 2) {
        r = cli("embed %s --device %s --out %s", in_scratch("run"), devices(count), in_scratch("%d.npy", count));
        cli_expect(&r, 0, "");
    }
    size_t bytes[2];
    char *one = slurp(in_scratch("1.npy"), &bytes[0]), *three = slurp(in_scratch("3.npy"), &bytes[1]);
    cr_assert(bytes[0] == bytes[1] && memcmp(one, three, bytes[0]) == 0, "features differ");
    r = cli("eval %s --protocol linear --folds --device %s", in_scratch("run"), devices(2));
    cli_expect(&r, 2, "--folds");
}

/* ---- mistakes --------------------------------------------------------------------------------------------------- */

Test(dist_train, mistakes_are_one_line) {
    static const struct {
        const char *more, *words;
        int devices, code;
    } cases[] = {{"--split 5:3:1", "--split 5:3:1: 3 numbers for 2 devices", 2, 2},
                 {"--split 5:x", "--split 5:x: expected numbers", 2, 2},
                 {"--micro-batch 2 --split 1:1:1", "2 images at a time are fewer than the 3 devices", 3, 2},
                 {"--data /nonexistent", "/nonexistent", 2, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char more[200];
        (void)snprintf(more, sizeof more, "--quiet --steps 2 %s", cases[i].more);
        cli_result r = train_on("run", cases[i].devices, more);
        cli_expect(&r, cases[i].code, cases[i].words);
        const char *newline = strchr(r.err, '\n');
        cr_assert(newline && newline[1] == '\0', "expected one line, found:\n%s", r.err);
    }
}
