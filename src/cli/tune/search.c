/* One search. A candidate is a set of parameters; those it leaves alone follow the variant's rule. From the best so far
 * one parameter after the other is changed until nothing helps any more, then several at once at random, since some
 * only fit together. A candidate that may be faster is checked against double, then runs in turns with the best: both
 * see the same clock rates and the same other load, so that drift picks no loser. */
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "cli/bench.h"
#include "cli/tune/tune.h"

enum {
    BY_RULE = INT_MIN, /* a parameter that is not set */
    MOST_TRIED = 512,
    TURNS = 5,       /* of a duel within the search */
    FINAL_TURNS = 9, /* of the winner with the default */
    RANDOM = 48,     /* candidates that change several parameters */
};
static const double short_run = 0.005; /* seconds; shorter runs are repeated */
static const double slow = 1.15;       /* a first look this much slower than the best ends a candidate */
static const double step = 0.015;      /* by which a candidate must beat the best so far */

typedef struct candidate {
    int values[OD_TUNING_PARAMETERS];
} candidate;

typedef struct search {
    od_device *device;
    const od_tune_problem *problem;
    const od_tuning_table *table;
    const int *defaults;
    const od_tune_limits *limits;
    od_tune_result *result;
    od_tuning_row row; /* in force */
    int repeats;
    candidate best, tried[MOST_TRIED];
    double best_seconds, best_ratio; /* of the first look; to the anchor, of costly tables */
    double anchor_seconds;
} search;

static candidate by_rule(void) {
    candidate c;
    for (int p = 0; p < OD_TUNING_PARAMETERS; p++)
        c.values[p] = BY_RULE;
    return c;
}

static bool same(const candidate *a, const candidate *b) {
    return memcmp(a->values, b->values, sizeof a->values) == 0;
}

static bool is_default(const candidate *c) {
    const candidate none = by_rule();
    return same(c, &none);
}

static void to_row(const search *s, const candidate *c, od_tuning_row *row) {
    row->count = 0;
    for (int p = 0; p < s->table->count; p++) {
        if (c->values[p] == BY_RULE)
            continue;
        struct od_tuning_setting *setting = &row->settings[row->count++];
        (void)snprintf(setting->name, sizeof setting->name, "%s", s->table->parameters[p].name);
        setting->value = c->values[p];
    }
}

static bool is_over(const search *s) {
    return od_now() >= s->limits->until || (s->limits->stop && s->limits->stop());
}

/* ---- measuring --------------------------------------------------------------------------------------------------- */

static od_status use(search *s, const candidate *c) {
    to_row(s, c, &s->row);
    return s->problem->prepare(s->problem->context);
}

/* Mean seconds of the runs that `repeats` asks for. */
static od_status time_runs(const search *s, od_status (*run)(void *context), double *seconds) {
    const double start = s->limits->clock();
    od_status status = OD_OK;
    for (int i = 0; i < s->repeats && !status; i++)
        status = run(s->problem->context);
    *seconds = (s->limits->clock() - start) / s->repeats;
    return status;
}

/* After one run that may build or touch memory first, the least of a few: a first look. */
static od_status look(search *s, const candidate *c, double *seconds) {
    od_status status = use(s, c);
    if (!status)
        status = s->problem->run(s->problem->context);
    *seconds = INFINITY;
    for (int i = 0; i < 2 && !status; i++) {
        double now = 0;
        status = time_runs(s, s->problem->run, &now);
        *seconds = now < *seconds ? now : *seconds;
    }
    return status;
}

