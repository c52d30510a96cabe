/* Matrix products, the linear layer, and the nearest-neighbour vote that stands on them. */
#include <math.h>

#include "cli/selftest/runner.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/pointwise.h"
#include "reference/gemm.h"
#include "reference/knn.h"

/* Old C, or NaN that beta 0 must not read (where rows have no gaps, which stay). */
static void check_product(od_check *k, const char *variant, od_gemm_shape s, float alpha, float beta) {
    od_check_case(k, "m %d n %d k %d %c%c, alpha %g beta %g, ld %d %d %d", s.m, s.n, s.k, s.trans_a ? 't' : 'n',
                  s.trans_b ? 't' : 'n', alpha, beta, s.lda, s.ldb, s.ldc);
    size_t na = (size_t)(s.trans_a ? s.k : s.m) * (size_t)s.lda, nb = (size_t)(s.trans_b ? s.n : s.k) * (size_t)s.ldb;
    size_t nc = (size_t)s.m * (size_t)s.ldc;
    float *a = od_check_normals(k, na, 0), *b = od_check_normals(k, nb, 1), *old = od_check_normals(k, nc, 2);
    double *ref = od_check_alloc(k, nc * sizeof *ref);
    od_span as = od_check_input(k, a, na), bs = od_check_input(k, b, nb);
    od_span c = beta != 0 || s.ldc > s.n ? od_check_inout(k, old, nc) : od_check_output(k, nc);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < nc; i++)
        ref[i] = old[i];
    reference_gemm(ref, a, b, &s, alpha, beta);
    if (od_check_ran(k, od_gemm_variant(k->device, variant, &s, c, as, bs, alpha, beta)))
        od_check_near(k, "C", c, ref, 1e-5);
}

static void check_variant(od_check *k, const char *variant) {
    static const int sizes[][3] = {{1, 1, 1}, {5, 7, 3}, {33, 65, 129}, {64, 128, 256}, {70, 37, 514}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int t = 0; t < 4 && !k->stopped; t++) {
            od_gemm_shape s = {
                .trans_a = t & 1, .trans_b = t >> 1, .m = sizes[i][0], .n = sizes[i][1], .k = sizes[i][2]};
            bool wide = i % 2 == 1; /* rows that are longer than the matrix */
            s.lda = (s.trans_a ? s.m : s.k) + (wide ? 3 : 0);
            s.ldb = (s.trans_b ? s.k : s.n) + (wide ? 5 : 0);
            s.ldc = s.n + (wide ? 1 : 0);
            if (!od_check_affords(k, (double)s.m * s.n * s.k))
                continue;
            check_product(k, variant, s, wide ? 0.75f : 1.0f, wide ? -0.5f : 0.0f);
        }
}

/* Row and column vectors, tiles that are full, one short and one over, a deep sum, and every pair of factors. */
static void check_variant_wide(od_check *k, const char *variant) {
    static const int sizes[][3] = {{1, 64, 64},  {64, 1, 64},   {64, 64, 1},   {2, 3, 1000},  {16, 16, 16},
                                   {17, 15, 31}, {31, 63, 32},  {32, 64, 33},  {127, 20, 65}, {20, 129, 9},
                                   {65, 65, 65}, {128, 96, 64}, {8, 200, 2000}};
    static const float factors[][2] = {{1, 1}, {-2, 0}, {0.5f, 0.25f}, {0, -1}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int t = 0; t < 4 && !k->stopped; t++) {
            const int m = sizes[i][0], n = sizes[i][1], depth = sizes[i][2];
            const float *f = factors[(i + (size_t)t) % 4];
            od_gemm_shape s = {.trans_a = t & 1, .trans_b = t >> 1, .m = m, .n = n, .k = depth};
            s.lda = (s.trans_a ? m : depth) + (i % 3 == 1 ? 4 : 0);
            s.ldb = (s.trans_b ? depth : n) + (i % 3 == 2 ? 7 : 0);
            s.ldc = n + (i % 2 ? 2 : 0);
            if (od_check_affords(k, (double)m * n * depth))
                check_product(k, variant, s, f[0], f[1]);
        }
}

/* The family's own variant by its name, and with the GPU's also CLBlast, which comes first there. */
static void check_gemm(od_check *k) {
    od_family family = od_device_family(k->device);
    od_check_operation(k, "gemm");
    check_variant(k, od_family_name(family));
    if (k->wide)
        check_variant_wide(k, od_family_name(family));
    if (family != OD_FAMILY_GPU)
        return;
    od_check_operation(k, "gemm_clblast");
    if (od_device_get_info(k->device)->type == OD_DEVICE_CPU) {
        od_check_skip(k, "CLBlast's kernels are made for GPUs");
        return;
    }
    od_gemm_shape nothing = {.m = 0, .n = 0, .k = 0};
    od_status status = od_gemm_variant(k->device, "clblast", &nothing, OD_NO_SPAN, OD_NO_SPAN, OD_NO_SPAN, 1, 0);
    if (status == OD_ERR_UNSUPPORTED)
        od_check_skip(k, od_error_message());
    else {
        check_variant(k, "clblast");
        if (k->wide)
            check_variant_wide(k, "clblast");
    }
}

