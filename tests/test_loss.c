/* Losses and their gradients against double references and finite differences. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/loss.h"
#include "reference/loss_ref.h"

static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};

static float *read_back(od_cases *cs, od_span s, size_t count) {
    float *out = od_case_alloc(cs, count * sizeof *out);
    OD_MUST(od_span_read(s, out, count));
    return out;
}

typedef od_status (*pair_loss)(od_device *device, od_span loss, od_span dp, od_span dt, od_span p, od_span target,
                               int rows, int d, int shift, float scale, bool accumulate);
typedef double (*pair_reference)(double *dp, double *dt, const float *p, const float *target, int rows, int d,
                                 int shift, double scale);
static const struct {
    const char *name;
    pair_loss run;
    pair_reference reference;
} pairs[] = {{"cosine", od_cosine_loss, loss_ref_cosine}, {"squared_error", od_squared_error, loss_ref_squared}};

typedef struct pair_case {
    int rows, d, shift;
    bool want_dt, accumulate, aligned;
} pair_case;

static const pair_case pair_cases[] = {
    {1, 1, 0, 1, 0, 0},       {1, 5, 0, 1, 1, 0},     {2, 3, 1, 0, 0, 0},    {6, 16, 3, 1, 0, 1},
    {7, 17, 2, 1, 1, 0},      {64, 64, 32, 0, 0, 1},  {33, 65, 32, 1, 0, 0}, {10, 100, 5, 1, 1, 1},
    {512, 128, 256, 0, 0, 1}, {5, 1023, -1, 1, 0, 0}, {4, 2048, 2, 1, 0, 1}, {3, 4099, 1, 0, 1, 0},
};

static void check_pair(od_cases *cs, od_device *device, size_t which, const pair_case *k) {
    size_t n = (size_t)k->rows * (size_t)k->d;
    int shift = (k->shift + k->rows) % k->rows;
    float *p = od_case_normals(cs, n, 0), *target = od_case_normals(cs, n, 1), before = 0.75F;
    double *dp = od_case_alloc(cs, n * sizeof *dp), *dt = od_case_alloc(cs, n * sizeof *dt);
    double loss = pairs[which].reference(dp, dt, p, target, k->rows, k->d, shift, 0.5);
    if (k->accumulate)
        loss += before;
    od_span ps = od_case_input(cs, "p", p, n), ts = od_case_input(cs, "target", target, n);
    od_span dps = od_case_output(cs, "dp", n), dts = k->want_dt ? od_case_output(cs, "dt", n) : OD_NO_SPAN;
    od_span value = k->accumulate ? od_case_inout(cs, "loss", &before, 1) : od_case_output(cs, "loss", 1);
    if (!od_case_ok(cs,
                    pairs[which].run(device, value, dps, dts, ps, ts, k->rows, k->d, k->shift, 0.5F, k->accumulate)))
        return;
    /* A cosine's rounding is that of its terms, whatever is left of them. */
    od_case_expect_constant(cs, value, &loss, INFINITY, which ? 1e-6 * (1 + fabs(loss)) : 1e-6);
    bool flat = k->d == 1 && which == 0; /* a cosine in one dimension is +-1: its gradient is 0 up to rounding / |p| */
    double rel = flat ? INFINITY : 2e-6;
    if (flat || k->d * k->rows <= 2) {
        od_case_expect_constant(cs, dps, dp, rel, flat ? 2e-4 : 0);
        if (k->want_dt)
            od_case_expect_constant(cs, dts, dt, rel, flat ? 2e-4 : 0);
    } else {
        od_case_expect(cs, dps, dp, rel, 0);
        if (k->want_dt)
            od_case_expect(cs, dts, dt, rel, 0);
    }
    od_span again = od_case_output(cs, "dp again", n), value_again = od_case_output(cs, "loss again", 1);
    od_case_ok(cs,
               pairs[which].run(device, value_again, again, OD_NO_SPAN, ps, ts, k->rows, k->d, k->shift, 0.5F, false));
    od_case_expect_words(cs, again, read_back(cs, dps, n));
    if (!k->accumulate)
        od_case_expect_words(cs, value_again, read_back(cs, value, 1));
}

Test(loss, pairs) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t which = 0; which < OD_COUNT(pairs); which++)
            for (size_t i = 0; i < OD_COUNT(pair_cases); i++) {
                const pair_case *k = &pair_cases[i];
                if (!od_case(cs, "%s family=%s rows=%d d=%d shift=%d dt=%d accumulate=%d aligned=%d", pairs[which].name,
                             od_family_name(families[f]), k->rows, k->d, k->shift, k->want_dt, k->accumulate,
                             k->aligned))
                    continue;
                od_case_aligned(cs, k->aligned);
                check_pair(cs, device, which, k);
            }
        od_cases_end(cs);
    }
}

