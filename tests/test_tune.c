/* The search for kernel parameters, on a problem whose time is a formula: what wins, and what may not. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/tune/tune.h"
#include "harness.h"
#include "ops/tunable.h"
#include "run_cli.h"
#include "scratch.h"

static const od_tuning_table table = {
    .variant = "test_variant",
    .shape = "a letter",
    .parameters = {{"tile", OD_TUNING_VALUES(1, 2, 4, 8), "1"}, {"depth", OD_TUNING_VALUES(1, 2, 3), "1"}},
    .count = 2,
};
enum { TILE, DEPTH };

/* The clock that runs are timed by: it goes on only when the problem runs. */
static double now;
static double clock_of_runs(void) {
    return now;
}

typedef struct formula {
    od_device *device;
    int wrong_tile, broken_depth; /* planted: a fast tile whose result is wrong, a depth that does not build; 0: none */
    double gain;                  /* time of a run: 1 / tile^gain, and less with depth 2 */
    int values[OD_TUNING_PARAMETERS];
    int runs;
} formula;

static od_status prepare(void *context) {
    formula *f = context;
    f->values[TILE] = f->values[DEPTH] = 1;
    (void)od_tuning_lookup(f->device, &table, "a", f->values);
    return f->values[DEPTH] == f->broken_depth ? od_fail(OD_ERR_BUILD, "planted: depth %d", f->broken_depth) : OD_OK;
}

static od_status run(void *context) {
    formula *f = context;
    f->runs++;
    now += 0.01 / pow(f->values[TILE], f->gain) * (f->values[DEPTH] == 2 ? 0.8 : 1);
    return OD_OK;
}

static od_status check(void *context) {
    const formula *f = context;
    return f->values[TILE] == f->wrong_tile ? od_fail(OD_ERR_NUMERIC, "planted: tile %d", f->wrong_tile) : OD_OK;
}

static od_tune_result search(formula f, double seconds, od_status wanted) {
    od_tune_result result;
    f.device = od_test_device(OD_FAMILY_AUTO);
    const od_tune_problem problem = {.context = &f, .prepare = prepare, .run = run, .check = check};
    const od_tuning_asked what = {.table = &table, .shape = "a", .defaults = {1, 1}};
    const od_tune_limits limits = {.until = od_now() + seconds, .clock = clock_of_runs, .margin = 0.03};
    cr_assert_eq(od_tune_search(f.device, &problem, &what, &limits, &result), wanted, "%s", od_error_message());
    int values[OD_TUNING_PARAMETERS] = {1, 1};
    cr_assert(!od_tuning_lookup(f.device, &table, "a", values), "a row stays forced");
    return result;
}

/* What the winning row sets; 1: nothing. */
static int set(const od_tune_result *r, const char *name) {
    for (int i = 0; i < r->row.count; i++)
        if (strcmp(r->row.settings[i].name, name) == 0)
            return r->row.settings[i].value;
    return 1;
}

static void init(void) {
    scratch_init();
    (void)setenv("XDG_DATA_HOME", scratch_path("share"), 1);
}

Test(tune, the_fastest_wins, .init = init, .fini = scratch_remove) {
    const od_tune_result r = search((formula){.gain = 1}, 60, OD_OK);
    cr_assert(set(&r, "tile") == 8 && set(&r, "depth") == 2, "tile %d, depth %d", set(&r, "tile"), set(&r, "depth"));
    cr_assert(r.complete && r.wrong == 0 && r.unbuilt == 0);
    cr_assert_float_eq(r.before, 0.01, 1e-9);
    cr_assert_float_eq(r.after, 0.01 / 8 * 0.8, 1e-9);
    cr_assert_float_eq(r.row.gain, 10, 1e-9);
}

/* The fastest of all, but its result is wrong: it never wins, whatever else changes beside it. */
Test(tune, a_wrong_candidate_never_wins, .init = init, .fini = scratch_remove) {
    const od_tune_result r = search((formula){.gain = 1, .wrong_tile = 8}, 60, OD_OK);
    cr_assert(set(&r, "tile") == 4 && set(&r, "depth") == 2, "tile %d, depth %d", set(&r, "tile"), set(&r, "depth"));
    cr_assert_gt(r.wrong, 0);
}

Test(tune, what_does_not_build_is_counted, .init = init, .fini = scratch_remove) {
    const od_tune_result r = search((formula){.gain = 1, .broken_depth = 2}, 60, OD_OK);
    cr_assert(set(&r, "tile") == 8 && set(&r, "depth") == 1);
    cr_assert_gt(r.unbuilt, 0);
}

/* Eight times the tile gives 2 % in all. */
Test(tune, a_small_gain_keeps_the_default, .init = init, .fini = scratch_remove) {
    const od_tune_result r = search((formula){.gain = log(1.02) / log(8), .broken_depth = 2}, 60, OD_OK);
    cr_assert_eq(r.row.count, 0);
    cr_assert_gt(r.tried, 3);
}

Test(tune, no_time_keeps_the_default, .init = init, .fini = scratch_remove) {
    const od_tune_result r = search((formula){.gain = 1}, -1, OD_OK);
    cr_assert(r.row.count == 0 && !r.complete && r.tried == 0);
}

Test(tune, a_default_that_fails_is_an_error, .init = init, .fini = scratch_remove) {
    (void)search((formula){.gain = 1, .broken_depth = 1}, 60, OD_ERR_BUILD);
}

