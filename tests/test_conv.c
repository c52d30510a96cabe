/* Convolution: every variant of every pass against the double reference, and what the three passes owe each other. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/conv.h"
#include "ops/conv_gpu.h"
#include "ops/cpu_tile.h"
#include "reference/conv_ref.h"

typedef struct conv_case {
    int n;
    od_conv_shape shape; /* h, w, c_in, c_out, kernel_h, kernel_w, stride, pad */
} conv_case;

static const conv_case cases[] = {
    /* least sizes; a window that is the image; a pad wider than the window needs */
    {1, {1, 1, 1, 1, 1, 1, 1, 0}},
    {2, {3, 3, 2, 3, 3, 3, 1, 0}},
    {1, {2, 2, 3, 2, 3, 3, 1, 2}},
    {1, {3, 2, 5, 4, 1, 1, 1, 1}},
    /* 3x3, the sizes of a ResNet in small; channels at the edges of vectors, panels and register tiles */
    {2, {8, 8, 4, 64, 3, 3, 1, 1}},
    {1, {7, 9, 3, 16, 3, 3, 1, 1}},
    {3, {5, 7, 13, 31, 3, 3, 1, 1}},
    {2, {6, 5, 16, 16, 3, 3, 1, 1}},
    {2, {5, 5, 17, 33, 3, 3, 1, 1}},
    {1, {6, 6, 64, 64, 3, 3, 1, 1}},
    {1, {4, 4, 65, 48, 3, 3, 1, 1}},
    {1, {5, 3, 12, 100, 3, 3, 1, 1}},
    {1, {33, 2, 7, 8, 3, 3, 1, 1}},
    /* strides: odd and even sizes; a stride wider than the window leaves pixels that no output reads */
    {2, {8, 8, 16, 32, 3, 3, 2, 1}},
    {1, {9, 7, 5, 16, 3, 3, 2, 1}},
    {2, {8, 6, 33, 17, 1, 1, 2, 0}},
    {1, {7, 7, 64, 31, 1, 1, 2, 0}},
    {1, {11, 10, 6, 9, 3, 3, 3, 1}},
    {1, {10, 11, 4, 5, 2, 2, 3, 0}},
    {2, {1, 1, 8, 12, 3, 3, 2, 1}},
    {2, {1, 3, 5, 8, 3, 3, 2, 1}},
    /* other windows */
    {2, {9, 9, 3, 8, 7, 7, 2, 3}},
    {1, {7, 8, 16, 20, 7, 7, 1, 3}},
    {1, {8, 7, 5, 16, 5, 3, 1, 2}},
    {2, {6, 9, 18, 2, 1, 5, 2, 2}},
    {3, {4, 4, 64, 64, 1, 1, 1, 0}},
    {5, {3, 5, 40, 24, 1, 1, 1, 0}},
    /* small maps with images enough for grouping, and groups that end short */
    {13, {4, 4, 16, 32, 3, 3, 1, 1}},
    {27, {2, 3, 8, 16, 3, 3, 1, 1}},
    {25, {8, 8, 13, 5, 3, 3, 2, 1}},
    {40, {1, 1, 20, 36, 3, 3, 1, 1}},
    /* many pixels: several slabs, chunks and blocks */
    {2, {40, 37, 4, 16, 3, 3, 1, 1}},
    {3, {32, 32, 16, 16, 3, 3, 1, 1}},
    {4, {17, 19, 8, 40, 3, 3, 2, 1}},
    {10, {31, 33, 16, 16, 3, 3, 1, 1}},
    /* what Winograd must also get right: other pads, and panels enough to share */
    {2, {9, 7, 16, 24, 3, 3, 1, 0}},
    {1, {5, 6, 24, 16, 3, 3, 1, 2}},
    {1, {4, 4, 16, 20, 3, 3, 1, 3}},
    {2, {7, 9, 16, 272, 3, 3, 1, 1}},
    {40, {7, 9, 16, 272, 3, 3, 1, 1}},
    {2, {6, 5, 272, 150, 3, 3, 1, 1}},
    {11, {9, 12, 20, 260, 3, 3, 2, 1}},
    /* at stride 2: tiles that the image cuts on each side, several tiles down and across, vectors that it cuts */
    {1, {17, 25, 17, 33, 3, 3, 2, 1}},
    {2, {15, 16, 33, 17, 3, 3, 2, 1}},
    {3, {1, 2, 16, 16, 3, 3, 2, 1}},
    {30, {8, 8, 24, 40, 3, 3, 2, 1}},
};

