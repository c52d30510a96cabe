/* One run over several MPI ranks: what it comes to beside one process, and ranks that fail or die. Skipped without MPI
 * and its launcher. */
#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "run_cli.h"

static char program[400];

static void setup(void) {
    cli_setup();
    if (!getenv("OFFDIAG_TEAM_RANKS") || system("command -v mpirun >/dev/null") != 0)
        cr_skip_test("built without MPI, or no mpirun here");
    (void)snprintf(program, sizeof program, "%s", getenv("OFFDIAG_BIN"));
    (void)setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    (void)setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    (void)setenv("POCL_MAX_PTHREAD_COUNT", "1", 1);
}

TestSuite(dist_mpi, .init = setup, .fini = cli_teardown, .timeout = 600);

/* The program that the tests start from here on: `ranks` of it, the first or last one with a fault; 1: itself. */
static void launch_with(int ranks, const char *fault, bool first) {
    static int serial;
    char text[2000], part[1200];
    if (ranks == 1) {
        (void)setenv("OFFDIAG_BIN", program, 1);
        return;
    }
    if (fault && first)
        (void)snprintf(part, sizeof part, "-n 1 -x OFFDIAG_FAULT='%s' '%s' \"$@\" : -n %d '%s' \"$@\"", fault, program,
                       ranks - 1, program);
    else if (fault)
        (void)snprintf(part, sizeof part, "-n %d '%s' \"$@\" : -n 1 -x OFFDIAG_FAULT='%s' '%s' \"$@\"", ranks - 1,
                       program, fault, program);
    else
        (void)snprintf(part, sizeof part, "-n %d '%s' \"$@\"", ranks, program);
    (void)snprintf(text, sizeof text, "#!/bin/sh\nexec mpirun --oversubscribe %s\n", part);
    const char *path = in_scratch("launch-%d", serial++);
    spew(path, text, strlen(text));
    cr_assert_eq(chmod(path, 0700), 0);
    (void)setenv("OFFDIAG_BIN", path, 1);
}

static void launch(int ranks, const char *fault) {
    launch_with(ranks, fault, false);
}

static double loss_of(const char *run, int step) {
    json_t *line = metrics_line(run, "step", step);
    const double loss = json_number_value(json_object_get(line, "loss"));
    json_decref(line);
    return loss;
}

Test(dist_mpi, two_and_three_ranks_train_as_one) {
    static const char more[] = "--steps 10 --lr 0.01 --head-lr 1 --method byol --online-linear --quiet";
    cli_result r = tiny_train("one", more);
    cli_expect(&r, 0, "");
    for (int ranks = 2; ranks <= 3; ranks++) {
        char run[32], arguments[200];
        (void)snprintf(run, sizeof run, "ranks%d", ranks);
        (void)snprintf(arguments, sizeof arguments, "%s --split %s", more, ranks == 2 ? "5:3" : "5:3:8");
        launch(ranks, NULL);
        r = tiny_train(run, arguments);
        cli_expect(&r, 0, "");
        cr_assert_eq(metrics_count(run, "step"), 10, "one writer");
        for (int step = 0; step < 10; step++)
            cr_assert_lt(fabs(loss_of(run, step) - loss_of("one", step)), 1e-3, "%d ranks, step %d: %g and %g", ranks,
                         step, loss_of(run, step), loss_of("one", step));
        json_t *about = json_object_get(read_json(in_scratch("%s/config.json", run)), "run");
        cr_assert_eq(json_integer_value(json_object_get(about, "ranks")), ranks);
        launch(1, NULL);
    }
}

/* The last rank's launches in a run of these options. Half of them: in a step, as setup and the end are shorter. */
static long launches_of(int ranks, const char *more) {
    launch(ranks, "launch:0:1000000000");
    (void)setenv("OFFDIAG_LOG", "fault", 1);
    cli_result r = tiny_train("undisturbed", more);
    (void)unsetenv("OFFDIAG_LOG");
    cli_expect(&r, 0, "launch:0: ");
    return strtol(strstr(r.err, "launch:0: ") + strlen("launch:0: "), NULL, 10);
}

Test(dist_mpi, a_lost_device_of_another_rank_leaves_a_checkpoint) {
    static const char more[] = "--steps 200 --eval-every 0 --split 5:3 --quiet";
    char text[64];
    (void)snprintf(text, sizeof text, "launch:0:%ld", launches_of(2, more) / 2);
    launch(2, text);
    cli_result r = tiny_train("run", more);
    cli_expect(&r, 1, "rank 1|the checkpoint of step");
    launch(1, NULL);
    const int at = metrics_count("run", "step");
    cr_assert(at > 0 && at < 200, "lost at step %d", at);
    r = cli("train --resume --out %s --steps 200", in_scratch("run"));
    cli_expect(&r, 0, "");
    cr_assert_eq(metrics_count("run", "step"), 200);
}

