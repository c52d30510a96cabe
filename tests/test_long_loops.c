/* Sums and walks so long that a work-item's loops would pass the limit which some drivers have (od_device_loop_limit):
 * past it they end early without an error. Right results everywhere, or a refusal in words. */
#include <criterion/criterion.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/conv.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/knn.h"
#include "offdiag/ops/norm.h"
#include "offdiag/ops/pointwise.h"
#include "reference/conv_ref.h"
#include "reference/gemm.h"
#include "reference/knn.h"
#include "reference/norm_ref.h"

static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};

static void need_a_fast_device(void) {
    if (!od_test_affords(1e8))
        cr_skip_test("OFFDIAG_TEST_WORK is too small for long loops");
}

static void check_product(od_cases *cs, od_device *device, const od_gemm_shape *s) {
    size_t na = (size_t)s->m * (size_t)s->k, nb = (size_t)s->k * (size_t)s->n, nc = (size_t)s->m * (size_t)s->n;
    float *a = od_case_normals(cs, na, 0), *b = od_case_normals(cs, nb, 1), *old = od_case_normals(cs, nc, 2);
    double *ref = od_case_alloc(cs, nc * sizeof *ref);
    for (size_t i = 0; i < nc; i++)
        ref[i] = old[i];
    reference_gemm(ref, a, b, s, 0.5, -2);
    od_span as = od_case_input(cs, "a", a, na), bs = od_case_input(cs, "b", b, nb), c = od_case_inout(cs, "c", old, nc);
    if (od_case_ok(cs, od_gemm_variant(device, od_family_name(od_device_family(device)), s, c, as, bs, 0.5f, -2)))
        od_case_expect(cs, c, ref, 2e-5, 0);
}

Test(long_loops, gemm) {
    need_a_fast_device();
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_cases *cs = od_cases_begin(od_test_device(families[f]));
        for (int t = 0; t < 4; t++) {
            const bool ta = t & 1, tb = t >> 1;
            const od_gemm_shape deep = {ta, tb, 5, 7, 70001, ta ? 5 : 70001, tb ? 70001 : 7, 7};
            const od_gemm_shape tall = {ta, tb, 3000, 9, 700, ta ? 3000 : 700, tb ? 700 : 9, 9};
            if (od_case(cs, "gemm deep family=%s t=%d", od_family_name(families[f]), t))
                check_product(cs, od_test_device(families[f]), &deep);
            if (od_case(cs, "gemm tall family=%s t=%d", od_family_name(families[f]), t))
                check_product(cs, od_test_device(families[f]), &tall);
        }
        od_cases_end(cs);
    }
}

static void check_conv(od_cases *cs, od_device *device, const od_conv_shape *s, int n, unsigned passes) {
    size_t nx = (size_t)n * (size_t)s->h * (size_t)s->w * (size_t)s->c_in;
    size_t ny = (size_t)n * (size_t)od_conv_out_h(s) * (size_t)od_conv_out_w(s) * (size_t)s->c_out;
    size_t nw = (size_t)s->kernel_h * (size_t)s->kernel_w * (size_t)s->c_in * (size_t)s->c_out;
    float *x = od_case_normals(cs, nx, 0), *dy = od_case_normals(cs, ny, 1), *w = od_case_normals(cs, nw, 2);
    double *y_ref = od_case_alloc(cs, ny * sizeof *y_ref), *dx_ref = od_case_alloc(cs, nx * sizeof *dx_ref);
    double *dw_ref = od_case_alloc(cs, nw * sizeof *dw_ref);
    od_span xs = od_case_input(cs, "x", x, nx), dys = od_case_input(cs, "dy", dy, ny);
    od_span ws = od_case_input(cs, "w", w, nw), dw = od_case_inout(cs, "dw", w, nw);
    od_span y = od_case_output(cs, "y", ny), dx = od_case_output(cs, "dx", nx);
    conv_ref_forward(y_ref, x, w, s, n);
    conv_ref_backward_data(dx_ref, dy, w, s, n);
    for (size_t i = 0; i < nw; i++)
        dw_ref[i] = w[i];
    conv_ref_backward_weight(dw_ref, x, dy, s, n);
    od_conv *conv = NULL;
    if (od_case_ok(cs, od_conv_create(device, s, passes, &conv)) && od_case_ok(cs, od_conv_set_weights(conv, ws))) {
        if (passes & OD_CONV_FORWARD && od_case_ok(cs, od_conv_forward(conv, y, xs, n)))
            od_case_expect(cs, y, y_ref, 1e-5, 0);
        if (passes & OD_CONV_BACKWARD_DATA && od_case_ok(cs, od_conv_backward_data(conv, dx, dys, n)))
            od_case_expect(cs, dx, dx_ref, 1e-5, 0);
        if (od_case_ok(cs, od_conv_backward_weight(conv, dw, xs, dys, n, true)))
            od_case_expect(cs, dw, dw_ref, 1e-4, 0); /* a million terms, whose sum is a thousand times smaller */
    }
    od_conv_destroy(conv);
}

