/* Element-wise operations and reductions against double arithmetic. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/pointwise.h"

static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};

/* Beside od_odd_sizes: around a work-group's block in each family. */
static const int block_sizes[] = {4, 64, 4096, 4100, 16384, 16387, 50001};

enum { SIZES = OD_COUNT(od_odd_sizes) + OD_COUNT(block_sizes) };

static size_t size_at(size_t i) {
    return (size_t)(i < OD_COUNT(od_odd_sizes) ? od_odd_sizes[i] : block_sizes[i - OD_COUNT(od_odd_sizes)]);
}

typedef enum operation {
    RELU,
    RELU_IN_PLACE,
    RELU_BACKWARD,
    RELU_BACKWARD_IN_PLACE,
    ADD,
    ADD_TO_A,
    ADD_TO_B,
    SCALE,
    AXPY,
    OPERATIONS
} operation;
static const char *const names[] = {"relu",      "relu y=x", "relu backward", "relu backward dx=dy", "add", "add out=a",
                                    "add out=b", "scale",    "axpy"};

static double expected(operation op, double a, double b) {
    switch (op) {
    case RELU:
    case RELU_IN_PLACE:
        return a > 0 ? a : 0;
    case RELU_BACKWARD:
    case RELU_BACKWARD_IN_PLACE:
        return b > 0 ? a : 0;
    case ADD:
    case ADD_TO_A:
    case ADD_TO_B:
        return a + b;
    case SCALE:
        return a * 0.3F;
    default:
        return a - 1.7F * b;
    }
}

/* `a` in place of the output where the operation writes over it. */
static od_status run_operation(od_device *device, operation op, od_span out, od_span a, od_span b, size_t n) {
    switch (op) {
    case RELU:
        return od_relu_forward(device, out, a, n);
    case RELU_IN_PLACE:
        return od_relu_forward(device, a, a, n);
    case RELU_BACKWARD:
        return od_relu_backward(device, out, a, b, n);
    case RELU_BACKWARD_IN_PLACE:
        return od_relu_backward(device, a, a, b, n);
    case ADD:
        return od_add(device, out, a, b, n);
    case ADD_TO_A:
        return od_add(device, a, a, b, n);
    case ADD_TO_B:
        return od_add(device, a, b, a, n);
    case SCALE:
        return od_scale(device, a, 0.3F, n);
    default:
        return od_axpy(device, a, -1.7F, b, n);
    }
}

static void check_operation(od_cases *cs, od_device *device, operation op, size_t n) {
    float *a = od_case_normals(cs, n, 0), *b = od_case_normals(cs, n, 1);
    double *ref = od_case_alloc(cs, n * sizeof *ref);
    for (size_t i = 0; i < n; i++) {
        if (i % 11 == 3)
            b[i] = 0; /* the ReLU's gradient at 0 is 0 */
        ref[i] = expected(op, a[i], b[i]);
    }
    bool apart = op == RELU || op == RELU_BACKWARD || op == ADD;
    od_span as = apart ? od_case_input(cs, "a", a, n) : od_case_inout(cs, "a", a, n);
    od_span bs = od_case_input(cs, "b", b, n), out = apart ? od_case_output(cs, "out", n) : as;
    if (od_case_ok(cs, run_operation(device, op, out, as, bs, n)))
        od_case_expect_constant(cs, out, ref, 2e-7, 0);
}

Test(pointwise, operations) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (operation op = RELU; op < OPERATIONS; op++)
            for (size_t i = 0; i < SIZES; i++) {
                if (!od_case(cs, "%s family=%s n=%zu", names[op], od_family_name(families[f]), size_at(i)))
                    continue;
                od_case_aligned(cs, i % 2 == 0);
                check_operation(cs, device, op, size_at(i));
            }
        od_cases_end(cs);
    }
}

Test(pointwise, nan_and_nothing) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        if (od_case(cs, "relu nan family=%s", od_family_name(families[f]))) {
            float x[20] = {0}, y[20];
            x[3] = x[18] = NAN;
            od_span xs = od_case_input(cs, "x", x, 20), ys = od_case_output(cs, "y", 20);
            od_case_ok(cs, od_relu_forward(device, ys, xs, 20));
            OD_MUST(od_span_read(ys, y, 20));
            for (int i = 0; i < 20; i++)
                od_case_check(cs, (isnan(y[i]) != 0) == (i == 3 || i == 18), "element %d is %g", i, y[i]);
            od_span sum = od_case_output(cs, "sum", 1);
            od_case_ok(cs, od_scale(device, xs, 2, 0)); /* zero elements: nothing is touched */
            od_case_ok(cs, od_sum(device, sum, xs, 0));
            od_case_expect_constant(cs, sum, (const double[]){0}, 0, 1e-30);
        }
        od_cases_end(cs);
    }
}

/* A sum whose terms cancel is held to the sum of their magnitudes. */
static void check_sums(od_cases *cs, od_device *device, size_t n) {
    float *x = od_case_normals(cs, n, 0), *positive = od_case_uniforms(cs, n, 1), out[2];
    double sum = 0, magnitude = 0, squares = 0, positive_sum = 0;
    for (size_t i = 0; i < n; i++) {
        positive[i] = 1.01F + positive[i];
        sum += x[i];
        magnitude += fabs((double)x[i]);
        squares += (double)x[i] * x[i];
        positive_sum += positive[i];
    }
    od_span xs = od_case_input(cs, "x", x, n), ps = od_case_input(cs, "positive", positive, n);
    od_span a = od_case_output(cs, "sum", 1), b = od_case_output(cs, "positive sum", 1);
    od_span c = od_case_output(cs, "squares", 1), again = od_case_output(cs, "again", 1);
    od_case_ok(cs, od_sum(device, a, xs, n));
    od_case_expect_constant(cs, a, &sum, INFINITY, 1e-6 * magnitude);
    od_case_ok(cs, od_sum(device, b, ps, n));
    od_case_expect_constant(cs, b, &positive_sum, 1e-6, 0);
    od_case_ok(cs, od_sum_squares(device, c, xs, n));
    od_case_expect_constant(cs, c, &squares, 1e-6, 0);
    od_case_ok(cs, od_sum(device, again, xs, n));
    OD_MUST(od_span_read(a, out, 1));
    od_case_expect_words(cs, again, out);
}

