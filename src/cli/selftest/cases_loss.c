/* Losses with their gradients, the off-diagonal head, optimiser steps and random fills. */
#include <math.h>

#include "base/rng.h"
#include "cli/selftest/runner.h"
#include "offdiag/ops/head.h"
#include "offdiag/ops/loss.h"
#include "offdiag/ops/optim.h"
#include "reference/loss_ref.h"
#include "reference/optim_ref.h"

/* Both views' rows, each compared with its partner's; the symmetrised half of the loss. */
static void check_pair(od_check *k, bool cosine, int rows, int d) {
    size_t n = (size_t)rows * (size_t)d;
    od_check_operation(k, cosine ? "cosine_loss" : "squared_error");
    od_check_case(k, "%d rows of %d", rows, d);
    float *p = od_check_normals(k, n, 0), *t = od_check_normals(k, n, 1), *old = od_check_uniforms(k, 1, 2);
    double *dp_ref = od_check_alloc(k, n * sizeof *dp_ref), *dt_ref = od_check_alloc(k, n * sizeof *dt_ref);
    od_span ps = od_check_input(k, p, n), ts = od_check_input(k, t, n), loss = od_check_inout(k, old, 1);
    od_span dp = od_check_output(k, n), dt = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    double ref = old[0] + (cosine ? loss_ref_cosine : loss_ref_squared)(dp_ref, dt_ref, p, t, rows, d, rows / 2, 0.5);
    od_status status =
        (cosine ? od_cosine_loss : od_squared_error)(k->device, loss, dp, dt, ps, ts, rows, d, rows / 2, 0.5f, true);
    if (!od_check_ran(k, status))
        return;
    od_check_near(k, "loss", loss, &ref, 1e-5);
    od_check_near(k, "dp", dp, dp_ref, 1e-5);
    od_check_near(k, "dt", dt, dt_ref, 1e-5);
}

static void check_cross_entropy(od_check *k, int rows, int classes) {
    size_t n = (size_t)rows * (size_t)classes;
    od_check_operation(k, "cross_entropy");
    od_check_case(k, "%d rows of %d classes", rows, classes);
    float *logits = od_check_normals(k, n, 0), *draws = od_check_uniforms(k, (size_t)rows, 1);
    int32_t *labels = od_check_alloc(k, (size_t)rows * sizeof *labels);
    double *ref = od_check_alloc(k, n * sizeof *ref), correct_ref = 0;
    for (int i = 0; labels && draws && logits && i < rows; i++) {
        labels[i] = i == rows - 1 ? -1 : (int32_t)(draws[i] * (float)classes); /* the last one is no class */
        if (i % 3 == 0 && labels[i] >= 0)
            logits[(size_t)i * (size_t)classes + (size_t)labels[i]] =
                9; /* right, so that there is something to count */
    }
    od_span in = od_check_input(k, logits, n), label_span = od_check_input(k, labels, (size_t)rows);
    od_span loss = od_check_output(k, 1), correct = od_check_output(k, 1), gradient = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    double loss_ref = loss_ref_cross_entropy(ref, &correct_ref, logits, labels, rows, classes, 2);
    if (!od_check_ran(k, od_softmax_cross_entropy(k->device, loss, correct, gradient, in, label_span.buffer,
                                                  label_span.offset, rows, classes, 2.0f, false)))
        return;
    od_check_near(k, "loss", loss, &loss_ref, 1e-5);
    od_check_near(k, "correct", correct, &correct_ref, 0);
    od_check_near(k, "dlogits", gradient, ref, 1e-5);
}

void od_check_loss(od_check *k) {
    static const int widths[] = {3, 33, 64, 260}, more[] = {1, 2, 4, 5, 8, 15, 16, 17, 31, 65, 128, 1030};
    static const int classes[][2] = {{1, 2}, {3, 1}, {64, 10}, {7, 100}, {2, 1000}, {33, 65}};
    for (size_t i = 0; i < sizeof widths / sizeof *widths && !k->stopped; i++)
        for (int cosine = 0; cosine < 2; cosine++)
            check_pair(k, cosine, 14, widths[i]);
    check_cross_entropy(k, 13, 10);
    check_cross_entropy(k, 5, 257);
    for (size_t i = 0; k->wide && i < 4 * (sizeof more / sizeof *more) && !k->stopped; i++)
        if (i % 2 == 0 || more[i / 4] > 1) /* of one number the cosine is a constant, and its gradient rounding */
            check_pair(k, i % 2, i / 2 % 2 ? 66 : 2, more[i / 4]);
    for (size_t i = 0; k->wide && i < sizeof classes / sizeof *classes && !k->stopped; i++)
        check_cross_entropy(k, classes[i][0], classes[i][1]);
}

