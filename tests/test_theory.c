/* The theory: its figures to the digit, gradients against differences and against samples, what both levels agree on,
 * and the command. Shares over hundreds of seeds are in test_theory_long.c. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "run_cli.h"
#include "theory_ref.h"

TestSuite(theory, .init = cli_setup, .fini = cli_teardown, .timeout = 120);

static od_theory_config reference(void) {
    od_theory_config c;
    od_theory_config_default(&c);
    OD_MUST(od_theory_check(&c));
    return c;
}

/* The start of the design's trajectory. */
static const od_theory_state published = {.w = {{.14, .11, .95, 0}, {-.12, .10, .08, .93}}, .head = {{1, 0}, {0, 1}}};

/* ---- expected gradients -------------------------------------------------------------------------------------------
 */

typedef struct point { /* loss, <w1,v1>, <w1,v2>, <w2,v1>, <w2,v2>, E_12, E_21 */
    double step, values[7];
} point;

static void check_trajectory(od_theory_head head, const point *points, size_t count) {
    static const size_t columns[] = {0, 1, 2, 3, 4, 8, 9};
    od_theory_config c = reference();
    od_theory_run run;
    size_t found = 0;
    c.head = head;
    c.seeds = 1;
    OD_MUST(od_theory_train(&c, &published, true, &run));
    for (size_t row = 0; row < run.rows && found < count; row++) {
        if (run.steps[row] != points[found].step)
            continue;
        for (size_t i = 0; i < 7; i++) {
            double got = run.paths[row * run.columns + columns[i]], want = points[found].values[i];
            cr_assert(fabs(got - want) <= 1e-6 * fabs(want) + 1.1e-9, "step %g, value %zu: %.12g, expected %.12g",
                      points[found].step, i, got, want);
        }
        found++;
    }
    cr_assert_eq(found, count, "row for step %g is missing", points[found].step);
    od_theory_run_free(&run);
}

Test(theory, trajectory_of_the_trained_head) {
    static const point points[] = {
        {0, {3.999897665, .14, .11, -.12, .10, 0, 0}},
        {100, {3.999859055, .148713333, .110134637, -.124198559, .100092636, -8.1343e-5, -8.6112e-5}},
        {500, {2.402527224, .894966293, .110639037, -.156170612, .100472807, -.005069982, -.020912562}},
        {800, {1.760360812, 1.236849374, .110387865, -.239690052, .101474503, -.004447334, -.259007964}},
        {2000, {.849123971, 1.293232171, .102373803, -.246404144, .137015784, -.004523025, -.279617240}},
        {2500, {.800412060, .916913924, .087505114, -.152510239, .977651863, -.004415498, -.000820191}},
        {100000, {.800000122, .948306059, .087870372, -.151957018, .993120406, -2.0e-8, -1e-9}},
    };
    check_trajectory(OD_THEORY_OFFDIAG, points, OD_COUNT(points));
}

Test(theory, trajectory_of_the_frozen_head) {
    static const point points[] = {
        {0, {3.999897665, .14, .11, -.12, .10, 0, 0}},
        {800, {.803785285, .937975803, .110639881, -.874799499, .100736435, 0, 0}},
        {100000, {.800000198, .977994150, .110639930, -.959332648, .100736516, 0, 0}},
    };
    check_trajectory(OD_THEORY_NONE, points, OD_COUNT(points));
}

Test(theory, gradient_at_the_published_start) {
    static const double w[2][4] = {{1.49826974e-3, 2.67419676e-5, -2.23894084e-4, 0},
                                   {-7.70399473e-4, 1.84539717e-5, -8.65771458e-6, -1.00645932e-4}};
    od_theory_config c = reference();
    od_theory_state down;
    cr_assert_float_eq(od_theory_loss(&c, &published, &down), 3.999897665, 1e-9);
    for (int j = 0; j < 2; j++)
        for (int l = 0; l < 4; l++)
            cr_assert(fabs(down.w[j][l] - w[j][l]) <= 1e-8 * fabs(w[j][l]) + 1e-15, "w %d %d: %.12g", j, l,
                      down.w[j][l]);
    cr_assert(fabs(down.head[0][1] + 4.67694893e-5) < 1e-13 && fabs(down.head[1][0] + 4.98281053e-5) < 1e-13);
    cr_assert(down.head[0][0] == 0 && down.head[1][1] == 0, "the diagonal isn't trained");
}

