/* Matrix products: every variant against double and against ref, and the linear layer on top of them. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/gemm.h"
#include "reference/gemm.h"

static const double tolerance = 1e-5;

/* One test a family, so that a case list belongs to one device. */
#define EACH_FAMILY(suite, name)                                                                                       \
    Test(suite, name##_ref) {                                                                                          \
        name(OD_FAMILY_REF);                                                                                           \
    }                                                                                                                  \
    Test(suite, name##_cpu) {                                                                                          \
        name(OD_FAMILY_CPU);                                                                                           \
    }                                                                                                                  \
    Test(suite, name##_gpu) {                                                                                          \
        name(OD_FAMILY_GPU);                                                                                           \
    }

/* ---- one product ------------------------------------------------------------------------------------------------ */

typedef struct product {
    od_gemm_shape shape; /* leading dimensions filled in */
    float alpha, beta;
} product;

static product make_product(int m, int n, int k, int transposes, int pad, float alpha, float beta) {
    product p = {{.trans_a = transposes & 1, .trans_b = transposes >> 1, .m = m, .n = n, .k = k}, alpha, beta};
    p.shape.lda = (p.shape.trans_a ? m : k) + pad;
    p.shape.ldb = (p.shape.trans_b ? k : n) + 2 * pad;
    p.shape.ldc = n + 3 * pad;
    return p;
}

static size_t extent(int rows, int columns, int ld) {
    return (size_t)(rows - 1) * (size_t)ld + (size_t)columns;
}

/* Run a product and compare all of C, the padding between its rows included; a matrix that beta 0 must not read is NaN.
 */
static void check_product(od_cases *c, od_device *device, const char *variant, const product *p) {
    const od_gemm_shape *s = &p->shape;
    const size_t na = extent(s->trans_a ? s->k : s->m, s->trans_a ? s->m : s->k, s->lda);
    const size_t nb = extent(s->trans_b ? s->n : s->k, s->trans_b ? s->k : s->n, s->ldb);
    const size_t nc = extent(s->m, s->n, s->ldc);
    float *a = od_case_normals(c, na, 0), *b = od_case_normals(c, nb, 1), *old = od_case_normals(c, nc, 2);
    double *ref = od_case_alloc(c, nc * sizeof *ref);
    for (size_t i = 0; i < nc; i++) {
        ref[i] = old[i];
        if (p->beta == 0 && i % (size_t)s->ldc < (size_t)s->n)
            old[i] = NAN;
    }
    reference_gemm(ref, a, b, s, p->alpha, p->beta);
    const od_span as = od_case_input(c, "a", a, na), bs = od_case_input(c, "b", b, nb);
    const od_span cs = od_case_inout(c, "c", old, nc);
    const od_status status = variant ? od_gemm_variant(device, variant, s, cs, as, bs, p->alpha, p->beta)
                                     : od_gemm(device, s, cs, as, bs, p->alpha, p->beta);
    if (od_case_ok(c, status))
        od_case_expect(c, cs, ref, tolerance, 0);
}

static bool product_case(od_cases *c, const char *variant, const product *p) {
    const od_gemm_shape *s = &p->shape;
    return od_case(c, "gemm variant=%s m=%d n=%d k=%d ta=%d tb=%d lda=%d ldb=%d ldc=%d alpha=%g beta=%g", variant, s->m,
                   s->n, s->k, s->trans_a, s->trans_b, s->lda, s->ldb, s->ldc, p->alpha, p->beta);
}

static const int sizes[][3] = {{1, 1, 1},      {1, 33, 7},    {5, 3, 2},      {13, 31, 17},    {12, 32, 256},
                               {25, 65, 63},   {64, 64, 16},  {63, 33, 257},  {2, 5, 4099},    {129, 1, 70},
                               {1, 1030, 129}, {133, 140, 9}, {300, 200, 65}, {257, 130, 300}, {64, 256, 513}};

static void check_variant(const char *variant) {
    static const float scales[][2] = {{1, 0}, {0.5F, 1}, {-2, 0.25F}};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *c = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(sizes); i++)
        for (int transposes = 0; transposes < 4; transposes++) {
            const int *mnk = sizes[i];
            const float *scale = scales[(i + (size_t)transposes) % 3];
            const product p = make_product(mnk[0], mnk[1], mnk[2], transposes, (int)(i % 2), scale[0], scale[1]);
            if (od_test_affords((double)mnk[0] * mnk[1] * mnk[2]) && product_case(c, variant, &p))
                check_product(c, device, variant, &p);
        }
    od_cases_end(c);
}

Test(gemm, ref) {
    check_variant("ref");
}

Test(gemm, cpu) {
    check_variant("cpu");
}

Test(gemm, gpu) {
    check_variant("gpu");
}

