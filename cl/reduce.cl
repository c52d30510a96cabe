/* Sums in two stages of a fixed order: a partial sum for each work-group's block, then the sum of those by one
 * work-group. Within a block: runs of RUN plain vector adds, whose sums are added with Kahan's compensation. */
#include "vector.clh"

#define RUN 64

enum { SUM, SUM_SQUARES, COUNT_NONFINITE };

/* Exponent bits all ones: a test that no math option can fold away. */
static inline ivec is_nonfinite(vec v) {
    return (AS_IVEC(v) & (ivec)(0x7f800000)) == (ivec)(0x7f800000);
}

static inline vec mapped(vec v, int what) {
    if (what == SUM_SQUARES)
        return v * v;
    if (what == COUNT_NONFINITE)
        return keep((vec)(1.0f), is_nonfinite(v));
    return v;
}

/* The sum of elements begin .. end - 1; every work-item of the group must call it. */
static inline float range_sum(const __global float *x, ulong begin, ulong end, int what, __local float *scratch) {
    vec total = ZERO, lost = ZERO;
    for (ulong at = begin + get_local_id(0) * V; at < end;) {
        vec run = ZERO;
        for (uint i = 0; i < RUN && at < end; i++, at += TEAM * V)
            run += mapped(load(x + at, (uint)min((ulong)V, end - at)), what);
        add_compensated(&total, &lost, run);
    }
    return team_sum(sum_lanes(total - lost), scratch);
}

#define BLOCK_SUM(name, what)                                                                                          \
    TEAM_KERNEL name(__global float *partial, ulong partial_offset, const __global float *x, ulong x_offset,           \
                     ulong count, ulong block) {                                                                       \
        __local float scratch[TEAM];                                                                                   \
        ulong begin = get_group_id(0) * block;                                                                         \
        float sum = range_sum(x + x_offset, begin, min(count, begin + block), what, scratch);                          \
        if (get_local_id(0) == 0)                                                                                      \
            partial[partial_offset + get_group_id(0)] = sum;                                                           \
    }

BLOCK_SUM(block_sum, SUM)
BLOCK_SUM(block_sum_squares, SUM_SQUARES)
BLOCK_SUM(block_count_nonfinite, COUNT_NONFINITE)

/* out[0] = (accumulate ? out[0] : 0) + factor * sum of partial; one work-group. */
TEAM_KERNEL sum_partials(__global float *out, ulong out_offset, const __global float *partial, ulong partial_offset,
                         ulong count, float factor, int accumulate) {
    __local float scratch[TEAM];
    float sum = factor * range_sum(partial + partial_offset, 0, count, SUM, scratch);
    if (get_local_id(0) == 0)
        out[out_offset] = accumulate ? out[out_offset] + sum : sum;
}