/* A state that is no special point. */
static od_theory_state some_state(const od_theory_config *c) {
    od_theory_state s = {0};
    for (int j = 0; j < c->neurons; j++) {
        for (int l = 0; l < c->features + c->neurons; l++)
            s.w[j][l] = 0.6 * sin(1 + 1.7 * j + 2.3 * l) + (l == j) * 0.4;
        for (int r = 0; r < c->neurons; r++)
            s.head[j][r] = (j == r) + 0.3 * cos(j + 2.1 * r);
    }
    return s;
}

/* Minus the difference of the loss when *x in `moved` moves; `at` is the same state, which stays. */
static double difference(const od_theory_config *c, const od_theory_state *at, const od_theory_state *moved, double *x,
                         bool detached) {
    static const double offsets[] = {-2, -1, 1, 2}, weights[] = {1, -8, 8, -1};
    const double h = 1e-3, before = *x;
    const od_theory_state *target = c->no_stopgrad ? moved : at;
    double slope = 0;
    for (int i = 0; i < 4; i++) {
        *x = before + h * offsets[i];
        slope += weights[i] * ref_loss(c, moved, target, detached ? at : moved, detached ? at : target);
    }
    *x = before;
    return -slope / (12 * h);
}

static void check_gradient(const od_theory_config *c) {
    od_theory_state at = some_state(c), moved = at, down;
    double loss = od_theory_loss(c, &at, &down), want = ref_loss(c, &at, &at, &at, &at), error = 0, size = 0;
    cr_assert(fabs(loss - want) <= 1e-12 * want, "loss %.15g, expected %.15g", loss, want);
    for (int j = 0; j < c->neurons; j++) {
        for (int l = 0; l < c->features + c->neurons; l++) {
            double d = difference(c, &at, &moved, &moved.w[j][l], c->detach_std);
            error = fmax(error, fabs(d - down.w[j][l]));
            size = fmax(size, fabs(d));
        }
        for (int r = 0; r < c->neurons; r++) {
            bool trained = c->head == OD_THEORY_FULL || (c->head == OD_THEORY_OFFDIAG && r != j);
            double d = trained ? difference(c, &at, &moved, &moved.head[j][r], false) : 0;
            error = fmax(error, fabs(d - down.head[j][r]));
            size = fmax(size, fabs(d));
        }
    }
    cr_assert(size > 1e-3 && error <= 1e-6 * size,
              "bn %d, stop-gradient %d, detached %d, head %d, degree %d, m %d, k %d: off by %g of %g", !c->no_bn,
              !c->no_stopgrad, c->detach_std, c->head, c->degree, c->neurons, c->features, error, size);
}

Test(theory, gradient_by_finite_differences) {
    for (int i = 0; i < 96; i++) {
        od_theory_config c = reference();
        c.no_bn = i & 1;
        c.no_stopgrad = i & 2;
        c.detach_std = (i & 4) && !c.no_bn;
        c.noise_everywhere = i & 8;
        c.head = i & 16 ? OD_THEORY_FULL : OD_THEORY_OFFDIAG;
        c.degree = i / 32 * 2 + 1; /* 1, 3, 5 */
        c.neurons = i & 32 ? 2 : 3;
        c.features = i & 4 ? 2 : 3;
        c.strength[0] = 1.3;
        c.strength[1] = 1.1;
        c.strength[2] = 0.9;
        c.noise = 0.8;
        check_gradient(&c);
    }
}

Test(theory, frozen_head_has_no_gradient) {
    od_theory_config c = reference();
    c.head = OD_THEORY_NONE;
    check_gradient(&c);
}