/* Medians of a and b over `turns` turns, the order changing; after three of them only while b may still win. */
static od_status duel(search *s, const candidate *a, const candidate *b, int turns, double seconds[2]) {
    double times[2][FINAL_TURNS], sorted[FINAL_TURNS];
    const candidate *both[2] = {a, b};
    od_status status = OD_OK;
    int t = 0;
    while (t < turns && !status) {
        for (int i = 0; i < 2 && !status; i++) {
            const int which = (i + t) % 2;
            if (!(status = use(s, both[which])) && !(status = s->problem->run(s->problem->context)))
                status = time_runs(s, s->problem->run, &times[which][t]);
        }
        t++;
        for (int i = 0; i < 2 && !status; i++) {
            memcpy(sorted, times[i], (size_t)t * sizeof *sorted);
            seconds[i] = od_bench_median(sorted, t);
        }
        if (t >= 3 && seconds[1] > 0.995 * seconds[0])
            break;
    }
    return status;
}

/* Of what costs a build at each change: its time as a multiple of the anchor's, measured beside it. */
static od_status ratio(search *s, double *out) {
    double times[TURNS], anchors[TURNS];
    od_status status = s->problem->run(s->problem->context);
    if (!status)
        status = s->problem->anchor(s->problem->context);
    for (int t = 0; t < TURNS && !status; t++) {
        status = time_runs(s, s->problem->run, &times[t]);
        if (!status)
            status = time_runs(s, s->problem->anchor, &anchors[t]);
    }
    if (status)
        return status;
    s->anchor_seconds = od_bench_median(anchors, TURNS);
    *out = od_bench_median(times, TURNS) / s->anchor_seconds;
    return OD_OK;
}

/* ---- candidates -------------------------------------------------------------------------------------------------- */

/* Whether it is new, and runs on the device together with what the rule gives. */
static bool is_worth(search *s, const candidate *c) {
    int values[OD_TUNING_PARAMETERS];
    if (s->result->tried >= MOST_TRIED || is_default(c))
        return false;
    for (int i = 0; i < s->result->tried; i++)
        if (same(&s->tried[i], c))
            return false;
    for (int p = 0; p < s->table->count; p++)
        values[p] = c->values[p] == BY_RULE ? s->defaults[p] : c->values[p];
    return !s->table->fits || s->table->fits(s->device, values);
}

/* Whether a candidate runs, gives the right result, and wins against the best. */
static bool wins(search *s, const candidate *c) {
    double seconds = 0, both[2] = {0, 0};
    s->tried[s->result->tried++] = *c;
    od_status status = s->table->costly ? use(s, c) : look(s, c, &seconds);
    if (!status && s->table->costly)
        status = ratio(s, &seconds);
    if (status) {
        s->result->unbuilt++;
        od_log_topic("tuning", "%s: a candidate does not run: %s", s->table->variant, od_error_message());
        return false;
    }
    if (seconds > (s->table->costly ? s->best_ratio * (1 - s->limits->margin) : s->best_seconds * slow))
        return false;
    if (s->problem->check(s->problem->context)) {
        s->result->wrong++;
        od_log(OD_LOG_WARN, "%s, %s: a candidate is wrong: %s", s->table->variant, s->row.shape, od_error_message());
        return false;
    }
    if (s->table->costly) {
        s->best_ratio = seconds;
        return true;
    }
    status = duel(s, &s->best, c, TURNS, both);
    if (status || both[1] >= (1 - step) * both[0])
        return false;
    s->best_seconds = seconds;
    return true;
}

static void try(search *s, const candidate *c) {
    if (is_worth(s, c) && wins(s, c))
        s->best = *c;
}

/* One parameter at a time, until a round over all of them changes nothing. */
static void descend(search *s) {
    candidate before;
    do {
        before = s->best;
        for (int p = 0; p < s->table->count; p++)
            for (int i = 0; i < s->table->parameters[p].count && !is_over(s); i++) {
                candidate c = s->best;
                c.values[p] = s->table->parameters[p].values[i];
                if (c.values[p] == s->defaults[p])
                    c.values[p] = BY_RULE;
                try(s, &c);
            }
    } while (!same(&before, &s->best) && !is_over(s));
}

