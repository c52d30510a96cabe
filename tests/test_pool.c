/* Average and maximum pooling, forward and backward, and rows scaled to length 1. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/pointwise.h"
#include "reference/pool.h"

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

/* ---- average ---------------------------------------------------------------------------------------------------- */

static void check_average(od_cases *c, od_device *device, int n, int h, int w, int channels) {
    const size_t nx = (size_t)n * h * w * channels, ny = (size_t)n * channels;
    float *x = od_case_normals(c, nx, 0), *dy = od_case_normals(c, ny, 1);
    double *y = od_case_alloc(c, ny * sizeof *y), *dx = od_case_alloc(c, nx * sizeof *dx);
    for (size_t i = 0; i < nx; i++) {
        const size_t at = i / ((size_t)h * w * channels) * channels + i % channels;
        y[at] += (double)x[i] / (h * w);
        dx[i] = (double)dy[at] / (h * w);
    }
    const od_span xs = od_case_input(c, "x", x, nx), dys = od_case_input(c, "dy", dy, ny);
    const od_span ys = od_case_output(c, "y", ny), dxs = od_case_output(c, "dx", nx);
    if (od_case_ok(c, od_avgpool_forward(device, ys, xs, n, h, w, channels)))
        od_case_expect_constant(c, ys, y, 1e-6, 0);
    if (od_case_ok(c, od_avgpool_backward(device, dxs, dys, n, h, w, channels)))
        od_case_expect_constant(c, dxs, dx, 1e-6, 0);
}

static void average(od_family family) {
    static const int shapes[][4] = {{1, 1, 1, 1},   {3, 5, 7, 2},   {2, 4, 4, 33},
                                    {5, 8, 8, 129}, {1, 17, 3, 64}, {33, 2, 2, 17}};
    od_device *device = od_test_device(family);
    od_cases *c = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(shapes); i++) {
        const int *s = shapes[i];
        if (od_case(c, "avgpool family=%s n=%d h=%d w=%d c=%d", od_family_name(family), s[0], s[1], s[2], s[3]))
            check_average(c, device, s[0], s[1], s[2], s[3]);
    }
    od_cases_end(c);
}
EACH_FAMILY(pool, average)

/* ---- maximum ---------------------------------------------------------------------------------------------------- */

/* levels > 0: x has so few values that windows hold ties. */
static void check_maximum(od_cases *c, od_device *device, const od_pool_shape *s, int n, int levels) {
    const int h_out = reference_pool_out(s->h, s), w_out = reference_pool_out(s->w, s);
    const size_t nx = (size_t)n * s->h * s->w * s->c, ny = (size_t)n * h_out * w_out * s->c;
    float *x = od_case_normals(c, nx, 0), *dy = od_case_normals(c, ny, 1);
    for (size_t i = 0; i < nx; i++)
        x[i] = levels > 0 ? roundf(x[i] * (float)levels) - 9.0F : x[i] - 9.0F; /* below the padding's zero */
    double *y = od_case_alloc(c, ny * sizeof *y), *dx = od_case_alloc(c, nx * sizeof *dx);
    int32_t *argmax = od_case_alloc(c, ny * sizeof *argmax);
    reference_maxpool(y, argmax, x, s, n);
    reference_maxpool_backward(dx, dy, argmax, s, n);
    const od_span xs = od_case_input(c, "x", x, nx), dys = od_case_input(c, "dy", dy, ny);
    const od_span ys = od_case_output(c, "y", ny), as = od_case_output(c, "argmax", ny);
    const od_span dxs = od_case_output(c, "dx", nx);
    if (!od_case_ok(c, od_maxpool_forward(device, s, ys, as, xs, n)))
        return;
    od_case_expect_constant(c, ys, y, 1e-9, 1e-9);
    od_case_expect_words(c, as, argmax);
    if (od_case_ok(c, od_maxpool_backward(device, s, dxs, dys, as, n)))
        od_case_expect_constant(c, dxs, dx, 1e-6, 0);
}

static void maximum(od_family family) {
    static const struct {
        int n;
        od_pool_shape shape;
    } cases[] = {
        {2, {8, 8, 5, 3, 2, 1}},  {1, {1, 1, 1, 1, 1, 0}},   {3, {7, 9, 3, 3, 2, 1}},
        {2, {6, 4, 17, 2, 2, 0}}, {1, {5, 5, 65, 3, 1, 1}},  {2, {9, 7, 4, 2, 3, 0}},
        {1, {4, 6, 2, 5, 1, 2}},  {1, {3, 3, 130, 3, 3, 0}}, {2, {16, 16, 33, 3, 2, 1}},
    };
    od_device *device = od_test_device(family);
    od_cases *c = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(cases); i++)
        for (int levels = 0; levels < 2; levels++) {
            const od_pool_shape *s = &cases[i].shape;
            if (od_case(c, "maxpool family=%s n=%d h=%d w=%d c=%d size=%d stride=%d pad=%d levels=%d",
                        od_family_name(family), cases[i].n, s->h, s->w, s->c, s->size, s->stride, s->pad, levels))
                check_maximum(c, device, s, cases[i].n, levels);
        }
    od_cases_end(c);
}
EACH_FAMILY(pool, maximum)

