/* Element-wise operations, sums, rows of length 1, and pooling. */
#include <math.h>
#include <string.h>

#include "cli/selftest/runner.h"
#include "offdiag/ops/pointwise.h"
#include "reference/pool.h"

/* One rounding, or none: the same bits everywhere. */
static void check_relu(od_check *k, size_t n) {
    od_check_operation(k, "relu_forward");
    od_check_case(k, "%zu elements", n);
    float *x = od_check_normals(k, n, 0), *y = od_check_alloc(k, n * sizeof *y);
    od_span xs = od_check_input(k, x, n), ys = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] > 0 ? x[i] : 0;
    if (od_check_ran(k, od_relu_forward(k->device, ys, xs, n)))
        od_check_words(k, "y", ys, y);

    od_check_operation(k, "relu_backward");
    od_check_case(k, "%zu elements", n);
    float *dy = od_check_normals(k, n, 0), *dx = od_check_alloc(k, n * sizeof *dx);
    y = od_check_normals(k, n, 1);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < n; i++)
        y[i] = y[i] > 0 ? y[i] : 0;
    od_span dys = od_check_input(k, dy, n), dxs = od_check_output(k, n);
    ys = od_check_input(k, y, n);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < n; i++)
        dx[i] = y[i] > 0 ? dy[i] : 0;
    if (od_check_ran(k, od_relu_backward(k->device, dxs, dys, ys, n)))
        od_check_words(k, "dx", dxs, dx);
}

static void check_arithmetic(od_check *k, size_t n) {
    od_check_operation(k, "add");
    od_check_case(k, "%zu elements", n);
    float *a = od_check_normals(k, n, 0), *b = od_check_normals(k, n, 1), *sum = od_check_alloc(k, n * sizeof *sum);
    od_span as = od_check_input(k, a, n), bs = od_check_input(k, b, n), out = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < n; i++)
        sum[i] = a[i] + b[i];
    if (od_check_ran(k, od_add(k->device, out, as, bs, n)))
        od_check_words(k, "out", out, sum);

    od_check_operation(k, "scale");
    od_check_case(k, "%zu elements", n);
    float *x = od_check_normals(k, n, 0), *y = od_check_alloc(k, n * sizeof *y);
    od_span xs = od_check_inout(k, x, n);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < n; i++)
        y[i] = x[i] * 0.3f;
    if (od_check_ran(k, od_scale(k->device, xs, 0.3f, n)))
        od_check_words(k, "x", xs, y);

    od_check_operation(k, "axpy");
    od_check_case(k, "%zu elements", n);
    x = od_check_normals(k, n, 0);
    y = od_check_normals(k, n, 1);
    double *ref = od_check_alloc(k, n * sizeof *ref);
    xs = od_check_input(k, x, n);
    od_span ys = od_check_inout(k, y, n);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < n; i++)
        ref[i] = y[i] - 0.7 * x[i];
    if (od_check_ran(k, od_axpy(k->device, ys, -0.7f, xs, n)))
        od_check_near(k, "y", ys, ref, 1e-6);
}

static void check_sums(od_check *k, size_t n) {
    static const struct {
        const char *operation;
        od_status (*run)(od_device *, od_span, od_span, size_t);
    } sums[] = {{"sum", od_sum}, {"sum_squares", od_sum_squares}, {"count_nonfinite", od_count_nonfinite}};
    for (int s = 0; s < 3; s++) {
        od_check_operation(k, sums[s].operation);
        od_check_case(k, "%zu elements", n);
        float *x = od_check_uniforms(k, n, 0); /* positive: nothing cancels */
        double ref = 0;
        for (size_t i = 0; x && i < n; i++) {
            if (s == 2 && i % 97 == 0)
                x[i] = i % 2 ? NAN : INFINITY;
            ref += s == 0 ? x[i] : s == 1 ? (double)x[i] * x[i] : !isfinite(x[i]);
        }
        od_span xs = od_check_input(k, x, n), out = od_check_output(k, 1);
        if (od_check_ready(k) && od_check_ran(k, sums[s].run(k->device, out, xs, n)))
            od_check_near(k, "out", out, &ref, s == 2 ? 0 : 1e-6);
    }
}

