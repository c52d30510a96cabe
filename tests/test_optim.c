/* Optimiser steps, random fills and the off-diagonal head. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/rng.h"
#include "base/safetensors.h"
#include "harness.h"
#include "offdiag/ops/head.h"
#include "offdiag/ops/optim.h"
#include "reference/optim_ref.h"

static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};
static const int sizes[] = {1, 3, 15, 16, 17, 255, 1023, 1025, 4096, 4099, 16384, 16385, 40003};

static float *read_back(od_cases *cs, od_span s, size_t count) {
    float *out = od_case_alloc(cs, count * sizeof *out);
    OD_MUST(od_span_read(s, out, count));
    return out;
}

static double *widened(od_cases *cs, const float *x, size_t count) {
    double *out = od_case_alloc(cs, count * sizeof *out);
    for (size_t i = 0; i < count; i++)
        out[i] = x[i];
    return out;
}

/* Of n elements: the operation's tensors and the reference's. */
typedef struct state {
    size_t n;
    od_optim_range range;
    double *p, *m, *v, *target;
} state;

static state make_state(od_cases *cs, size_t n, float tau) {
    float *p = od_case_normals(cs, n, 0), *target = od_case_normals(cs, n, 1), *zeros = od_case_alloc(cs, n * 4);
    state s = {.n = n,
               .range = {.param = od_case_inout(cs, "param", p, n),
                         .momentum = od_case_inout(cs, "momentum", zeros, n),
                         .second = od_case_inout(cs, "second", zeros, n),
                         .target = tau < 0 ? OD_NO_SPAN : od_case_inout(cs, "target", target, n),
                         .count = n,
                         .tau = tau},
               .p = widened(cs, p, n),
               .m = od_case_alloc(cs, n * sizeof(double)),
               .v = od_case_alloc(cs, n * sizeof(double)),
               .target = widened(cs, target, n)};
    return s;
}

/* A gradient of its own for each step. */
static const float *next_gradient(od_cases *cs, state *s, uint32_t step) {
    float *g = od_case_normals(cs, s->n, 10 + step);
    s->range.grad = od_case_input(cs, "grad", g, s->n);
    return g;
}

static void expect_state(od_cases *cs, const state *s, bool second) {
    od_case_expect_constant(cs, s->range.param, s->p, 5e-7, 2e-6);
    od_case_expect_constant(cs, s->range.momentum, s->m, 5e-7, 4e-6);
    if (second)
        od_case_expect_constant(cs, s->range.second, s->v, 5e-7, 2e-6);
    if (s->range.target.buffer)
        od_case_expect_constant(cs, s->range.target, s->target, 5e-7, 2e-6);
    if (s->range.tau == 0) /* the target is the parameters */
        od_case_expect_words(cs, s->range.target, read_back(cs, s->range.param, s->n));
}

/* Three steps from a momentum of 0, as PyTorch's SGD takes them; tau below 0: without a target. */
static void check_sgd(od_cases *cs, od_device *device, size_t n, float tau) {
    const float lr = 0.05F, mu = 0.9F, wd = 5e-3F;
    state s = make_state(cs, n, tau);
    for (uint32_t step = 0; step < 3; step++) {
        const float *g = next_gradient(cs, &s, step);
        od_case_ok(cs, od_sgd_step(device, &s.range, lr, mu, wd));
        optim_ref_sgd(s.p, s.m, g, n, lr, mu, wd);
        optim_ref_average(s.target, s.p, n, tau);
    }
    expect_state(cs, &s, false);
}

static void check_adam(od_cases *cs, od_device *device, size_t n, float tau, bool decoupled) {
    od_adam_rates rates = {.lr = 0.01F, .beta1 = 0.9F, .beta2 = 0.99F, .eps = 1e-8F, .weight_decay = 0.05F};
    const double betas[2] = {rates.beta1, rates.beta2};
    state s = make_state(cs, n, tau);
    rates.decoupled = decoupled;
    for (uint32_t step = 0; step < 4; step++) {
        const float *g = next_gradient(cs, &s, step);
        rates.step = step + 1;
        od_case_ok(cs, od_adam_step(device, &s.range, &rates));
        optim_ref_adam(s.p, s.m, s.v, g, n, rates.lr, betas, rates.weight_decay, decoupled, (int)step + 1);
        optim_ref_average(s.target, s.p, n, tau);
    }
    expect_state(cs, &s, true);
}

/* Five tensors in n elements and what lies between them: a matrix, a vector, a matrix of zeros (no ratio of norms), one
 * that decays without adapting, and one whose gradient is so small that its factor is clipped. */
