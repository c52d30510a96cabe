/* Convolution between batch norms: an input that is made as it is read, statistics of the output. Every variant against
 * the double reference on an input that was made first. */
#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/conv.h"
#include "offdiag/ops/norm.h"
#include "ops/conv_gpu.h"
#include "ops/cpu_tile.h"
#include "reference/conv_ref.h"

typedef struct fused_case {
    int n, groups;
    od_conv_shape shape; /* h, w, c_in, c_out, kernel_h, kernel_w, stride, pad */
} fused_case;

static const fused_case cases[] = {
    /* padding, where a positive shift must not show; channels that fill no vector; tiles that end outside */
    {2, 2, {4, 4, 16, 16, 3, 3, 1, 1}},
    {1, 1, {5, 7, 17, 33, 3, 3, 1, 1}},
    {6, 2, {9, 6, 20, 24, 3, 3, 1, 1}},
    {3, 3, {7, 7, 16, 50, 3, 3, 1, 0}},
    {4, 2, {6, 5, 24, 20, 3, 3, 1, 2}},
    /* blocks and chunks that hold images of both groups; panels that are shared out */
    {14, 2, {8, 8, 32, 40, 3, 3, 1, 1}},
    {2, 2, {7, 9, 16, 272, 3, 3, 1, 1}},
    {24, 2, {7, 9, 16, 272, 3, 3, 1, 1}},
    {2, 2, {6, 5, 150, 272, 3, 3, 1, 1}},
    {26, 2, {4, 4, 48, 64, 3, 3, 1, 1}},
    /* other windows and strides */
    {4, 2, {9, 7, 12, 16, 3, 3, 2, 1}},
    {4, 2, {18, 25, 17, 33, 3, 3, 2, 1}},
    {6, 3, {8, 8, 24, 32, 3, 3, 2, 1}},
    {2, 2, {8, 8, 33, 17, 1, 1, 2, 0}},
    {6, 3, {5, 3, 40, 24, 1, 1, 1, 0}},
    {2, 1, {8, 8, 4, 64, 3, 3, 1, 1}},
    /* parts enough to be merged */
    {10, 2, {64, 53, 4, 8, 3, 3, 1, 1}},
    {2, 2, {33, 31, 16, 16, 3, 3, 1, 1}},
    {4, 2, {16, 16, 64, 64, 3, 3, 1, 1}},
};

static size_t x_count(const fused_case *c) {
    return (size_t)c->n * c->shape.h * c->shape.w * c->shape.c_in;
}
static size_t out_pixels(const fused_case *c) {
    return (size_t)c->n * od_conv_out_h(&c->shape) * od_conv_out_w(&c->shape);
}
static size_t w_count(const fused_case *c) {
    return (size_t)c->shape.kernel_h * c->shape.kernel_w * c->shape.c_in * c->shape.c_out;
}

typedef struct fused_input {
    float *x, *made;     /* as stored, and relu(x * slope + shift) */
    od_conv_input input; /* on the device, with rows between the groups' maps that belong to nobody */
} fused_input;

static fused_input make_input(od_cases *cs, const fused_case *c) {
    const size_t channels = (size_t)c->shape.c_in, stride = 2 * channels + 4, count = x_count(c);
    fused_input in = {.x = od_case_normals(cs, count, 0), .made = od_case_alloc(cs, count * sizeof(float))};
    float *affine = od_case_normals(cs, c->groups * stride, 3);
    for (size_t i = 0; i < count; i++) {
        const float *map = affine + i / (count / c->groups) * stride + i % channels;
        const double v = (double)in.x[i] * map[0] + map[channels];
        in.made[i] = v > 0 ? (float)v : 0;
    }
    in.input = (od_conv_input){od_case_input(cs, "x", in.x, count),
                               od_case_input(cs, "affine", affine, c->groups * stride), stride, c->groups};
    return in;
}

