/* Losses: a work-group takes a row; row values go to a scratch vector that sum_partials (reduce.cl) adds up. */
#include "vector.clh"

#define FOR_ROW(at, lanes, d)                                                                                          \
    for (uint at = (uint)get_local_id(0) * V, lanes; at < (d) && (lanes = min((uint)V, (d)-at)); at += TEAM * V)

#define SMALLEST_LENGTH 1e-8f

/* value (rows) = cosines; dp (rows, d), dt (rows, d) scaled by factor; target row (i + shift) mod rows. */
TEAM_KERNEL cosine(__global float *value, ulong value_offset, __global float *dp, ulong dp_offset, __global float *dt,
                   ulong dt_offset, const __global float *p, ulong p_offset, const __global float *target,
                   ulong target_offset, uint rows, uint d, uint shift, float factor, int want_dt) {
    __local float scratch[TEAM];
    ulong i = get_group_id(0), j = (i + shift) % rows;
    const __global float *pi = p + p_offset + i * d, *tj = target + target_offset + j * d;
    vec pp = ZERO, tt = ZERO, pt = ZERO;
    FOR_ROW(at, lanes, d) {
        vec a = load(pi + at, lanes), b = load(tj + at, lanes);
        pp += a * a;
        tt += b * b;
        pt += a * b;
    }
    float p_length = sqrt(team_sum(sum_lanes(pp), scratch)), t_length = sqrt(team_sum(sum_lanes(tt), scratch));
    float p_safe = fmax(p_length, SMALLEST_LENGTH), t_safe = fmax(t_length, SMALLEST_LENGTH);
    float c = team_sum(sum_lanes(pt), scratch) / p_safe / t_safe;
    /* Where the length is clamped it is a constant: no pull back along the row. */
    float cross = factor / p_safe / t_safe;
    float p_pull = p_length > SMALLEST_LENGTH ? factor * c / p_safe / p_safe : 0.0f;
    float t_pull = t_length > SMALLEST_LENGTH ? factor * c / t_safe / t_safe : 0.0f;
    FOR_ROW(at, lanes, d) {
        vec a = load(pi + at, lanes), b = load(tj + at, lanes);
        store(dp + dp_offset + i * d + at, cross * b - p_pull * a, lanes);
        if (want_dt)
            store(dt + dt_offset + j * d + at, cross * a - t_pull * b, lanes);
    }
    if (get_local_id(0) == 0)
        value[value_offset + i] = c;
}

/* value (rows) = sums of squared differences; dp = factor (p - t), dt = -dp. */
TEAM_KERNEL squared_error(__global float *value, ulong value_offset, __global float *dp, ulong dp_offset,
                          __global float *dt, ulong dt_offset, const __global float *p, ulong p_offset,
                          const __global float *target, ulong target_offset, uint rows, uint d, uint shift,
                          float factor, int want_dt) {
    __local float scratch[TEAM];
    ulong i = get_group_id(0), j = (i + shift) % rows;
    vec sum = ZERO;
    FOR_ROW(at, lanes, d) {
        vec e = load(p + p_offset + i * d + at, lanes) - load(target + target_offset + j * d + at, lanes);
        sum += e * e;
        store(dp + dp_offset + i * d + at, factor * e, lanes);
        if (want_dt)
            store(dt + dt_offset + j * d + at, -factor * e, lanes);
    }
    float total = team_sum(sum_lanes(sum), scratch);
    if (get_local_id(0) == 0)
        value[value_offset + i] = total;
}

/* value (rows) = -log softmax[label], hit (rows) = 1 where the first largest logit is the label; V is 1. */
TEAM_KERNEL cross_entropy(__global float *value, ulong value_offset, __global float *hit, ulong hit_offset,
                          __global float *dlogits, ulong dlogits_offset, const __global float *logits,
                          ulong logits_offset, const __global int *labels, ulong labels_offset, uint classes,
                          float factor, int want_gradient) {
    __local float scratch[TEAM];
    ulong i = get_group_id(0);
    uint lane = (uint)get_local_id(0);
    const __global float *row = logits + logits_offset + i * classes;
    int label = labels[labels_offset + i];
    bool valid = label >= 0 && (uint)label < classes;
    float largest = -INFINITY;
    for (uint k = lane; k < classes; k += TEAM)
        largest = max_or_nan(row[k], largest);
    largest = team_max(largest, scratch);
    /* Minus the first class with the largest logit: exact in a float. (Intel's CPU compiler, 2026.2, makes -max(-a, -b) of a
     * team's values into something else.) */
    float sum = 0.0f, first = -(float)classes;
    for (uint k = lane; k < classes; k += TEAM) {
        sum += exp(row[k] - largest);
        if (row[k] == largest)
            first = fmax(first, -(float)k);
    }
    sum = team_sum(sum, scratch);
    first = team_max(first, scratch);
    if (want_gradient)
        for (uint k = lane; k < classes; k += TEAM) {
            float g = exp(row[k] - largest) / sum - (k == (uint)label ? 1.0f : 0.0f);
            dlogits[dlogits_offset + i * classes + k] = valid ? factor * g : 0.0f;
        }
    if (lane == 0) {
        value[value_offset + i] = valid ? log(sum) - (row[label] - largest) : 0.0f;
        hit[hit_offset + i] = valid && first == -(float)label ? 1.0f : 0.0f;
    }
}
