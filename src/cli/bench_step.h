/* What the two forms of `offdiag bench step` share. */
#ifndef CLI_BENCH_STEP_H
#define CLI_BENCH_STEP_H

#include "cli/bench.h"
#include "offdiag/model.h"

typedef struct step_args {
    int width, batch, runs, kernels;
    char device[256], split[64];
    bool profile, json;
} step_args;

/* ResNet-18 with the projector and the head that are timed. */
od_model_config od_bench_step_model(int width);

/* Over several members: `count` devices of this process. Prints its figures. */
od_status od_bench_team(const step_args *args, const od_device_info *const *infos, int count);

#endif
