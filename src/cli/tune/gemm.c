/* A matrix product, and its result against double: some of its rows, and the whole against that of the default. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/tune/tune.h"
#include "offdiag/ops/optim.h"
#include "reference/gemm.h"

enum { CHECKED = 9 }; /* rows: first, last, and between */
static const double double_tolerance = 2e-5, float_tolerance = 4e-5;

typedef struct gemm_problem {
    od_device *device;
    od_gemm_shape shape;
    const char *variant; /* NULL: od_gemm's choice */
    od_span a, b, c;
    size_t nc;
    float *host, *base; /* (nc) */
    double *ref;        /* (CHECKED, n) */
} gemm_problem;

static void gemm_destroy(void *context) {
    gemm_problem *p = context;
    od_buffer_release(p->a.buffer);
    od_buffer_release(p->b.buffer);
    od_buffer_release(p->c.buffer);
    free(p->host);
    free(p->base);
    free(p->ref);
    free(p);
}

static od_status gemm_prepare(void *context) {
    (void)context; /* products have no plan */
    return OD_OK;
}

static od_status run_variant(gemm_problem *p, const char *variant) {
    od_status status = variant ? od_gemm_variant(p->device, variant, &p->shape, p->c, p->a, p->b, 1, 0)
                               : od_gemm(p->device, &p->shape, p->c, p->a, p->b, 1, 0);
    return status ? status : od_device_finish(p->device);
}

static od_status gemm_run(void *context) {
    gemm_problem *p = context;
    return run_variant(p, p->variant);
}

static od_status gemm_anchor(void *context) {
    return run_variant(context, "gpu");
}

static od_status fresh_result(gemm_problem *p) {
    od_status status = od_buffer_fill(p->c.buffer, 0, p->nc * sizeof(float), 0x7fc00000u);
    if (!status && !(status = gemm_run(p)))
        status = od_span_read(p->c, p->host, p->nc);
    return status;
}

static size_t checked_row(const gemm_problem *p, int i) {
    return (size_t)i * (size_t)(p->shape.m - 1) / (CHECKED - 1);
}

static od_status make_reference(gemm_problem *p) {
    const od_gemm_shape *s = &p->shape;
    const size_t na = (size_t)s->m * s->k, nb = (size_t)s->k * s->n;
    float *a = malloc(na * sizeof *a), *b = malloc(nb * sizeof *b),
          *rows = malloc((size_t)CHECKED * s->k * sizeof *rows);
    p->ref = calloc((size_t)CHECKED * s->n, sizeof *p->ref);
    od_status status = OD_OK;
    if (!a || !b || !rows || !p->ref) {
        status = od_fail(OD_ERR_MEMORY, "no memory for a reference");
        goto out;
    }
    if ((status = od_span_read(p->a, a, na)) || (status = od_span_read(p->b, b, nb)))
        goto out;
    for (int i = 0; i < CHECKED; i++) /* rows of op(A) */
        for (int k = 0; k < s->k; k++)
            rows[(size_t)i * s->k + k] =
                s->trans_a ? a[(size_t)k * s->m + checked_row(p, i)] : a[checked_row(p, i) * s->k + k];
    const od_gemm_shape some = {.trans_b = s->trans_b,
                                .m = CHECKED,
                                .n = s->n,
                                .k = s->k,
                                .lda = s->k,
                                .ldb = s->trans_b ? s->k : s->n,
                                .ldc = s->n};
    reference_gemm(p->ref, rows, b, &some, 1, 0);
out:
    free(a);
    free(b);
    free(rows);
    return status;
}

static od_status gemm_check(void *context) {
    gemm_problem *p = context;
    const size_t n = (size_t)p->shape.n;
    od_status status = p->ref ? OD_OK : make_reference(p);
    if (status || (status = fresh_result(p)) ||
        (status = od_tune_near_float("the whole result", p->host, p->base, p->nc, float_tolerance)))
        return status;
    for (int i = 0; i < CHECKED && !status; i++)
        status = od_tune_near("a row", p->host + checked_row(p, i) * n, p->ref + i * n, n, double_tolerance);
    return status;
}

od_status od_tune_gemm(od_device *device, const od_gemm_shape *shape, const char *variant, od_tune_problem *out) {
    gemm_problem *p = calloc(1, sizeof *p);
    *out = (od_tune_problem){.context = p,
                             .prepare = gemm_prepare,
                             .run = gemm_run,
                             .check = gemm_check,
                             .anchor = gemm_anchor,
                             .destroy = gemm_destroy};
    if (!p)
        return od_fail(OD_ERR_MEMORY, "no memory for a product");
    (void)snprintf(out->name, sizeof out->name, "gemm %d x %d x %d %c%c", shape->m, shape->n, shape->k,
                   shape->trans_a ? 't' : 'n', shape->trans_b ? 't' : 'n');
    *p = (gemm_problem){.device = device, .shape = *shape, .variant = variant, .nc = (size_t)shape->m * shape->n};
    const size_t na = (size_t)shape->m * shape->k, nb = (size_t)shape->k * shape->n;
    p->host = malloc(p->nc * sizeof *p->host);
    p->base = malloc(p->nc * sizeof *p->base);
    od_status status = OD_OK;
    if (!p->host || !p->base)
        status = od_fail(OD_ERR_MEMORY, "no memory for a result");
    if (status || (status = od_span_create(device, na, &p->a)) || (status = od_span_create(device, nb, &p->b)) ||
        (status = od_span_create(device, p->nc, &p->c)) || (status = od_fill_normal(device, p->a, na, 1, 1, 0)) ||
        (status = od_fill_normal(device, p->b, nb, 1, 1, 1)) || (status = fresh_result(p))) {
        gemm_destroy(p);
        out->context = NULL;
        return status;
    }
    memcpy(p->base, p->host, p->nc * sizeof *p->base);
    return OD_OK;
}
