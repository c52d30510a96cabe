/* Optimiser steps, random fills and the off-diagonal head. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "base/rng.h"
#include "harness.h"
#include "offdiag/ops/head.h"
#include "offdiag/ops/optim.h"

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

/* Three steps from a momentum of 0, as PyTorch's SGD takes them. */
static void check_sgd(od_cases *cs, od_device *device, size_t n) {
    const float lr = 0.05F, mu = 0.9F, wd = 5e-3F;
    float *p = od_case_normals(cs, n, 0), *grad = od_case_normals(cs, n, 1), *zeros = od_case_alloc(cs, n * 4);
    double *param = widened(cs, p, n), *momentum = od_case_alloc(cs, n * sizeof *momentum);
    od_span ps = od_case_inout(cs, "param", p, n), ms = od_case_inout(cs, "momentum", zeros, n);
    od_span gs = od_case_input(cs, "grad", grad, n);
    for (int step = 0; step < 3; step++) {
        od_case_ok(cs, od_sgd_step(device, ps, ms, gs, n, lr, mu, wd));
        for (size_t i = 0; i < n; i++) {
            momentum[i] = (double)mu * momentum[i] + grad[i] + (double)wd * param[i];
            param[i] -= (double)lr * momentum[i];
        }
    }
    od_case_expect_constant(cs, ps, param, 3e-7, 1e-6);
    od_case_expect_constant(cs, ms, momentum, 5e-7, 2e-6);
}

static void check_ema(od_cases *cs, od_device *device, size_t n, float tau) {
    float *t = od_case_normals(cs, n, 0), *o = od_case_normals(cs, n, 1);
    double *ref = od_case_alloc(cs, n * sizeof *ref);
    for (size_t i = 0; i < n; i++)
        ref[i] = (double)tau * t[i] + (1.0 - (double)tau) * o[i];
    od_span ts = od_case_inout(cs, "target", t, n), os = od_case_input(cs, "online", o, n);
    if (od_case_ok(cs, od_ema_step(device, ts, os, n, tau)))
        od_case_expect_constant(cs, ts, ref, 2e-7, 1e-6);
    if (tau == 1 || tau == 0) /* the ends are exact */
        od_case_expect_words(cs, ts, tau == 1 ? t : o);
}

Test(optim, steps) {
    static const float taus[] = {0.996F, 1, 0.5F, 0};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(sizes); i++) {
            if (od_case(cs, "sgd family=%s n=%d", od_family_name(families[f]), sizes[i])) {
                od_case_aligned(cs, i % 2 == 0);
                check_sgd(cs, device, (size_t)sizes[i]);
            }
            float tau = taus[i / 2 % OD_COUNT(taus)];
            if (od_case(cs, "ema family=%s n=%d tau=%g", od_family_name(families[f]), sizes[i], tau)) {
                od_case_aligned(cs, i % 2 == 0);
                check_ema(cs, device, (size_t)sizes[i], tau);
            }
        }
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
    od_case_ok(cs, od_offdiag_weight(device, w, v, d));
    od_case_expect_words(cs, w, identity);
    for (int step = 0; step < 7; step++) {
        OD_MUST(od_span_write(dw, od_case_normals(cs, n, (uint32_t)step), n));
        od_case_ok(cs, od_offdiag_mask(device, dw, d));
        od_case_ok(cs, od_sgd_step(device, v, m, dw, n, 0.1F, 0.9F, 1e-2F));
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