static void check_columns(od_check *k, size_t rows, int c, bool accumulate) {
    od_check_operation(k, "column_sum");
    od_check_case(k, "%zu rows of %d%s", rows, c, accumulate ? ", added" : "");
    size_t n = rows * (size_t)c;
    float *x = od_check_uniforms(k, n, 0), *old = od_check_uniforms(k, (size_t)c, 1);
    double *ref = od_check_alloc(k, (size_t)c * sizeof *ref);
    od_span xs = od_check_input(k, x, n);
    od_span out = accumulate ? od_check_inout(k, old, (size_t)c) : od_check_output(k, (size_t)c);
    if (od_check_ready(k)) {
        for (size_t i = 0; accumulate && i < (size_t)c; i++)
            ref[i] = old[i];
        for (size_t i = 0; i < n; i++)
            ref[i % (size_t)c] += x[i];
        if (od_check_ran(k, od_column_sum(k->device, out, xs, rows, c, accumulate)))
            od_check_near(k, "out", out, ref, 1e-5);
    }

    od_check_operation(k, "l2_normalize");
    od_check_case(k, "%zu rows of %d", rows, c);
    x = od_check_normals(k, n, 0);
    ref = od_check_alloc(k, n * sizeof *ref);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < (size_t)c; i++)
        x[i] *= 1e-9f; /* shorter than eps */
    xs = od_check_input(k, x, n);
    out = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;
        for (size_t i = r * (size_t)c; i < (r + 1) * (size_t)c; i++)
            sum += (double)x[i] * x[i];
        for (size_t i = r * (size_t)c; i < (r + 1) * (size_t)c; i++)
            ref[i] = x[i] / fmax(sqrt(sum), 1e-6);
    }
    if (od_check_ran(k, od_l2_normalize(k->device, out, xs, (int)rows, c, 1e-6f)))
        od_check_near(k, "y", out, ref, 1e-5);
}

static void check_l2_gradient(od_check *k, size_t rows, int c) {
    size_t n = rows * (size_t)c;
    od_check_operation(k, "l2_normalize_backward");
    od_check_case(k, "%zu rows of %d", rows, c);
    float *x = od_check_normals(k, n, 0), *dy = od_check_normals(k, n, 1);
    double *ref = od_check_alloc(k, n * sizeof *ref);
    od_span xs = od_check_input(k, x, n), dys = od_check_input(k, dy, n), out = od_check_output(k, n);
    if (!od_check_ready(k))
        return;
    for (size_t first = 0; first < n; first += (size_t)c) {
        double squares = 0, along = 0;
        for (size_t i = first; i < first + (size_t)c; i++) {
            squares += (double)x[i] * x[i];
            along += (double)x[i] * dy[i];
        }
        for (size_t i = first; i < first + (size_t)c; i++)
            ref[i] = (dy[i] - x[i] * along / squares) / sqrt(squares);
    }
    if (od_check_ran(k, od_l2_normalize_backward(k->device, out, dys, xs, (int)rows, c, 1e-6f)))
        od_check_near(k, "dx", out, ref, 1e-5);
}

static void check_size(od_check *k, size_t n) {
    if (k->stopped || !od_check_affords(k, (double)n))
        return;
    check_relu(k, n);
    check_arithmetic(k, n);
    check_sums(k, n);
}

void od_check_pointwise(od_check *k) {
    static const size_t sizes[] = {1, 77, 4100, 70001};
    static const size_t more[] = {2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 16384, 16385, 300007};
    static const int columns[] = {3, 16, 33, 64, 516};
    static const int more_columns[] = {1, 2, 4, 8, 12, 15, 17, 32, 36, 65, 128, 1030};
    static const size_t more_rows[] = {1, 2, 64, 129, 3000};
    enum { COLUMNS = sizeof more_columns / sizeof *more_columns, ROWS = sizeof more_rows / sizeof *more_rows };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        check_size(k, sizes[i]);
    for (size_t i = 0; k->wide && i < sizeof more / sizeof *more; i++)
        check_size(k, more[i]);
    for (size_t i = 0; i < sizeof columns / sizeof *columns && !k->stopped; i++) {
        check_columns(k, i % 2 ? 301 : 70, columns[i], i % 2);
        check_l2_gradient(k, i % 2 ? 301 : 70, columns[i]);
    }
    for (size_t i = 0; k->wide && i < (size_t)COLUMNS * ROWS && !k->stopped; i++) {
        const int c = more_columns[i / ROWS];
        const size_t rows = more_rows[i % ROWS];
        if (od_check_affords(k, (double)rows * c))
            check_columns(k, rows, c, i % 2);
        if (c > 1 && od_check_affords(k, (double)rows * c)) /* in one dimension there is none */
            check_l2_gradient(k, rows, c);
    }
}

/* ---- pooling ----------------------------------------------------------------------------------------------------- */