/* Merge the parts in double and hold them against the output itself. */
static void check_stats(od_cases *cs, const fused_case *c, const od_conv_stats *stats, const float *y) {
    const size_t channels = (size_t)c->shape.c_out, rows = out_pixels(c) / c->groups;
    const size_t parts = (size_t)stats->parts, size = c->groups * parts * 3 * channels;
    float *partial = od_case_alloc(cs, size * sizeof *partial);
    if (!od_case_ok(cs, od_span_read(stats->partial, partial, size)))
        return;
    for (size_t g = 0; g < (size_t)c->groups; g++)
        for (size_t k = 0; k < channels; k++) {
            double count = 0, sum = 0, m2 = 0, mean = 0, true_mean = 0, true_m2 = 0;
            for (size_t i = 0; i < rows; i++)
                true_mean += y[(g * rows + i) * channels + k] / (double)rows;
            for (size_t i = 0; i < rows; i++)
                true_m2 += pow(y[(g * rows + i) * channels + k] - true_mean, 2);
            const float *part = partial + g * parts * 3 * channels + k;
            for (size_t i = 0; i < parts; i++) {
                count += part[i * 3 * channels];
                sum += (double)part[i * 3 * channels] * part[(i * 3 + 1) * channels];
            }
            mean = sum / count;
            for (size_t i = 0; i < parts; i++)
                m2 +=
                    part[(i * 3 + 2) * channels] + part[i * 3 * channels] * pow(part[(i * 3 + 1) * channels] - mean, 2);
            const double deviation = sqrt(true_m2 / (double)rows) + 1e-30;
            if (!od_case_check(cs, count == (double)rows, "group %zu channel %zu: %g values, not %zu", g, k, count,
                               rows) ||
                !od_case_check(cs, fabs(mean - true_mean) <= 2e-6 * (deviation + fabs(true_mean)),
                               "group %zu channel %zu: mean %.9g, not %.9g", g, k, mean, true_mean) ||
                !od_case_check(cs, fabs(m2 - true_m2) <= 2e-6 * true_m2, "group %zu channel %zu: M2 %.9g, not %.9g", g,
                               k, m2, true_m2))
                return;
        }
}

static void forward_case(od_cases *cs, od_conv *conv, const fused_case *c) {
    const size_t ny = out_pixels(c) * c->shape.c_out;
    fused_input in = make_input(cs, c);
    float *w = od_case_normals(cs, w_count(c), 1), *got = od_case_alloc(cs, ny * sizeof *got);
    double *ref = od_case_alloc(cs, ny * sizeof *ref);
    od_span y = od_case_output(cs, "y", ny), plain = od_case_output(cs, "y alone", ny);
    od_conv_stats stats = {.groups = c->groups}, alone = {.groups = c->groups};
    conv_ref_forward(ref, in.made, w, &c->shape, c->n);
    if (!od_case_ok(cs, od_conv_set_weights(conv, od_case_input(cs, "w", w, w_count(c)))) ||
        !od_case_ok(cs, od_conv_forward_fused(conv, y, &in.input, c->n, &stats)))
        return;
    od_case_expect(cs, y, ref, 1e-5, 0);
    if (stats.parts && od_case_ok(cs, od_span_read(y, got, ny)))
        check_stats(cs, c, &stats, got);
    od_case_check(cs, stats.parts || strncmp(od_conv_variant(conv, OD_CONV_FORWARD), "gpu_", 4) != 0, "no statistics");
    /* statistics without a map, and a map without statistics */
    if (od_case_ok(cs, od_conv_forward_fused(conv, plain, &(od_conv_input){.x = in.input.x}, c->n, &alone)) &&
        alone.parts && od_case_ok(cs, od_span_read(plain, got, ny)))
        check_stats(cs, c, &alone, got);
    conv_ref_forward(ref, in.x, w, &c->shape, c->n);
    od_case_expect(cs, plain, ref, 1e-5, 0);
    float *first = od_case_alloc(cs, ny * sizeof *first);
    if (od_case_ok(cs, od_span_read(y, first, ny)) &&
        od_case_ok(cs, od_conv_forward_fused(conv, plain, &in.input, c->n, NULL)))
        od_case_expect_words(cs, plain, first);
    od_buffer_release(stats.partial.buffer);
    od_buffer_release(alone.partial.buffer);
}

static void weight_case(od_cases *cs, od_conv *conv, const fused_case *c) {
    const size_t ny = out_pixels(c) * c->shape.c_out, nw = w_count(c);
    fused_input in = make_input(cs, c);
    float *dy = od_case_normals(cs, ny, 2);
    double *ref = od_case_alloc(cs, nw * sizeof *ref);
    od_span dys = od_case_input(cs, "dy", dy, ny), dw = od_case_output(cs, "dw", nw);
    conv_ref_backward_weight(ref, in.made, dy, &c->shape, c->n);
    if (od_case_ok(cs, od_conv_backward_weight_fused(conv, dw, &in.input, dys, c->n, false)))
        od_case_expect(cs, dw, ref, 1e-5, 0);
}