/* |w_1|^2 - 3 (eta / eta_E) (E_21^2 - E_12^2): constant in the flow. */
static double drift(double eta, od_theory_integrator integrator) {
    od_theory_config c;
    od_theory_run run;
    double worst = 0;
    od_theory_config_default(&c);
    c.seeds = 1;
    c.eta = eta;
    c.steps = (uint64_t)(5000 * 0.05 / eta);
    c.integrator = integrator;
    OD_MUST(od_theory_train(&c, &published, true, &run));
    for (size_t i = 0; i < run.rows; i++) {
        const double *row = run.paths + i * run.columns;
        double rise = 3 / c.head_ratio * (row[9] * row[9] - row[8] * row[8]);
        worst = fmax(worst, fabs(row[5] * row[5] - rise - (.14 * .14 + .11 * .11 + .95 * .95)));
        worst = fmax(worst, fabs(row[6] * row[6] + rise - (.12 * .12 + .10 * .10 + .08 * .08 + .93 * .93)));
    }
    od_theory_run_free(&run);
    return worst;
}

Test(theory, the_flow_conserves_and_steps_drift_with_eta) {
    double flow = drift(0.05, OD_THEORY_FLOW), whole = drift(0.05, OD_THEORY_STEPS),
           halved = drift(0.025, OD_THEORY_STEPS), quarter = drift(0.0125, OD_THEORY_STEPS);
    cr_assert(flow < 1e-6, "flow: %g", flow);
    cr_assert(whole / halved > 1.8 && whole / halved < 2.2 && halved / quarter > 1.8 && halved / quarter < 2.2,
              "drift of steps: %g, %g, %g", whole, halved, quarter);
}

Test(theory, the_flow_is_the_limit_of_small_steps) {
    double ends[2][4];
    for (int i = 0; i < 2; i++) {
        od_theory_config c;
        od_theory_run run;
        od_theory_config_default(&c);
        c.seeds = 1;
        c.steps = i ? 800 : 800000;
        c.eta = i ? 0.05 : 5e-5;
        c.integrator = i ? OD_THEORY_FLOW : OD_THEORY_STEPS;
        OD_MUST(od_theory_train(&c, &published, true, &run));
        memcpy(ends[i], run.paths + (run.rows - 1) * run.columns + 1, sizeof ends[i]);
        od_theory_run_free(&run);
    }
    for (int l = 0; l < 4; l++)
        cr_assert(fabs(ends[0][l] - ends[1][l]) < 1e-4, "coordinate %d: %.9f and %.9f", l, ends[0][l], ends[1][l]);
}

/* ---- starts, paths, intervals -------------------------------------------------------------------------------------
 */

Test(theory, controlled_starts) {
    od_theory_config c = reference();
    int positive = 0;
    double low = 1, high = 0;
    for (uint64_t seed = 0; seed < 500; seed++) {
        od_theory_state s, again;
        OD_MUST(od_theory_start(&c, seed, &s));
        OD_MUST(od_theory_start(&c, seed, &again));
        cr_assert_arr_eq(&s, &again, sizeof s);
        for (int j = 0; j < 2; j++)
            for (int l = 0; l < 2; l++) {
                low = fmin(low, fabs(s.w[j][l]) * 8);
                high = fmax(high, fabs(s.w[j][l]) * 8);
                positive += s.w[j][l] > 0;
            }
        cr_assert(s.head[0][0] == 1 && s.head[0][1] == 0 && s.w[0][3] == 0 && s.w[0][2] > 0);
    }
    cr_assert(low > 0.75 && low < 0.76 && high < 1.25 && high > 1.24, "%g to %g", low, high);
    cr_assert(positive > 920 && positive < 1080, "%d of 2000 are positive", positive);
}

