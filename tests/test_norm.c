/* Batch normalisation against its double reference. */
#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

#include "harness.h"
#include "offdiag/ops/norm.h"
#include "reference/norm_ref.h"

static const od_family families[] = {OD_FAMILY_REF, OD_FAMILY_CPU, OD_FAMILY_GPU};

typedef struct norm_case {
    int groups, rows, c;
    bool relu, residual, affine, running, aligned;
} norm_case;

/* Around the edges of vectors (16, 4), of blocks of columns (64, 32) and of chunks (2048, 512, 128, 32 rows). */
static const norm_case cases[] = {
    {1, 2, 1, 0, 0, 0, 0, 0},     {1, 2049, 1, 1, 0, 1, 1, 0},  {2, 33, 3, 1, 1, 1, 1, 0},
    {3, 129, 8, 1, 1, 1, 1, 1},   {1, 4097, 7, 0, 1, 1, 0, 0},  {2, 1024, 16, 1, 0, 1, 1, 1},
    {2, 257, 17, 1, 1, 1, 1, 0},  {4, 65, 32, 0, 0, 0, 1, 1},   {2, 513, 64, 1, 1, 1, 1, 1},
    {1, 511, 65, 1, 1, 1, 1, 0},  {2, 130, 100, 1, 0, 0, 1, 1}, {1, 66, 127, 0, 1, 1, 0, 0},
    {2, 64, 192, 1, 1, 1, 1, 0},  {1, 31, 1023, 1, 0, 1, 1, 0}, {2, 40, 516, 0, 0, 0, 0, 1},
    {1, 33, 4096, 1, 1, 1, 1, 1}, {1, 8, 2048, 0, 0, 0, 1, 0},
};

/* The tensors of a case on the host: data whose mean and spread differ from channel to channel. */
typedef struct norm_data {
    od_bn_shape shape;
    size_t count, channels;
    float *x, *residual, *dy, *gamma, *beta, *running_mean, *running_var;
    norm_ref_input in;
} norm_data;

static norm_data make_data(od_cases *cs, const norm_case *n, float offset) {
    norm_data d = {.shape = {n->groups, n->rows, n->c, 1e-5F}};
    d.channels = (size_t)n->c;
    d.count = (size_t)n->groups * (size_t)n->rows * d.channels;
    d.x = od_case_normals(cs, d.count, 0);
    for (size_t i = 0; i < d.count; i++) {
        float channel = (float)(i % d.channels % 7);
        d.x[i] = d.x[i] * (1 + 0.3F * channel) + offset + channel - 2;
    }
    d.residual = od_case_normals(cs, d.count, 1);
    d.dy = od_case_normals(cs, d.count, 2);
    d.gamma = od_case_uniforms(cs, d.channels, 3);
    d.beta = od_case_uniforms(cs, d.channels, 4);
    d.running_mean = od_case_uniforms(cs, d.channels, 5);
    d.running_var = od_case_uniforms(cs, d.channels, 6);
    for (size_t k = 0; k < d.channels; k++) {
        d.gamma[k] += 1.5F;
        d.running_var[k] += 1.25F;
    }
    d.in = (norm_ref_input){d.x, n->affine ? d.gamma : NULL, n->affine ? d.beta : NULL, n->residual ? d.residual : NULL,
                            n->relu};
    return d;
}

static bool begin(od_cases *cs, const char *what, od_family family, const norm_case *n, const char *more) {
    if (!od_case(cs, "bn %s family=%s groups=%d rows=%d c=%d relu=%d residual=%d affine=%d running=%d aligned=%d%s",
                 what, od_family_name(family), n->groups, n->rows, n->c, n->relu, n->residual, n->affine, n->running,
                 n->aligned, more))
        return false;
    od_case_aligned(cs, n->aligned);
    return true;
}

static od_bn_params upload_params(od_cases *cs, const norm_case *n, const norm_data *d) {
    od_bn_params p = {.momentum = 0.1F};
    if (n->affine) {
        p.gamma = od_case_input(cs, "gamma", d->gamma, d->channels);
        p.beta = od_case_input(cs, "beta", d->beta, d->channels);
    }
    if (n->running) {
        p.running_mean = od_case_inout(cs, "running_mean", d->running_mean, d->channels);
        p.running_var = od_case_inout(cs, "running_var", d->running_var, d->channels);
    }
    return p;
}

