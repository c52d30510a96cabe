/* The kNN vote in tiles: similarities of some queries to a chunk of the bank by od_gemm, merged into each query's k
 * best; after the last chunk these vote. cl/knn.cl has the order that makes the result unique. */
#include "offdiag/ops/knn.h"

#include <stdio.h>

#include "offdiag/ops/gemm.h"
#include "ops/variant.h"

/* Each of the three workspaces stays within so many floats: similarities, k best, votes. */
enum { WORKSPACE_ELEMENTS = 16 << 20, TEAM = 256 };

typedef struct workspace {
    int rows, columns;         /* the tile: queries, bank rows */
    od_span sims;              /* (rows, columns) */
    od_span best[2], index[2]; /* (rows, k); [1] is only there where a merge can't work in place */
    od_buffer *votes;          /* (rows, classes) ulong */
    od_span predicted;         /* (queries) */
} workspace;

/* A way to merge a tile into the best of its queries. */
typedef struct merge {
    const char *options; /* of its program */
    bool in_place;
    od_status (*run)(od_device *device, const char *options, workspace *w, int rows, int columns, int first, int k);
} merge;

static od_status merge_serial(od_device *device, const char *options, workspace *w, int rows, int columns, int first,
                              int k) {
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "knn", options, "knn_best_serial", &kernel);
    if (status != OD_OK)
        return status;
    return OD_LAUNCH(kernel, OD_RANGE1(rows, 1), OD_SPAN(w->best[0]), OD_SPAN(w->index[0]), OD_SPAN(w->sims),
                     OD_I32(columns), OD_I32(first), OD_I32(k));
}

static od_status merge_team(od_device *device, const char *options, workspace *w, int rows, int columns, int first,
                            int k) {
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "knn", options, "knn_best_team", &kernel);
    if (status != OD_OK)
        return status;
    status = OD_LAUNCH(kernel, OD_RANGE1((size_t)rows * TEAM, TEAM), OD_SPAN(w->best[1]), OD_SPAN(w->index[1]),
                       OD_SPAN(w->best[0]), OD_SPAN(w->index[0]), OD_SPAN(w->sims), OD_I32(columns), OD_I32(first),
                       OD_I32(k));
    const od_span best = w->best[0], index = w->index[0];
    w->best[0] = w->best[1];
    w->index[0] = w->index[1];
    w->best[1] = best;
    w->index[1] = index;
    return status;
}

static const merge merge_cpu = {"-DW=16 -DTEAM=1", true, merge_serial};
static const merge merge_gpu = {"-DW=1 -DTEAM=256", false, merge_team};
static const merge merge_ref = {"-DW=1 -DTEAM=1", true, merge_serial};

static bool team_fits(const od_device *device, const void *shape, const char **why) {
    (void)shape;
    *why = "work-groups of 256 are too large for the device";
    return od_device_get_info(device)->max_work_group >= TEAM;
}

static const od_variant variants[] = {
    {"cpu_heap", OD_FAMILY_CPU, NULL, &merge_cpu},
    {"gpu_radix", OD_FAMILY_GPU, team_fits, &merge_gpu},
    {"ref_heap", OD_FAMILY_REF, NULL, &merge_ref},
};

static int at_most(int wanted, size_t limit) {
    return (size_t)wanted <= limit ? wanted : limit > 0 ? (int)limit : 1;
}

static void workspace_release(workspace *w) {
    od_buffer_release(w->sims.buffer);
    for (int i = 0; i < 2; i++) {
        od_buffer_release(w->best[i].buffer);
        od_buffer_release(w->index[i].buffer);
    }
    od_buffer_release(w->votes);
    od_buffer_release(w->predicted.buffer);
}

static od_status workspace_create(od_device *device, const od_knn_shape *s, int k, bool in_place, workspace *w) {
    *w = (workspace){0};
    /* On a CPU the similarities stay in its cache until they are merged; a GPU wants large launches. */
    const bool cpu = od_device_get_info(device)->type == OD_DEVICE_CPU;
    const int most_rows = cpu ? 512 : 1024;
    /* Each column of a chunk may sink through a heap, of 17 levels at most where loop rounds are limited. */
    const int most_columns = od_device_loop_limit(device) ? 2048 : cpu ? 4096 : 16384;
    w->rows = at_most(s->queries, (size_t)most_rows);
    w->rows = at_most(w->rows, WORKSPACE_ELEMENTS / ((in_place ? 2 : 4) * (size_t)k));
    w->rows = at_most(w->rows, WORKSPACE_ELEMENTS / (2 * (size_t)s->classes));
    /* Chunks of equal length: the products are cut alike, so that equal bank rows give equal bits. */
    const int chunks = (s->bank - 1) / most_columns + 1;
    w->columns = (s->bank - 1) / chunks + 1;
    const size_t rows = (size_t)w->rows;
    od_status status = od_span_create(device, rows * (size_t)w->columns, &w->sims);
    for (int i = 0; status == OD_OK && i < (in_place ? 1 : 2); i++) {
        status = od_span_create(device, rows * (size_t)k, &w->best[i]);
        if (status == OD_OK)
            status = od_span_create(device, rows * (size_t)k, &w->index[i]);
    }
    if (status == OD_OK)
        status = od_buffer_create(device, rows * (size_t)s->classes * sizeof(uint64_t), &w->votes);
    if (status == OD_OK)
        status = od_span_create(device, (size_t)s->queries, &w->predicted);
    if (status != OD_OK)
        workspace_release(w);
    return status;
}

