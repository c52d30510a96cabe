/* Optimiser steps, element-wise over ranges of the parameter arena. */
#include "vector.clh"

TEAM_KERNEL sgd(__global float *param, ulong param_offset, __global float *momentum, ulong momentum_offset,
                const __global float *grad, ulong grad_offset, float lr, float mu, float weight_decay, ulong count,
                uint block) {
    FOR_BLOCK(at, lanes, count, block) {
        vec p = load(param + param_offset + at, lanes);
        vec g = load(grad + grad_offset + at, lanes) + weight_decay * p;
        vec m = mu * load(momentum + momentum_offset + at, lanes) + g;
        store(momentum + momentum_offset + at, m, lanes);
        store(param + param_offset + at, p - lr * m, lanes);
    }
}

/* keep_ + take is 1. */
TEAM_KERNEL ema(__global float *target, ulong target_offset, const __global float *online, ulong online_offset,
                float keep_, float take, ulong count, uint block) {
    FOR_BLOCK(at, lanes, count, block) {
        vec t = load(target + target_offset + at, lanes), o = load(online + online_offset + at, lanes);
        store(target + target_offset + at, keep_ * t + take * o, lanes);
    }
}