Test(pool, refuses_shapes_without_output) {
    od_device *device = od_test_device(OD_FAMILY_AUTO);
    const od_pool_shape large = {2, 2, 4, 5, 1, 0}, only_padding = {4, 4, 4, 2, 1, 2};
    cr_assert_eq(od_maxpool_forward(device, &large, OD_NO_SPAN, OD_NO_SPAN, OD_NO_SPAN, 1), OD_ERR_ARGUMENT);
    cr_assert(strstr(od_error_message(), "2 x 2"), "%s", od_error_message());
    cr_assert_eq(od_maxpool_backward(device, &only_padding, OD_NO_SPAN, OD_NO_SPAN, OD_NO_SPAN, 1), OD_ERR_ARGUMENT);
    cr_assert_eq(od_avgpool_forward(device, OD_NO_SPAN, OD_NO_SPAN, 1, 0, 4, 4), OD_ERR_ARGUMENT);
    cr_assert_eq(od_l2_normalize(device, OD_NO_SPAN, OD_NO_SPAN, 1, 0, 1e-8F), OD_ERR_ARGUMENT);
}

/* ---- rows of length 1 ------------------------------------------------------------------------------------------- */

static void check_normalize(od_cases *c, od_device *device, int rows, int columns, float scale, float eps) {
    const size_t count = (size_t)rows * columns;
    float *x = od_case_normals(c, count, 0);
    double *y = od_case_alloc(c, count * sizeof *y);
    for (int r = 0; r < rows; r++) {
        double squares = 0;
        for (int j = 0; j < columns; j++) {
            float *at = &x[(size_t)r * columns + j];
            *at = r == 1 ? 0.0F : *at * scale; /* one row of zeros stays zero */
            squares += (double)*at * *at;
        }
        for (int j = 0; j < columns; j++)
            y[(size_t)r * columns + j] = x[(size_t)r * columns + j] / fmax(sqrt(squares), eps);
    }
    const od_span xs = od_case_input(c, "x", x, count), ys = od_case_output(c, "y", count);
    if (od_case_ok(c, od_l2_normalize(device, ys, xs, rows, columns, eps)))
        od_case_expect_constant(c, ys, y, 1e-6, 0);

    /* The gradient, from the definition; in place. */
    float *dy = od_case_normals(c, count, 1);
    double *dx = od_case_alloc(c, count * sizeof *dx), largest = 0;
    for (size_t first = 0; first < count; first += columns) {
        double squares = 0, along = 0;
        for (size_t j = first; j < first + columns; j++) {
            squares += (double)x[j] * x[j];
            along += y[j] * dy[j];
        }
        const double length = fmax(sqrt(squares), eps), pull = sqrt(squares) > eps ? along : 0;
        for (size_t j = first; j < first + columns; j++) {
            dx[j] = (dy[j] - y[j] * pull) / length;
            largest = fmax(largest, fabs(dy[j] / length));
        }
    }
    const od_span ds = od_case_inout(c, "dx", dy, count);
    if (od_case_ok(c, od_l2_normalize_backward(device, ds, ds, xs, rows, columns, eps)))
        od_case_expect_constant(c, ds, dx, INFINITY, 2e-6 * largest);
}

static void unit_rows(od_family family) {
    static const int shapes[][2] = {{1, 1}, {2, 5}, {7, 16}, {3, 33}, {5, 129}, {4, 512}, {9, 1025}};
    static const struct { float scale, eps; } scales[] = {{1, 1e-8F}, {1e30F, 1e-8F}, {1e-20F, 1e-30F}, {1e-6F, 1}};
    od_device *device = od_test_device(family);
    od_cases *c = od_cases_begin(device);
    for (size_t i = 0; i < OD_COUNT(shapes); i++)
        for (size_t k = 0; k < OD_COUNT(scales); k++)
            if (od_case(c, "l2_normalize family=%s rows=%d c=%d scale=%g eps=%g", od_family_name(family), shapes[i][0],
                        shapes[i][1], scales[k].scale, scales[k].eps))
                check_normalize(c, device, shapes[i][0], shapes[i][1], scales[k].scale, scales[k].eps);
    od_cases_end(c);
}
EACH_FAMILY(pool, unit_rows)
