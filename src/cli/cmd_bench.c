/* offdiag bench PART: finds the part. */
#include <stdio.h>
#include <string.h>

#include "base/text.h"
#include "cli/bench.h"
#include "cli/cli.h"

static const struct {
    const char *name, *summary;
    od_status (*run)(int argc, char **argv);
} parts[] = {
    {"gemm", "matrix products and the kNN vote", od_bench_gemm},
    {"conv", "the convolutions of ResNet-18, each pass", od_bench_conv},
    {"step", "a whole training step", od_bench_step},
};
enum { PARTS = sizeof parts / sizeof *parts };

static void print_usage(FILE *to) {
    (void)fprintf(to, "usage: offdiag bench PART [options]\n\n");
    for (size_t i = 0; i < PARTS; i++)
        (void)fprintf(to, "  %-6s%s\n", parts[i].name, parts[i].summary);
    (void)fprintf(to, "\n`offdiag bench PART --help` tells a part's options.\n");
}

od_status cmd_bench(int argc, char **argv) {
    const char *names[PARTS + 1] = {NULL};
    if (argc < 2) {
        print_usage(stderr);
        return od_fail(OD_ERR_USAGE, "bench: no part named");
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_usage(stdout);
        return OD_OK;
    }
    for (size_t i = 0; i < PARTS; i++) {
        if (strcmp(parts[i].name, argv[1]) == 0)
            return parts[i].run(argc - 1, argv + 1);
        names[i] = parts[i].name;
    }
    return od_fail(OD_ERR_USAGE, "unknown part '%.64s' of bench; the nearest one is '%s'", argv[1],
                   od_nearest(argv[1], names));
}