static od_bn_fuse upload_fuse(od_cases *cs, const norm_case *n, const norm_data *d) {
    return (od_bn_fuse){n->relu, n->residual ? od_case_input(cs, "residual", d->residual, d->count) : OD_NO_SPAN};
}

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

/* A reference of one element is constant by nature. */
static void expect(od_cases *cs, const char *name, const float *out, const double *ref, size_t count, double rel,
                   double abs) {
    od_comparison c = od_compare(out, ref, count, rel, abs);
    if (count <= 2)
        c.pass = c.within;
    od_case_passes(cs, name, &c);
}

/* saved (groups, 4, c) against mean and rstd (groups, c); slope and shift are seen through y. */
static void expect_saved(od_cases *cs, od_span saved, const norm_data *d, const double *mean, const double *rstd,
                         double rel) {
    size_t c = d->channels, groups = (size_t)d->shape.groups;
    float *s = read_back(cs, saved, groups * OD_BN_SAVED * c);
    for (size_t g = 0; g < groups; g++, s += OD_BN_SAVED * c) {
        expect(cs, "saved mean", s, mean + g * c, c, rel, 0);
        expect(cs, "saved rstd", s + c, rstd + g * c, c, rel, 0);
    }
}

static void check_forward(od_cases *cs, od_device *device, const norm_case *n, float offset, double tolerance) {
    norm_data d = make_data(cs, n, offset);
    size_t stats = (size_t)n->groups * d.channels;
    double *y = od_case_alloc(cs, d.count * sizeof *y), *mean = od_case_alloc(cs, stats * sizeof *mean);
    double *rstd = od_case_alloc(cs, stats * sizeof *rstd);
    double *running_mean = widened(cs, d.running_mean, d.channels);
    double *running_var = widened(cs, d.running_var, d.channels);
    norm_ref_forward(y, mean, rstd, running_mean, running_var, &d.shape, &d.in, 0.1);
    od_bn_params params = upload_params(cs, n, &d);
    od_bn_fuse fuse = upload_fuse(cs, n, &d);
    od_span x = od_case_input(cs, "x", d.x, d.count), ys = od_case_output(cs, "y", d.count);
    od_span again = od_case_output(cs, "y again", d.count), saved = od_case_output(cs, "saved", OD_BN_SAVED * stats);
    od_span saved_again = od_case_output(cs, "saved again", OD_BN_SAVED * stats);
    if (!od_case_ok(cs, od_bn_forward(device, &d.shape, &params, &fuse, ys, saved, x)))
        return;
    expect(cs, "y", read_back(cs, ys, d.count), y, d.count, tolerance, offset != 0 ? 2e-4 : 0);
    expect_saved(cs, saved, &d, mean, rstd, 2e-6);
    if (n->running) {
        expect(cs, "running_mean", read_back(cs, params.running_mean, d.channels), running_mean, d.channels, 2e-6, 0);
        expect(cs, "running_var", read_back(cs, params.running_var, d.channels), running_var, d.channels, 2e-6, 0);
    }
    params.running_mean = params.running_var = OD_NO_SPAN;
    od_case_ok(cs, od_bn_forward(device, &d.shape, &params, &fuse, again, saved_again, x));
    od_case_expect_words(cs, again, read_back(cs, ys, d.count));
    od_case_expect_words(cs, saved_again, read_back(cs, saved, OD_BN_SAVED * stats));
}

Test(norm, forward) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(cases); i++)
            if (begin(cs, "forward", families[f], &cases[i], ""))
                check_forward(cs, device, &cases[i], 0, 2e-6);
        od_cases_end(cs);
    }
}

/* Mean 1000 and spread 1: E[x^2] - E[x]^2 in float would be wrong by more than 5 %, the mean's own rounding is 3e-5. */
Test(norm, large_mean) {
    static const norm_case large[] = {
        {1, 4096, 1, 0, 0, 0, 1, 0}, {2, 700, 64, 0, 0, 0, 1, 1}, {1, 513, 19, 0, 0, 0, 1, 0}};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(large); i++)
            if (begin(cs, "forward", families[f], &large[i], " mean=1000"))
                check_forward(cs, device, &large[i], 1000, 5e-5);
        od_cases_end(cs);
    }
}

