/* Optimiser steps and random fills. */
#include "offdiag/ops/optim.h"

#include "ops/team.h"

od_status od_sgd_step(od_device *device, od_span param, od_span momentum, od_span grad, size_t count, float lr,
                      float mu, float weight_decay) {
    od_team team = OD_TEAM_OF(device, "sgd", param, momentum, grad);
    return OD_TEAM_LAUNCH(device, &team, "optim", "sgd", od_ceil_div(count, team.block), OD_SPAN(param),
                          OD_SPAN(momentum), OD_SPAN(grad), OD_F32(lr), OD_F32(mu), OD_F32(weight_decay), OD_U64(count),
                          OD_U32((uint32_t)team.block));
}

od_status od_ema_step(od_device *device, od_span target, od_span online, size_t count, float tau) {
    od_team team = OD_TEAM_OF(device, "ema", target, online);
    float take = (float)(1.0 - (double)tau); /* exact where 1.0f - tau is, and it always is for tau in [0.5, 1] */
    return OD_TEAM_LAUNCH(device, &team, "optim", "ema", od_ceil_div(count, team.block), OD_SPAN(target),
                          OD_SPAN(online), OD_F32(tau), OD_F32(take), OD_U64(count), OD_U32((uint32_t)team.block));
}

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
