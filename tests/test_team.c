/* Teams: sums, background sums, data and failures among threads of a process, and among MPI ranks. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "team_script.h"

Test(team, threads) {
    char text[200] = "";
    for (int members = 1; members <= 5; members++)
        cr_assert(od_team_script_run(members, -1, text), "%d members: %s", members, text);
}

Test(team, one_fails_and_the_others_go_on) {
    char text[200] = "";
    for (int failing = 0; failing < 4; failing++)
        cr_assert(od_team_script_run(4, failing, text), "member %d fails: %s", failing, text);
}

Test(team, wrong_sizes) {
    od_team *team = NULL;
    cr_assert_eq(od_team_create(&team, 0), OD_ERR_ARGUMENT);
    cr_assert_eq(od_team_create(&team, 1), OD_OK);
    od_member *m = od_team_member(team, 0);
    const float *all = NULL;
    const float own[4] = {0};
    cr_assert_eq(od_member_gather(m, &all, own, 0, 4, 5), OD_ERR_ARGUMENT, "less than the whole");
    od_team_destroy(team);
}

/* What the ranks print, and their exit status. */
static int ranks(int n, const char *what, char *out, size_t size) {
    const char *program = getenv("OFFDIAG_TEAM_RANKS");
    char command[1200];
    if (!program || system("command -v mpirun >/dev/null") != 0)
        cr_skip_test("built without MPI, or no mpirun here");
    (void)snprintf(
        command, sizeof command,
        "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 mpirun --oversubscribe -n %d '%s' %s 2>&1", n,
        program, what);
    FILE *pipe = popen(command, "r");
    cr_assert_not_null(pipe);
    out[fread(out, 1, size - 1, pipe)] = '\0';
    return pclose(pipe);
}

static void expect_well(int n, const char *what) {
    char out[8000];
    const int status = ranks(n, what, out, sizeof out);
    cr_assert_eq(status, 0, "%s", out);
    int count = 0;
    for (const char *at = out; (at = strstr(at, ": well")); at++)
        count++;
    cr_assert_eq(count, n, "%s", out);
}

Test(team_ranks, two_and_three) {
    expect_well(2, "-1");
    expect_well(3, "-1");
}

/* Ranks have one, two and one member: member 2 has a neighbour, member 3 leaves its rank empty. */
Test(team_ranks, members_fail) {
    expect_well(3, "2");
    expect_well(3, "3");
}

Test(team_ranks, a_rank_dies) {
    char out[8000];
    const double began = od_now();
    const int status = ranks(3, "-1 die", out, sizeof out);
    cr_assert_neq(status, 0, "%s", out);
    cr_assert_lt(od_now() - began, 30, "all ranks end soon");
}
