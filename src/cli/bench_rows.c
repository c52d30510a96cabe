/* What the parts of `offdiag bench` share: the device's limits, and rates beside them. */
#include <stdio.h>
#include <stdlib.h>

#include "base/json.h"
#include "cli/bench.h"

od_status od_bench_limits(const char *spec, bool print, od_limits *limits) {
    od_device *device = NULL;
    od_status status = od_device_open(spec, NULL, &device);
    if (!status)
        status = od_limits_measure(device, OD_FAMILY_AUTO, limits);
    if (!status && print)
        printf("%s: at most %.0f GFLOP/s and %.1f GB/s, measured\n", od_device_get_info(device)->name,
               limits->gflop_per_s, limits->gb_per_s);
    od_device_close(device);
    return status;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double od_bench_median(double *seconds, int count) {
    qsort(seconds, (size_t)count, sizeof *seconds, by_value);
    return 0.5 * (seconds[(count - 1) / 2] + seconds[count / 2]);
}

void od_bench_limits_json(json_t *object, const od_limits *limits) {
    (void)json_object_set_new(object, "limit_gflop_per_s", json_real(limits->gflop_per_s));
    (void)json_object_set_new(object, "limit_gb_per_s", json_real(limits->gb_per_s));
}

/* Rates in 1e9 a second. */
static double rate(double amount, double seconds) {
    return amount / seconds / 1e9;
}

void od_bench_rates_json(json_t *object, const od_limits *limits, od_work work, double seconds) {
    const double flops = rate(work.flop, seconds), bytes = rate(work.bytes, seconds);
    const bool told = work.bytes > 0 && seconds > 0;
    const struct {
        const char *key;
        double value;
    } members[] = {{"gb_per_s", bytes},
                   {"percent_of_arithmetic", 100 * flops / limits->gflop_per_s},
                   {"percent_of_bandwidth", 100 * bytes / limits->gb_per_s}};
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        (void)json_object_set_new(object, members[i].key, told ? json_real(members[i].value) : json_null());
}

void od_bench_rates_print(const od_limits *limits, od_work work, double seconds) {
    const double flops = rate(work.flop, seconds), bytes = rate(work.bytes, seconds);
    if (work.bytes > 0 && seconds > 0)
        printf(" %5.1f %% of arithmetic %7.1f GB/s %5.1f %%\n", 100 * flops / limits->gflop_per_s, bytes,
               100 * bytes / limits->gb_per_s);
    else
        printf("\n");
}

od_status od_bench_add_row(json_t *list, bool print, const od_limits *limits, const od_bench_row *row) {
    if (print) {
        printf("%-22s %-36s %-14s %10.3f ms %8.1f GFLOP/s", row->op, row->shape, row->variant, 1e3 * row->seconds,
               rate(row->flop, row->seconds));
        od_bench_rates_print(limits, row->work, row->seconds);
    }
    json_t *object = json_pack("{s:s, s:s, s:s, s:f, s:f}", "op", row->op, "shape", row->shape, "variant", row->variant,
                               "seconds", row->seconds, "gflop_per_s", rate(row->flop, row->seconds));
    if (object)
        od_bench_rates_json(object, limits, row->work, row->seconds);
    return object && json_array_append_new(list, object) == 0 ? OD_OK
                                                              : od_fail(OD_ERR_MEMORY, "no memory for a JSON row");
}

od_status od_bench_print_rows(json_t *document, const od_limits *limits, json_t *list) {
    if (!document)
        return od_fail(OD_ERR_MEMORY, "no memory for a JSON document");
    od_bench_limits_json(document, limits);
    (void)json_object_set(document, "rows", list);
    od_status status = od_json_print(document);
    json_decref(document);
    return status;
}