static void check_lars(od_cases *cs, od_device *device, size_t n, float tau, int gap) {
    enum { TENSORS = 5 };
    const float lr = 0.3F, mu = 0.9F, wd = 1e-2F, eta = 0.02F;
    od_lars_tensor tensors[TENSORS];
    od_lars *lars = NULL;
    size_t each = (n + TENSORS - 1) / TENSORS, step_size = each + (size_t)gap, all = TENSORS * step_size;
    float *p = od_case_normals(cs, all, 0), *zeros = od_case_alloc(cs, all * 4), *target = od_case_normals(cs, all, 1);
    memset(p + 2 * step_size, 0, each * sizeof *p);
    for (size_t i = 0; i < TENSORS; i++)
        tensors[i] = (od_lars_tensor){i * step_size, each, i != 1 && i != 3, i != 1};
    state s = {.n = all,
               .range = {.param = od_case_inout(cs, "param", p, all),
                         .momentum = od_case_inout(cs, "momentum", zeros, all),
                         .target = tau < 0 ? OD_NO_SPAN : od_case_inout(cs, "target", target, all),
                         .count = all,
                         .tau = tau},
               .p = widened(cs, p, all),
               .m = od_case_alloc(cs, all * sizeof(double)),
               .target = widened(cs, target, all)};
    if (!od_case_ok(cs, od_lars_create(device, tensors, TENSORS, &lars)))
        return;
    for (uint32_t step = 0; step < 3; step++) {
        float *g = od_case_normals(cs, all, 10 + step);
        for (size_t i = 0; i < each; i++)
            g[4 * step_size + i] *= 1e-3F;
        s.range.grad = od_case_input(cs, "grad", g, all);
        od_case_ok(cs, od_lars_step(lars, &s.range, lr, mu, wd, eta));
        for (size_t i = 0; i < TENSORS; i++) {
            size_t at = tensors[i].offset;
            optim_ref_lars(s.p + at, s.m + at, g + at, each, lr, mu, wd, eta, tensors[i].adapt, tensors[i].decay);
            optim_ref_average(s.target + at, s.p + at, each, tau);
        }
    }
    od_lars_destroy(lars);
    expect_state(cs, &s, false);
}

Test(optim, steps) {
    static const float taus[] = {0.996F, -1, 0.5F, 1};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        const char *family = od_family_name(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(sizes); i++) {
            size_t n = (size_t)sizes[i];
            float tau = taus[i % OD_COUNT(taus)];
            if (od_case(cs, "sgd family=%s n=%zu tau=%g", family, n, tau)) {
                od_case_aligned(cs, i % 2 == 0);
                check_sgd(cs, device, n, tau);
            }
            for (int decoupled = 0; decoupled < 2; decoupled++)
                if (od_case(cs, "%s family=%s n=%zu tau=%g", decoupled ? "adamw" : "adam", family, n, tau)) {
                    od_case_aligned(cs, i % 2 == 0);
                    check_adam(cs, device, n, tau, decoupled);
                }
            int gap = i % 2 == 0 ? (int)(16 - (n + 4) / 5 % 16) : 3; /* aligned tensors or not */
            if (od_case(cs, "lars family=%s n=%zu tau=%g gap=%d", family, n, tau, gap)) {
                od_case_aligned(cs, i % 2 == 0);
                check_lars(cs, device, n, tau, gap);
            }
        }
        if (od_case(cs, "sgd target becomes the parameters family=%s", family))
            check_sgd(cs, device, 1025, 0);
        od_cases_end(cs);
    }
}

/* ---- PyTorch's own steps (tools/make_optim_golden.py) ------------------------------------------------------------ */

enum { GOLDEN = 7 * 5 + 11 + 4 * 3, GOLDEN_STEPS = 4 };

static void golden_values(const char *name, od_dtype as, size_t count, void *out) {
    const char *root = getenv("OFFDIAG_SOURCE_ROOT");
    char path[1024];
    od_safetensors *file = NULL;
    (void)snprintf(path, sizeof path, "%s/tests/golden/optim.safetensors", root ? root : ".");
    OD_MUST(od_safetensors_open(path, &file));
    OD_MUST(od_safetensors_read_as(file, name, as, count, out));
    od_safetensors_close(file);
}