static size_t x_count(const conv_case *c) {
    return (size_t)c->n * c->shape.h * c->shape.w * c->shape.c_in;
}
static size_t y_count(const conv_case *c) {
    return (size_t)c->n * od_conv_out_h(&c->shape) * od_conv_out_w(&c->shape) * c->shape.c_out;
}
static size_t w_count(const conv_case *c) {
    return (size_t)c->shape.kernel_h * c->shape.kernel_w * c->shape.c_in * c->shape.c_out;
}

/* The harness's text of a case. */
#define CASE_FORMAT "%s n=%d %dx%d c=%d,%d k=%dx%d s=%d p=%d"
#define CASE_ARGS(c)                                                                                                   \
    (c)->n, (c)->shape.h, (c)->shape.w, (c)->shape.c_in, (c)->shape.c_out, (c)->shape.kernel_h, (c)->shape.kernel_w,   \
        (c)->shape.stride, (c)->shape.pad

static void forward_case(od_cases *cs, od_conv *conv, const conv_case *c, const float *x, const float *w) {
    double *ref = od_case_alloc(cs, y_count(c) * sizeof *ref);
    od_span xs = od_case_input(cs, "x", x, x_count(c)), ws = od_case_input(cs, "w", w, w_count(c));
    od_span y = od_case_output(cs, "y", y_count(c)), again = od_case_output(cs, "y again", y_count(c));
    conv_ref_forward(ref, x, w, &c->shape, c->n);
    if (od_case_ok(cs, od_conv_set_weights(conv, ws)) && od_case_ok(cs, od_conv_forward(conv, y, xs, c->n)))
        od_case_expect(cs, y, ref, 1e-5, 0);
    float *first = od_case_alloc(cs, y_count(c) * sizeof *first);
    if (od_case_ok(cs, od_conv_forward(conv, again, xs, c->n)) && od_case_ok(cs, od_span_read(y, first, y_count(c))))
        od_case_expect_words(cs, again, first);
}

static void data_case(od_cases *cs, od_conv *conv, const conv_case *c, const float *dy, const float *w) {
    double *ref = od_case_alloc(cs, x_count(c) * sizeof *ref);
    od_span dys = od_case_input(cs, "dy", dy, y_count(c)), ws = od_case_input(cs, "w", w, w_count(c));
    float *before = od_case_normals(cs, x_count(c), 7);
    od_span dx = od_case_output(cs, "dx", x_count(c)), sum = od_case_inout(cs, "dx added", before, x_count(c));
    conv_ref_backward_data(ref, dy, w, &c->shape, c->n);
    if (od_case_ok(cs, od_conv_set_weights(conv, ws)) && od_case_ok(cs, od_conv_backward_data(conv, dx, dys, c->n)))
        od_case_expect(cs, dx, ref, 1e-5, 0);
    for (size_t i = 0; i < x_count(c); i++)
        ref[i] += before[i];
    if (od_case_ok(cs, od_conv_backward_data_add(conv, sum, dys, c->n)))
        od_case_expect(cs, sum, ref, 1e-5, 0);
}

static void weight_case(od_cases *cs, od_conv *conv, const conv_case *c, const float *x, const float *dy) {
    size_t nw = w_count(c);
    double *ref = od_case_alloc(cs, nw * sizeof *ref);
    float *before = od_case_normals(cs, nw, 7), *first = od_case_alloc(cs, nw * sizeof *first);
    od_span xs = od_case_input(cs, "x", x, x_count(c)), dys = od_case_input(cs, "dy", dy, y_count(c));
    od_span dw = od_case_output(cs, "dw", nw), again = od_case_output(cs, "dw again", nw);
    od_span sum = od_case_inout(cs, "dw accumulated", before, nw);
    conv_ref_backward_weight(ref, x, dy, &c->shape, c->n);
    if (od_case_ok(cs, od_conv_backward_weight(conv, dw, xs, dys, c->n, false)))
        od_case_expect(cs, dw, ref, 1e-5, 0);
    if (od_case_ok(cs, od_conv_backward_weight(conv, again, xs, dys, c->n, false)) &&
        od_case_ok(cs, od_span_read(dw, first, nw)))
        od_case_expect_words(cs, again, first);
    for (size_t i = 0; i < nw; i++)
        ref[i] += before[i];
    if (od_case_ok(cs, od_conv_backward_weight(conv, sum, xs, dys, c->n, true)))
        od_case_expect(cs, sum, ref, 1e-5, 0);
}