/* CLBlast builds its own programs in each process, which takes seconds on a CPU device: a few products only. */
Test(gemm, clblast) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    if (!od_test_affords(1e9))
        cr_skip_test("CLBlast's check is too much for this device");
    const od_gemm_shape tiny = {.m = 1, .n = 1, .k = 1};
    od_buffer *three;
    OD_MUST(od_buffer_create(device, 12, &three));
    const od_span at = od_span_of(three);
    OD_MUST(od_buffer_fill(three, 0, 12, 0));
    const od_status status = od_gemm_variant(device, "clblast", &tiny, at, od_span_at(at, 1), od_span_at(at, 2), 1, 0);
    od_buffer_release(three);
    if (status == OD_ERR_UNSUPPORTED)
        cr_skip_test("%s", od_error_message());
    OD_MUST(status);
    od_cases *c = od_cases_begin(device);
    for (int transposes = 0; transposes < 4; transposes++) {
        const product p = make_product(63, 33, 57, transposes, 1, 0.5F, transposes % 2 ? 0.0F : 2.0F);
        if (product_case(c, "clblast", &p))
            check_product(c, device, "clblast", &p);
    }
    od_cases_end(c);
}

/* ---- the dispatcher --------------------------------------------------------------------------------------------- */

static void dispatch(od_family family) {
    od_device *device = od_test_device(family);
    od_cases *c = od_cases_begin(device);
    const product p = make_product(21, 35, 40, 2, 1, 1.5F, 0.5F);
    if (od_case(c, "gemm dispatch family=%s", od_family_name(family)))
        check_product(c, device, NULL, &p);
    od_cases_end(c);
}
EACH_FAMILY(gemm, dispatch)

static void run_twice(od_cases *c, od_device *device, const char *variant, const product *p) {
    const od_gemm_shape *s = &p->shape;
    const size_t na = (size_t)s->m * (size_t)s->k, nb = (size_t)s->n * (size_t)s->k, nc = (size_t)s->m * (size_t)s->n;
    const od_span a = od_case_input(c, "a", od_case_normals(c, na, 0), na);
    const od_span b = od_case_input(c, "b", od_case_normals(c, nb, 1), nb);
    const od_span first = od_case_output(c, "first", nc), second = od_case_output(c, "second", nc);
    float *words = od_case_alloc(c, nc * sizeof *words);
    if (od_case_ok(c, od_gemm_variant(device, variant, s, first, a, b, 1, 0)) &&
        od_case_ok(c, od_gemm_variant(device, variant, s, second, a, b, 1, 0)) &&
        od_case_ok(c, od_span_read(first, words, nc)))
        od_case_expect_words(c, second, words);
}

Test(gemm, repeats_bit_for_bit) {
    static const char *const names[] = {"ref", "cpu", "gpu"};
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *c = od_cases_begin(device);
    for (size_t v = 0; v < OD_COUNT(names); v++)
        for (int transposes = 0; transposes < 4; transposes++) {
            const product p = make_product(19, 37, 1100, transposes, 0, 1, 0);
            if (od_test_affords(19.0 * 37 * 1100) &&
                od_case(c, "gemm twice variant=%s transposes=%d", names[v], transposes))
                run_twice(c, device, names[v], &p);
        }
    if (od_test_affords(1e6))
        od_cases_end(c);
    else
        od_cases_discard(c);
}

Test(gemm, empty_sizes) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *c = od_cases_begin(device);
    if (od_case(c, "gemm k=0 scales C")) {
        const float old[6] = {1, 2, 3, 4, 5, 6};
        const double half[6] = {0.5, 1, 1.5, 2, 2.5, 3};
        const od_span cs = od_case_inout(c, "c", old, 6);
        const od_gemm_shape s = {.m = 2, .n = 3, .k = 0};
        if (od_case_ok(c, od_gemm(device, &s, cs, OD_NO_SPAN, OD_NO_SPAN, 1, 0.5F)))
            od_case_expect(c, cs, half, 1e-7, 0);
        const od_gemm_shape none = {.m = 0, .n = 3, .k = 4};
        od_case_ok(c, od_gemm(device, &none, OD_NO_SPAN, OD_NO_SPAN, OD_NO_SPAN, 1, 0));
    }
    od_cases_end(c);
}

