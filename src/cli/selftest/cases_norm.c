/* Batch normalisation, with the ReLU and the residual of a ResNet block. */
#include <string.h>

#include "cli/selftest/runner.h"
#include "reference/norm_ref.h"

enum { AFFINE = 1, RELU = 2, RESIDUAL = 4, RUNNING = 8 };

typedef struct norm_data {
    od_bn_shape shape;
    unsigned flags;
    size_t count, c;
    float *x, *gamma, *beta, *residual, *mean, *var; /* gamma, beta, residual: NULL where there is none */
    norm_ref_input in;
    od_bn_params params;
    od_bn_fuse fuse;
    od_span xs;
} norm_data;

static void open_case(od_check *k, norm_data *d, const char *operation) {
    const od_bn_shape *s = &d->shape;
    od_check_operation(k, operation);
    od_check_case(k, "%d groups of %d rows of %d%s%s%s", s->groups, s->rows, s->c, d->flags & AFFINE ? ", affine" : "",
                  d->flags & RELU ? ", relu" : "", d->flags & RESIDUAL ? ", residual" : "");
    d->c = (size_t)s->c;
    d->count = (size_t)s->groups * (size_t)s->rows * d->c;
    d->x = od_check_normals(k, d->count, 0);
    d->gamma = d->flags & AFFINE ? od_check_normals(k, d->c, 1) : NULL;
    d->beta = d->flags & AFFINE ? od_check_normals(k, d->c, 2) : NULL;
    d->residual = d->flags & RESIDUAL ? od_check_normals(k, d->count, 3) : NULL;
    d->mean = od_check_normals(k, d->c, 4);
    d->var = od_check_uniforms(k, d->c, 5);
    for (size_t i = 0; d->x && i < d->count; i++)
        d->x[i] = d->x[i] * 2 + 7; /* far from 0: a variance from E[x^2] would show */
    for (size_t i = 0; d->var && i < d->c; i++)
        d->var[i] += 0.5f;
    d->in = (norm_ref_input){d->x, d->gamma, d->beta, d->residual, (d->flags & RELU) != 0};
    d->params = (od_bn_params){
        .gamma = od_check_input(k, d->gamma, d->c), .beta = od_check_input(k, d->beta, d->c), .momentum = 0.1f};
    d->fuse = (od_bn_fuse){.relu = d->in.relu, .residual = od_check_input(k, d->residual, d->count)};
    d->xs = od_check_input(k, d->x, d->count);
}

/* saved (groups, 4, c) from mean and rstd (groups, c). */
static void fill_saved(double *saved, const norm_data *d, const double *mean, const double *rstd) {
    for (size_t g = 0; g < (size_t)d->shape.groups; g++, mean += d->c, rstd += d->c)
        for (size_t i = 0; i < d->c; i++) {
            double *at = saved + g * OD_BN_SAVED * d->c + i;
            const double slope = rstd[i] * (d->in.gamma ? d->in.gamma[i] : 1);
            at[0] = mean[i];
            at[d->c] = rstd[i];
            at[2 * d->c] = slope;
            at[3 * d->c] = (d->in.beta ? d->in.beta[i] : 0) - mean[i] * slope;
        }
}

static void check_forward(od_check *k, norm_data *d) {
    open_case(k, d, "bn_forward");
    size_t stats = (size_t)d->shape.groups * d->c;
    double *ref = od_check_alloc(k, d->count * sizeof *ref), *mean = od_check_alloc(k, stats * sizeof *mean);
    double *rstd = od_check_alloc(k, stats * sizeof *rstd);
    double *saved_ref = od_check_alloc(k, OD_BN_SAVED * stats * sizeof *mean);
    double *running_mean = od_check_alloc(k, d->c * sizeof *mean),
           *running_var = od_check_alloc(k, d->c * sizeof *mean);
    od_span y = od_check_output(k, d->count), saved = od_check_output(k, OD_BN_SAVED * stats);
    if (d->flags & RUNNING) {
        d->params.running_mean = od_check_inout(k, d->mean, d->c);
        d->params.running_var = od_check_inout(k, d->var, d->c);
    }
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; i < d->c; i++) {
        running_mean[i] = d->mean[i];
        running_var[i] = d->var[i];
    }
    norm_ref_forward(ref, mean, rstd, running_mean, running_var, &d->shape, &d->in, d->params.momentum);
    fill_saved(saved_ref, d, mean, rstd);
    if (!od_check_ran(k, od_bn_forward(k->device, &d->shape, &d->params, &d->fuse, y, saved, d->xs)))
        return;
    od_check_near(k, "y", y, ref, 1e-5);
    od_check_near(k, "saved", saved, saved_ref, 1e-5);
    if (d->flags & RUNNING) {
        od_check_near(k, "running_mean", d->params.running_mean, running_mean, 1e-5);
        od_check_near(k, "running_var", d->params.running_var, running_var, 1e-5);
    }
}

