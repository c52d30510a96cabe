/* y (rows, c) = x / max(|x|, eps): a work-group of TEAM work-items a row. Lengths come from the row divided by its largest
 * element, so that squares neither overflow nor vanish. V is 1 everywhere: Oclgrind crashes on wider sums. */
#include "vector.clh"

/* max(|x|, eps) of the row x (c); NaN stays NaN. *clamped: |x| is not the larger one. */
static inline float row_length(const __global float *x, ulong c, float eps, bool *clamped, __local float *scratch) {
    const ulong first = get_local_id(0) * V;
    float largest = 0.0f;
    for (ulong j = get_local_id(0); j < c; j += TEAM)
        largest = max_or_nan(largest, fabs(x[j]));
    largest = team_max(largest, scratch);
    const float unit = largest > 0.0f ? largest : 1.0f;
    vec squares = ZERO;
    for (ulong j = first; j < c; j += TEAM * V) {
        const vec v = load(x + j, (uint)min((ulong)V, c - j)) / unit;
        squares += v * v;
    }
    const float length = sqrt(team_sum(sum_lanes(squares), scratch)) * unit;
    *clamped = !(length > eps || length != length);
    return *clamped ? eps : length;
}

TEAM_KERNEL l2_normalize(__global float *y, ulong y_offset, const __global float *x, ulong x_offset, ulong c, float eps) {
    __local float scratch[TEAM];
    const ulong row = get_group_id(0), first = get_local_id(0) * V;
    x += x_offset + row * c;
    y += y_offset + row * c;
    bool clamped;
    const float divisor = row_length(x, c, eps, &clamped, scratch);
    for (ulong j = first; j < c; j += TEAM * V) {
        const uint lanes = (uint)min((ulong)V, c - j);
        store(y + j, load(x + j, lanes) / divisor, lanes);
    }
}

/* dx = (dy - y <y, dy>) / |x|; where the length is clamped it is a constant: dx = dy / eps. dx may be dy. */
TEAM_KERNEL l2_normalize_backward(__global float *dx, ulong dx_offset, const __global float *dy, ulong dy_offset,
                                  const __global float *x, ulong x_offset, ulong c, float eps) {
    __local float scratch[TEAM];
    const ulong row = get_group_id(0), first = get_local_id(0) * V;
    x += x_offset + row * c;
    dx += dx_offset + row * c;
    dy += dy_offset + row * c;
    bool clamped;
    const float divisor = row_length(x, c, eps, &clamped, scratch);
    vec products = ZERO;
    for (ulong j = first; j < c; j += TEAM * V) {
        const uint lanes = (uint)min((ulong)V, c - j);
        products += load(x + j, lanes) / divisor * load(dy + j, lanes);
    }
    const float along = team_sum(sum_lanes(products), scratch), pull = clamped ? 0.0f : along;
    for (ulong j = first; j < c; j += TEAM * V) {
        const uint lanes = (uint)min((ulong)V, c - j);
        store(dx + j, (load(dy + j, lanes) - load(x + j, lanes) / divisor * pull) / divisor, lanes);
    }
}