/* The parts in double, against sums over dx as it came out. */
static void check_sums(od_cases *cs, const fused_case *c, const od_conv_grads *g, const float *dx, const float *u,
                       const float *saved) {
    const size_t channels = (size_t)c->shape.c_in, rows = x_count(c) / channels / c->groups;
    const size_t parts = (size_t)g->parts, size = c->groups * parts * 2 * channels;
    float *partial = od_case_alloc(cs, size * sizeof *partial);
    if (!od_case_ok(cs, od_span_read(g->partial, partial, size)))
        return;
    for (size_t group = 0; group < (size_t)c->groups; group++)
        for (size_t k = 0; k < channels; k++) {
            const float *at = saved + group * 4 * channels + k;
            double sums[2] = {0}, want[2] = {0}, size_of[2] = {0};
            for (size_t i = 0; i < parts; i++)
                for (size_t v = 0; v < 2; v++)
                    sums[v] += partial[((group * parts + i) * 2 + v) * channels + k];
            for (size_t i = 0; i < rows; i++) {
                const size_t j = (group * rows + i) * channels + k;
                const double terms[2] = {dx[j], ((double)u[j] - at[0]) * at[channels] * dx[j]};
                for (size_t v = 0; v < 2; v++) {
                    want[v] += terms[v];
                    size_of[v] += fabs(terms[v]);
                }
            }
            for (size_t v = 0; v < 2; v++)
                if (!od_case_check(cs, fabs(sums[v] - want[v]) <= 2e-6 * size_of[v] + 1e-30,
                                   "group %zu channel %zu: sum %zu is %.9g, not %.9g", group, k, v, sums[v], want[v]))
                    return;
        }
}

/* dx behind the ReLU, and its sums; y: the ReLU's mask is another tensor; add: to what is there. */
static void gradients_run(od_cases *cs, od_conv *conv, const fused_case *c, bool add, bool masked_by_y) {
    const size_t nx = x_count(c), ny = out_pixels(c) * c->shape.c_out, channels = (size_t)c->shape.c_in;
    const size_t ns = c->groups * 4 * channels;
    float *u = od_case_normals(cs, nx, 0), *w = od_case_normals(cs, w_count(c), 1), *dy = od_case_normals(cs, ny, 2);
    float *saved = od_case_normals(cs, ns, 3), *y = od_case_normals(cs, nx, 4), *before = od_case_normals(cs, nx, 5);
    float *got = od_case_alloc(cs, nx * sizeof *got);
    double *ref = od_case_alloc(cs, nx * sizeof *ref);
    od_span dys = od_case_input(cs, "dy", dy, ny), ys = od_case_input(cs, "y", y, nx);
    od_span dx = add ? od_case_inout(cs, "dx", before, nx) : od_case_output(cs, "dx", nx);
    od_conv_grads grads = {.groups = c->groups,
                           .u = od_case_input(cs, "u", u, nx),
                           .saved = od_case_input(cs, "saved", saved, ns),
                           .y = masked_by_y ? ys : OD_NO_SPAN};
    conv_ref_backward_data(ref, dy, w, &c->shape, c->n);
    if (!od_case_ok(cs, od_conv_set_weights(conv, od_case_input(cs, "w", w, w_count(c)))) ||
        !od_case_ok(cs, od_conv_backward_data_fused(conv, dx, dys, c->n, add, &grads)))
        return;
    for (size_t i = 0; i < nx; i++) {
        const float *map = saved + i / (nx / c->groups) * 4 * channels + i % channels;
        const double through = masked_by_y ? y[i] : (double)u[i] * map[2 * channels] + map[3 * channels];
        ref[i] = grads.parts && through <= 0 ? 0 : ref[i] + (add ? before[i] : 0);
    }
    od_case_expect(cs, dx, ref, 1e-5, 0);
    const char *variant = od_conv_variant(conv, OD_CONV_BACKWARD_DATA);
    od_case_check(cs, grads.parts || (strcmp(variant, "cpu_winograd") != 0 && strncmp(variant, "gpu_", 4) != 0),
                  "no sums");
    if (grads.parts && od_case_ok(cs, od_span_read(dx, got, nx)))
        check_sums(cs, c, &grads, got, u, saved);
    od_buffer_release(grads.partial.buffer);
}