/* predicted[begin .. begin + rows) of the workspace. */
static od_status vote_rows(od_device *device, const od_knn_shape *s, int k, const merge *way, workspace *w, int begin,
                           int rows, od_span queries_x, od_span bank_x, const od_buffer *labels) {
    od_status status = OD_OK;
    for (int first = 0; status == OD_OK && first < s->bank; first += w->columns) {
        const int columns = first + w->columns <= s->bank ? w->columns : s->bank - first;
        const od_gemm_shape product = {.trans_b = true, .m = rows, .n = columns, .k = s->d};
        status = od_gemm(device, &product, w->sims, od_span_at(queries_x, (size_t)begin * (size_t)s->d),
                         od_span_at(bank_x, (size_t)first * (size_t)s->d), 1.0f, 0.0f);
        if (status == OD_OK)
            status = way->run(device, way->options, w, rows, columns, first, k);
    }
    od_kernel *kernel;
    if (status == OD_OK)
        status = od_kernel_get(device, "knn", way->options, "knn_vote", &kernel);
    if (status == OD_OK)
        status = OD_LAUNCH(kernel, OD_RANGE1(rows, 0), OD_SPAN(od_span_at(w->predicted, (size_t)begin)),
                           OD_BUF(w->votes), OD_SPAN(w->best[0]), OD_SPAN(w->index[0]), OD_BUF(labels), OD_I32(rows),
                           OD_I32(k), OD_I32(s->classes), OD_F32(1.0f / s->temperature));
    return status;
}

od_status od_knn_vote(od_device *device, const od_knn_shape *shape, int32_t *predicted, od_span queries_x,
                      od_span bank_x, const od_buffer *bank_labels) {
    const od_knn_shape *s = shape;
    if (s->queries < 0 || s->bank < 1 || s->d < 1 || s->classes < 1 || s->k < 1 || !(s->temperature > 0.0f))
        return od_fail(OD_ERR_ARGUMENT,
                       "knn: queries %d, bank %d, d %d, classes %d, k %d, temperature %g: all but the "
                       "queries must be positive",
                       s->queries, s->bank, s->d, s->classes, s->k, s->temperature);
    if (!bank_labels || od_buffer_size(bank_labels) / sizeof(int32_t) < (size_t)s->bank)
        return od_fail(OD_ERR_ARGUMENT, "knn: labels for fewer than %d bank rows", s->bank);
    if (s->queries == 0)
        return OD_OK;
    const int k = s->k < s->bank ? s->k : s->bank;
    const uint64_t limit = od_device_loop_limit(device);
    if (limit && 2 * ((uint64_t)k + (uint64_t)s->classes) > limit / 3)
        return od_fail(OD_ERR_UNSUPPORTED, "knn: k %d with %d classes are too many for %s", k, s->classes,
                       od_device_get_info(device)->name);
    const size_t chosen = od_variant_choose(device, "knn", variants, sizeof variants / sizeof variants[0], shape);
    const merge *way = variants[chosen].run;
    workspace w;
    od_status status = workspace_create(device, s, k, way->in_place, &w);
    if (status != OD_OK)
        return od_fail_in(status, "knn of %d queries in a bank of %d: ", s->queries, s->bank);
    for (int begin = 0; status == OD_OK && begin < s->queries; begin += w.rows) {
        const int rows = begin + w.rows <= s->queries ? w.rows : s->queries - begin;
        status = vote_rows(device, s, k, way, &w, begin, rows, queries_x, bank_x, bank_labels);
    }
    if (status == OD_OK)
        status = od_buffer_read(w.predicted.buffer, 0, predicted, (size_t)s->queries * sizeof(int32_t));
    workspace_release(&w);
    return status;
}
