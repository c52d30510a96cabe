#include "team_script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT = 200, PARAMS = 10, CUT = 6, MOST = 64 };

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            (void)snprintf(text, TEXT, "member %d, line %d: not so: %s (%s)", od_member_index(m), __LINE__,            \
                           #condition, od_error_message());                                                            \
            return false;                                                                                              \
        }                                                                                                              \
    } while (0)

static bool sums(od_member *m, char *text) {
    const int n = od_member_count(m);
    double values[3] = {od_member_index(m) + 1, 0.1 * (od_member_index(m) + 1), 1};
    CHECK(od_member_sum(m, values, 3) == OD_OK);
    double tenths = 0;
    for (int i = 0; i < n; i++)
        tenths += 0.1 * (i + 1);
    CHECK(values[0] == n * (n + 1) / 2 && values[2] == n);
    CHECK(values[1] - tenths < 1e-12 && tenths - values[1] < 1e-12);
    return true;
}

/* A step as a model makes it: sums between parts of a large array. */
static od_status step(od_member *m, float *base, const float **total) {
    double norm[5] = {1, 2, 3, 4, 5};
    od_status status = OD_OK;
    for (int i = 0; i < PARAMS; i++)
        base[i] = (float)(10 * od_member_index(m) + i);
    if ((status = od_member_sum(m, norm, 5)) || (status = od_member_reduce(m, base, CUT, PARAMS - CUT)) ||
        (status = od_member_sum(m, norm, 2)) || (status = od_member_reduce(m, base, 0, CUT)))
        return status;
    return od_member_reduced(m, total);
}

static bool reductions(od_member *m, char *text) {
    float base[PARAMS];
    const float *total = NULL;
    double done = 1;
    const int n = od_member_count(m);
    for (int round = 0; round < 3; round++) {
        CHECK(step(m, base, &total) == OD_OK);
        for (int i = 0; i < PARAMS; i++)
            CHECK(total[i] == (float)(10 * n * (n - 1) / 2 + n * i));
        CHECK(od_member_sum(m, &done, 1) == OD_OK); /* all have read */
    }
    return true;
}

static bool data(od_member *m, char *text) {
    const int mine = od_member_index(m) + 1, n = od_member_count(m);
    const size_t first = (size_t)(mine - 1) * mine / 2, total = (size_t)n * (n + 1) / 2;
    float own[MOST];
    const float *all = NULL;
    char said[16] = "not said", names[MOST][16], name[16] = "";
    for (int i = 0; i < mine; i++)
        own[i] = (float)(first + i);
    CHECK(od_member_gather(m, &all, own, first, (size_t)mine, total) == OD_OK);
    for (size_t i = 0; i < total; i++)
        CHECK(all[i] == (float)i);
    (void)snprintf(name, sizeof name, "m%d", mine);
    CHECK(od_member_exchange(m, names, name, sizeof name) == OD_OK);
    for (int i = 0; i < n; i++)
        CHECK(names[i][0] == 'm' && strtol(names[i] + 1, NULL, 10) == i + 1);
    if (od_member_leads(m))
        (void)snprintf(said, sizeof said, "from the leader");
    CHECK(od_member_share(m, said, sizeof said) == OD_OK);
    CHECK(strcmp(said, "from the leader") == 0);
    return true;
}

/* Member `failing` makes the first sum of a step and no more. */
static bool failure(od_member *m, int failing, char *text) {
    float base[PARAMS];
    const float *total = NULL;
    double norm[5] = {0};
    const int before = od_member_count(m);
    const bool fails = od_member_index(m) == failing;
    od_status status = OD_OK;
    CHECK(od_member_agree(m, OD_OK) == OD_OK);
    if (fails && !(status = od_member_sum(m, norm, 5)))
        status = od_fail(OD_ERR_DEVICE, "device %d was lost", failing);
    else
        status = step(m, base, &total);
    CHECK(status == (fails ? OD_ERR_DEVICE : OD_ERR_PEER));
    CHECK(od_member_agree(m, status) == status);
    CHECK(strstr(od_error_message(), "was lost"));
    for (int i = 0; i < before; i++)
        CHECK(od_member_failed(m, i) == (i == failing));
    CHECK(od_member_stay(m, !fails) == OD_OK);
    if (fails)
        return true;
    CHECK(od_member_count(m) == before - 1);
    return sums(m, text) && reductions(m, text) && data(m, text);
}

bool od_team_script(od_member *m, int failing, char *text) {
    return sums(m, text) && reductions(m, text) && data(m, text) && (failing < 0 || failure(m, failing, text));
}

typedef struct role {
    int failing;
    char text[TEXT];
} role;

static od_status act(od_member *m, void *context) {
    role *r = context;
    return od_team_script(m, r->failing, r->text) ? OD_OK : od_fail(OD_ERR_ARGUMENT, "%s", r->text);
}

bool od_team_script_run(int members, int failing, char *text) {
    role roles[MOST];
    od_team *team = NULL;
    for (int i = 0; i < members; i++)
        roles[i] = (role){.failing = failing};
    od_status status = od_team_create(&team, members);
    if (!status)
        status = od_team_run(team, act, roles, sizeof *roles);
    if (status)
        (void)snprintf(text, TEXT, "%s", od_error_message());
    od_team_destroy(team);
    return status == OD_OK;
}
