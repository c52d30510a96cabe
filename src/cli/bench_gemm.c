/* offdiag bench gemm: the matrix products of projector, head and kNN, and a whole kNN vote. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/json.h"
#include "base/options.h"
#include "cli/bench.h"
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/knn.h"
#include "offdiag/ops/optim.h"

typedef struct gemm_args {
    int runs, variant;
    char device[256];
    bool knn, json;
} gemm_args;

enum { VARIANT_AUTO, VARIANT_ALL = 5 };
static const char *const variant_names[] = {"auto", "cpu", "clblast", "gpu", "ref", "all", NULL};

#define T gemm_args
static const od_option rows[] = {
    OD_OPT_INT(T, runs, "runs", 1, 1000, "timed launches of a product, after one warm-up; the median counts"),
    OD_OPT_CHOICE(T, variant, "variant", variant_names, "auto: the one made for the device's type"),
    OD_OPT_STRING(T, device, "device", "SPEC", "device (default: $OFFDIAG_DEVICE, then auto)"),
    OD_OPT_FLAG(T, knn, "knn", "also a vote of 10,000 queries in a bank of 60,000 rows of 512"),
    OD_OPT_FLAG(T, json, "json", "one JSON document"),
};
#undef T

static const struct {
    const char *op;
    bool trans_a, trans_b;
    int m, n, k;
} products[] = {
    {"linear_forward", false, false, 64, 2048, 512},         {"linear_forward", false, false, 512, 2048, 512},
    {"linear_forward", false, false, 64, 256, 2048},         {"linear_forward", false, false, 512, 256, 2048},
    {"linear_forward", false, false, 512, 256, 256},         {"linear_backward_data", false, true, 64, 512, 2048},
    {"linear_backward_data", false, true, 512, 512, 2048},   {"linear_backward_weight", true, false, 512, 2048, 64},
    {"linear_backward_weight", true, false, 512, 2048, 512}, {"linear_backward_weight", true, false, 2048, 256, 512},
    {"knn_similarities", false, true, 512, 4096, 128},       {"knn_similarities", false, true, 512, 4096, 512},
};
enum { PRODUCTS = sizeof products / sizeof products[0], LARGEST = 512 * 4096 };

typedef struct gemm_bench {
    od_device *device;
    od_span a, b, c; /* LARGEST each */
    od_limits limits;
    json_t *rows;
    const gemm_args *args;
} gemm_bench;

/* The work is that of `runs` runs since the device's last reset. */
static od_status add_row(gemm_bench *bench, const char *op, const char *shape, const char *variant, double seconds,
                         double flop, int runs) {
    const od_work done = od_device_work(bench->device).work;
    const od_bench_row row = {op, shape, variant, seconds, flop, {done.flop / runs, done.bytes / runs}};
    return od_bench_add_row(bench->rows, !bench->args->json, &bench->limits, &row);
}

/* Median time of a product through one variant; a variant that refuses is named on stderr and left out. */
static od_status time_product(gemm_bench *bench, size_t i, const char *variant, double *times) {
    const int runs = bench->args->runs;
    const od_gemm_shape s = {
        products[i].trans_a, products[i].trans_b, products[i].m, products[i].n, products[i].k, 0, 0, 0};
    char shape[64];
    snprintf(shape, sizeof shape, "m=%d n=%d k=%d %c%c", s.m, s.n, s.k, s.trans_a ? 't' : 'n', s.trans_b ? 't' : 'n');
    for (int r = -1; r < runs; r++) {
        if (r == 0)
            od_device_profile_reset(bench->device);
        const double start = od_now();
        od_status status = od_gemm_variant(bench->device, variant, &s, bench->c, bench->a, bench->b, 1.0f, 0.0f);
        if (status == OD_ERR_UNSUPPORTED) {
            fprintf(stderr, "%s\n", od_error_message());
            return OD_OK;
        }
        if (status || (status = od_device_finish(bench->device)))
            return status;
        if (r >= 0)
            times[r] = od_now() - start;
    }
    return add_row(bench, products[i].op, shape, variant, od_bench_median(times, runs), 2.0 * s.m * s.n * s.k, runs);
}