static void check_average(od_check *k, int n, int h, int w, int c) {
    size_t pixels = (size_t)h * (size_t)w, channels = (size_t)c, ny = (size_t)n * channels, nx = ny * pixels;
    od_check_operation(k, "avgpool_forward");
    od_check_case(k, "%dx%dx%d", h, w, c);
    float *x = od_check_normals(k, nx, 0);
    double *ref = od_check_alloc(k, nx * sizeof *ref);
    od_span xs = od_check_input(k, x, nx), out = od_check_output(k, ny);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < nx; i++)
        ref[i / (pixels * channels) * channels + i % channels] += x[i] / (double)pixels;
    if (od_check_ran(k, od_avgpool_forward(k->device, out, xs, n, h, w, c)))
        od_check_near(k, "y", out, ref, 1e-5);

    od_check_operation(k, "avgpool_backward");
    od_check_case(k, "%dx%dx%d", h, w, c);
    float *dy = od_check_normals(k, ny, 0);
    ref = od_check_alloc(k, nx * sizeof *ref);
    xs = od_check_input(k, dy, ny);
    out = od_check_output(k, nx);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < nx; i++)
        ref[i] = dy[i / (pixels * channels) * channels + i % channels] / (double)pixels;
    if (od_check_ran(k, od_avgpool_backward(k->device, out, xs, n, h, w, c)))
        od_check_near(k, "dx", out, ref, 1e-6);
}

static void check_maximum(od_check *k, int n, const od_pool_shape *s) {
    size_t nx = (size_t)n * (size_t)s->h * (size_t)s->w * (size_t)s->c;
    size_t ny = (size_t)n * (size_t)reference_pool_out(s->h, s) * (size_t)reference_pool_out(s->w, s) * (size_t)s->c;
    od_check_operation(k, "maxpool_forward");
    od_check_case(k, "%dx%dx%d, window %d stride %d pad %d", s->h, s->w, s->c, s->size, s->stride, s->pad);
    float *x = od_check_normals(k, nx, 0);
    double *ref = od_check_alloc(k, nx * sizeof *ref);
    int32_t *argmax = od_check_alloc(k, ny * sizeof *argmax);
    od_span xs = od_check_input(k, x, nx), y = od_check_output(k, ny), places = od_check_output(k, ny);
    if (!od_check_ready(k))
        return;
    reference_maxpool(ref, argmax, x, s, n);
    if (od_check_ran(k, od_maxpool_forward(k->device, s, y, places, xs, n))) {
        od_check_near(k, "y", y, ref, 0);
        od_check_words(k, "argmax", places, argmax);
    }

    od_check_operation(k, "maxpool_backward");
    od_check_case(k, "%dx%dx%d, window %d stride %d pad %d", s->h, s->w, s->c, s->size, s->stride, s->pad);
    float *dy = od_check_normals(k, ny, 1);
    x = od_check_normals(k, nx, 0);
    double *dx = od_check_alloc(k, nx * sizeof *dx);
    argmax = od_check_alloc(k, ny * sizeof *argmax);
    ref = od_check_alloc(k, ny * sizeof *ref);
    if (!od_check_ready(k))
        return;
    reference_maxpool(ref, argmax, x, s, n);
    reference_maxpool_backward(dx, dy, argmax, s, n);
    od_span dys = od_check_input(k, dy, ny), dxs = od_check_output(k, nx);
    places = od_check_input(k, argmax, ny);
    if (od_check_ready(k) && od_check_ran(k, od_maxpool_backward(k->device, s, dxs, dys, places, n)))
        od_check_near(k, "dx", dxs, dx, 1e-6);
}

void od_check_pool(od_check *k) {
    static const int channels[] = {3, 16, 33, 64}, more[] = {1, 2, 4, 5, 8, 12, 20, 31, 65, 128};
    for (size_t i = 0; i < sizeof channels / sizeof *channels && !k->stopped; i++) {
        check_average(k, 3, 4, 5, channels[i]);
        const od_pool_shape three = {9, 11, channels[i], 3, 2, 1}, two = {8, 6, channels[i], 2, 2, 0};
        check_maximum(k, 2, &three);
        check_maximum(k, 2, &two);
    }
    for (size_t i = 0; k->wide && i < sizeof more / sizeof *more && !k->stopped; i++) {
        check_average(k, 2, 1, 1, more[i]);
        check_average(k, 1, 7, 7, more[i]);
        check_average(k, 5, 2, 8, more[i]);
        const od_pool_shape three = {12, 5, more[i], 3, 2, 1}, each = {6, 7, more[i], 3, 1, 1};
        const od_pool_shape thirds = {9, 9, more[i], 3, 3, 0}, one = {1, 1, more[i], 1, 1, 0};
        check_maximum(k, 1, &three);
        check_maximum(k, 3, &each);
        check_maximum(k, 2, &thirds);
        check_maximum(k, 4, &one);
    }
}
