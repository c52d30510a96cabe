/* Optimiser steps and random fills. */
#include "offdiag/ops/optim.h"

#include <math.h>
#include <stdlib.h>

#include "ops/team.h"

/* The last arguments of a step that may take the moving average along. 1 - tau is exact for tau in [0.5, 1]. */
#define AVERAGE(range)                                                                                                 \
    OD_I32((range)->target.buffer != NULL), OD_F32((range)->tau), OD_F32((float)(1.0 - (double)(range)->tau))

/* flop: of an element, without the moving average. The gradient is read, every other tensor read and written. */
static od_work range_work(const od_optim_range *r, double flop) {
    const int updated = 1 + (r->momentum.buffer != NULL) + (r->second.buffer != NULL) + (r->target.buffer != NULL);
    const double count = (double)r->count;
    return (od_work){(flop + (r->target.buffer ? 3 : 0)) * count, sizeof(float) * (2 * updated + 1) * count};
}

static od_team range_team(od_device *device, const char *operation, const od_optim_range *r, double flop) {
    od_team team = OD_TEAM_OF(device, operation, r->param, r->momentum, r->grad, r->second, r->target);
    team.work = range_work(r, flop);
    return team;
}

od_status od_sgd_step(od_device *device, const od_optim_range *r, float lr, float mu, float weight_decay) {
    od_team team = range_team(device, "sgd", r, 6);
    return OD_TEAM_LAUNCH(device, &team, "optim", "sgd", od_ceil_div(r->count, team.block), OD_SPAN(r->param),
                          OD_SPAN(r->momentum), OD_SPAN(r->target), OD_SPAN(r->grad), OD_F32(lr), OD_F32(mu),
                          OD_F32(weight_decay), AVERAGE(r), OD_U64(r->count), OD_U32((uint32_t)team.block));
}

od_status od_adam_step(od_device *device, const od_optim_range *r, const od_adam_rates *a) {
    od_team team = range_team(device, "adam", r, 15);
    if (a->step < 1 || !(a->beta1 >= 0 && a->beta1 < 1) || !(a->beta2 >= 0 && a->beta2 < 1))
        return od_fail(OD_ERR_ARGUMENT, "Adam: betas %g and %g (0 to below 1), step %llu (from 1)", a->beta1, a->beta2,
                       (unsigned long long)a->step);
    double first = 1 - pow(a->beta1, (double)a->step), second = 1 - pow(a->beta2, (double)a->step);
    float coupled = a->decoupled ? 0 : a->weight_decay;
    float shrink = (float)(1 - (a->decoupled ? (double)a->lr * a->weight_decay : 0));
    return OD_TEAM_LAUNCH(device, &team, "optim", "adam", od_ceil_div(r->count, team.block), OD_SPAN(r->param),
                          OD_SPAN(r->momentum), OD_SPAN(r->second), OD_SPAN(r->target), OD_SPAN(r->grad),
                          OD_F32((float)(a->lr / first)), OD_F32((float)(1 / sqrt(second))), OD_F32(a->beta1),
                          OD_F32((float)(1 - (double)a->beta1)), OD_F32(a->beta2),
                          OD_F32((float)(1 - (double)a->beta2)), OD_F32(a->eps), OD_F32(coupled), OD_F32(shrink),
                          AVERAGE(r), OD_U64(r->count), OD_U32((uint32_t)team.block));
}

/* ---- LARS ------------------------------------------------------------------------------------------------------- */

struct od_lars {
    od_device *device;
    size_t tensors, chunks;
    size_t misaligned;                     /* the tensors' offsets, or-ed */
    od_buffer *tensor_table, *chunk_table; /* (tensors, 4), (chunks, 4) uint32, see optim.cl */
    od_span squares, factors;              /* (2, chunks), (2, tensors) */
};

/* A work-group takes as much of a tensor as it takes of any range. */
static size_t chunk_of(od_device *device) {
    return od_team_choose(device, "lars", NULL, 0).block;
}

static od_status write_tables(od_lars *l, const od_lars_tensor *tensors, size_t chunk) {
    uint32_t(*rows)[4] = malloc(l->tensors * sizeof *rows), (*chunks)[4] = malloc(l->chunks * sizeof *chunks);
    od_status status = OD_OK;
    if (!rows || !chunks) {
        status = od_fail(OD_ERR_MEMORY, "LARS: no memory for %zu parts of %zu tensors", l->chunks, l->tensors);
        goto out;
    }
    size_t n = 0;
    for (size_t i = 0; i < l->tensors; i++) {
        const od_lars_tensor *t = &tensors[i];
        rows[i][0] = (uint32_t)n;
        for (size_t at = 0; at < t->count; at += chunk, n++) {
            uint64_t offset = t->offset + at;
            chunks[n][0] = (uint32_t)offset;
            chunks[n][1] = (uint32_t)(offset >> 32);
            chunks[n][2] = (uint32_t)(t->count - at < chunk ? t->count - at : chunk);
            chunks[n][3] = (uint32_t)i;
        }
        rows[i][1] = (uint32_t)n - rows[i][0];
        rows[i][2] = (uint32_t)t->adapt | (uint32_t)t->decay << 1;
        rows[i][3] = 0;
    }
    if (!(status = od_buffer_write(l->tensor_table, 0, rows, l->tensors * sizeof *rows)))
        status = od_buffer_write(l->chunk_table, 0, chunks, l->chunks * sizeof *chunks);
out:
    free(rows);
    free(chunks);
    return status;
}