static bool aligned; /* tensors begin at multiples of 64 elements */

static bool winograd_runs(const od_device *device, od_family family, unsigned pass, const od_conv_shape *s) {
    const char *why;
    return family == OD_FAMILY_CPU         ? od_conv_winograd_supports(device, s, &why)
           : family != OD_FAMILY_GPU       ? false
           : pass == OD_CONV_FORWARD       ? od_conv_gpu_winograd_forward(device, s, &why)
           : pass == OD_CONV_BACKWARD_DATA ? od_conv_gpu_winograd_backward_data(device, s, &why)
                                           : od_conv_gpu_winograd_backward_weight(device, s, &why);
}

static const od_tuning_row *tuned; /* a row that counts; NULL: the rule's parameters */

/* All passes of all shapes on the variants of a family, with Winograd where it can run, or nowhere. */
static void walk(od_family family, const char *name, const char *variant, od_conv_winograd_use winograd) {
    od_device *device = od_test_device(family);
    od_conv_winograd_mode = winograd;
    if (tuned)
        OD_MUST(od_tuning_add(device, tuned));
    od_cases *cs = od_cases_begin(device);
    static const char *const pass_names[3] = {"forward", "data", "weight"};
    for (size_t i = 0; i < 3 * OD_COUNT(cases); i++) {
        const conv_case *c = &cases[i / 3];
        unsigned pass = 1u << i % 3;
        char prefix[64];
        snprintf(prefix, sizeof prefix, "conv %s %s", name, pass_names[i % 3]);
        double work = od_conv_flop(&c->shape, c->n) / 2 * (family == OD_FAMILY_CPU ? 1 : 10); /* scalar work-items */
        if (!od_test_affords(work) || !od_case(cs, CASE_FORMAT, prefix, CASE_ARGS(c)))
            continue;
        od_case_aligned(cs, aligned);
        od_conv *conv = NULL;
        if (!od_case_ok(cs, od_conv_create(device, &c->shape, pass, &conv)))
            continue;
        const char *expected = variant;
        if (winograd_runs(device, family, pass, &c->shape))
            expected = family == OD_FAMILY_CPU ? "cpu_winograd" : "gpu_winograd";
        od_case_check(cs, strcmp(od_conv_variant(conv, pass), expected) == 0, "variant %s, not %s",
                      od_conv_variant(conv, pass), expected);
        float *x = od_case_normals(cs, x_count(c), 0), *w = od_case_normals(cs, w_count(c), 1);
        float *dy = od_case_normals(cs, y_count(c), 2);
        if (pass == OD_CONV_FORWARD)
            forward_case(cs, conv, c, x, w);
        else if (pass == OD_CONV_BACKWARD_DATA)
            data_case(cs, conv, c, dy, w);
        else
            weight_case(cs, conv, c, x, dy);
        od_conv_destroy(conv);
    }
    od_cases_end(cs);
}

Test(conv, ref) {
    walk(OD_FAMILY_REF, "ref", "ref", OD_WINOGRAD_AUTO);
}

Test(conv, cpu) {
    walk(OD_FAMILY_CPU, "cpu", "cpu_direct", OD_WINOGRAD_NEVER);
}

/* The register tiles for other vectors than this machine's. */
Test(conv, cpu_width_8) {
    od_cpu_tile_width = 8;
    walk(OD_FAMILY_CPU, "cpu8", "cpu_direct", OD_WINOGRAD_NEVER);
}

Test(conv, cpu_width_4) {
    od_cpu_tile_width = 4;
    walk(OD_FAMILY_CPU, "cpu4", "cpu_direct", OD_WINOGRAD_NEVER);
}

Test(conv, cpu_small_tiles) {
    od_cpu_tile_width = 1;
    walk(OD_FAMILY_CPU, "cpu1", "cpu_direct", OD_WINOGRAD_NEVER);
}

Test(conv, winograd) {
    walk(OD_FAMILY_CPU, "winograd", "cpu_direct", OD_WINOGRAD_ALWAYS);
}