Test(gemm, refuses_wrong_arguments) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_span x;
    OD_MUST(od_span_create(device, 64, &x));
    const size_t room = od_buffer_size(x.buffer) / sizeof(float);
    const od_gemm_shape good = {.m = 4, .n = 4, .k = 4};
    od_gemm_shape s = good;
    s.lda = 3;
    cr_assert_eq(od_gemm(device, &s, x, x, x, 1, 0), OD_ERR_ARGUMENT);
    cr_assert(strstr(od_error_message(), "leading dimension 3 of A"), "%s", od_error_message());
    s = good;
    s.m = -1;
    cr_assert_eq(od_gemm(device, &s, x, x, x, 1, 0), OD_ERR_ARGUMENT);
    cr_assert_eq(od_gemm(device, &good, x, x, od_span_at(x, room - 15), 1, 0), OD_ERR_ARGUMENT);
    cr_assert(strstr(od_error_message(), "B (4, 4)"), "%s", od_error_message());
    cr_assert_eq(od_gemm(device, &good, OD_NO_SPAN, x, x, 1, 0), OD_ERR_ARGUMENT);
    cr_assert_eq(od_gemm_variant(device, "fast", &good, x, x, x, 1, 0), OD_ERR_ARGUMENT);
    cr_assert(strstr(od_error_message(), "no variant 'fast'"), "%s", od_error_message());
    od_buffer_release(x.buffer);
}

/* ---- linear layer ----------------------------------------------------------------------------------------------- */

/* y (rows, out) = x (rows, in) w (in, out) + bias, and the three gradients, each by its own sum in double. */
static void check_linear(od_cases *c, od_device *device, int rows, int in, int out, bool with_bias, bool accumulate) {
    const size_t nx = (size_t)rows * in, nw = (size_t)in * out, ny = (size_t)rows * out;
    float *x = od_case_normals(c, nx, 0), *w = od_case_normals(c, nw, 1), *bias = od_case_normals(c, out, 2);
    float *dy = od_case_normals(c, ny, 3), *old_dw = od_case_normals(c, nw, 4), *old_db = od_case_normals(c, out, 5);
    double *y = od_case_alloc(c, ny * sizeof *y), *dx = od_case_alloc(c, nx * sizeof *dx);
    double *dw = od_case_alloc(c, nw * sizeof *dw), *db = od_case_alloc(c, out * sizeof *db);
    for (size_t i = 0; i < nw; i++)
        dw[i] = accumulate ? old_dw[i] : 0;
    for (int o = 0; o < out; o++)
        db[o] = accumulate ? old_db[o] : 0;
    for (int r = 0; r < rows; r++)
        for (int o = 0; o < out; o++) {
            const double g = dy[r * out + o];
            y[r * out + o] = with_bias ? bias[o] : 0;
            db[o] += g;
            for (int i = 0; i < in; i++) {
                y[r * out + o] += (double)x[r * in + i] * w[i * out + o];
                dw[i * out + o] += x[r * in + i] * g;
                dx[r * in + i] += w[i * out + o] * g;
            }
        }
    const od_span xs = od_case_input(c, "x", x, nx), ws = od_case_input(c, "w", w, nw);
    const od_span bs = od_case_input(c, "bias", bias, out), dys = od_case_input(c, "dy", dy, ny);
    const od_span ys = od_case_output(c, "y", ny), dxs = od_case_output(c, "dx", nx);
    const od_span dws = accumulate ? od_case_inout(c, "dw", old_dw, nw) : od_case_output(c, "dw", nw);
    const od_span dbs = accumulate ? od_case_inout(c, "dbias", old_db, out) : od_case_output(c, "dbias", out);
    if (od_case_ok(c, od_linear_forward(device, ys, xs, ws, with_bias ? bs : OD_NO_SPAN, rows, in, out)))
        od_case_expect(c, ys, y, tolerance, 0);
    if (od_case_ok(c, od_linear_backward(device, dxs, dws, dbs, dys, xs, ws, rows, in, out, accumulate))) {
        od_case_expect(c, dxs, dx, tolerance, 0);
        od_case_expect(c, dws, dw, tolerance, 0);
        od_case_expect(c, dbs, db, tolerance, 0);
    }
    /* What has no place is not computed: dw must keep its bits. */
    float *kept = od_case_alloc(c, nw * sizeof *kept);
    if (od_case_ok(c, od_span_read(dws, kept, nw)) &&
        od_case_ok(c, od_linear_backward(device, dxs, OD_NO_SPAN, OD_NO_SPAN, dys, xs, ws, rows, in, out, false)))
        od_case_expect_words(c, dws, kept);
}

static void forward_backward(od_family family) {
    static const int shapes[][3] = {{1, 2, 3}, {7, 33, 10}, {32, 30, 65}, {130, 64, 70}, {64, 512, 256}};
    od_device *device = od_test_device(family);
    od_cases *c = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(shapes); i++) {
        const int *s = shapes[i];
        const bool bias = i % 2 == 0, accumulate = i % 3 == 1;
        if (od_test_affords(3.0 * s[0] * s[1] * s[2]) &&
            od_case(c, "linear family=%s rows=%d in=%d out=%d bias=%d accumulate=%d", od_family_name(family), s[0],
                    s[1], s[2], bias, accumulate))
            check_linear(c, device, s[0], s[1], s[2], bias, accumulate);
    }
    od_cases_end(c);
}
EACH_FAMILY(linear, forward_backward)