/* Not in a step: near the end of the last evaluation. */
Test(dist_mpi, a_device_lost_in_an_evaluation_leaves_a_checkpoint_or_is_done_without) {
    static const char more[] = "--steps 40 --split 5:3 --online-linear";
    char text[64], run[32], arguments[200];
    const long launches = launches_of(2, more);
    const long before_the_end[] = {0, 2, 20};
    for (int i = 0; i < 3; i++)
        for (int going = 0; going < 2; going++) {
            (void)snprintf(text, sizeof text, "launch:0:%ld", launches - before_the_end[i]);
            launch(2, text);
            (void)snprintf(run, sizeof run, "run%d-%d", i, going);
            (void)snprintf(arguments, sizeof arguments, "%s%s", more, going ? " --keep-going" : "");
            cli_result r = tiny_train(run, arguments);
            cli_expect(&r, going ? 0 : 1, going ? "goes on without" : "rank 1|the checkpoint of step");
            launch(1, NULL);
            if (!going) {
                r = cli("train --resume --out %s --steps 40", in_scratch("%s", run));
                cli_expect(&r, 0, "");
            }
            cr_assert_eq(metrics_count(run, "step"), 40);
            r = cli("eval %s --protocol knn", in_scratch("%s", run));
            cli_expect(&r, 0, "");
        }
}

/* The first rank writes the run, until it has no device any more. */
Test(dist_mpi, another_rank_goes_on_with_the_run) {
    static const char more[] = "--steps 200 --split 5:3:8 --online-linear";
    char text[64], arguments[200];
    (void)snprintf(text, sizeof text, "launch:0:%ld", launches_of(3, more) / 2);
    for (int ranks = 2; ranks <= 3; ranks++) {
        const char *run = ranks == 2 ? "two" : "three";
        launch_with(ranks, text, true);
        (void)snprintf(arguments, sizeof arguments, "--steps 200 --split %s --online-linear --keep-going",
                       ranks == 2 ? "5:3" : "5:3:8");
        cli_result r = tiny_train(run, arguments);
        cli_expect(&r, 0, "of rank 0|the run goes on without");
        cr_assert_eq(metrics_count(run, "step"), 200);
        for (int step = 0; step < 200; step++) { /* each once, in order */
            json_t *line = metrics_line(run, "step", step);
            cr_assert_eq(json_integer_value(json_object_get(line, "step")), step + 1);
            json_decref(line);
            if (ranks == 3 && step < 120) /* past the loss, before rounding has grown */
                cr_assert_lt(fabs(loss_of(run, step) - loss_of("undisturbed", step)), 2e-3, "step %d", step);
        }
        json_t *about = json_object_get(read_json(in_scratch("%s/config.json", run)), "run");
        cr_assert_eq(json_array_size(json_object_get(about, "devices")), ranks == 2 ? 0 : 2);
        cr_assert_eq(json_array_size(json_object_get(about, "splits")), 2);
    }
    launch(1, NULL);
    cli_result r = cli("eval %s --protocol knn", in_scratch("three"));
    cli_expect(&r, 0, "");
}

Test(dist_mpi, a_killed_rank_ends_all_and_the_last_checkpoint_resumes) {
    char kill_one[1000], arguments[300];
    launch(2, NULL);
    (void)snprintf(arguments, sizeof arguments, "%s --split 5:3", tiny_long);
    cli_child child = tiny_start("run", arguments);
    for (int i = 0; i < 6000 && metrics_count("run", "step") < 40; i++)
        (void)usleep(10000);
    cr_assert_geq(metrics_count("run", "step"), 40, "it trains");
    (void)snprintf(kill_one, sizeof kill_one, "pkill -KILL -n -f '^%s train .*--out %s'", program, in_scratch("run"));
    const double began = od_now();
    cr_assert_eq(system(kill_one), 0, "%s", kill_one);
    cli_result r = cli_wait(child);
    cr_assert(r.code != 0, "code %d", r.code);
    cr_assert_lt(od_now() - began, 20, "all ranks end soon");
    launch(1, NULL);
    r = cli("train --resume --quiet --out %s", in_scratch("run"));
    cli_expect(&r, 0, "");
    cr_assert_eq(metrics_count("run", "step"), 300, "all of tiny_long's");
}

Test(dist_mpi, ranks_evaluate_as_one) {
    static const char *const protocols[] = {"knn", "linear --epochs 5"};
    cli_result r = tiny_train("run", "--steps 10 --eval-every 0 --quiet");
    cli_expect(&r, 0, "");
    for (int i = 0; i < 2; i++) {
        r = cli("eval %s --json --protocol %s", in_scratch("run"), protocols[i]);
        cli_expect(&r, 0, "");
        const double one = cli_accuracy(&r);
        launch(3, NULL);
        r = cli("eval %s --json --protocol %s", in_scratch("run"), protocols[i]);
        cli_expect(&r, 0, "");
        cr_assert_eq(cli_accuracy(&r), one, "%s: %g, alone %g; one writer", protocols[i], cli_accuracy(&r), one);
        launch(1, NULL);
    }
    launch(2, NULL);
    r = cli("eval %s --protocol linear --folds", in_scratch("run"));
    cli_expect(&r, 2, "--folds");
}

Test(dist_mpi, mistakes_end_all_ranks) {
    launch(2, NULL);
    cli_result r = tiny_train("run", "--steps 2 --quiet");
    cli_expect(&r, 0, "");
    r = tiny_train("run", "--steps 2 --quiet");
    cli_expect(&r, 2, "holds a run already");
    r = tiny_train("other", "--steps 2 --dataset nothing");
    cli_expect(&r, 2, "nothing");
    r = tiny_train("other", "--steps 2 --split 1:2:3");
    cli_expect(&r, 2, "--split");
}