/* Rows first .. first + rows - 1 of group g: how many, their mean, their sum of squares about it (3, c). */
static void rows_statistics(double *out, const norm_data *d, size_t g, size_t first, size_t rows) {
    const float *x = d->x + (g * (size_t)d->shape.rows + first) * d->c;
    for (size_t i = 0; i < d->c; i++) {
        double sum = 0, squares = 0;
        for (size_t r = 0; r < rows; r++)
            sum += x[r * d->c + i];
        for (size_t r = 0; r < rows; r++)
            squares += (x[r * d->c + i] - sum / (double)rows) * (x[r * d->c + i] - sum / (double)rows);
        out[i] = (double)rows;
        out[d->c + i] = sum / (double)rows;
        out[2 * d->c + i] = squares;
    }
}

/* Statistics for several devices to add up: of x, and of its statistics in two parts. */
static void check_merged(od_check *k, norm_data *d) {
    open_case(k, d, "bn_merged");
    const size_t size = 3 * d->c, groups = (size_t)d->shape.groups, rows = (size_t)d->shape.rows, cut = rows / 3;
    double *ref = od_check_alloc(k, groups * size * sizeof *ref), *part = od_check_alloc(k, size * sizeof *part);
    float *parts = od_check_alloc(k, groups * 2 * size * sizeof *parts); /* (groups, 2, 3, c) */
    if (!od_check_ready(k))
        return;
    for (size_t g = 0; g < groups; g++) {
        rows_statistics(ref + g * size, d, g, 0, rows);
        for (size_t half = 0; half < 2; half++) {
            rows_statistics(part, d, g, half ? cut : 0, half ? rows - cut : cut);
            for (size_t i = 0; i < size; i++)
                parts[(2 * g + half) * size + i] = (float)part[i];
        }
    }
    od_span whole = od_check_output(k, groups * size), added = od_check_output(k, groups * size);
    od_span partial = od_check_input(k, parts, groups * 2 * size);
    if (!od_check_ready(k))
        return;
    if (od_check_ran(k, od_bn_merged(k->device, &d->shape, whole, d->xs)))
        od_check_near(k, "merged", whole, ref, 1e-5);
    if (od_check_ran(k, od_bn_merge(k->device, &d->shape, added, partial, 2)))
        od_check_near(k, "merged from parts", added, ref, 1e-5);
}

static void check_inference(od_check *k, norm_data *d) {
    open_case(k, d, "bn_inference");
    double *ref = od_check_alloc(k, d->count * sizeof *ref);
    od_span y = od_check_output(k, d->count);
    d->params.running_mean = od_check_input(k, d->mean, d->c);
    d->params.running_var = od_check_input(k, d->var, d->c);
    if (!od_check_ready(k))
        return;
    norm_ref_inference(ref, &d->shape, &d->in, d->mean, d->var);
    if (od_check_ran(k, od_bn_inference(k->device, &d->shape, &d->params, &d->fuse, y, d->xs)))
        od_check_near(k, "y", y, ref, 1e-5);
}