static void check_linear_forward(od_check *k, int rows, int in, int out, bool biased) {
    od_check_operation(k, "linear_forward");
    od_check_case(k, "%d rows, %d to %d%s", rows, in, out, biased ? ", bias" : "");
    size_t nx = (size_t)rows * (size_t)in, nw = (size_t)in * (size_t)out, ny = (size_t)rows * (size_t)out;
    float *x = od_check_normals(k, nx, 0), *w = od_check_normals(k, nw, 1), *b = od_check_normals(k, (size_t)out, 2);
    double *ref = od_check_alloc(k, ny * sizeof *ref);
    od_span xs = od_check_input(k, x, nx), ws = od_check_input(k, w, nw), y = od_check_output(k, ny);
    od_span bs = biased ? od_check_input(k, b, (size_t)out) : OD_NO_SPAN;
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < ny; i++)
        ref[i] = biased ? b[i % (size_t)out] : 0;
    const od_gemm_shape s = {.m = rows, .n = out, .k = in, .lda = in, .ldb = out, .ldc = out};
    reference_gemm(ref, x, w, &s, 1, 1);
    if (od_check_ran(k, od_linear_forward(k->device, y, xs, ws, bs, rows, in, out)))
        od_check_near(k, "y", y, ref, 1e-5);
}

static void check_linear_backward(od_check *k, int rows, int in, int out, bool accumulate) {
    od_check_operation(k, "linear_backward");
    od_check_case(k, "%d rows, %d to %d%s", rows, in, out, accumulate ? ", added" : "");
    size_t nx = (size_t)rows * (size_t)in, nw = (size_t)in * (size_t)out, ny = (size_t)rows * (size_t)out;
    float *x = od_check_normals(k, nx, 0), *w = od_check_normals(k, nw, 1), *dy = od_check_normals(k, ny, 2);
    float *old_dw = od_check_normals(k, nw, 3), *old_db = od_check_normals(k, (size_t)out, 4);
    double *ref_dx = od_check_alloc(k, nx * sizeof *ref_dx), *ref_dw = od_check_alloc(k, nw * sizeof *ref_dw);
    double *ref_db = od_check_alloc(k, (size_t)out * sizeof *ref_db);
    od_span xs = od_check_input(k, x, nx), ws = od_check_input(k, w, nw), dys = od_check_input(k, dy, ny);
    od_span dx = od_check_output(k, nx);
    od_span dw = accumulate ? od_check_inout(k, old_dw, nw) : od_check_output(k, nw);
    od_span db = accumulate ? od_check_inout(k, old_db, (size_t)out) : od_check_output(k, (size_t)out);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; accumulate && i < nw; i++)
        ref_dw[i] = old_dw[i];
    for (size_t i = 0; accumulate && i < (size_t)out; i++)
        ref_db[i] = old_db[i];
    const od_gemm_shape by_x = {.trans_b = true, .m = rows, .n = in, .k = out, .lda = out, .ldb = out, .ldc = in};
    const od_gemm_shape by_w = {.trans_a = true, .m = in, .n = out, .k = rows, .lda = in, .ldb = out, .ldc = out};
    reference_gemm(ref_dx, dy, w, &by_x, 1, 0);
    reference_gemm(ref_dw, x, dy, &by_w, 1, 1);
    for (size_t i = 0; i < ny; i++)
        ref_db[i % (size_t)out] += dy[i];
    if (!od_check_ran(k, od_linear_backward(k->device, dx, dw, db, dys, xs, ws, rows, in, out, accumulate)))
        return;
    od_check_near(k, "dx", dx, ref_dx, 1e-5);
    od_check_near(k, "dw", dw, ref_dw, 1e-5);
    od_check_near(k, "dbias", db, ref_db, 1e-5);
}

static void check_linear(od_check *k, const int sizes[3], bool flag) {
    if (k->stopped || !od_check_affords(k, (double)sizes[0] * sizes[1] * sizes[2]))
        return;
    check_linear_forward(k, sizes[0], sizes[1], sizes[2], flag);
    check_linear_backward(k, sizes[0], sizes[1], sizes[2], !flag);
}