static od_status golden_step(od_device *device, od_lars *lars, const char *name, const od_optim_range *range,
                             uint64_t step) {
    const float lr = 0.05F, mu = 0.9F, wd = 0.01F;
    const od_adam_rates adam = {lr, mu, 0.99F, 1e-8F, wd, strcmp(name, "adamw") == 0, step + 1};
    if (strcmp(name, "sgd") == 0)
        return od_sgd_step(device, range, lr, mu, wd);
    if (strcmp(name, "lars") == 0)
        return od_lars_step(lars, range, lr, mu, wd, 0.02F);
    return od_adam_step(device, range, &adam);
}

static void check_golden(od_cases *cs, od_device *device, const char *name) {
    static const od_lars_tensor tensors[] = {
        {0, 35, true, true}, {35, 11, false, false}, {46, 12, true, true}}; /* (7, 5), (11), (4, 3) */
    float start[GOLDEN], grads[GOLDEN_STEPS * GOLDEN], zeros[GOLDEN] = {0};
    double after[GOLDEN_STEPS * GOLDEN];
    od_lars *lars = NULL;
    golden_values("start", OD_F32, GOLDEN, start);
    golden_values("grads", OD_F32, OD_COUNT(grads), grads);
    golden_values(name, OD_F64, OD_COUNT(after), after);
    od_optim_range range = {.param = od_case_inout(cs, "param", start, GOLDEN),
                            .momentum = od_case_inout(cs, "momentum", zeros, GOLDEN),
                            .second = od_case_inout(cs, "second", zeros, GOLDEN),
                            .count = GOLDEN};
    OD_MUST(od_lars_create(device, tensors, OD_COUNT(tensors), &lars));
    for (uint64_t step = 0; step < GOLDEN_STEPS; step++) {
        range.grad = od_case_input(cs, "grad", grads + step * GOLDEN, GOLDEN);
        if (od_case_ok(cs, golden_step(device, lars, name, &range, step)))
            od_case_expect(cs, range.param, after + step * GOLDEN, 5e-7, 0);
    }
    od_lars_destroy(lars);
}

Test(optim, steps_are_pytorchs) {
    static const char *const names[] = {"sgd", "lars", "adam", "adamw"};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(names); i++)
            if (od_case(cs, "golden %s family=%s", names[i], od_family_name(families[f])))
                check_golden(cs, device, names[i]);
        od_cases_end(cs);
    }
}

/* Against the host's generator; a prefix of a longer fill is the same bits. */
static void check_fill(od_cases *cs, od_device *device, size_t n, uint64_t seed, uint64_t stream) {
    float *host = od_case_alloc(cs, n * sizeof *host);
    od_span x = od_case_output(cs, "normal", n), u = od_case_output(cs, "uniform", n);
    od_span shorter = od_case_output(cs, "shorter", n / 2 + 1);
    od_rng_fill_normal(host, n, 1.5F, seed, stream);
    if (od_case_ok(cs, od_fill_normal(device, x, n, 1.5F, seed, stream)))
        od_case_expect_constant(cs, x, widened(cs, host, n), 1e-6, 2e-6);
    od_case_ok(cs, od_fill_normal(device, shorter, n / 2 + 1, 1.5F, seed, stream));
    od_case_expect_words(cs, shorter, read_back(cs, x, n));
    od_rng_fill_uniform(host, n, -0.3F, 0.7F, seed, stream);
    if (od_case_ok(cs, od_fill_uniform(device, u, n, -0.3F, 0.7F, seed, stream)))
        od_case_expect_words(cs, u, host);
}

/* Mean 0, variance 1, fourth moment 3: the host's generator could be wrong in the same way. */
static void check_moments(od_cases *cs, od_device *device) {
    enum { N = 200000 };
    od_span x = od_case_output(cs, "normal", N);
    od_case_ok(cs, od_fill_normal(device, x, N, 1, 7, 3));
    const float *v = read_back(cs, x, N);
    double mean = 0, square = 0, fourth = 0, neighbours = 0;
    for (int i = 0; i < N; i++) {
        mean += v[i] / (double)N;
        square += (double)v[i] * v[i] / N;
        fourth += pow(v[i], 4) / N;
        neighbours += i ? (double)v[i] * v[i - 1] / N : 0;
    }
    od_case_check(cs,
                  fabs(mean) < 0.01 && fabs(square - 1) < 0.015 && fabs(fourth - 3) < 0.1 && fabs(neighbours) < 0.01,
                  "mean %g, second moment %g, fourth %g, neighbours %g", mean, square, fourth, neighbours);
}

Test(optim, fills) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *cs = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(sizes); i++)
        if (od_case(cs, "fill n=%d", sizes[i]))
            check_fill(cs, device, (size_t)sizes[i], 0x123456789abcdef0ULL + i, i % 2 ? 5 : 0xfedcba9876543210ULL);
    if (od_case(cs, "fill moments"))
        check_moments(cs, device);
    od_cases_end(cs);
}

static uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static bool all_diagonal(const float *w, int d, float value) {
    for (int i = 0; i < d; i++)
        if (bits_of(w[(size_t)i * (size_t)d + (size_t)i]) != bits_of(value))
            return false;
    return true;
}

/* W from V with a diagonal that must not show, not even as NaN; the mask; the norm. */
static void check_head(od_cases *cs, od_device *device, int d) {
    size_t n = (size_t)d * (size_t)d;
    float *v = od_case_normals(cs, n, 0), *w = od_case_alloc(cs, n * sizeof *w), *mask = od_case_alloc(cs, n * 4);
    double norm[2] = {0, 0};
    for (size_t i = 0; i < n; i++) {
        bool diagonal = i % ((size_t)d + 1) == 0;
        w[i] = diagonal ? 1 : v[i];
        mask[i] = diagonal ? 0 : v[i];
        norm[0] += (double)mask[i] * mask[i];
        norm[1] = fmax(norm[1], fabs((double)mask[i]));
        if (diagonal)
            v[i] = i % 2 ? NAN : INFINITY;
    }
    norm[0] = sqrt(norm[0]);
    od_span vs = od_case_input(cs, "v", v, n), ws = od_case_output(cs, "w", n), dw = od_case_inout(cs, "dw", v, n);
    od_span out = od_case_output(cs, "norm", 2);
    if (od_case_ok(cs, od_offdiag_weight(device, ws, vs, d)))
        od_case_expect_words(cs, ws, w);
    if (od_case_ok(cs, od_offdiag_mask(device, dw, d)))
        od_case_expect_words(cs, dw, mask);
    if (od_case_ok(cs, od_offdiag_norm(device, out, vs, d)))
        od_case_expect_constant(cs, out, norm, 1e-6, 0);
}

/* W is I at V = 0; after steps with weight decay, momentum and masked gradients its diagonal has the same bits. */
static void check_diagonal(od_cases *cs, od_device *device, int d) {
    size_t n = (size_t)d * (size_t)d;
    float *zeros = od_case_alloc(cs, n * sizeof *zeros), *identity = od_case_alloc(cs, n * sizeof *identity);
    for (int i = 0; i < d; i++)
        identity[(size_t)i * (size_t)d + (size_t)i] = 1;
    od_span v = od_case_inout(cs, "v", zeros, n), m = od_case_inout(cs, "momentum", zeros, n);
    od_span dw = od_case_inout(cs, "dw", zeros, n), w = od_case_output(cs, "w", n);
    const od_optim_range range = {.param = v, .momentum = m, .grad = dw, .count = n};
    od_case_ok(cs, od_offdiag_weight(device, w, v, d));
    od_case_expect_words(cs, w, identity);
    for (int step = 0; step < 7; step++) {
        OD_MUST(od_span_write(dw, od_case_normals(cs, n, (uint32_t)step), n));
        od_case_ok(cs, od_offdiag_mask(device, dw, d));
        od_case_ok(cs, od_sgd_step(device, &range, 0.1F, 0.9F, 1e-2F));
        od_case_ok(cs, od_offdiag_weight(device, w, v, d));
    }
    od_case_check(cs, all_diagonal(read_back(cs, w, n), d, 1.0F), "W's diagonal moved");
    od_case_check(cs, all_diagonal(read_back(cs, v, n), d, 0.0F), "V's diagonal moved");
    od_case_check(cs, d == 1 || read_back(cs, w, n)[1] != 0, "nothing was trained");
}

Test(optim, head) {
    static const int widths[] = {1, 2, 5, 16, 33, 64, 100, 129, 256, 513};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(widths); i++) {
            if (!od_test_affords(10.0 * widths[i] * widths[i])) /* some thirty element-wise passes */
                continue;
            if (od_case(cs, "head family=%s d=%d", od_family_name(families[f]), widths[i])) {
                od_case_aligned(cs, i % 2);
                check_head(cs, device, widths[i]);
            }
            if (od_case(cs, "head steps family=%s d=%d", od_family_name(families[f]), widths[i])) {
                od_case_aligned(cs, i % 2);
                check_diagonal(cs, device, widths[i]);
            }
        }
        if (od_case(cs, "head width 0 family=%s", od_family_name(families[f])))
            od_case_check(cs, od_offdiag_mask(device, OD_NO_SPAN, 0) == OD_ERR_ARGUMENT, "width 0");
        od_cases_end(cs);
    }
}
