/* The parts of `offdiag bench`: argv[0] is the part's name. */
#ifndef CLI_BENCH_H
#define CLI_BENCH_H

#include "offdiag/status.h"

od_status od_bench_gemm(int argc, char **argv);
od_status od_bench_conv(int argc, char **argv);
od_status od_bench_step(int argc, char **argv);

#endif