void od_check_dense(od_check *k) {
    check_gemm(k);
    static const int sizes[][3] = {{7, 5, 3}, {33, 64, 17}, {64, 48, 128}};
    static const int more[][3] = {{1, 1, 1},   {1, 64, 10},  {2, 3, 200},   {15, 16, 17}, {16, 16, 16},
                                  {128, 8, 4}, {50, 130, 6}, {31, 33, 127}, {96, 72, 40}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_linear(k, sizes[i], i % 2 == 0);
    for (size_t i = 0; k->wide && i < 2 * (sizeof more / sizeof *more); i++)
        check_linear(k, more[i / 2], i % 2 == 0);
}

/* ---- the vote ---------------------------------------------------------------------------------------------------- */

static void to_unit_rows(float *x, int rows, int d) {
    for (int i = 0; i < rows; i++, x += d) {
        double sum = 0;
        for (int j = 0; j < d; j++)
            sum += (double)x[j] * x[j];
        for (int j = 0; j < d; j++)
            x[j] = (float)(x[j] / sqrt(sum));
    }
}

static void check_vote(od_check *k, const od_knn_shape *s) {
    od_check_case(k, "%d queries, bank %d of %d, %d classes, k %d", s->queries, s->bank, s->d, s->classes, s->k);
    size_t nq = (size_t)s->queries * (size_t)s->d, nb = (size_t)s->bank * (size_t)s->d;
    float *q = od_check_normals(k, nq, 0), *bank = od_check_normals(k, nb, 1);
    float *draws = od_check_uniforms(k, (size_t)s->bank, 2);
    int32_t *labels = od_check_alloc(k, (size_t)s->bank * sizeof *labels);
    int32_t *out = od_check_alloc(k, (size_t)s->queries * sizeof *out);
    reference_neighbour *room = od_check_alloc(k, (size_t)s->bank * sizeof *room);
    double *sums = od_check_alloc(k, (size_t)s->classes * sizeof *sums);
    if (!od_check_ready(k))
        return;
    to_unit_rows(q, s->queries, s->d);
    to_unit_rows(bank, s->bank, s->d);
    for (int i = 0; i < s->bank; i++)
        labels[i] = (int32_t)(draws[i] * (float)s->classes);
    od_span qs = od_check_input(k, q, nq), banks = od_check_input(k, bank, nb);
    od_buffer *label_buffer = NULL; /* has no offset: a buffer of its own */
    if (od_check_ready(k) &&
        od_check_ran(k, od_buffer_create(k->device, (size_t)s->bank * sizeof *labels, &label_buffer)) &&
        od_check_ran(k, od_buffer_write(label_buffer, 0, labels, (size_t)s->bank * sizeof *labels)) &&
        od_check_ran(k, od_knn_vote(k->device, s, out, qs, banks, label_buffer))) {
        int wrong = 0, open = 0; /* open: a tie within rounding, which may go either way */
        for (int i = 0; i < s->queries; i++) {
            double margin;
            int32_t best = reference_knn(q + (size_t)i * (size_t)s->d, bank, labels, s, room, sums, &margin);
            open += margin < 1e-4;
            wrong += margin >= 1e-4 && out[i] != best;
        }
        od_check_that(k, wrong == 0 && 2 * open <= s->queries, "%d of %d classes are wrong, %d open", wrong, s->queries,
                      open);
    }
    od_buffer_release(label_buffer);
}

void od_check_knn(od_check *k) {
    static const od_knn_shape shapes[] = {
        {.queries = 33, .bank = 517, .d = 32, .classes = 10, .k = 20, .temperature = 0.07f},
        {.queries = 5, .bank = 1000, .d = 64, .classes = 100, .k = 200, .temperature = 0.1f},
        {.queries = 3, .bank = 7, .d = 5, .classes = 2, .k = 50, .temperature = 0.5f},
    };
    static const od_knn_shape more[] = {
        {.queries = 1, .bank = 64, .d = 1, .classes = 3, .k = 1, .temperature = 1},
        {.queries = 2, .bank = 300, .d = 17, .classes = 7, .k = 5, .temperature = 0.1f},
        {.queries = 65, .bank = 129, .d = 33, .classes = 10, .k = 129, .temperature = 0.2f},
        {.queries = 4, .bank = 2000, .d = 8, .classes = 40, .k = 100, .temperature = 0.07f},
        {.queries = 17, .bank = 1, .d = 16, .classes = 1, .k = 1, .temperature = 0.07f},
    };
    od_check_operation(k, "knn_vote");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (!k->stopped && od_check_affords(k, (double)shapes[i].queries * shapes[i].bank * shapes[i].d))
            check_vote(k, &shapes[i]);
    for (size_t i = 0; k->wide && i < sizeof more / sizeof *more; i++)
        if (!k->stopped && od_check_affords(k, (double)more[i].queries * more[i].bank * more[i].d))
            check_vote(k, &more[i]);
}