od_status od_lars_create(od_device *device, const od_lars_tensor *tensors, size_t count, od_lars **out) {
    size_t chunk = chunk_of(device), row = 4 * sizeof(uint32_t);
    od_status status = OD_OK;
    od_lars *l = calloc(1, sizeof *l);
    if (!l)
        return od_fail(OD_ERR_MEMORY, "LARS: no memory");
    *l = (od_lars){.device = device, .tensors = count};
    for (size_t i = 0; i < count; i++) {
        l->chunks += od_ceil_div(tensors[i].count, chunk);
        l->misaligned |= tensors[i].offset;
    }
    if (l->chunks == 0 || l->chunks > UINT32_MAX) {
        status = od_fail(OD_ERR_ARGUMENT, "LARS: %zu tensors in %zu parts", count, l->chunks);
        goto fail;
    }
    if ((status = od_buffer_create(device, count * row, &l->tensor_table)) ||
        (status = od_buffer_create(device, l->chunks * row, &l->chunk_table)) ||
        (status = od_span_create(device, 2 * l->chunks, &l->squares)) ||
        (status = od_span_create(device, 2 * count, &l->factors)) || (status = write_tables(l, tensors, chunk)))
        goto fail;
    *out = l;
    return OD_OK;
fail:
    od_lars_destroy(l);
    return status;
}

void od_lars_destroy(od_lars *l) {
    if (!l)
        return;
    od_buffer_release(l->tensor_table);
    od_buffer_release(l->chunk_table);
    od_buffer_release(l->squares.buffer);
    od_buffer_release(l->factors.buffer);
    free(l);
}

od_status od_lars_step(od_lars *l, const od_optim_range *r, float lr, float mu, float weight_decay, float eta) {
    od_device *device = l->device;
    od_team team =
        OD_TEAM_OF(device, "lars", r->param, r->momentum, r->grad, r->target, (od_span){NULL, l->misaligned});
    od_team scalar = od_team_scalar(device, "lars_factors");
    uint32_t tensors = (uint32_t)l->tensors, chunks = (uint32_t)l->chunks;
    team.work = (od_work){4.0 * (double)r->count, 8.0 * (double)r->count};
    od_status status = OD_TEAM_LAUNCH(device, &team, "optim", "lars_squares", l->chunks, OD_SPAN(l->squares),
                                      OD_SPAN(r->param), OD_SPAN(r->grad), OD_BUF(l->chunk_table), OD_U32(chunks));
    if (!status)
        status = OD_TEAM_LAUNCH(device, &scalar, "optim", "lars_factors", l->tensors, OD_SPAN(l->factors),
                                OD_SPAN(l->squares), OD_BUF(l->tensor_table), OD_U32(tensors), OD_U32(chunks),
                                OD_F32(lr), OD_F32(eta), OD_F32(weight_decay));
    team.work = range_work(r, 7);
    if (!status)
        status = OD_TEAM_LAUNCH(device, &team, "optim", "lars", l->chunks, OD_SPAN(r->param), OD_SPAN(r->momentum),
                                OD_SPAN(r->target), OD_SPAN(r->grad), OD_SPAN(l->factors), OD_BUF(l->chunk_table),
                                OD_U32(tensors), OD_F32(lr), OD_F32(mu), AVERAGE(r));
    return status;
}

/* ---- fills ------------------------------------------------------------------------------------------------------ */

/* A work-item makes the four elements of one block; the kernels share their last arguments. */
static od_status fill(od_device *device, const char *name, od_span x, size_t count, float a, const float *b,
                      uint64_t seed, uint64_t stream) {
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "random", "", name, &kernel);
    if (status)
        return status;
    od_arg args[9] = {OD_SPAN(x), OD_U64(count), OD_F32(a)};
    size_t n = 4;
    if (b)
        args[n++] = OD_F32(*b);
    args[n++] = OD_U32((uint32_t)seed);
    args[n++] = OD_U32((uint32_t)(seed >> 32));
    args[n++] = OD_U32((uint32_t)stream);
    args[n++] = OD_U32((uint32_t)(stream >> 32));
    return od_launch(kernel, OD_RANGE1(od_ceil_div(count, 4), 64), args, n);
}

od_status od_fill_normal(od_device *device, od_span x, size_t count, float scale, uint64_t seed, uint64_t stream) {
    return fill(device, "fill_normal", x, count, scale, NULL, seed, stream);
}

od_status od_fill_uniform(od_device *device, od_span x, size_t count, float low, float high, uint64_t seed,
                          uint64_t stream) {
    float span = high - low;
    return fill(device, "fill_uniform", x, count, low, &span, seed, stream);
}
