/* The study of heads: its statistics, and that it can be stopped anywhere. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "run_cli.h"
#include "train/study.h"

TestSuite(study, .init = cli_setup, .fini = cli_teardown);

static const char tiny[] =
    "--dataset mnist --downsample 2 --augment grey --encoder cnn4 --width 4 --proj-hidden 16 "
    "--proj-dim 8 --head-hidden 8 --batch 16 --steps 48 --warmup 5 --lr 0.05 --knn-k 5 --knn-bank 0 "
    "--knn-queries 0 --limit 0 --checkpoint-every 8 --linear-epochs 1 --linear-lr 0.1";

/* ---- statistics ------------------------------------------------------------------------------------------------- */

Test(study, mean_and_deviation_by_hand) {
    const double values[] = {2, 4, NAN, 4, 6}; /* mean 4, squares 4 + 0 + 0 + 4 over 3 */
    od_study_mean m = od_study_mean_of(values, 5);
    cr_assert_eq(m.n, 4);
    cr_assert_float_eq(m.mean, 4, 1e-12);
    cr_assert_float_eq(m.std, sqrt(8.0 / 3), 1e-12);
    m = od_study_mean_of(values, 1);
    cr_assert(m.n == 1 && m.mean == 2 && isnan(m.std));
    m = od_study_mean_of(values + 2, 1);
    cr_assert(m.n == 0 && isnan(m.mean) && isnan(m.std));
    const double far[] = {1e9 + 1, 1e9 + 2, 1e9 + 3};
    cr_assert_float_eq(od_study_mean_of(far, 3).std, 1, 1e-6);
}

Test(study, a_heads_figures_are_those_of_its_finished_runs) {
    od_study_run runs[6] = {0};
    od_study s = {
        .config = {.heads = {OD_HEAD_NONE, OD_HEAD_OFFDIAG}, .head_count = 2, .seeds = 3}, .runs = runs, .count = 6};
    for (int i = 0; i < 6; i++) {
        runs[i].state = i == 4 ? OD_STUDY_FAILED : OD_STUDY_DONE;
        runs[i].figures[OD_STUDY_KNN] = i;
    }
    cr_assert(od_study_done(&s, 0) == 3 && od_study_done(&s, 1) == 2);
    cr_assert_float_eq(od_study_of_head(&s, 0, OD_STUDY_KNN).mean, 1, 1e-12);
    cr_assert_float_eq(od_study_of_head(&s, 0, OD_STUDY_KNN).std, 1, 1e-12);
    cr_assert_float_eq(od_study_of_head(&s, 1, OD_STUDY_KNN).mean, 4, 1e-12); /* 3 and 5 */
    cr_assert_float_eq(od_study_of_head(&s, 1, OD_STUDY_KNN).std, sqrt(2), 1e-12);
}

/* ---- studies ---------------------------------------------------------------------------------------------------- */

static json_t *document(const cli_result *r) {
    json_error_t error;
    json_t *json = json_loads(r->out, JSON_REJECT_DUPLICATES, &error);
    cr_assert_not_null(json, "%s: %s", r->out, error.text);
    return json;
}

static const json_t *row(const json_t *study, const char *list, size_t i) {
    return json_array_get(json_object_get(study, list), i);
}