/* W, the mask and the norm of V, whose diagonal is NaN and must not show. */
static void check_head(od_check *k, int d) {
    size_t n = (size_t)d * (size_t)d;
    od_check_operation(k, "offdiag_head");
    od_check_case(k, "width %d", d);
    float *v = od_check_normals(k, n, 0);
    float *w_ref = od_check_alloc(k, n * sizeof *w_ref), *mask_ref = od_check_alloc(k, n * sizeof *mask_ref);
    if (!od_check_ready(k))
        return;
    double norm_ref[2] = {0, 0};
    for (size_t i = 0; i < n; i++) {
        bool diagonal = i % ((size_t)d + 1) == 0;
        w_ref[i] = diagonal ? 1 : v[i];
        mask_ref[i] = diagonal ? 0 : v[i];
        norm_ref[0] += (double)mask_ref[i] * mask_ref[i];
        norm_ref[1] = fmax(norm_ref[1], fabs((double)mask_ref[i]));
        if (diagonal)
            v[i] = NAN;
    }
    norm_ref[0] = sqrt(norm_ref[0]);
    od_span vs = od_check_input(k, v, n), w = od_check_output(k, n), dw = od_check_inout(k, v, n);
    od_span norm = od_check_output(k, 2);
    if (!od_check_ready(k))
        return;
    if (od_check_ran(k, od_offdiag_weight(k->device, w, vs, d)))
        od_check_words(k, "W", w, w_ref);
    if (od_check_ran(k, od_offdiag_mask(k->device, dw, d)))
        od_check_words(k, "dV", dw, mask_ref);
    if (od_check_ran(k, od_offdiag_norm(k->device, norm, vs, d)))
        od_check_near(k, "norm", norm, norm_ref, 1e-5);
}

/* Three tensors with gaps, one of them without adaptation: offsets and sizes from n. */
static void make_tensors(od_lars_tensor tensors[3], size_t n) {
    size_t each = (n + 2) / 3;
    for (size_t i = 0; i < 3; i++)
        tensors[i] = (od_lars_tensor){.offset = i * (each + 3), .count = each, .adapt = i != 1, .decay = i != 1};
}

typedef struct step_case {
    size_t n;
    od_optim_range range;
    float *g;
    double *p, *m, *v, *target; /* the reference */
} step_case;

static double *widened(od_check *k, const float *x, size_t n) {
    double *out = od_check_alloc(k, n * sizeof *out);
    for (size_t i = 0; out && x && i < n; i++)
        out[i] = x[i];
    return out;
}

static bool make_step(od_check *k, step_case *c, const char *operation, size_t n) {
    od_check_operation(k, operation);
    od_check_case(k, "%zu elements", n);
    float *p = od_check_normals(k, n, 0), *m = od_check_normals(k, n, 1), *target = od_check_normals(k, n, 3);
    float *zeros = od_check_alloc(k, n * sizeof *zeros);
    c->n = n;
    c->g = od_check_normals(k, n, 2);
    c->p = widened(k, p, n);
    c->m = widened(k, m, n);
    c->target = widened(k, target, n);
    c->v = od_check_alloc(k, n * sizeof *c->v);
    c->range = (od_optim_range){.param = od_check_inout(k, p, n),
                                .momentum = od_check_inout(k, m, n),
                                .grad = od_check_input(k, c->g, n),
                                .second = od_check_inout(k, zeros, n),
                                .target = od_check_inout(k, target, n),
                                .count = n,
                                .tau = 0.99f};
    return od_check_ready(k);
}

static void check_step(od_check *k, const step_case *c) {
    od_check_near(k, "parameters", c->range.param, c->p, 2e-6);
    od_check_near(k, "momentum", c->range.momentum, c->m, 2e-6);
    od_check_near(k, "target", c->range.target, c->target, 2e-6);
}