Test(long_loops, conv) {
    need_a_fast_device();
    static const struct {
        int n, n_gpu; /* GPU kernels walk less far, and waste most of their tile here */
        unsigned passes;
        od_conv_shape shape;
    } rows[] = {
        {6,
         3,
         OD_CONV_ALL,
         {64, 64, 32, 1, 7, 7, 1, 3}}, /* few channels of one, many of the other: long walks, little work */
        {6, 3, OD_CONV_ALL, {64, 64, 1, 32, 7, 7, 1, 3}},
        {17, 1, OD_CONV_BACKWARD_WEIGHT, {256, 256, 1, 1, 1, 1, 1, 0}}, /* 1,114,112 pixels */
    };
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_cases *cs = od_cases_begin(od_test_device(families[f]));
        for (size_t i = 0; i < OD_COUNT(rows); i++) {
            const od_conv_shape *shape = &rows[i].shape;
            const int n = families[f] == OD_FAMILY_GPU ? rows[i].n_gpu : rows[i].n;
            if (od_case(cs, "conv family=%s n=%d %dx%d %d to %d", od_family_name(families[f]), n, shape->h, shape->w,
                        shape->c_in, shape->c_out))
                check_conv(cs, od_test_device(families[f]), shape, n, rows[i].passes);
        }
        od_cases_end(cs);
    }
}

static void check_columns(od_cases *cs, od_device *device, size_t rows, int c) {
    const od_bn_shape s = {1, (int)rows, c, 1e-5f};
    size_t n = rows * (size_t)c, channels = (size_t)c;
    float *x = od_case_uniforms(cs, n, 0), *dy = od_case_uniforms(cs, n, 1);
    double *sum = od_case_alloc(cs, channels * sizeof *sum), *wide = od_case_alloc(cs, n * sizeof *wide);
    double *stats = od_case_alloc(cs, OD_BN_SAVED * channels * sizeof *stats),
           *dx_ref = od_case_alloc(cs, n * sizeof *dx_ref);
    double *dgamma = od_case_alloc(cs, channels * sizeof *dgamma), *dbeta = od_case_alloc(cs, channels * sizeof *dbeta);
    for (size_t i = 0; i < n; i++)
        sum[i % channels] += x[i] += 1; /* positive: nothing cancels */
    od_span xs = od_case_input(cs, "x", x, n), dys = od_case_input(cs, "dy", dy, n), y = od_case_output(cs, "y", n);
    od_span out = od_case_output(cs, "sum", channels), stat = od_case_output(cs, "saved", OD_BN_SAVED * channels);
    od_span dx = od_case_output(cs, "dx", n);
    const norm_ref_input in = {.x = x};
    norm_ref_forward(wide, stats, stats + channels, NULL, NULL, &s, &in, 0);
    const od_bn_params plain = {.momentum = 0.1f};
    if (od_case_ok(cs, od_column_sum(device, out, xs, rows, c, false)))
        od_case_expect(cs, out, sum, 1e-5, 0);
    if (!od_case_ok(cs, od_bn_forward(device, &s, &plain, NULL, y, stat, xs)))
        return;
    for (size_t i = 0; i < channels; i++) {
        stats[2 * channels + i] = stats[channels + i];
        stats[3 * channels + i] = -stats[i] * stats[channels + i];
    }
    od_case_expect(cs, stat, stats, 1e-5, 0);
    od_case_expect(cs, y, wide, 1e-5, 0);
    norm_ref_backward(dx_ref, wide, dgamma, dbeta, &s, &in, dy, NULL);
    if (od_case_ok(cs, od_bn_backward(device, &s, NULL, dx, OD_NO_SPAN, OD_NO_SPAN, OD_NO_SPAN, dys, OD_NO_SPAN, xs,
                                      stat, false)))
        od_case_expect(cs, dx, dx_ref, 1e-4, 0);
}

Test(long_loops, columns) {
    need_a_fast_device();
    static const struct {
        size_t rows;
        int c;
    } sizes[] = {{300001, 3}, {9001, 33}, {40, 4097}};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_cases *cs = od_cases_begin(od_test_device(families[f]));
        for (size_t i = 0; i < OD_COUNT(sizes); i++)
            if (od_case(cs, "columns family=%s %zu rows of %d", od_family_name(families[f]), sizes[i].rows, sizes[i].c))
                check_columns(cs, od_test_device(families[f]), sizes[i].rows, sizes[i].c);
        od_cases_end(cs);
    }
}