static void gradients_case(od_cases *cs, od_conv *conv, const fused_case *c) {
    gradients_run(cs, conv, c, false, c->n % 4 == 0);
    gradients_run(cs, conv, c, true, c->n % 4 != 0);
}

static bool aligned; /* tensors begin at multiples of 64 elements */

static const struct {
    const char *name;
    unsigned flag;
    void (*run)(od_cases *cs, od_conv *conv, const fused_case *c);
} passes[] = {{"forward", OD_CONV_FORWARD, forward_case},
              {"weight", OD_CONV_BACKWARD_WEIGHT, weight_case},
              {"data", OD_CONV_BACKWARD_DATA, gradients_case}};

static od_conv_winograd_use winograd = OD_WINOGRAD_ALWAYS;
static const od_tuning_row *tuned; /* a row that counts; NULL: the rule's parameters */

static void walk(od_family family, const char *name) {
    od_device *device = od_test_device(family);
    od_conv_winograd_mode = winograd;
    if (tuned)
        OD_MUST(od_tuning_add(device, tuned));
    od_cases *cs = od_cases_begin(device);
    size_t with_stats = 0;
    for (size_t i = 0; i < OD_COUNT(passes) * OD_COUNT(cases); i++) {
        const fused_case *c = &cases[i / OD_COUNT(passes)];
        const od_conv_shape *s = &c->shape;
        const unsigned pass = passes[i % OD_COUNT(passes)].flag;
        const double work = od_conv_flop(s, c->n) * (family == OD_FAMILY_CPU ? 1 : 10);
        if (!od_test_affords(work) ||
            !od_case(cs, "fused %s %s n=%d/%d %dx%d c=%d,%d k=%d s=%d p=%d", name, passes[i % OD_COUNT(passes)].name,
                     c->n, c->groups, s->h, s->w, s->c_in, s->c_out, s->kernel_h, s->stride, s->pad))
            continue;
        od_case_aligned(cs, aligned);
        od_conv *conv = NULL;
        if (!od_case_ok(cs, od_conv_create(device, s, pass, &conv)))
            continue;
        passes[i % OD_COUNT(passes)].run(cs, conv, c);
        with_stats += strcmp(od_conv_variant(conv, pass), "cpu_winograd") == 0 ||
                      strncmp(od_conv_variant(conv, pass), "gpu_", 4) == 0;
        od_conv_destroy(conv);
    }
    if (family != OD_FAMILY_REF && !od_device_loop_limit(device))
        cr_assert(with_stats > 10, "only %zu cases ran a variant that fuses", with_stats);
    od_cases_end(cs);
}

Test(conv_fused, ref) {
    walk(OD_FAMILY_REF, "ref");
}

Test(conv_fused, cpu) {
    walk(OD_FAMILY_CPU, "cpu");
}

Test(conv_fused, cpu_width_16) {
    od_test_needs_whole();
    od_cpu_tile_width = 16;
    walk(OD_FAMILY_CPU, "cpu16");
}

Test(conv_fused, cpu_width_8) {
    od_test_needs_whole();
    od_cpu_tile_width = 8;
    walk(OD_FAMILY_CPU, "cpu8");
}

Test(conv_fused, cpu_width_4) {
    od_test_needs_whole();
    od_cpu_tile_width = 4;
    walk(OD_FAMILY_CPU, "cpu4");
}

Test(conv_fused, cpu_small_tiles) {
    od_test_needs_whole();
    od_cpu_tile_width = 1;
    walk(OD_FAMILY_CPU, "cpu1");
}

Test(conv_fused, gpu) {
    walk(OD_FAMILY_GPU, "gpu");
}

Test(conv_fused, gpu_winograd_slabs) {
    od_test_needs_whole();
    static const od_tuning_row row = {.key = OD_TUNING_ANY,
                                      .variant = "conv_gpu_transforms",
                                      .shape = "*",
                                      .settings = {{"items", 64}, {"rounds", 1}, {"slab", 2}},
                                      .count = 3};
    tuned = &row;
    walk(OD_FAMILY_GPU, "gpu winograd slabs");
}

