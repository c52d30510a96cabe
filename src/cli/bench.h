/* The parts of `offdiag bench`: argv[0] is the part's name; and what they share. */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include <jansson.h>

#include "offdiag/device.h"
#include "offdiag/ops/limits.h"

od_status od_bench_gemm(int argc, char **argv);
od_status od_bench_conv(int argc, char **argv);
od_status od_bench_step(int argc, char **argv);

/* Measure the limits of the device that SPEC names, by a handle of its own, so that neither its memory nor its launches
 * count in what follows; told on stdout when `print` is set. */
od_status od_bench_limits(const char *spec, bool print, od_limits *limits);

/* The median; sorts the times. */
double od_bench_median(double *seconds, int count);

/* Adds the keys limit_gflop_per_s and limit_gb_per_s. */
void od_bench_limits_json(json_t *object, const od_limits *limits);
/* Adds gb_per_s, percent_of_arithmetic and percent_of_bandwidth for `work` that took so long; null where the kernels
 * don't tell their work. */
void od_bench_rates_json(json_t *object, const od_limits *limits, od_work work, double seconds);
/* The same as text, with an end of line: "  31.2 % of arithmetic   12.1 GB/s  18.0 %". */
void od_bench_rates_print(const od_limits *limits, od_work work, double seconds);

/* A row of `bench gemm` and `bench conv`. flop: of the operation as it is defined; work: what the kernels did. */
typedef struct od_bench_row {
    const char *op, *shape, *variant;
    double seconds, flop;
    od_work work;
} od_bench_row;
/* Appended to the list; printed too when `print` is set. */
od_status od_bench_add_row(json_t *list, bool print, const od_limits *limits, const od_bench_row *row);

/* The document on stdout, the limits and "rows": list added. Takes the document over; NULL: there was no memory for it.
 */
od_status od_bench_print_rows(json_t *document, const od_limits *limits, json_t *list);

#endif