/* The neurons' Gram matrix outside the features has the mean (d - k)/d I and its variances. */
Test(theory, starts_have_the_gram_matrix_of_normal_vectors) {
    enum { SEEDS = 4000 };
    od_theory_config c = reference();
    double square = 0, product = 0, product_square = 0;
    c.start = OD_THEORY_GAUSSIAN;
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        od_theory_state s;
        OD_MUST(od_theory_start(&c, seed, &s));
        square += (s.w[1][2] * s.w[1][2] + s.w[1][3] * s.w[1][3]) / SEEDS;
        product += s.w[0][2] * s.w[1][2] / SEEDS;
        product_square += s.w[0][2] * s.w[1][2] * s.w[0][2] * s.w[1][2] / SEEDS;
    }
    cr_assert(fabs(square - 62. / 64) < 0.01, "%g", square);
    cr_assert(fabs(product) < 0.008 && fabs(product_square * 64 * 64 / 62 - 1) < 0.1, "%g, %g", product,
              product_square);
}

Test(theory, phases_of_a_made_up_path) {
    enum { ROWS = 11, COLUMNS = 11 };
    od_theory_config c = reference();
    od_theory_result r = {.seed = 7};
    double steps[ROWS], path[ROWS][COLUMNS] = {0};
    static const double rise[ROWS] = {0, 0, .1, .25, .28, .3, .29, .27, .1, .05, 0};
    for (int i = 0; i < ROWS; i++) {
        double *row = path[i];
        steps[i] = 10 * i;
        row[5] = row[6] = row[7] = row[10] = 1;
        row[3] = i >= 2 ? -.95 : .1; /* neuron 2 learns v_1 at row 2 */
        row[2] = i >= 7 ? .95 : .1;  /* neuron 1 learns v_2 at row 7 */
        row[8] = -rise[i];           /* E_12 */
    }
    od_theory_analyse(&c, steps, path[0], ROWS, &r);
    cr_assert(r.outcome == OD_THEORY_BOTH && r.first == 1 && r.other == 0 && r.rise_and_fall && r.seed == 7);
    cr_assert(r.phase[0] == 20 && r.phase[1] == 40 && r.phase[2] == 70 && r.phase[3] == 90, "%g %g %g %g", r.phase[0],
              r.phase[1], r.phase[2], r.phase[3]);
    cr_assert(r.half_peak == 30 && r.at_peak == 50 && r.peak[0][1] == .3 && r.head[0][1] == 0 && r.peak[1][1] == 0);
    path[ROWS - 1][2] = .1; /* forgotten in the end: its length is noise */
    od_theory_analyse(&c, steps, path[0], ROWS, &r);
    cr_assert_eq(r.outcome, OD_THEORY_UNLEARNED);
    path[ROWS - 1][1] = .95;
    od_theory_analyse(&c, steps, path[0], ROWS, &r);
    cr_assert_eq(r.outcome, OD_THEORY_COLLAPSE);
    path[ROWS - 1][1] = path[ROWS - 1][2] = .7;
    od_theory_analyse(&c, steps, path[0], ROWS, &r);
    cr_assert_eq(r.outcome, OD_THEORY_MIXED);
    path[ROWS - 1][8] = NAN;
    od_theory_analyse(&c, steps, path[0], ROWS, &r);
    cr_assert_eq(r.outcome, OD_THEORY_DIVERGED);
}

Test(theory, wilson_intervals) {
    double low, high;
    od_theory_interval(38, 40, &low, &high);
    cr_assert(fabs(low - 0.8350) < 5e-5 && fabs(high - 0.9862) < 5e-5, "%g %g", low, high);
    od_theory_interval(0, 40, &low, &high);
    cr_assert(low == 0 && fabs(high - 0.08762) < 5e-5, "%g", high);
    od_theory_interval(40, 40, &low, &high);
    cr_assert(high == 1 && fabs(low - 0.91238) < 5e-5, "%g", low);
}