Test(conv_fused, gpu_tile_1) {
    od_test_needs_whole();
    winograd = OD_WINOGRAD_NEVER;
    od_gpu_tile_forced = 1;
    aligned = true;
    walk(OD_FAMILY_GPU, "gpu tile 1");
}

Test(conv_fused, gpu_tile_2) {
    od_test_needs_whole();
    winograd = OD_WINOGRAD_NEVER;
    od_gpu_tile_forced = 2;
    aligned = true;
    walk(OD_FAMILY_GPU, "gpu tile 2");
}

/* A NaN in the input, or in its map, must come out: a ReLU as a maximum would swallow it. */
Test(conv_fused, nan_comes_out) {
    static const fused_case c = {2, 2, {8, 8, 16, 16, 3, 3, 1, 1}};
    static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};
    od_conv_winograd_mode = OD_WINOGRAD_ALWAYS;
    for (size_t f = 0; f < OD_COUNT(families); f++)
        for (int in_map = 0; in_map < 2; in_map++) {
            od_device *device = od_test_device(families[f]);
            od_cases *cs = od_cases_begin(device);
            if (od_case(cs, "fused nan %s in %s", od_family_name(families[f]), in_map ? "map" : "x")) {
                fused_input in = make_input(cs, &c);
                const float nan = NAN;
                const size_t ny = out_pixels(&c) * 16;
                float *w = od_case_normals(cs, w_count(&c), 1), *got = od_case_alloc(cs, ny * sizeof *got);
                od_span y = od_case_output(cs, "y", ny), xs = od_case_inout(cs, "x", in.x, x_count(&c));
                float *affine = od_case_normals(cs, 2 * in.input.stride, 3);
                od_span maps = od_case_inout(cs, "map", affine, 2 * in.input.stride);
                od_case_ok(cs, od_span_write(od_span_at(in_map ? maps : xs, 5), &nan, 1));
                in.input.x = xs;
                in.input.affine = maps;
                od_conv *conv = NULL;
                if (od_case_ok(cs, od_conv_create(device, &c.shape, OD_CONV_FORWARD, &conv)) &&
                    od_case_ok(cs, od_conv_set_weights(conv, od_case_input(cs, "w", w, w_count(&c)))) &&
                    od_case_ok(cs, od_conv_forward_fused(conv, y, &in.input, c.n, NULL)) &&
                    od_case_ok(cs, od_span_read(y, got, ny)))
                    od_case_check(cs, isnan(got[0]), "y[0] is %g", got[0]);
                od_conv_destroy(conv);
            }
            od_cases_end(cs);
        }
}

Test(conv_fused, arguments) {
    static const fused_case c = {4, 2, {8, 8, 16, 16, 3, 3, 1, 1}};
    od_device *device = od_test_device(OD_FAMILY_CPU);
    od_cases *cs = od_cases_begin(device);
    if (od_case(cs, "fused arguments")) {
        fused_input in = make_input(cs, &c);
        float *w = od_case_normals(cs, w_count(&c), 1);
        od_span y = od_case_output(cs, "y", out_pixels(&c) * 16);
        od_conv *conv = NULL;
        if (od_case_ok(cs, od_conv_create(device, &c.shape, OD_CONV_FORWARD, &conv)) &&
            od_case_ok(cs, od_conv_set_weights(conv, od_case_input(cs, "w", w, w_count(&c))))) {
            od_conv_stats three = {.groups = 3};
            od_conv_input bad = in.input;
            bad.groups = 3;
            od_case_check(cs, od_conv_forward_fused(conv, y, &bad, 4, NULL) == OD_ERR_ARGUMENT, "4 images, 3 groups");
            bad = in.input;
            bad.stride = 10000;
            od_case_check(cs, od_conv_forward_fused(conv, y, &bad, 4, NULL) == OD_ERR_ARGUMENT, "a map too short");
            od_case_check(cs, od_conv_forward_fused(conv, y, &in.input, 4, &three) == OD_ERR_ARGUMENT, "statistics");
            od_case_check(cs, three.parts == 0 && !three.partial.buffer, "statistics after a failure");
        }
        od_conv_destroy(conv);
    }
    od_cases_end(cs);
}