/* Backward by weights from stored transforms also where the rule would not: several blocks of tiles. */
Test(conv, winograd_stored) {
    static const od_tuning_row row = {.key = OD_TUNING_ANY,
                                      .variant = "conv_cpu_winograd_weight",
                                      .shape = "*",
                                      .settings = {{"stored", 1}},
                                      .count = 1};
    tuned = &row;
    walk(OD_FAMILY_CPU, "winograd stored", "cpu_direct", OD_WINOGRAD_ALWAYS);
}

Test(conv, winograd_width_16) {
    od_test_needs_whole();
    od_cpu_tile_width = 16;
    walk(OD_FAMILY_CPU, "winograd16", "cpu_direct", OD_WINOGRAD_ALWAYS);
}

Test(conv, winograd_width_8) {
    od_test_needs_whole();
    od_cpu_tile_width = 8;
    walk(OD_FAMILY_CPU, "winograd8", "cpu_direct", OD_WINOGRAD_ALWAYS);
}

Test(conv, winograd_width_4) {
    od_test_needs_whole();
    od_cpu_tile_width = 4;
    walk(OD_FAMILY_CPU, "winograd4", "cpu_direct", OD_WINOGRAD_ALWAYS);
}

Test(conv, gpu) {
    walk(OD_FAMILY_GPU, "gpu", "gpu_implicit_gemm", OD_WINOGRAD_NEVER);
}

/* Each tile that a device may get, and loads of aligned vectors. */
static void walk_gpu_tile(int tile, const char *name) {
    od_gpu_tile_forced = tile;
    aligned = true;
    walk(OD_FAMILY_GPU, name, "gpu_implicit_gemm", OD_WINOGRAD_NEVER);
}

Test(conv, gpu_tile_1) {
    walk_gpu_tile(1, "gpu tile 1");
}

Test(conv, gpu_tile_2) {
    od_test_needs_whole();
    walk_gpu_tile(2, "gpu tile 2");
}

Test(conv, gpu_tile_3) {
    od_test_needs_whole();
    walk_gpu_tile(3, "gpu tile 3");
}

Test(conv, gpu_winograd) {
    walk(OD_FAMILY_GPU, "gpu winograd", "gpu_implicit_gemm", OD_WINOGRAD_ALWAYS);
}

/* The largest tile of its products; small work-groups; a batch in several slabs. */
Test(conv, gpu_winograd_slabs) {
    od_test_needs_whole();
    static const od_tuning_row row = {.key = OD_TUNING_ANY,
                                      .variant = "conv_gpu_transforms",
                                      .shape = "*",
                                      .settings = {{"items", 64}, {"rounds", 1}, {"slab", 2}},
                                      .count = 3};
    tuned = &row;
    od_gpu_tile_forced = 1;
    aligned = true;
    walk(OD_FAMILY_GPU, "gpu winograd slabs", "gpu_implicit_gemm", OD_WINOGRAD_ALWAYS);
}

/* Which runs without tuning rows, and that a row decides. */
Test(conv, gpu_winograd_by_rule) {
    static const struct {
        od_conv_shape shape;
        bool winograd;
    } rule[] = {
        {{32, 32, 64, 64, 3, 3, 1, 1}, true},  {{8, 8, 256, 256, 3, 3, 1, 1}, true},
        {{4, 4, 48, 48, 3, 3, 1, 1}, true},    {{32, 32, 16, 16, 3, 3, 1, 1}, false},
        {{32, 32, 4, 64, 3, 3, 1, 1}, false},  {{5, 5, 128, 128, 3, 3, 1, 1}, false},
        {{16, 16, 64, 64, 3, 3, 2, 1}, false}, {{16, 16, 64, 64, 1, 1, 1, 0}, false},
    };
    od_tuning_row row = {
        .key = OD_TUNING_ANY, .variant = "conv_gpu_choice", .shape = "*", .settings = {{"winograd", 0}}, .count = 1};
    od_device *device = od_test_device(OD_FAMILY_GPU);
    for (int with_row = 0; with_row < 3; with_row++) {
        od_tuning_clear(device);
        row.settings[0].value = with_row == 2;
        if (with_row)
            OD_MUST(od_tuning_add(device, &row));
        for (size_t i = 0; i < OD_COUNT(rule); i++)
            for (unsigned pass = 1; pass <= 4; pass *= 2) {
                const od_conv_shape *s = &rule[i].shape;
                const bool runs = winograd_runs(device, OD_FAMILY_GPU, pass, s);
                const bool wanted = !with_row ? rule[i].winograd : with_row == 2 && s->kernel_h == 3 && s->stride == 1;
                cr_assert_eq(runs, wanted, "shape %zu pass %u row %d: %d", i, pass, with_row, runs);
            }
    }
}