/* Rows of zeros or nearly so: the length is clamped, nothing becomes NaN; a NaN in a row reaches the loss. */
Test(loss, cosine_of_nothing) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        if (od_case(cs, "cosine zero row family=%s", od_family_name(families[f]))) {
            enum { ROWS = 4, D = 19, N = ROWS * D };
            float *p = od_case_normals(cs, N, 0), *target = od_case_normals(cs, N, 1);
            double dp[N], dt[N];
            memset(target + 3 * D, 0, D * sizeof *p);
            for (int k = 0; k < D; k++)
                p[D + k] *= 1e-10F; /* shorter than 1e-8: the length is the constant 1e-8 in the gradient too */
            double loss = loss_ref_cosine(dp, dt, p, target, ROWS, D, 0, 1);
            od_span ps = od_case_input(cs, "p", p, N), ts = od_case_input(cs, "target", target, N);
            od_span dps = od_case_output(cs, "dp", N), dts = od_case_output(cs, "dt", N);
            od_span value = od_case_output(cs, "loss", 1);
            od_case_ok(cs, od_cosine_loss(device, value, dps, dts, ps, ts, ROWS, D, 0, 1, false));
            od_case_expect_constant(cs, value, &loss, 2e-6, 0);
            od_case_expect(cs, dps, dp, 2e-6, 0);
            od_case_expect(cs, dts, dt, 2e-6, 0);
            p[2 * D + 18] = NAN;
            od_span bad = od_case_input(cs, "p with NaN", p, N);
            od_case_ok(cs, od_cosine_loss(device, value, dps, dts, bad, ts, ROWS, D, 0, 1, false));
            od_case_check(cs, isnan(read_back(cs, value, 1)[0]), "the NaN is lost");
        }
        od_cases_end(cs);
    }
}

typedef struct difference {
    int rows, d, shift;
    const float *target; /* NULL: the second half of the point */
    bool shared;         /* p is its own target, as without a stop-gradient in a network without predictor */
    const int32_t *labels;
} difference;

static od_status loss_at(void *context, const double *point, size_t elements, double *loss) {
    const difference *k = context;
    float x[1024];
    double correct;
    if (elements > OD_COUNT(x))
        return OD_ERR_ARGUMENT;
    for (size_t i = 0; i < elements; i++)
        x[i] = (float)point[i];
    const float *target = k->target ? k->target : k->shared ? x : x + elements / 2;
    *loss = k->labels ? loss_ref_cross_entropy(NULL, &correct, x, k->labels, k->rows, k->d, 1)
                      : loss_ref_cosine(NULL, NULL, x, target, k->rows, k->d, k->shift, 1);
    return OD_OK;
}

static void check_gradient(od_cases *cs, const char *name, difference *context, const float *x, const float *gradient,
                           size_t elements) {
    od_comparison c = od_compare_gradient(loss_at, context, x, gradient, elements, 0x1p-10, 8, 1e-4);
    od_case_passes(cs, name, &c);
}

Test(loss, cosine_differences) {
    enum { ROWS = 6, D = 9, N = ROWS * D };
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        if (od_case(cs, "cosine differences family=%s", od_family_name(families[f]))) {
            float *both = od_case_normals(cs, (size_t)2 * N, 0), *p = both, *target = both + N;
            od_span ps = od_case_input(cs, "p", p, N), ts = od_case_input(cs, "target", target, N);
            od_span g = od_case_output(cs, "dp, dt", (size_t)2 * N), value = od_case_output(cs, "loss", 1);
            /* Stop-gradient: the target is a constant. */
            od_case_ok(cs, od_cosine_loss(device, value, g, OD_NO_SPAN, ps, ts, ROWS, D, 3, 1, false));
            difference stop = {ROWS, D, 3, .target = target};
            check_gradient(cs, "stop-gradient", &stop, p, read_back(cs, g, N), N);
            od_case_ok(cs, od_cosine_loss(device, value, g, od_span_at(g, N), ps, ts, ROWS, D, 3, 1, false));
            difference joint = {ROWS, D, 3};
            check_gradient(cs, "both sides", &joint, both, read_back(cs, g, (size_t)2 * N), (size_t)2 * N);
            /* One matrix on both sides: its gradient is dp + dt, and dp alone is half of it. */
            od_case_ok(cs, od_cosine_loss(device, value, g, od_span_at(g, N), ps, ps, ROWS, D, 3, 1, false));
            float *sides = read_back(cs, g, (size_t)2 * N), *sum = od_case_alloc(cs, N * sizeof *sum);
            for (int i = 0; i < N; i++)
                sum[i] = sides[i] + sides[N + i];
            difference shared = {ROWS, D, 3, .shared = true};
            check_gradient(cs, "one matrix", &shared, p, sum, N);
        }
        od_cases_end(cs);
    }
}

typedef struct ce_case {
    int rows, classes;
    bool gradient, correct, accumulate;
    float spread;
} ce_case;