/* The sign of E_ba at its peak is that of <w_a, v_1> <w_b, v_1>; all end at 4 (1 - k12/k11). */
Test(theory, signs_and_the_final_loss) {
    od_theory_config c = reference();
    od_theory_run run;
    OD_MUST(od_theory_train(&c, NULL, true, &run));
    int checked = 0;
    for (size_t i = 0; i < (size_t)c.seeds; i++) {
        const od_theory_result *r = &run.results[i];
        cr_assert(fabs(r->loss - 0.8) < 1e-4, "seed %zu: loss %g", i, r->loss);
        for (size_t row = 0; row < run.rows && r->outcome == OD_THEORY_BOTH; row++)
            if (run.steps[row] == r->at_peak) {
                const double *x = run.paths + (i * run.rows + row) * run.columns;
                double entry = x[7 + 2 * r->other + r->first];
                cr_assert_eq(entry > 0, x[1] * x[3] > 0, "seed %zu", i);
                checked++;
            }
    }
    cr_assert_geq(checked, 36);
    od_theory_run_free(&run);
}

/* ---- sampled training ---------------------------------------------------------------------------------------------
 */

static od_theory_config sampled(int seeds, uint64_t steps) {
    od_theory_config c;
    const char *device = getenv("OFFDIAG_TEST_DEVICE");
    od_theory_config_default(&c);
    c.level = OD_THEORY_SAMPLED;
    c.seeds = seeds;
    c.steps = steps;
    snprintf(c.device, sizeof c.device, "%s", device ? device : "");
    od_test_use_cache();
    return c;
}

/* A seed means the same in the lanes of a vector, in a work-group and alone, and however many run beside it. */
Test(theory, a_seed_means_the_same_in_every_family) {
    od_theory_config c = sampled(35, 40);
    od_theory_run runs[4];
    bool small = !od_test_affords(35. * 40 * 32 * 40); /* a simulator: one step of two samples, no group of 64 */
    if (small)
        c.seeds = 3, c.steps = 1, c.batch = 2;
    c.seed = UINT32_MAX - 4; /* the key's carry */
    for (int i = 0; i < 4; i++) {
        od_theory_config one = c;
        one.kernels = (od_family[]){OD_FAMILY_CPU, OD_FAMILY_REF, OD_FAMILY_GPU, OD_FAMILY_REF}[i];
        if (small && i == 2)
            one.kernels = OD_FAMILY_REF;
        if (i == 3) {
            one.seed += 2;
            one.seeds = 1;
        }
        OD_MUST(od_theory_train(&one, NULL, true, &runs[i]));
    }
    size_t size = runs[0].rows * runs[0].columns;
    double changed = 0;
    for (size_t i = 0; i < (size_t)c.seeds * size; i++)
        for (int n = 1; n < 3; n++)
            cr_assert(fabs(runs[0].paths[i] - runs[n].paths[i]) < 2e-5 * (1 + fabs(runs[0].paths[i])),
                      "family %d, seed %zu, row %zu, column %zu: %g and %g", n, i / size, i % size / runs[0].columns,
                      i % runs[0].columns, runs[0].paths[i], runs[n].paths[i]);
    for (size_t i = 0; i < size; i++) {
        cr_assert(runs[1].paths[2 * size + i] == runs[3].paths[i], "seed alone");
        changed += fabs(runs[1].paths[i] - runs[1].paths[size + i]);
    }
    cr_assert(changed > 0.01, "seeds differ");
    for (int i = 0; i < 4; i++)
        od_theory_run_free(&runs[i]);
}

/* One step of rate 1 from `at`, in the mean over seeds: minus the gradient by the features and the head. */
static void check_sampled_gradient(od_theory_config c, int batch, double tolerance) {
    enum { SEEDS = 32 };
    od_theory_state starts[SEEDS], down;
    od_theory_run run;
    double error = 0, size = 0, head_error = 0, head_size = 0;
    c.batch = batch;
    c.eta = c.eta_head = 1;
    OD_MUST(od_theory_check(&c));
    od_theory_config closed = c;
    closed.level = OD_THEORY_EXPECTED;
    for (int i = 0; i < SEEDS; i++)
        starts[i] = some_state(&c);
    (void)od_theory_loss(&closed, &starts[0], &down);
    OD_MUST(od_theory_train(&c, starts, true, &run));
    int m = c.neurons, k = c.features;
    for (int n = 1; n < 1 + m * (k + 1 + m); n++) {
        if (n > m * k && n <= m * k + m) /* lengths */
            continue;
        double mean = 0;
        for (size_t i = 0; i < SEEDS; i++) {
            const double *rows = run.paths + i * run.rows * run.columns;
            mean += (rows[run.columns + (size_t)n] - rows[n]) / SEEDS;
        }
        int e = n - 1 - m * (k + 1);
        double want = e < 0 ? down.w[(n - 1) / k][(n - 1) % k] : down.head[e / m][e % m];
        *(e < 0 ? &error : &head_error) += (mean - want) * (mean - want);
        *(e < 0 ? &size : &head_size) += want * want;
    }
    cr_assert(size > 1e-6 && sqrt(error / size) < tolerance, "neurons: %g of %g", sqrt(error / size), sqrt(size));
    if (c.head != OD_THEORY_NONE)
        cr_assert(head_size > 1e-6 && sqrt(head_error / head_size) < tolerance, "head: %g of %g",
                  sqrt(head_error / head_size), sqrt(head_size));
    od_theory_run_free(&run);
}