static double mean_of(const json_t *head, const char *figure, const char *which) {
    const json_t *value = json_object_get(json_object_get(head, figure), which);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static void wait_for_steps(const char *run, int steps) {
    const struct timespec pause = {.tv_nsec = 2000000};
    for (int i = 0; i < 30000 && metrics_count(run, "step") < steps; i++)
        (void)nanosleep(&pause, NULL);
}

/* Killed in its second run; the same command finishes it, and gives what a study in one go gives. */
Test(study, a_killed_study_goes_on_where_it_was) {
    struct stat before, after;
    cli_child child = cli_start("study heads %s --data %s --out %s --heads none,offdiag --seeds 2 --quiet", tiny,
                                in_scratch("data"), in_scratch("parts"));
    wait_for_steps("parts/none-seed1", 20);
    (void)kill(child.pid, SIGKILL);
    cr_assert_eq(cli_wait(child).signal, SIGKILL);
    cr_assert_eq(access(in_scratch("parts/none-seed0/result.json"), F_OK), 0);
    cr_assert_neq(access(in_scratch("parts/none-seed1/result.json"), F_OK), 0);
    cr_assert_eq(stat(in_scratch("parts/none-seed0/checkpoint.safetensors"), &before), 0);
    cli_result r = cli("study heads --out %s --json --report %s", in_scratch("parts"), in_scratch("study.html"));
    cli_expect(&r, 0, "none-seed0: done before");
    cr_assert_eq(stat(in_scratch("parts/none-seed0/checkpoint.safetensors"), &after), 0);
    cr_assert(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec && before.st_ino == after.st_ino,
              "a finished run ran again");
    cr_assert_eq(metrics_count("parts/none-seed1", "step"), 48);
    json_t *parts = document(&r);
    r = cli("study heads %s --data %s --out %s --heads none,offdiag --seeds 2 --quiet --json", tiny, in_scratch("data"),
            in_scratch("whole"));
    cli_expect(&r, 0, "");
    json_t *whole = document(&r);
    cr_assert(json_equal(json_object_get(parts, "heads"), json_object_get(whole, "heads")), "other figures");
    cr_assert_eq(json_integer_value(json_object_get(row(whole, "heads", 1), "n")), 2);
    for (size_t head = 0; head < 2; head++) {
        double a = json_number_value(json_object_get(row(whole, "runs", 2 * head), "knn"));
        double b = json_number_value(json_object_get(row(whole, "runs", 2 * head + 1), "knn"));
        cr_assert_float_eq(mean_of(row(whole, "heads", head), "knn", "mean"), (a + b) / 2, 1e-12);
        cr_assert_float_eq(mean_of(row(whole, "heads", head), "knn", "std"), fabs(a - b) / sqrt(2), 1e-12);
        cr_assert(mean_of(row(whole, "heads", head), "linear", "mean") > 0.05);
    }
    cr_assert(isnan(mean_of(row(whole, "heads", 0), "offdiag_end", "mean")));
    cr_assert_gt(mean_of(row(whole, "heads", 1), "offdiag_peak", "mean"), 0);
    char *page = slurp(in_scratch("study.html"), NULL);
    cr_assert(page && strstr(page, "\"kind\":\"study\""));

    /* Done: a table at once; a third seed adds runs; other options are refused before anything runs. */
    r = cli("study heads --out %s", in_scratch("parts"));
    cli_expect(&r, 0, "offdiag-seed1: done before");
    cr_assert(strstr(r.out, "offdiag") && strstr(r.out, "\u00b1"), "%s", r.out);
    r = cli("study heads --out %s --lr 0.04", in_scratch("parts"));
    cli_expect(&r, 2, "none-seed0|--lr");
    r = cli("study heads --out %s --heads none --seeds 3 --json --quiet", in_scratch("parts"));
    cli_expect(&r, 0, "");
    cr_assert_eq(json_integer_value(json_object_get(row(document(&r), "heads", 0), "n")), 3);
}

Test(study, a_failed_run_is_told_and_the_others_go_on) {
    cr_assert_eq(mkdir(in_scratch("study"), 0700), 0);
    spew(in_scratch("study/none-seed0"), "in the way", 10);
    cli_result r = cli("study heads %s --data %s --out %s --heads none,mlp --seeds 1 --linear=false --quiet --json",
                       tiny, in_scratch("data"), in_scratch("study"));
    cli_expect(&r, 1, "1 of 2 runs failed");
    json_t *study = document(&r);
    cr_assert_str_eq(json_string_value(json_object_get(row(study, "runs", 0), "state")), "failed");
    cr_assert(strstr(json_string_value(json_object_get(row(study, "runs", 0), "message")), "none-seed0"));
    cr_assert_str_eq(json_string_value(json_object_get(row(study, "runs", 1), "state")), "done");
    cr_assert_eq(json_integer_value(json_object_get(row(study, "heads", 0), "n")), 0);
    cr_assert(json_is_null(json_object_get(row(study, "runs", 1), "linear")));
    cr_assert_eq(unlink(in_scratch("study/none-seed0")), 0);
    r = cli("study heads --out %s", in_scratch("study"));
    cli_expect(&r, 0, "mlp-seed0: done before");
}

Test(study, images_that_are_not_there_are_told_once) {
    cli_result r = cli("study heads %s --data %s --out %s", tiny, in_scratch("none"), in_scratch("study"));
    cli_expect(&r, 1, "mnist|none");
    const char *first = strstr(r.err, "expected the file");
    cr_assert(first && !strstr(first + 1, "expected the file"), "%s", r.err);
    cr_assert_neq(access(in_scratch("study"), F_OK), 0);
    cr_assert_str_empty(r.out);
}

Test(study, an_interrupted_study_says_how_to_go_on) {
    cli_child child = cli_start("study heads %s --data %s --out %s --heads none --seeds 2 --quiet", tiny,
                                in_scratch("data"), in_scratch("study"));
    wait_for_steps("study/none-seed0", 8);
    (void)kill(child.pid, SIGINT);
    cli_result r = cli_wait(child);
    cli_expect(&r, 130, "none-seed0|the same command goes on");
}

Test(study, wrong_usage) {
    static const char *const cases[][2] = {{"heads --heads none,ofdiag", "ofdiag|offdiag"},
                                           {"heads --heads none,none", "twice"},
                                           {"heads --head mlp", "--heads"},
                                           {"models", "expected heads"},
                                           {"", "heads"},
                                           {"heads --seeds 0", "--seeds"},
                                           {"heads --preset nothing", "nothing"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        cli_result r = cli("study %s", cases[i][0]);
        cli_expect(&r, 2, cases[i][1]);
    }
    spew(in_scratch("data/study.json"), "{\"heads\":[\"none\"],\"seeds\":1}", 29);
    cli_result r = cli("study heads --out %s", in_scratch("data"));
    cli_expect(&r, 1, "study.json");
}