/* Two to four parameters at once, at random, from the best. */
static void wander(search *s) {
    for (uint32_t i = 0; i < 20 * RANDOM && s->result->tried < MOST_TRIED && !is_over(s); i++) {
        const uint32_t counter[4] = {i, 0, 0, OD_RNG_TEST}, key[2] = {0, 0};
        uint32_t bits[4], more[4];
        const int from = s->result->tried;
        candidate c = s->best;
        od_philox(bits, counter, key);
        od_philox(more, (const uint32_t[4]){i, 1, 0, OD_RNG_TEST}, key);
        for (uint32_t k = 0; k < 2 + bits[3] % 3 && k < 4; k++) {
            const int p = (int)(bits[k] % (uint32_t)s->table->count);
            c.values[p] = s->table->parameters[p].values[more[k] % (uint32_t)s->table->parameters[p].count];
        }
        try(s, &c);
        if (s->result->tried > from && s->result->tried % 8 == 0)
            descend(s);
    }
}

static void try_known(search *s) {
    const od_tuning_row *known = s->limits->known;
    candidate c = by_rule();
    char why[96];
    if (!known || !od_tuning_row_valid(known, s->table, s->device, s->defaults, why, sizeof why))
        return;
    for (int p = 0; p < s->table->count; p++)
        for (int i = 0; i < known->count; i++)
            if (strcmp(known->settings[i].name, s->table->parameters[p].name) == 0)
                c.values[p] = known->settings[i].value;
    try(s, &c);
}

/* ---- a whole search ---------------------------------------------------------------------------------------------- */

/* The default's time. */
static od_status begin(search *s) {
    double seconds = 0;
    s->repeats = 1;
    od_status status = look(s, &s->best, &seconds);
    if (status)
        return status;
    s->repeats = seconds >= short_run ? 1 : seconds > short_run / 50 ? (int)(short_run / seconds) + 1 : 50;
    s->best_seconds = seconds;
    if (!s->table->costly)
        return OD_OK;
    status = ratio(s, &s->best_ratio);
    s->result->before = s->best_ratio * s->anchor_seconds;
    return status;
}

/* The winner against the default once more, over more turns; a costly one against its first measurement. */
static od_status confirm(search *s) {
    const candidate none = by_rule();
    od_tune_result *r = s->result;
    double both[2] = {0, 0};
    od_status status = OD_OK;
    if (is_default(&s->best)) {
        r->after = r->before = s->table->costly ? r->before : s->best_seconds;
        return OD_OK;
    }
    if (s->table->costly) {
        if (!(status = use(s, &s->best)) && !(status = ratio(s, &both[1])))
            r->after = both[1] * s->anchor_seconds;
    } else if (!(status = duel(s, &none, &s->best, FINAL_TURNS, both))) {
        r->before = both[0];
        r->after = both[1];
    }
    if (!status && r->after < (1 - s->limits->margin) * r->before) {
        to_row(s, &s->best, &r->row);
        r->row.gain = floor(100 * r->before / r->after + 0.5) / 100;
    }
    return status;
}

od_status od_tune_search(od_device *device, const od_tune_problem *problem, const od_tuning_asked *what,
                         const od_tune_limits *limits, od_tune_result *result) {
    search *s = calloc(1, sizeof *s);
    if (!s)
        return od_fail(OD_ERR_MEMORY, "no memory for a search");
    *s = (search){.device = device,
                  .problem = problem,
                  .table = what->table,
                  .defaults = what->defaults,
                  .limits = limits,
                  .result = result,
                  .best = by_rule()};
    *result = (od_tune_result){0};
    (void)snprintf(s->row.variant, sizeof s->row.variant, "%s", what->table->variant);
    (void)snprintf(s->row.shape, sizeof s->row.shape, "%s", what->shape);
    result->row = s->row;
    od_tuning_force(device, &s->row);
    od_status status = begin(s);
    if (!status) {
        try_known(s);
        descend(s);
        if (what->table->fits)
            wander(s);
        result->complete = !is_over(s);
        status = confirm(s);
    }
    od_tuning_force(device, NULL);
    free(s);
    return status;
}