/* The check of real operations: right as they are, and what a wrong result looks like is not. */
Test(tune, operations_are_held_against_double, .init = init, .fini = scratch_remove) {
    static const od_conv_shape shape = {8, 8, 16, 24, 3, 3, 1, 1};
    static const unsigned passes[] = {OD_CONV_FORWARD, OD_CONV_BACKWARD_DATA, OD_CONV_BACKWARD_WEIGHT};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_tune_problem problem;
    for (size_t i = 0; i < OD_COUNT(passes); i++) {
        OD_MUST(od_tune_conv(device, &shape, 6, passes[i], &problem));
        OD_MUST(problem.check(problem.context));
        problem.destroy(problem.context);
    }
    const od_gemm_shape product = {.trans_b = true, .m = 37, .n = 41, .k = 29};
    OD_MUST(od_tune_gemm(device, &product, NULL, &problem));
    OD_MUST(problem.check(problem.context));
    problem.destroy(problem.context);
    const double ref[3] = {1, -2, 3};
    const float right[3] = {1, -2, 3}, wrong[3] = {1, -2.01F, 3}, nan[3] = {1, NAN, 3};
    OD_MUST(od_tune_near("right", right, ref, 3, 1e-4));
    cr_assert_eq(od_tune_near("wrong", wrong, ref, 3, 1e-4), OD_ERR_NUMERIC);
    cr_assert_eq(od_tune_near("nan", nan, ref, 3, 1e-4), OD_ERR_NUMERIC);
    cr_assert_eq(od_tune_near_float("wrong", wrong, right, 3, 1e-4), OD_ERR_NUMERIC);
}

/* ---- the command ------------------------------------------------------------------------------------------------ */

static void begin_cli(void) {
    (void)setenv("OFFDIAG_TUNING", "off", 1);
    cli_setup();
    (void)setenv("XDG_DATA_HOME", in_scratch("share"), 1);
}

static json_t *document(const cli_result *r) {
    json_t *root = json_loads(r->out, 0, NULL);
    cr_assert_not_null(root, "%s", r->out);
    return root;
}

/* A few seconds of a search: what it says, and that a dry run keeps nothing. */
Test(tune_command, searches_within_its_time, .init = begin_cli, .fini = cli_teardown) {
    const double start = od_now();
    cli_result r = cli("tune --budget 5 --dry-run --json");
    cli_expect(&r, 0, "at most 5 s");
    cr_assert_lt(od_now() - start, 60);
    json_t *root = document(&r);
    cr_assert_gt(json_integer_value(json_object_get(root, "searches")), 0);
    cr_assert_eq(json_integer_value(json_object_get(root, "wrong")), 0);
    cr_assert(json_is_array(json_object_get(root, "rows")) && json_is_false(json_object_get(root, "kept")));
    json_decref(root);
    r = cli("tune --print");
    cli_expect(&r, 0, "Nothing is kept");
    cr_assert_str_eq(r.out, "");
}

Test(tune_command, lists_every_parameter, .init = begin_cli, .fini = cli_teardown) {
    cli_result r = cli("tune --list");
    cli_expect(&r, 0, "");
    for (const od_tuning_table *const *t = od_tuning_tables; *t; t++)
        cr_assert(strstr(r.out, (*t)->variant), "%s", (*t)->variant);
}

/* Rows that are kept are printed as rows to ship. */
Test(tune_command, prints_rows_that_read_back, .init = begin_cli, .fini = cli_teardown) {
    od_device *device = NULL;
    const char *spec = getenv("OFFDIAG_TEST_DEVICE");
    od_tuning_row row = {.key = OD_TUNING_DEVICE, .variant = "gemm_cpu", .shape = "*", .count = 1}, back;
    OD_MUST(od_device_open(spec && *spec ? spec : "auto", NULL, &device));
    (void)snprintf(row.match, sizeof row.match, "%.*s", OD_TUNING_TEXT - 1, od_device_get_info(device)->name);
    od_device_close(device);
    (void)snprintf(row.settings[0].name, sizeof row.settings[0].name, "k_chunk");
    row.settings[0].value = 128;
    OD_MUST(od_tuning_user_keep(&row));
    cli_result r = cli("tune --print --device %s", spec && *spec ? spec : "auto");
    cli_expect(&r, 0, "");
    json_t *object = document(&r);
    OD_MUST(od_tuning_row_from_json(&back, object));
    json_decref(object);
    cr_assert(strcmp(back.match, row.match) == 0 && back.settings[0].value == 128 && back.count == 1);
}

Test(tune_command, time_that_is_too_short_is_said, .init = begin_cli, .fini = cli_teardown) {
    cli_result r = cli("tune --budget 1 --only nosuch");
    cli_expect(&r, 1, "the time ended");
    r = cli("tune --budget 0");
    cli_expect(&r, 2, "budget");
}

/* A run tells which rows were in force, and a resume that others are. */
Test(tune_command, a_resume_with_other_rows_says_so, .init = begin_cli, .fini = cli_teardown) {
    cli_child child = tiny_start("run", "--steps 40 --checkpoint-every 3");
    for (int ms = 0; ms < 60000 && metrics_count("run", "step") < 6; ms += 2)
        (void)usleep(2000);
    (void)kill(child.pid, SIGTERM);
    cli_result r = cli_wait(child);
    cli_expect(&r, 130, "interrupted at step");
    od_tuning_row row = {.key = OD_TUNING_ANY, .variant = "gemm_cpu", .shape = "*", .count = 1};
    (void)snprintf(row.settings[0].name, sizeof row.settings[0].name, "k_chunk");
    row.settings[0].value = 128;
    OD_MUST(od_tuning_user_keep(&row));
    (void)unsetenv("OFFDIAG_TUNING");
    r = cli("train --resume --out %s", in_scratch("run"));
    cli_expect(&r, 0, "other tuning rows (none, now");
}