Test(long_loops, sums) {
    need_a_fast_device();
    enum { N = 3000001 };
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_cases *cs = od_cases_begin(od_test_device(families[f]));
        if (od_case(cs, "sum family=%s of %d", od_family_name(families[f]), N)) {
            float *x = od_case_uniforms(cs, N, 0);
            double sum = 0;
            for (size_t i = 0; i < N; i++)
                sum += x[i] += 1;
            od_span xs = od_case_input(cs, "x", x, N), out = od_case_output(cs, "sum", 1);
            if (od_case_ok(cs, od_sum(od_test_device(families[f]), out, xs, N)))
                od_case_expect(cs, out, &sum, 1e-6, 0);
        }
        od_cases_end(cs);
    }
}

/* The nearer the later: each row of the bank enters every heap, and sinks. */
static void check_vote(od_cases *cs, od_device *device, const od_knn_shape *s) {
    size_t nq = (size_t)s->queries * 2, nb = (size_t)s->bank * 2;
    float *q = od_case_alloc(cs, nq * sizeof *q), *bank = od_case_alloc(cs, nb * sizeof *bank);
    int32_t *labels = (int32_t *)od_case_indices(cs, (size_t)s->bank, (uint32_t)s->classes, 0);
    int32_t *out = od_case_alloc(cs, (size_t)s->queries * sizeof *out);
    reference_neighbour *room = od_case_alloc(cs, (size_t)s->bank * sizeof *room);
    double *sums = od_case_alloc(cs, (size_t)s->classes * sizeof *sums), margin;
    for (int i = 0; i < s->queries; i++)
        q[2 * i] = 1; /* (1, 0) */
    for (int i = 0; i < s->bank; i++)
        bank[2 * i] = (float)i / (float)s->bank;
    od_span qs = od_case_input(cs, "queries", q, nq), banks = od_case_input(cs, "bank", bank, nb);
    od_buffer *on_device;
    OD_MUST(od_buffer_create(device, (size_t)s->bank * 4, &on_device));
    OD_MUST(od_buffer_write(on_device, 0, labels, (size_t)s->bank * 4));
    int32_t best = reference_knn(q, bank, labels, s, room, sums, &margin);
    if (od_case_ok(cs, od_knn_vote(device, s, out, qs, banks, on_device)))
        for (int i = 0; i < s->queries; i++)
            od_case_check(cs, margin < 1e-4 || out[i] == best, "query %d: class %d, not %d", i, out[i], best);
    od_buffer_release(on_device);
}

Test(long_loops, knn) {
    need_a_fast_device();
    const od_knn_shape s = {.queries = 3, .bank = 20000, .d = 2, .classes = 7, .k = 1000, .temperature = 0.07f};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_cases *cs = od_cases_begin(od_test_device(families[f]));
        if (od_case(cs, "knn family=%s", od_family_name(families[f])))
            check_vote(cs, od_test_device(families[f]), &s);
        od_cases_end(cs);
    }
}

/* What can't be cut is right or refused. */
Test(long_loops, refusals) {
    need_a_fast_device();
    od_device *device = od_test_device(OD_FAMILY_REF);
    const bool limited = od_device_loop_limit(device) > 0;
    od_cases *cs = od_cases_begin(device);
    if (od_case(cs, "avgpool of 300x300")) {
        enum { N = 300 * 300 };
        float *x = od_case_uniforms(cs, N, 0);
        double mean = 0;
        for (size_t i = 0; i < N; i++)
            mean += (x[i] += 1) / N;
        od_span xs = od_case_input(cs, "x", x, N), y = od_case_output(cs, "y", 1);
        od_status status = od_avgpool_forward(device, y, xs, 1, 300, 300, 1);
        if (limited)
            od_case_check(cs, status == OD_ERR_UNSUPPORTED && strstr(od_error_message(), "300 x 300"), "%s",
                          od_error_message());
        else if (od_case_ok(cs, status))
            od_case_expect(cs, y, &mean, 1e-4, 0);
    }
    if (od_case(cs, "conv of 70000 channels")) {
        const od_conv_shape s = {1, 1, 70000, 1, 1, 1, 1, 0};
        od_conv *conv = NULL;
        od_status status = od_conv_create(device, &s, OD_CONV_FORWARD, &conv);
        od_case_check(cs, status == (limited ? OD_ERR_UNSUPPORTED : OD_OK), "%s", od_error_message());
        od_case_check(cs, !limited || strstr(od_error_message(), "70000 channels"), "%s", od_error_message());
        od_conv_destroy(conv);
    }
    od_cases_end(cs);
}
