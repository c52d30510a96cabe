/* Optimiser steps, element-wise over ranges of the parameter arena. Each takes the moving average of the parameters along
 * (target = keep_ target + take param, keep_ + take = 1): a second pass would read them again. */
#include "vector.clh"

static inline void average(__global float *target, vec param, float keep_, float take, uint lanes) {
    store(target, keep_ * load(target, lanes) + take * param, lanes);
}

TEAM_KERNEL sgd(__global float *param, ulong param_offset, __global float *momentum, ulong momentum_offset,
                __global float *target, ulong target_offset, const __global float *grad, ulong grad_offset, float lr,
                float mu, float weight_decay, int want_target, float keep_, float take, ulong count, uint block) {
    FOR_BLOCK(at, lanes, count, block) {
        vec p = load(param + param_offset + at, lanes);
        vec g = load(grad + grad_offset + at, lanes) + weight_decay * p;
        vec m = mu * load(momentum + momentum_offset + at, lanes) + g;
        p -= lr * m;
        store(momentum + momentum_offset + at, m, lanes);
        store(param + param_offset + at, p, lanes);
        if (want_target)
            average(target + target_offset + at, p, keep_, take, lanes);
    }
}

/* decay: added to the gradient (Adam); shrink: times the parameter (AdamW). rate and root hold the bias corrections. */
TEAM_KERNEL adam(__global float *param, ulong param_offset, __global float *momentum, ulong momentum_offset,
                 __global float *second, ulong second_offset, __global float *target, ulong target_offset,
                 const __global float *grad, ulong grad_offset, float rate, float root, float beta1, float rest1,
                 float beta2, float rest2, float eps, float decay, float shrink, int want_target, float keep_,
                 float take, ulong count, uint block) {
    FOR_BLOCK(at, lanes, count, block) {
        vec p = load(param + param_offset + at, lanes);
        vec g = load(grad + grad_offset + at, lanes) + decay * p;
        vec m = beta1 * load(momentum + momentum_offset + at, lanes) + rest1 * g;
        vec v = beta2 * load(second + second_offset + at, lanes) + rest2 * (g * g);
        p = shrink * p - rate * m / (sqrt(v) * root + eps);
        store(momentum + momentum_offset + at, m, lanes);
        store(second + second_offset + at, v, lanes);
        store(param + param_offset + at, p, lanes);
        if (want_target)
            average(target + target_offset + at, p, keep_, take, lanes);
    }
}

/* ---- LARS: norms of each tensor, its factors, then the step ------------------------------------------------------ */

/* A work-group's part of a tensor: offset (low, high word), elements, tensor. */
#define CHUNK_AT(c)     ((ulong)(c).x | (ulong)(c).y << 32)
#define CHUNK_COUNT(c)  ((c).z)
#define CHUNK_TENSOR(c) ((c).w)

#define FOR_CHUNK(at, lanes, count)                                                                                    \
    for (uint at = (uint)get_local_id(0) * V, lanes; at < (count) && (lanes = min((uint)V, (count)-at)); at += TEAM * V)

/* squares (2, chunks): of the parameters and of the gradient. */
TEAM_KERNEL lars_squares(__global float *squares, ulong squares_offset, const __global float *param,
                         ulong param_offset, const __global float *grad, ulong grad_offset,
                         const __global uint4 *chunk_table, uint chunks) {
    __local float scratch[TEAM];
    uint i = (uint)get_group_id(0);
    uint4 c = chunk_table[i];
    const __global float *p = param + param_offset + CHUNK_AT(c), *g = grad + grad_offset + CHUNK_AT(c);
    vec pp = ZERO, gg = ZERO;
    FOR_CHUNK(at, lanes, CHUNK_COUNT(c)) {
        vec a = load(p + at, lanes), b = load(g + at, lanes);
        pp += a * a;
        gg += b * b;
    }
    float p_sum = team_sum(sum_lanes(pp), scratch), g_sum = team_sum(sum_lanes(gg), scratch);
    if (get_local_id(0) == 0) {
        squares[squares_offset + i] = p_sum;
        squares[squares_offset + chunks + i] = g_sum;
    }
}

#define ADAPT 1u
#define DECAY 2u

/* factors (2, tensors): of the gradient, and the weight decay. A work-group takes a tensor: first chunk, chunks, flags;
 * V is 1. */
TEAM_KERNEL lars_factors(__global float *factors, ulong factors_offset, const __global float *squares,
                         ulong squares_offset, const __global uint4 *tensor_table, uint tensors, uint chunks, float lr,
                         float eta, float weight_decay) {
    __local float scratch[TEAM];
    uint i = (uint)get_group_id(0);
    uint4 t = tensor_table[i];
    float p_sum = 0.0f, g_sum = 0.0f;
    for (uint k = (uint)get_local_id(0); k < t.y; k += TEAM) {
        p_sum += squares[squares_offset + t.x + k];
        g_sum += squares[squares_offset + chunks + t.x + k];
    }
    float p_norm = sqrt(team_sum(p_sum, scratch)), g_norm = sqrt(team_sum(g_sum, scratch));
    float factor = 1.0f, decay = (t.z & DECAY) ? weight_decay : 0.0f;
    if (t.z & ADAPT) {
        if (p_norm > 0.0f && g_norm > 0.0f)
            factor = fmin(eta * p_norm / (g_norm + decay * p_norm + 1e-8f) / lr, 1.0f);
        else
            decay = 0.0f;
    }
    if (get_local_id(0) == 0) {
        factors[factors_offset + i] = factor;
        factors[factors_offset + tensors + i] = decay;
    }
}

TEAM_KERNEL lars(__global float *param, ulong param_offset, __global float *momentum, ulong momentum_offset,
                 __global float *target, ulong target_offset, const __global float *grad, ulong grad_offset,
                 const __global float *factors, ulong factors_offset, const __global uint4 *chunk_table, uint tensors,
                 float lr, float mu, int want_target, float keep_, float take) {
    uint4 c = chunk_table[get_group_id(0)];
    ulong first = CHUNK_AT(c);
    float factor = factors[factors_offset + CHUNK_TENSOR(c)];
    float decay = factors[factors_offset + tensors + CHUNK_TENSOR(c)];
    FOR_CHUNK(at, lanes, CHUNK_COUNT(c)) {
        vec p = load(param + param_offset + first + at, lanes);
        vec g = factor * (load(grad + grad_offset + first + at, lanes) + decay * p);
        vec m = mu * load(momentum + momentum_offset + first + at, lanes) + g;
        p -= lr * m;
        store(momentum + momentum_offset + first + at, m, lanes);
        store(param + param_offset + first + at, p, lanes);
        if (want_target)
            average(target + target_offset + first + at, p, keep_, take, lanes);
    }
}