Test(pointwise, sums) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < SIZES; i++)
            if (od_case(cs, "sums family=%s n=%zu", od_family_name(families[f]), size_at(i))) {
                od_case_aligned(cs, i % 2 == 0);
                check_sums(cs, device, size_at(i));
            }
        od_cases_end(cs);
    }
}

/* Ones after 2^31, whose neighbours are 256 away: a plain accumulator stays there. An infinity stays one. */
Test(pointwise, hard_sums) {
    static const size_t counts[] = {1024, 16384};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(counts); i++) {
            size_t n = counts[i];
            if (!od_case(cs, "hard sums family=%s n=%zu", od_family_name(families[f]), n))
                continue;
            float *x = od_case_alloc(cs, n * sizeof *x), out = 0;
            for (size_t k = 0; k < n; k++)
                x[k] = k ? 1 : 0x1p31F;
            double ref = 0x1p31 + (double)(n - 1);
            od_span sum = od_case_output(cs, "sum", 1);
            od_case_ok(cs, od_sum(device, sum, od_case_input(cs, "x", x, n), n));
            od_case_expect_constant(cs, sum, &ref, 1, 450);
            x[n / 3] = 1e30F;
            od_case_ok(cs, od_sum_squares(device, sum, od_case_input(cs, "large x", x, n), n));
            OD_MUST(od_span_read(sum, &out, 1));
            od_case_check(cs, isinf(out), "a sum of squares beyond float is %g", out);
        }
        od_cases_end(cs);
    }
}

/* Past 16384 blocks they grow; and 17 million equal terms show an accumulator that loses the small ones. */
Test(pointwise, long_sum) {
    od_device *device = od_test_device(OD_FAMILY_REF);
    od_cases *cs = od_cases_begin(device);
    size_t n = ((size_t)1 << 24) + 1000003;
    if (od_case(cs, "long sum family=ref n=%zu", n)) {
        const float tenth = 0.1F;
        uint32_t bits;
        memcpy(&bits, &tenth, 4);
        od_span x, out = od_case_output(cs, "sum", 1);
        OD_MUST(od_span_create(device, n, &x));
        OD_MUST(od_buffer_fill(x.buffer, 0, n * 4, bits));
        double ref = (double)n * tenth;
        od_case_ok(cs, od_sum(device, out, x, n));
        od_case_expect_constant(cs, out, &ref, 1e-6, 0);
        od_buffer_release(x.buffer);
    }
    od_cases_end(cs);
}

Test(pointwise, count_nonfinite) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < SIZES; i++) {
            size_t n = size_at(i);
            if (!od_case(cs, "count_nonfinite family=%s n=%zu", od_family_name(families[f]), n))
                continue;
            od_case_aligned(cs, i % 2 == 0);
            float *x = od_case_normals(cs, n, 0);
            double bad = 0;
            for (size_t k = 0; k < n; k++) {
                const float odd[] = {NAN, INFINITY, -INFINITY, 3.4e38F, 1e-42F, -0.0F};
                if (k % 5 == 2 || k == n - 1)
                    x[k] = odd[(k / 5) % 6];
                bad += !isfinite(x[k]);
            }
            od_span xs = od_case_input(cs, "x", x, n), out = od_case_output(cs, "count", 1);
            if (od_case_ok(cs, od_count_nonfinite(device, out, xs, n)))
                od_case_expect_constant(cs, out, &bad, 0, 1e-9);
        }
        od_cases_end(cs);
    }
}

static void check_column_sum(od_cases *cs, od_device *device, size_t rows, size_t c, bool accumulate) {
    float *x = od_case_normals(cs, rows * c, 0), *before = od_case_normals(cs, c, 1);
    double *ref = od_case_alloc(cs, c * sizeof *ref), magnitude = 1;
    for (size_t k = 0; k < c; k++)
        ref[k] = accumulate ? before[k] : 0;
    for (size_t i = 0; i < rows * c; i++) {
        ref[i % c] += x[i];
        magnitude += fabs((double)x[i]) / (double)c;
    }
    od_span xs = od_case_input(cs, "x", x, rows * c);
    od_span out = accumulate ? od_case_inout(cs, "out", before, c) : od_case_output(cs, "out", c);
    if (od_case_ok(cs, od_column_sum(device, out, xs, rows, (int)c, accumulate)))
        od_case_expect_constant(cs, out, ref, 1e-5, 1e-6 * magnitude);
}

Test(pointwise, column_sum) {
    static const struct {
        size_t rows, c;
        bool aligned;
    } shapes[] = {{1, 1, 0},    {2049, 1, 1},  {129, 3, 0},   {600, 8, 1},   {1000, 17, 0}, {513, 64, 1},
                  {513, 65, 0}, {300, 100, 1}, {40, 1023, 0}, {33, 4096, 1}, {70000, 4, 1}, {7, 128, 0}};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(shapes); i++)
            if (od_case(cs, "column_sum family=%s rows=%zu c=%zu", od_family_name(families[f]), shapes[i].rows,
                        shapes[i].c)) {
                od_case_aligned(cs, shapes[i].aligned);
                check_column_sum(cs, device, shapes[i].rows, shapes[i].c, i % 2);
            }
        od_cases_end(cs);
    }
}