static void check_inference(od_cases *cs, od_device *device, const norm_case *n, bool in_place) {
    norm_data d = make_data(cs, n, 0);
    double *y = od_case_alloc(cs, d.count * sizeof *y);
    norm_ref_inference(y, &d.shape, &d.in, d.running_mean, d.running_var);
    norm_case with_running = *n;
    with_running.running = true;
    od_bn_params params = upload_params(cs, &with_running, &d);
    od_bn_fuse fuse = upload_fuse(cs, n, &d);
    od_span x = in_place ? od_case_inout(cs, "x", d.x, d.count) : od_case_input(cs, "x", d.x, d.count);
    od_span ys = in_place ? x : od_case_output(cs, "y", d.count);
    if (!od_case_ok(cs, od_bn_inference(device, &d.shape, &params, &fuse, ys, x)))
        return;
    expect(cs, "y", read_back(cs, ys, d.count), y, d.count, 1e-6, 0);
    od_case_expect_words(cs, params.running_mean, d.running_mean);
    od_case_expect_words(cs, params.running_var, d.running_var);
}

Test(norm, inference) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(cases); i++)
            if (begin(cs, "inference", families[f], &cases[i], i % 2 ? " in place" : ""))
                check_inference(cs, device, &cases[i], i % 2);
        od_cases_end(cs);
    }
}

/* What may share memory in the backward pass. */
typedef enum aliasing { APART, RESIDUAL_IS_DY, DX_IS_DY, DX_IS_X, ALIASINGS } aliasing;
static const char *const aliasing_names[] = {"", " d_residual=dy", " dx=dy", " dx=x, mask from x"};

static void check_backward(od_cases *cs, od_device *device, const norm_case *n, aliasing alias, bool accumulate) {
    norm_data d = make_data(cs, n, 0);
    size_t c = d.channels, bytes = d.count * sizeof(double);
    od_bn_params params = upload_params(cs, n, &d);
    od_bn_fuse fuse = upload_fuse(cs, n, &d);
    od_span x = alias == DX_IS_X ? od_case_inout(cs, "x", d.x, d.count) : od_case_input(cs, "x", d.x, d.count);
    od_span y = od_case_output(cs, "y", d.count);
    od_span saved = od_case_output(cs, "saved", (size_t)n->groups * OD_BN_SAVED * c);
    if (!od_case_ok(cs, od_bn_forward(device, &d.shape, &params, &fuse, y, saved, x)))
        return;
    double *dx = od_case_alloc(cs, bytes), *g = od_case_alloc(cs, bytes);
    float *gamma_before = od_case_uniforms(cs, c, 7), *beta_before = od_case_uniforms(cs, c, 8);
    double *dgamma = od_case_alloc(cs, c * sizeof(double)), *dbeta = od_case_alloc(cs, c * sizeof(double));
    for (size_t k = 0; accumulate && k < c; k++) {
        dgamma[k] = gamma_before[k];
        dbeta[k] = beta_before[k];
    }
    norm_ref_backward(dx, g, dgamma, dbeta, &d.shape, &d.in, d.dy, read_back(cs, y, d.count));

    bool residual = n->residual && alias != DX_IS_DY;
    od_span dys = alias == RESIDUAL_IS_DY || alias == DX_IS_DY ? od_case_inout(cs, "dy", d.dy, d.count)
                                                               : od_case_input(cs, "dy", d.dy, d.count);
    od_span dxs = alias == DX_IS_DY ? dys : alias == DX_IS_X ? x : od_case_output(cs, "dx", d.count);
    od_span mask = alias == DX_IS_X && !n->residual ? OD_NO_SPAN : y;
    od_span gs = alias == RESIDUAL_IS_DY ? dys : residual ? od_case_output(cs, "d_residual", d.count) : OD_NO_SPAN;
    od_span dgammas = OD_NO_SPAN, dbetas = OD_NO_SPAN;
    if (n->affine) {
        dgammas = accumulate ? od_case_inout(cs, "dgamma", gamma_before, c) : od_case_output(cs, "dgamma", c);
        dbetas = accumulate ? od_case_inout(cs, "dbeta", beta_before, c) : od_case_output(cs, "dbeta", c);
    }
    if (!od_case_ok(cs,
                    od_bn_backward(device, &d.shape, &fuse, dxs, gs, dgammas, dbetas, dys, mask, x, saved, accumulate)))
        return;
    /* Two rows become +-1 whatever x is: dx is what rounding leaves. */
    double largest = 0;
    for (size_t i = 0; i < d.count; i++)
        largest = fmax(largest, fabs(dx[i]));
    bool cancelled = n->rows == 2 || largest < 1e-3;
    expect(cs, "dx", read_back(cs, dxs, d.count), dx, d.count, cancelled ? 1e9 : 5e-6, cancelled ? 1e-4 : 0);
    if (residual)
        expect(cs, "d_residual", read_back(cs, gs, d.count), g, d.count, 0, 1e-30);
    if (n->affine) {
        double scale = 2e-6 * sqrt((double)n->groups * n->rows) + 1e-6; /* of a sum with cancellation */
        expect(cs, "dgamma", read_back(cs, dgammas, c), dgamma, c, 1e-5, 4 * scale);
        expect(cs, "dbeta", read_back(cs, dbetas, c), dbeta, c, 1e-5, 4 * scale);
    }
    if (alias == APART) {
        od_span again = od_case_output(cs, "dx again", d.count);
        od_case_ok(cs,
                   od_bn_backward(device, &d.shape, &fuse, again, gs, OD_NO_SPAN, OD_NO_SPAN, dys, y, x, saved, false));
        od_case_expect_words(cs, again, read_back(cs, dxs, d.count));
    }
}