Test(theory, mean_of_a_million_sampled_gradients) {
    for (int i = 0; i < (od_test_is_whole() ? 8 : 1); i++) { /* a program each */
        od_theory_config c = sampled(32, 1);
        if (!od_test_affords(1e9))
            cr_skip_test("too slow here");
        c.no_bn = i == 1;
        c.no_stopgrad = i == 2;
        c.detach_std = i == 3;
        c.noise_everywhere = i == 4;
        c.head = i == 5 ? OD_THEORY_FULL : OD_THEORY_OFFDIAG;
        if (i == 6) {
            c.neurons = c.features = 3;
            c.strength[2] = 1.1;
        }
        c.degree = i == 7 ? 1 : 3;
        check_sampled_gradient(c, 65536, 0.01); /* 32 x 65536 samples in 4 copies */
    }
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The largest distance of two empirical distributions of n values each (Kolmogorov and Smirnov). */
static double distance(double *a, double *b, size_t n) {
    double worst = 0;
    size_t j = 0;
    qsort(a, n, sizeof *a, ascending);
    qsort(b, n, sizeof *b, ascending);
    for (size_t i = 0; i < n; i++) {
        while (j < n && b[j] <= a[i])
            j++;
        worst = fmax(worst, fabs((double)(i + 1) - (double)j) / (double)n);
    }
    return worst;
}

/* The noise that matters, and all of it: after steps with much noise every number that is reported has the same
 * distribution. Lengths show the components outside the span: without them they would shrink. */
Test(theory, projected_noise_has_the_distribution_of_all_noise) {
    od_test_needs_whole();
    enum { SEEDS = 2048 };
    static double values[2][SEEDS];
    od_theory_config c = sampled(SEEDS, 30);
    od_theory_run runs[2];
    if (!od_test_affords(1e9))
        cr_skip_test("too slow here");
    c.dimension = 13;
    c.batch = 4;
    c.eta = 0.3;
    c.eta_head = 0.1;
    c.start = OD_THEORY_GAUSSIAN;
    for (int i = 0; i < 2; i++) {
        od_theory_config one = c;
        one.draw = i ? OD_THEORY_ALL : OD_THEORY_PROJECTED;
        one.seed = i ? 1000000 : 0; /* other starts as well: the samples are independent */
        OD_MUST(od_theory_train(&one, NULL, true, &runs[i]));
    }
    for (size_t column = 1; column < runs[0].columns; column++) {
        double spread = 0;
        if (column == 7 || column == 10) /* the head's diagonal */
            continue;
        for (int i = 0; i < 2; i++)
            for (size_t s = 0; s < SEEDS; s++) {
                values[i][s] = runs[i].paths[((s + 1) * runs[i].rows - 1) * runs[i].columns + column];
                spread += fabs(values[i][s] - values[i][0]) / (2 * SEEDS);
            }
        double d = distance(values[0], values[1], SEEDS);
        cr_assert(d < 1.95 / sqrt(SEEDS / 2.), "column %zu: %g", column, d); /* chance 1e-3 for each */
        cr_assert(spread > 0.02, "column %zu has a spread of %g", column, spread);
    }
    for (int i = 0; i < 2; i++)
        od_theory_run_free(&runs[i]);
}

Test(theory, sampled_training_ends_as_the_expected) {
    od_test_needs_whole();
    od_theory_config c = sampled(32, 15000), closed;
    od_theory_run run, expected;
    int same = 0;
    if (!od_test_affords(1e9))
        cr_skip_test("too slow here");
    closed = c;
    closed.level = OD_THEORY_EXPECTED;
    OD_MUST(od_theory_train(&c, NULL, false, &run));
    OD_MUST(od_theory_train(&closed, NULL, false, &expected));
    for (int i = 0; i < 32; i++) {
        const od_theory_result *a = &run.results[i], *b = &expected.results[i];
        same += a->outcome == b->outcome;
        if (a->outcome == OD_THEORY_BOTH && b->outcome == OD_THEORY_BOTH) {
            double ratio = a->phase[2] / b->phase[2], peak = a->peak[a->other][a->first] - b->peak[b->other][b->first];
            cr_assert(ratio > 1 / 1.5 && ratio < 1.5, "seed %d: phase III ends %g times later", i, ratio);
            cr_assert(fabs(peak) < 0.02, "seed %d: the peak is off by %g", i, peak);
        }
    }
    cr_assert_geq(same, 29, "%d of 32 seeds end alike", same);
    od_theory_run_free(&run);
    od_theory_run_free(&expected);
}

Test(theory, even_degrees_and_many_neurons_train) {
    od_theory_config c = sampled(4, 20);
    od_theory_run run;
    if (!od_test_affords(1e6))
        cr_skip_test("too slow here");
    c.degree = 2;
    c.neurons = 4;
    c.features = 3;
    c.strength[2] = 1;
    c.plain_batch = true;
    c.dimension = 9; /* too few for Bartlett's matrix: all noise is drawn */
    OD_MUST(od_theory_train(&c, NULL, true, &run));
    for (size_t i = 0; i < 4 * run.rows * run.columns; i++)
        cr_assert(isfinite(run.paths[i]));
    od_theory_run_free(&run);
}

/* ---- the command --------------------------------------------------------------------------------------------------
 */

static json_t *json_of(const cli_result *r) {
    json_error_t error;
    json_t *root = json_loads(r->out, 0, &error);
    cr_assert_not_null(root, "%s: %s", error.text, r->out);
    return root;
}

static int both_learned(const char *arguments) {
    cli_result r = cli("theory --json %s", arguments);
    cli_expect(&r, 0, "");
    json_t *root = json_of(&r);
    cr_assert_eq(json_integer_value(json_object_get(root, "seeds")), 40);
    cr_assert_eq(json_array_size(json_object_get(root, "rows")), 40);
    return (int)json_integer_value(json_object_get(root, "both_learned"));
}

Test(theory, defaults_are_the_reference_setting) {
    for (int first = 0; first < (od_test_is_whole() ? 2000 : 500); first += 500) {
        char arguments[64];
        snprintf(arguments, sizeof arguments, "--seeds 40 --seed %d", first);
        cr_assert_geq(both_learned(arguments), 36, "seeds from %d", first);
        snprintf(arguments, sizeof arguments, "--seeds 40 --seed %d --head none", first);
        cr_assert_eq(both_learned(arguments), 0, "seeds from %d", first);
    }
}

Test(theory, json_has_what_scripts_read) {
    cli_result r = cli("theory --seeds 3 --seed 5 --steps 9000 --json");
    cli_expect(&r, 0, "");
    json_t *root = json_of(&r), *row = json_array_get(json_object_get(root, "rows"), 1);
    cr_assert_str_eq(json_string_value(json_object_get(root, "variant")), "offdiag");
    cr_assert_eq(json_integer_value(json_object_get(row, "seed")), 6);
    cr_assert_eq(json_array_size(json_object_get(row, "phase_ends")), 4);
    cr_assert(json_is_boolean(json_object_get(row, "rise_and_fall")));
    cr_assert_eq(json_array_size(json_array_get(json_object_get(row, "cosines"), 1)), 2);
    r = cli("theory --seeds 2 --no-bn --eta 1000 --json"); /* NaN has no place in JSON */
    cli_expect(&r, 0, "");
    cr_assert_eq(json_integer_value(json_object_get(json_object_get(json_of(&r), "outcomes"), "diverged")), 2);
}

Test(theory, tables_csv_and_page) {
    cli_result r = cli("theory --seeds 2 --steps 5000 --csv %s --report %s", in_scratch("t.csv"), in_scratch("t.html"));
    cli_expect(&r, 0, "");
    cr_assert_not_null(strstr(r.out, "none "));
    cr_assert_not_null(strstr(r.out, "III b learned v_2"));
    char *csv = slurp(in_scratch("t.csv"), NULL), *page = slurp(in_scratch("t.html"), NULL);
    cr_assert_not_null(csv);
    static const char top[] = "seed,step,loss,w1_v1,w1_v2,w2_v1,w2_v2,length_w1,length_w2,E_11,E_12,E_21,E_22\n0,0,";
    cr_assert_eq(strncmp(csv, top, sizeof top - 1), 0);
    cr_assert_not_null(strstr(csv, "\n1,5000,"));
    cr_assert_not_null(page);
    cr_assert_not_null(strstr(page, "Chart.js"));
    cr_assert_null(strstr(page, "<script src"));
    cr_assert_not_null(strstr(page, "\"kind\":\"runs\""));
}

Test(theory, sweep) {
    cli_result r =
        cli("theory sweep --x eta-ratio=0.001,0.3 --y noise=1 --seeds 10 --json --report %s", in_scratch("s.html"));
    cli_expect(&r, 0, "");
    json_t *rows = json_object_get(json_of(&r), "rows");
    cr_assert_eq(json_array_size(rows), 2);
    cr_assert_eq(json_integer_value(json_object_get(json_array_get(rows, 0), "both_learned")), 0);
    cr_assert_geq(json_integer_value(json_object_get(json_array_get(rows, 1), "both_learned")), 9);
    cr_assert_not_null(slurp(in_scratch("s.html"), NULL));
    r = cli("theory sweep --x dimension=16,32 --y strength-ratio=1.6 --seeds 3");
    cli_expect(&r, 0, "");
    cr_assert_not_null(strstr(r.out, "strength-ratio (down), dimension (across)"));
}

Test(theory, wrong_usage) {
    static const char *const wrong[][2] = {
        {"theory --hed full", "unknown option --hed|--head"},
        {"theory --head ful", "'ful'|nearest one is full"},
        {"theory --seeds 0", "--seeds|from 1 to 1000000"},
        {"theory --patches 7", "--patches 7|even"},
        {"theory --feature-patches 20", "--feature-patches 20|from 1 to the 16 patches"},
        {"theory --dimension 2", "--dimension 2|room for noise"},
        {"theory --strengths 1,2", "strongest first"},
        {"theory --strengths 1,x", "expected 1 to 8 numbers"},
        {"theory --degree 4", "odd degrees|--level sampled"},
        {"theory --plain-batch", "--level sampled"},
        {"theory --level sampled --integrator flow", "--level expected"},
        {"theory extra", "unexpected argument 'extra'"},
        {"theory sweep --x nois", "nearest one is noise"},
        {"theory sweep --x noise --y noise", "noise twice"},
        {"theory sweep --x dimension=10.5", "dimension 10.5"},
        {"theory sweep --x noise=1,", "numbers with commas"},
        {"theory sweep --csv f", "no paths"},
    };
    for (size_t i = 0; i < OD_COUNT(wrong); i++) {
        cli_result r = cli("%s", wrong[i][0]);
        cli_expect(&r, 2, wrong[i][1]);
        cr_assert_str_eq(r.out, "");
    }
    cli_result r = cli("theory --seeds 2 --steps 10 --csv %s", in_scratch("absent/t.csv"));
    cli_expect(&r, 1, "t.csv");
}