static double dot(const float *a, const float *b, size_t count) {
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)a[i] * b[i];
    return sum;
}

/* The passes are one bilinear form: <dy, conv(x, w)> = <dx, x> = <dw, w>, without any reference. A plan with all
 * passes. */
static void adjoint_case(od_cases *cs, od_device *device, const conv_case *c) {
    size_t nx = x_count(c), ny = y_count(c), nw = w_count(c);
    float *x = od_case_normals(cs, nx, 0), *w = od_case_normals(cs, nw, 1), *dy = od_case_normals(cs, ny, 2);
    float *y = od_case_alloc(cs, ny * sizeof *y), *dx = od_case_alloc(cs, nx * sizeof *dx);
    float *dw = od_case_alloc(cs, nw * sizeof *dw);
    od_span xs = od_case_input(cs, "x", x, nx), ws = od_case_input(cs, "w", w, nw),
            dys = od_case_input(cs, "dy", dy, ny);
    od_span ys = od_case_output(cs, "y", ny), dxs = od_case_output(cs, "dx", nx), dws = od_case_output(cs, "dw", nw);
    od_conv *conv = NULL;
    if (od_case_ok(cs, od_conv_create(device, &c->shape, OD_CONV_ALL, &conv)) &&
        od_case_ok(cs, od_conv_set_weights(conv, ws)) && od_case_ok(cs, od_conv_forward(conv, ys, xs, c->n)) &&
        od_case_ok(cs, od_conv_backward_data(conv, dxs, dys, c->n)) &&
        od_case_ok(cs, od_conv_backward_weight(conv, dws, xs, dys, c->n, false)) &&
        od_case_ok(cs, od_span_read(ys, y, ny)) && od_case_ok(cs, od_span_read(dxs, dx, nx)) &&
        od_case_ok(cs, od_span_read(dws, dw, nw))) {
        double form = dot(dy, y, ny), scale = sqrt(dot(dy, dy, ny) * dot(y, y, ny));
        double by_data = dot(dx, x, nx), by_weight = dot(dw, w, nw);
        od_case_check(cs, fabs(by_data - form) <= 1e-6 * scale && fabs(by_weight - form) <= 1e-6 * scale,
                      "<dy, y> %.9g, <dx, x> %.9g, <dw, w> %.9g, scale %.3g", form, by_data, by_weight, scale);
    }
    od_conv_destroy(conv);
}

Test(conv, adjoint) {
    static const conv_case some[] = {
        {4, {8, 8, 64, 64, 3, 3, 1, 1}}, {3, {8, 8, 32, 64, 3, 3, 2, 1}}, {2, {16, 16, 4, 16, 3, 3, 1, 1}},
        {2, {7, 7, 9, 10, 1, 1, 2, 0}},  {1, {4, 3, 5, 6, 3, 3, 1, 1}},
    };
    static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(some); i++) {
            char prefix[64];
            snprintf(prefix, sizeof prefix, "conv adjoint %s", od_family_name(families[f]));
            if (od_test_affords(3 * od_conv_flop(&some[i].shape, some[i].n)) &&
                od_case(cs, CASE_FORMAT, prefix, CASE_ARGS(&some[i])))
                adjoint_case(cs, device, &some[i]);
        }
        od_cases_end(cs);
    }
}

/* One plan, several batch sizes in turn: nothing of the last run may remain. */
Test(conv, batch_is_run_time) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_cases *cs = od_cases_begin(device);
    static const int batches[] = {5, 1, 14, 2};
    od_conv *conv = NULL;
    conv_case c = {1, {4, 4, 3, 8, 3, 3, 1, 1}};
    OD_MUST(od_conv_create(device, &c.shape, OD_CONV_ALL, &conv));
    for (size_t i = 0; i < OD_COUNT(batches); i++) {
        c.n = batches[i];
        if (!od_test_affords(3 * od_conv_flop(&c.shape, c.n)) ||
            !od_case(cs, CASE_FORMAT, "conv one plan", CASE_ARGS(&c)))
            continue;
        float *x = od_case_normals(cs, x_count(&c), 0), *w = od_case_normals(cs, w_count(&c), 1);
        float *dy = od_case_normals(cs, y_count(&c), 2);
        forward_case(cs, conv, &c, x, w);
        data_case(cs, conv, &c, dy, w);
        weight_case(cs, conv, &c, x, dy);
    }
    od_conv_destroy(conv);
    od_cases_end(cs);
}