Test(norm, backward) {
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        for (size_t i = 0; i < OD_COUNT(cases); i++)
            for (aliasing alias = APART; alias < ALIASINGS; alias++) {
                if (alias == RESIDUAL_IS_DY && !cases[i].residual)
                    continue;
                if (alias && cases[i].c > 600)
                    continue;
                if (begin(cs, "backward", families[f], &cases[i], aliasing_names[alias]))
                    check_backward(cs, device, &cases[i], alias, i % 2);
            }
        od_cases_end(cs);
    }
}

/* loss = <w, y> of (x, residual, gamma, beta) in one vector, in double: differences of it against the device's
 * gradients. */
typedef struct difference_context {
    od_cases *cs;
    od_bn_shape shape;
    const float *w;
} difference_context;

static od_status weighted_output(void *context, const double *point, size_t elements, double *loss) {
    difference_context *ctx = context;
    const od_bn_shape *s = &ctx->shape;
    size_t count = (size_t)s->groups * (size_t)s->rows * (size_t)s->c, stats = (size_t)s->groups * (size_t)s->c;
    static float values[4096];
    static double y[2048], mean[64], rstd[64];
    if (elements > OD_COUNT(values) || count > OD_COUNT(y) || stats > OD_COUNT(mean))
        return OD_ERR_ARGUMENT;
    for (size_t i = 0; i < elements; i++)
        values[i] = (float)point[i];
    norm_ref_input in = {values, values + 2 * count, values + 2 * count + s->c, values + count, true};
    norm_ref_forward(y, mean, rstd, NULL, NULL, s, &in, 0);
    *loss = 0;
    for (size_t i = 0; i < count; i++)
        *loss += ctx->w[i] * y[i];
    return OD_OK;
}