static od_status time_products(gemm_bench *bench) {
    const gemm_args *a = bench->args;
    const char *automatic = od_family_name(od_device_family(bench->device));
    double *times = calloc((size_t)a->runs, sizeof *times);
    if (!times)
        return od_fail(OD_ERR_MEMORY, "no memory for %d times", a->runs);
    od_status status = OD_OK;
    for (size_t i = 0; i < PRODUCTS && !status; i++) {
        if (a->variant != VARIANT_ALL)
            status = time_product(bench, i, a->variant == VARIANT_AUTO ? automatic : variant_names[a->variant], times);
        else
            for (int v = VARIANT_AUTO + 1; v < VARIANT_ALL && !status; v++)
                status = time_product(bench, i, variant_names[v], times);
    }
    free(times);
    return status;
}

/* Random unit-free rows and labels: the time doesn't depend on what they say. */
static od_status time_knn(gemm_bench *bench) {
    const od_knn_shape s = {.queries = 10000, .bank = 60000, .d = 512, .classes = 10, .k = 200, .temperature = 0.07f};
    const size_t query_elements = (size_t)s.queries * s.d, bank_elements = (size_t)s.bank * s.d;
    od_span queries = {0}, bank = {0};
    od_buffer *labels = NULL;
    int32_t *predicted = malloc((size_t)s.queries * sizeof *predicted);
    od_status status = predicted ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for %d classes", s.queries);
    if (status || (status = od_span_create(bench->device, query_elements, &queries)) ||
        (status = od_span_create(bench->device, bank_elements, &bank)) ||
        (status = od_buffer_create(bench->device, (size_t)s.bank * sizeof(int32_t), &labels)) ||
        (status = od_buffer_fill(labels, 0, (size_t)s.bank * sizeof(int32_t), 0)) ||
        (status = od_fill_normal(bench->device, queries, query_elements, 0.04f, 1, 0)) ||
        (status = od_fill_normal(bench->device, bank, bank_elements, 0.04f, 1, 1)))
        goto out;
    double start = 0;
    for (int r = 0; r < 2; r++) { /* the first builds programs */
        od_knn_shape shape = s;
        shape.queries = r ? s.queries : 1;
        od_device_profile_reset(bench->device);
        start = od_now();
        if ((status = od_knn_vote(bench->device, &shape, predicted, queries, bank, labels)))
            goto out;
    }
    status =
        add_row(bench, "knn_vote", "queries=10000 bank=60000 d=512", od_family_name(od_device_family(bench->device)),
                od_now() - start, 2.0 * s.queries * s.bank * s.d, 1);
out:
    od_buffer_release(queries.buffer);
    od_buffer_release(bank.buffer);
    od_buffer_release(labels);
    free(predicted);
    return status;
}

static od_status run_bench(gemm_bench *bench) {
    od_status status;
    if ((status = od_bench_limits(bench->args->device, !bench->args->json, &bench->limits)) ||
        (status = od_device_open(bench->args->device, NULL, &bench->device)) ||
        (status = od_span_create(bench->device, LARGEST, &bench->a)) ||
        (status = od_span_create(bench->device, LARGEST, &bench->b)) ||
        (status = od_span_create(bench->device, LARGEST, &bench->c)) ||
        (status = od_fill_normal(bench->device, bench->a, LARGEST, 1, 1, 0)) ||
        (status = od_fill_normal(bench->device, bench->b, LARGEST, 1, 1, 1)) || (status = time_products(bench)))
        return status;
    if (bench->args->knn && (status = time_knn(bench)))
        return status;
    if (!bench->args->json)
        return OD_OK;
    return od_bench_print_rows(json_pack("{s:s}", "device", od_device_get_info(bench->device)->name), &bench->limits,
                               bench->rows);
}

od_status od_bench_gemm(int argc, char **argv) {
    gemm_args a = {.runs = 20};
    od_options table = {.rows = rows, .count = sizeof rows / sizeof *rows, .target = &a};
    od_positionals none = {.max = 0, .usage = "", .about = "Time matrix products, GFLOP/s of each variant."};
    bool help = false;
    od_status status = od_options_parse(&table, 1, &none, argc, argv, &help);
    if (status || help)
        return status;
    gemm_bench bench = {.args = &a, .rows = json_array()};
    status = bench.rows ? run_bench(&bench) : od_fail(OD_ERR_MEMORY, "no memory for JSON");
    od_buffer_release(bench.a.buffer);
    od_buffer_release(bench.b.buffer);
    od_buffer_release(bench.c.buffer);
    od_device_close(bench.device);
    json_decref(bench.rows);
    return status;
}