Test(conv, empty_batch) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    od_conv_shape shape = {4, 4, 3, 5, 3, 3, 1, 1};
    float w[3 * 3 * 3 * 5], zeros[3 * 3 * 3 * 5] = {0};
    for (size_t i = 0; i < OD_COUNT(w); i++)
        w[i] = 1.0f;
    od_span ws, one;
    od_conv *conv;
    OD_MUST(od_span_create(device, OD_COUNT(w), &ws));
    OD_MUST(od_span_create(device, 1, &one));
    OD_MUST(od_span_write(ws, w, OD_COUNT(w)));
    OD_MUST(od_conv_create(device, &shape, OD_CONV_ALL, &conv));
    OD_MUST(od_conv_set_weights(conv, ws));
    OD_MUST(od_conv_forward(conv, one, one, 0));
    OD_MUST(od_conv_backward_data(conv, one, one, 0));
    OD_MUST(od_conv_backward_weight(conv, ws, one, one, 0, true)); /* nothing to add */
    OD_MUST(od_span_read(ws, w, OD_COUNT(w)));
    cr_assert_eq(w[0], 1.0f);
    OD_MUST(od_conv_backward_weight(conv, ws, one, one, 0, false)); /* the sum of nothing */
    OD_MUST(od_span_read(ws, w, OD_COUNT(w)));
    cr_assert_arr_eq(w, zeros, sizeof w);
    od_conv_destroy(conv);
    od_buffer_release(ws.buffer);
    od_buffer_release(one.buffer);
}

Test(conv, bad_arguments) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    static const od_conv_shape bad[] = {
        {0, 4, 3, 5, 3, 3, 1, 1}, {4, 4, 3, 0, 3, 3, 1, 1}, {4, 4, 3, 5, 3, 3, 0, 1},  {4, 4, 3, 5, 3, 3, 1, -1},
        {2, 4, 3, 5, 3, 3, 2, 0}, {4, 2, 3, 5, 3, 5, 1, 1}, {4, 4, -3, 5, 3, 3, 1, 1},
    };
    od_conv *conv;
    for (size_t i = 0; i < OD_COUNT(bad); i++) {
        cr_expect_eq(od_conv_create(device, &bad[i], OD_CONV_ALL, &conv), OD_ERR_ARGUMENT, "shape %zu", i);
        cr_expect_null(conv);
    }
    od_conv_shape shape = {4, 4, 3, 5, 3, 3, 1, 1};
    od_span w, x;
    OD_MUST(od_span_create(device, 3 * 3 * 3 * 5, &w));
    OD_MUST(od_span_create(device, 2 * 4 * 4 * 5, &x));
    OD_MUST(od_conv_create(device, &shape, OD_CONV_FORWARD | OD_CONV_BACKWARD_WEIGHT, &conv));
    cr_expect_eq(od_conv_forward(conv, x, x, 1), OD_ERR_ARGUMENT); /* no weights yet */
    cr_expect_eq(od_conv_set_weights(conv, OD_NO_SPAN), OD_ERR_ARGUMENT);
    cr_expect_eq(od_conv_set_weights(conv, od_span_at(w, od_buffer_size(w.buffer))), OD_ERR_ARGUMENT);
    OD_MUST(od_conv_set_weights(conv, w));
    cr_expect_eq(od_conv_backward_data(conv, x, x, 1), OD_ERR_ARGUMENT); /* not among the passes */
    cr_expect_eq(od_conv_forward(conv, x, x, -1), OD_ERR_ARGUMENT);
    cr_expect_eq(od_conv_forward(conv, x, x, 1 << 20), OD_ERR_ARGUMENT); /* past the end */
    cr_expect_eq(od_conv_backward_weight(conv, w, OD_NO_SPAN, x, 1, false), OD_ERR_ARGUMENT);
    cr_expect_str_eq(od_conv_variant(conv, OD_CONV_BACKWARD_DATA), "none");
    od_conv_destroy(conv);
    od_conv_destroy(NULL);
    od_buffer_release(w.buffer);
    od_buffer_release(x.buffer);
}
