/* y (rows, c) = x / max(|x|, eps): a work-group of TEAM work-items a row. Lengths come from the row divided by its largest
 * element, so that squares neither overflow nor vanish. V is 1 everywhere: Oclgrind crashes on wider sums. */
#include "vector.clh"

TEAM_KERNEL l2_normalize(__global float *y, ulong y_offset, const __global float *x, ulong x_offset, ulong c, float eps) {
    __local float scratch[TEAM];
    const ulong row = get_group_id(0), first = get_local_id(0) * V;
    x += x_offset + row * c;
    y += y_offset + row * c;
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
    const float divisor = length > eps || length != length ? length : eps;
    for (ulong j = first; j < c; j += TEAM * V) {
        const uint lanes = (uint)min((ulong)V, c - j);
        store(y + j, load(x + j, lanes) / divisor, lanes);
    }
}