static void check_steps(od_check *k, size_t n) {
    const float lr = 0.05f, mu = 0.9f, decay = 1e-2f, eta = 0.02f;
    const double betas[2] = {0.9f, 0.999f};
    od_lars_tensor tensors[3];
    step_case c;
    make_tensors(tensors, n);
    if (make_step(k, &c, "sgd_step", n)) {
        optim_ref_sgd(c.p, c.m, c.g, n, lr, mu, decay);
        optim_ref_average(c.target, c.p, n, c.range.tau);
        if (od_check_ran(k, od_sgd_step(k->device, &c.range, lr, mu, decay)))
            check_step(k, &c);
    }
    if (make_step(k, &c, "adam_step", n)) {
        const od_adam_rates rates = {lr, (float)betas[0], (float)betas[1], 1e-8f, decay, true, 3};
        optim_ref_adam(c.p, c.m, c.v, c.g, n, lr, betas, decay, true, 3);
        optim_ref_average(c.target, c.p, n, c.range.tau);
        if (od_check_ran(k, od_adam_step(k->device, &c.range, &rates))) {
            check_step(k, &c);
            od_check_near(k, "second moment", c.range.second, c.v, 2e-6);
        }
    }
    size_t end = tensors[2].offset + tensors[2].count;
    if (make_step(k, &c, "lars_step", end)) {
        od_lars *lars = NULL;
        for (int i = 0; i < 3; i++) {
            const od_lars_tensor *t = &tensors[i];
            optim_ref_lars(c.p + t->offset, c.m + t->offset, c.g + t->offset, t->count, lr, mu, decay, eta, t->adapt,
                           t->decay);
            optim_ref_average(c.target + t->offset, c.p + t->offset, t->count, c.range.tau);
        }
        if (od_check_ran(k, od_lars_create(k->device, tensors, 3, &lars)) &&
            od_check_ran(k, od_lars_step(lars, &c.range, lr, mu, decay, eta)))
            check_step(k, &c);
        od_lars_destroy(lars);
    }
}

/* What the host draws: the same bits, but for logarithm and cosine. */
static void check_fills(od_check *k, size_t n) {
    const uint64_t seed = 0x123456789abcdef0u, stream = 0xfedcba9876543210u;
    od_check_operation(k, "fill_uniform");
    od_check_case(k, "%zu elements", n);
    float *host = od_check_alloc(k, n * sizeof *host);
    od_span out = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    od_rng_fill_uniform(host, n, -0.3f, 0.7f, seed, stream);
    if (od_check_ran(k, od_fill_uniform(k->device, out, n, -0.3f, 0.7f, seed, stream)))
        od_check_words(k, "x", out, host);

    od_check_operation(k, "fill_normal");
    od_check_case(k, "%zu elements", n);
    host = od_check_alloc(k, n * sizeof *host);
    double *ref = od_check_alloc(k, n * sizeof *ref);
    out = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    od_rng_fill_normal(host, n, 1.5f, seed, stream);
    for (size_t i = 0; i < n; i++)
        ref[i] = host[i];
    if (od_check_ran(k, od_fill_normal(k->device, out, n, 1.5f, seed, stream)))
        od_check_near(k, "x", out, ref, 1e-5);
}

static void check_elements(od_check *k, size_t n) {
    if (!od_check_affords(k, (double)n))
        return;
    check_steps(k, n);
    check_fills(k, n);
}

void od_check_optim(od_check *k) {
    static const int widths[] = {2, 33, 64}, more_widths[] = {1, 3, 8, 16, 31, 65, 130};
    static const size_t sizes[] = {1, 77, 20003}, more_sizes[] = {2, 3, 4, 5, 15, 16, 17, 64, 255, 257, 4096, 100003};
    for (size_t i = 0; i < sizeof widths / sizeof *widths && !k->stopped; i++)
        check_head(k, widths[i]);
    for (size_t i = 0; k->wide && i < sizeof more_widths / sizeof *more_widths && !k->stopped; i++)
        check_head(k, more_widths[i]);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && !k->stopped; i++)
        check_elements(k, sizes[i]);
    for (size_t i = 0; k->wide && i < sizeof more_sizes / sizeof *more_sizes && !k->stopped; i++)
        check_elements(k, more_sizes[i]);
}