Test(norm, finite_differences) {
    static const norm_case n = {2, 19, 5, 1, 1, 1, 0, 0};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        if (begin(cs, "differences", families[f], &n, "")) {
            norm_data d = make_data(cs, &n, 0);
            size_t elements = 2 * d.count + 2 * d.channels;
            float *point = od_case_alloc(cs, elements * sizeof *point);
            memcpy(point, d.x, d.count * sizeof *point);
            memcpy(point + d.count, d.residual, d.count * sizeof *point);
            memcpy(point + 2 * d.count, d.gamma, d.channels * sizeof *point);
            memcpy(point + 2 * d.count + d.channels, d.beta, d.channels * sizeof *point);
            od_bn_params params = upload_params(cs, &n, &d);
            od_bn_fuse fuse = upload_fuse(cs, &n, &d);
            od_span x = od_case_input(cs, "x", d.x, d.count), dy = od_case_input(cs, "dy", d.dy, d.count);
            od_span y = od_case_output(cs, "y", d.count),
                    saved = od_case_output(cs, "saved", 2 * OD_BN_SAVED * d.channels);
            od_span gradient = od_case_output(cs, "gradient", elements);
            od_span dgamma = od_span_at(gradient, 2 * d.count);
            od_case_ok(cs, od_bn_forward(device, &d.shape, &params, &fuse, y, saved, x));
            od_case_ok(cs, od_bn_backward(device, &d.shape, &fuse, gradient, od_span_at(gradient, d.count), dgamma,
                                          od_span_at(dgamma, d.channels), dy, y, x, saved, false));
            difference_context context = {cs, d.shape, d.dy};
            od_comparison c = od_compare_gradient(weighted_output, &context, point, read_back(cs, gradient, elements),
                                                  elements, 0x1p-12, 6, 1e-3);
            od_case_passes(cs, "gradient", &c);
        }
        od_cases_end(cs);
    }
}

/* A NaN must reach the loss: neither ReLU nor a maximum may swallow it, and other channels stay clean. */
Test(norm, nan_passes_relu) {
    static const norm_case n = {1, 70, 20, 1, 0, 1, 0, 0};
    for (size_t f = 0; f < OD_COUNT(families); f++) {
        od_device *device = od_test_device(families[f]);
        od_cases *cs = od_cases_begin(device);
        if (begin(cs, "nan", families[f], &n, "")) {
            norm_data d = make_data(cs, &n, 0);
            d.x[33 * 20 + 18] = NAN;
            od_bn_params params = upload_params(cs, &n, &d);
            od_bn_fuse fuse = {.relu = true};
            od_span x = od_case_input(cs, "x", d.x, d.count), y = od_case_output(cs, "y", d.count);
            od_span saved = od_case_output(cs, "saved", OD_BN_SAVED * 20);
            od_case_ok(cs, od_bn_forward(device, &d.shape, &params, &fuse, y, saved, x));
            const float *out = read_back(cs, y, d.count);
            size_t wrong = 0;
            for (size_t i = 0; i < d.count; i++)
                wrong += (isnan(out[i]) != 0) != (i % 20 == 18);
            od_case_check(cs, wrong == 0, "%zu elements are NaN, or not, against expectation", wrong);
        }
        od_cases_end(cs);
    }
}

Test(norm, arguments) {
    od_device *device = od_test_device(OD_FAMILY_REF);
    od_cases *cs = od_cases_begin(device);
    if (od_case(cs, "bn arguments")) {
        float zeros[8] = {0};
        od_span x = od_case_input(cs, "x", zeros, 8), y = od_case_inout(cs, "y", zeros, 8);
        od_bn_params none = {.momentum = 0.1F}, lonely = {.gamma = x, .momentum = 0.1F};
        od_bn_shape one_row = {2, 1, 4, 1e-5F}, fine = {1, 2, 4, 1e-5F}, empty = {1, 2, 0, 1e-5F};
        od_case_check(cs, od_bn_forward(device, &one_row, &none, NULL, y, y, x) == OD_ERR_ARGUMENT, "one row");
        od_case_check(cs, strstr(od_error_message(), "1 row") != NULL, "message: %s", od_error_message());
        od_case_check(cs, od_bn_forward(device, &empty, &none, NULL, y, y, x) == OD_ERR_ARGUMENT, "no channel");
        od_case_check(cs, od_bn_forward(device, &fine, &lonely, NULL, y, y, x) == OD_ERR_ARGUMENT, "gamma alone");
        od_case_check(cs, od_bn_inference(device, &fine, &none, NULL, y, x) == OD_ERR_ARGUMENT, "no statistics");
        od_case_expect_words(cs, y, zeros);
    }
    od_cases_end(cs);
}