static void check_backward(od_check *k, norm_data *d, bool accumulate) {
    open_case(k, d, "bn_backward");
    size_t stats = (size_t)d->shape.groups * d->c;
    bool affine = d->flags & AFFINE;
    float *dy = od_check_normals(k, d->count, 6), *y = od_check_alloc(k, d->count * sizeof *y);
    float *saved = od_check_alloc(k, OD_BN_SAVED * stats * sizeof *saved), *old = od_check_normals(k, d->c, 7);
    double *saved_wide = od_check_alloc(k, OD_BN_SAVED * stats * sizeof *saved_wide);
    double *wide = od_check_alloc(k, d->count * sizeof *wide), *mean = od_check_alloc(k, stats * sizeof *mean);
    double *rstd = od_check_alloc(k, stats * sizeof *rstd), *dx_ref = od_check_alloc(k, d->count * sizeof *dx_ref);
    double *dgamma_ref = od_check_alloc(k, d->c * sizeof *mean), *dbeta_ref = od_check_alloc(k, d->c * sizeof *mean);
    if (!od_check_ready(k))
        return;
    norm_ref_forward(wide, mean, rstd, NULL, NULL, &d->shape, &d->in, 0);
    for (size_t i = 0; i < d->count; i++)
        y[i] = (float)wide[i];
    fill_saved(saved_wide, d, mean, rstd);
    for (size_t i = 0; i < OD_BN_SAVED * stats; i++)
        saved[i] = (float)saved_wide[i];
    for (size_t i = 0; accumulate && i < d->c; i++)
        dgamma_ref[i] = dbeta_ref[i] = old[i];
    od_span dx = od_check_output(k, d->count), dys = od_check_input(k, dy, d->count);
    od_span ys = d->in.relu ? od_check_input(k, y, d->count) : OD_NO_SPAN;
    od_span saveds = od_check_input(k, saved, OD_BN_SAVED * stats);
    od_span d_residual = d->flags & RESIDUAL ? od_check_output(k, d->count) : OD_NO_SPAN;
    od_span dgamma = OD_NO_SPAN, dbeta = OD_NO_SPAN;
    if (affine) {
        dgamma = accumulate ? od_check_inout(k, old, d->c) : od_check_output(k, d->c);
        dbeta = accumulate ? od_check_inout(k, old, d->c) : od_check_output(k, d->c);
    }
    if (!od_check_ready(k))
        return;
    norm_ref_backward(dx_ref, wide, dgamma_ref, dbeta_ref, &d->shape, &d->in, dy, y);
    if (!od_check_ran(k, od_bn_backward(k->device, &d->shape, &d->fuse, dx, d_residual, dgamma, dbeta, dys, ys, d->xs,
                                        saveds, accumulate)))
        return;
    od_check_near(k, "dx", dx, dx_ref, 1e-5);
    if (d_residual.buffer)
        od_check_near(k, "d_residual", d_residual, wide, 1e-5);
    if (affine) {
        od_check_near(k, "dgamma", dgamma, dgamma_ref, 1e-5);
        od_check_near(k, "dbeta", dbeta, dbeta_ref, 1e-5);
    }
}

typedef struct norm_case {
    int groups, rows, c;
    unsigned flags;
} norm_case;

static void check_norm_case(od_check *k, const norm_case *row, bool accumulate) {
    norm_data d = {.shape = {row->groups, row->rows, row->c, 1e-5f}, .flags = row->flags};
    if (k->stopped || !od_check_affords(k, 10.0 * row->groups * row->rows * row->c))
        return;
    check_forward(k, &d);
    if (row->rows >= 3)
        check_merged(k, &d);
    check_inference(k, &d);
    check_backward(k, &d, accumulate);
}

void od_check_norm(od_check *k) {
    static const norm_case rows[] = {
        {1, 98, 16, AFFINE | RELU | RUNNING},
        {2, 75, 33, AFFINE | RELU | RESIDUAL | RUNNING},
        {2, 64, 64, AFFINE | RUNNING},
        {2, 48, 128, 0},
        {1, 700, 64, AFFINE | RELU | RESIDUAL | RUNNING},
        {1, 33, 260, AFFINE | RUNNING},
    };
    static const norm_case sizes[] = {{1, 3, 1, 0},   {2, 5, 3, 0},     {1, 31, 8, 0},    {3, 40, 12, 0},
                                      {2, 129, 4, 0}, {2, 1025, 17, 0}, {1, 2000, 32, 0}, {2, 7, 516, 0}};
    static const unsigned flags[] = {0, AFFINE | RUNNING, AFFINE | RELU | RUNNING, AFFINE | RELU | RESIDUAL | RUNNING,
                                     AFFINE | RESIDUAL};
    enum { SIZES = sizeof sizes / sizeof *sizes, FLAGS = sizeof flags / sizeof *flags };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        check_norm_case(k, &rows[i], i % 2 == 1);
    for (size_t i = 0; k->wide && i < (size_t)SIZES * FLAGS; i++) {
        norm_case row = sizes[i / FLAGS];
        row.flags = flags[i % FLAGS];
        check_norm_case(k, &row, i % 2 == 1);
    }
}
