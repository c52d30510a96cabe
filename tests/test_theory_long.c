/* The theory's shares over hundreds of seeds, within the design's tolerances. */
#include <criterion/criterion.h>
#include <math.h>

#include "harness.h"
#include "offdiag/theory.h"

TestSuite(theory_long, .timeout = 600);

typedef struct shares {
    int seeds, both, collapse, mixed, unlearned, rises;
    double peak; /* mean over the seeds that learned both */
} shares;

static shares shares_of(const od_theory_config *c) {
    od_theory_run run;
    shares s = {.seeds = c->seeds};
    OD_MUST(od_theory_train(c, NULL, false, &run));
    for (int i = 0; i < c->seeds; i++) {
        const od_theory_result *r = &run.results[i];
        s.both += r->outcome == OD_THEORY_BOTH;
        s.collapse += r->outcome == OD_THEORY_COLLAPSE;
        s.mixed += r->outcome == OD_THEORY_MIXED;
        s.unlearned += r->outcome == OD_THEORY_UNLEARNED;
        s.rises += r->rise_and_fall;
        if (r->outcome == OD_THEORY_BOTH)
            s.peak += r->peak[r->other][r->first];
    }
    s.peak /= s.both > 0 ? s.both : 1;
    od_theory_run_free(&run);
    return s;
}

static od_theory_config with_seeds(int seeds) {
    od_theory_config c;
    od_theory_config_default(&c);
    c.seeds = seeds;
    c.seed = 100000;
    return c;
}

#define BETWEEN(count, low, high, s)                                                                                   \
    cr_assert((count) >= (low) * (s).seeds && (count) <= (high) * (s).seeds, #count " is %d of %d", (count), (s).seeds)

Test(theory_long, off_diagonal_head) {
    od_theory_config c = with_seeds(1000);
    shares s = shares_of(&c);
    BETWEEN(s.both, 0.95, 0.99, s); /* 0.971 on 2,000 seeds */
    BETWEEN(s.rises, 0.95, 0.99, s);
    cr_assert(fabs(s.peak - 0.29) < 0.02, "%g", s.peak);
}

Test(theory_long, what_takes_the_effect_away) {
    od_theory_config c = with_seeds(200);
    c.head = OD_THEORY_NONE;
    shares s = shares_of(&c);
    cr_assert(s.both == 0 && s.collapse >= 0.98 * s.seeds, "frozen: %d, %d", s.both, s.collapse);
    c = with_seeds(200);
    c.no_stopgrad = true;
    s = shares_of(&c);
    cr_assert(s.both == 0 && s.collapse >= 0.98 * s.seeds, "no stop-gradient: %d, %d", s.both, s.collapse);
    c = with_seeds(200);
    c.no_bn = true;
    s = shares_of(&c);
    cr_assert(s.both == 0 && s.collapse == 0, "no batch norm: %d, %d", s.both, s.collapse);
    BETWEEN(s.mixed, 0.15, 0.35, s);
    c = with_seeds(200);
    c.drop_head = 1;
    s = shares_of(&c);
    cr_assert(s.both == 0 && s.collapse == 200, "head dropped after phase I: %d, %d", s.both, s.collapse);
    c.drop_head = 30;
    s = shares_of(&c);
    BETWEEN(s.both, 0.88, 1, s);
}

Test(theory_long, full_heads) {
    od_theory_config c = with_seeds(200);
    c.head = OD_THEORY_FULL;
    shares s = shares_of(&c);
    BETWEEN(s.both, 0.92, 1, s);
    c.head = OD_THEORY_RANDOM;
    s = shares_of(&c);
    BETWEEN(s.both, 0.08, 0.24, s);
    BETWEEN(s.unlearned, 0.5, 0.72, s);
}

Test(theory_long, rates_of_the_head) {
    static const double ratios[] = {.001, .01, .03, .1, .3, 1, 10}, both[] = {0, .09, .575, .945, .99, .925, .435};
    for (size_t i = 0; i < OD_COUNT(ratios); i++) {
        od_theory_config c = with_seeds(100);
        c.steps = 400000;
        c.head_ratio = ratios[i];
        shares s = shares_of(&c);
        double deviation = sqrt(both[i] * (1 - both[i]) / 100) + 0.01;
        cr_assert(fabs(s.both / 100. - both[i]) < 3.5 * deviation, "eta_E / eta %g: %d of 100, expected %g", ratios[i],
                  s.both, both[i]);
    }
}

Test(theory_long, ratios_of_strength) {
    static const double ratios[] = {1, 1.25, 1.6, 2}, frozen[] = {.44, .10, 0, 0}, trained[] = {.94, .99, 1, 1};
    for (size_t i = 0; i < OD_COUNT(ratios); i++)
        for (int head = 0; head < 2; head++) {
            od_theory_config c = with_seeds(60);
            double want = head ? trained[i] : frozen[i], deviation = sqrt(want * (1 - want) / 60) + 0.02;
            c.steps = 2000000;
            c.rows = 32;
            c.head = head ? OD_THEORY_OFFDIAG : OD_THEORY_NONE;
            c.strength[1] = c.strength[0] / ratios[i];
            shares s = shares_of(&c);
            cr_assert(fabs(s.both / 60. - want) < 3.5 * deviation, "ratio %g, head %d: %d of 60, expected %g",
                      ratios[i], head, s.both, want);
        }
}

Test(theory_long, dimensions) {
    static const int dimensions[] = {8, 16, 32, 64, 128};
    static const double both[] = {.18, .66, .92, 1, 1};
    for (size_t i = 0; i < OD_COUNT(dimensions); i++) {
        od_theory_config c = with_seeds(100);
        c.steps = 1000000;
        c.rows = 64;
        c.dimension = dimensions[i];
        shares s = shares_of(&c);
        double deviation = sqrt(both[i] * (1 - both[i]) / 100) + 0.012;
        cr_assert(fabs(s.both / 100. - both[i]) < 3.5 * deviation, "d %d: %d of 100, expected %g", dimensions[i],
                  s.both, both[i]);
    }
}

Test(theory_long, sampled_and_expected_agree_by_seed) {
    od_theory_config c = with_seeds(96), closed;
    od_theory_run run, expected;
    int same = 0;
    od_test_use_cache();
    c.level = OD_THEORY_SAMPLED;
    c.batch = 128;
    closed = c;
    closed.level = OD_THEORY_EXPECTED;
    closed.steps = 15000;
    OD_MUST(od_theory_train(&c, NULL, false, &run));
    OD_MUST(od_theory_train(&closed, NULL, false, &expected));
    for (int i = 0; i < c.seeds; i++)
        same += run.results[i].outcome == expected.results[i].outcome;
    cr_assert_geq(same, 0.95 * c.seeds, "%d of %d", same, c.seeds);
    od_theory_run_free(&run);
    od_theory_run_free(&expected);
}
