/* What a device can do at most: multiply-adds from registers, and passes over memory larger than its caches.
 *
 * V, TEAM: the float vector and the work-group that suit the device. CHAINS: sums that a work-item keeps going, enough to
 * hide a multiply-add's latency and few enough to stay in registers. MULTIPLY_ADD: fma, or mad, as the family's kernels
 * have it: PoCL makes a multiplication and an addition of mad, which CPUs do a fifth slower. */
#include "common.clh"

#define PASTE_(a, b) a##b
#define PASTE(a, b)  PASTE_(a, b)
typedef PASTE(float, V) vec;

/* rounds * CHAINS * V multiply-adds a work-item. `never` is a value that no sum has: nothing is written, and yet the
 * compiler must keep the sums. */
__kernel GROUP(TEAM, 1, 1) void multiply_adds(__global float *out, float factor, float term, float never, uint rounds) {
    vec sum[CHAINS];
#pragma unroll
    for (int i = 0; i < CHAINS; i++)
        sum[i] = (vec)((float)((uint)get_global_id(0) % 256u + (uint)i));
    for (uint r = 0; r < rounds; r++)
#pragma unroll
        for (int i = 0; i < CHAINS; i++)
            sum[i] = MULTIPLY_ADD(sum[i], (vec)(factor), (vec)(term));
    vec total = sum[0];
#pragma unroll
    for (int i = 1; i < CHAINS; i++)
        total += sum[i];
    if (any(total == (vec)(never)))
        out[0] = 1.0f;
}

/* y += factor x, `count` vectors; a work-group takes `block` of them. What is written was read: so a write costs no hidden
 * read of the line it goes to. */
__kernel GROUP(TEAM, 1, 1) void memory_pass(__global float *y, __global const float *x, float factor, ulong count,
                                            uint block) {
    const ulong begin = (ulong)get_group_id(0) * block, end = min(count, begin + block);
    for (ulong at = begin + get_local_id(0); at < end; at += TEAM)
        PASTE(vstore, V)(mad((vec)(factor), PASTE(vload, V)(at, x), PASTE(vload, V)(at, y)), at, y);
}