static void check_cross_entropy(od_cases *cs, od_device *device, const ce_case *k) {
    size_t n = (size_t)k->rows * (size_t)k->classes, rows = (size_t)k->rows;
    float *logits = od_case_normals(cs, n, 0), before = -0.25F;
    int32_t *labels = (int32_t *)od_case_indices(cs, rows, (uint32_t)k->classes, 1);
    for (size_t i = 0; i < n; i++)
        logits[i] = roundf(logits[i] * 4) * k->spread; /* coarse: equal largest logits occur */
    for (size_t i = 5; i < rows; i += 7)
        labels[i] = i % 2 ? -1 : k->classes; /* outside: they contribute nothing */
    double *dlogits = od_case_alloc(cs, n * sizeof *dlogits), correct;
    double loss = loss_ref_cross_entropy(dlogits, &correct, logits, labels, k->rows, k->classes, 0.5);
    if (k->accumulate)
        loss += before;
    od_span xs = od_case_input(cs, "logits", logits, n), ls = od_case_input(cs, "labels", labels, rows);
    od_span value = k->accumulate ? od_case_inout(cs, "loss", &before, 1) : od_case_output(cs, "loss", 1);
    od_span hits = k->correct ? od_case_output(cs, "correct", 1) : OD_NO_SPAN;
    od_span gs = k->gradient ? od_case_output(cs, "dlogits", n) : OD_NO_SPAN;
    if (!od_case_ok(cs, od_softmax_cross_entropy(device, value, hits, gs, xs, ls.buffer, ls.offset, k->rows, k->classes,
                                                 0.5F, k->accumulate)))
        return;
    od_case_expect_constant(cs, value, &loss, INFINITY, 2e-6 * (0.1 + fabs(loss)));
    if (k->correct)
        od_case_expect_constant(cs, hits, &correct, 0, 1e-9);
    if (k->gradient)
        od_case_expect_constant(cs, gs, dlogits, 3e-6, 1e-6);
}

Test(loss, cross_entropy) {
    static const ce_case list[] = {
        {1, 1, 1, 1, 0, 0.25F},   {3, 2, 1, 1, 1, 0.25F},     {64, 10, 1, 1, 0, 0.25F}, {65, 10, 0, 1, 1, 0.25F},
        {33, 100, 1, 0, 0, 0.5F}, {10, 1000, 1, 1, 0, 0.25F}, {40, 63, 1, 1, 0, 25},    {257, 65, 1, 1, 1, 0.25F},
    };
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(list); i++)
            if (od_case(cs, "cross_entropy family=%s rows=%d classes=%d gradient=%d correct=%d accumulate=%d spread=%g",
                        od_family_name(families[f]), list[i].rows, list[i].classes, list[i].gradient, list[i].correct,
                        list[i].accumulate, list[i].spread))
                check_cross_entropy(cs, device, &list[i]);
        if (od_case(cs, "cross_entropy differences family=%s", od_family_name(families[f]))) {
            enum { ROWS = 5, CLASSES = 7, N = ROWS * CLASSES };
            float *x = od_case_normals(cs, N, 0);
            const int32_t labels[ROWS] = {3, 0, 6, -1, 2};
            od_span xs = od_case_input(cs, "logits", x, N), ls = od_case_input(cs, "labels", labels, ROWS);
            od_span g = od_case_output(cs, "dlogits", N), value = od_case_output(cs, "loss", 1);
            od_case_ok(cs, od_softmax_cross_entropy(device, value, OD_NO_SPAN, g, xs, ls.buffer, ls.offset, ROWS,
                                                    CLASSES, 1, false));
            difference context = {ROWS, CLASSES, .labels = labels};
            check_gradient(cs, "logits", &context, x, read_back(cs, g, N), N);
        }
        od_cases_end(cs);
    }
}

Test(loss, arguments) {
    od_device *device = od_test_device(OD_FAMILY_REF);
    od_cases *cs = od_cases_begin(device);
    if (od_case(cs, "loss arguments")) {
        float zeros[4] = {0};
        od_span x = od_case_inout(cs, "x", zeros, 4);
        od_case_check(cs, od_cosine_loss(device, x, x, OD_NO_SPAN, x, x, 0, 4, 0, 1, false) == OD_ERR_ARGUMENT, "rows");
        od_case_check(cs, od_squared_error(device, x, x, OD_NO_SPAN, x, x, 4, 0, 0, 1, false) == OD_ERR_ARGUMENT, "d");
        od_case_check(cs,
                      od_softmax_cross_entropy(device, x, OD_NO_SPAN, OD_NO_SPAN, x, x.buffer, 0, 4, 0, 1, false) ==
                          OD_ERR_ARGUMENT,
                      "classes");
        od_case_expect_words(cs, x, zeros);
    }
    od_cases_end(cs);
}
