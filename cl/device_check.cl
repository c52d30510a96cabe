/* Kernels that check the device layer itself: launches, arguments, offsets, local memory, random numbers. */
#include "common.clh"
#include "philox.clh"

/* y[i] = a x[i] + i */
__kernel void check_axpi(__global float *y, ulong y_offset, __global const float *x, ulong x_offset, float a, uint n) {
    size_t i = get_global_id(0);
    if (i < n)
        AT(y)[i] = a * AT(x)[i] + (float)i;
}

/* The Philox block of each place: key and the counter's last two words from the host; bits (n, 4), unit (n). */
__kernel void check_philox(__global uint *bits, ulong bits_offset, __global float *unit, ulong unit_offset, uint key0,
                           uint key1, uint stream, uint purpose, uint n) {
    uint i = (uint)get_global_id(0);
    if (i < n) {
        uint4 block = philox4x32((uint4)(i, 0u, stream, purpose), (uint2)(key0, key1));
        vstore4(block, i, AT(bits));
        AT(unit)[i] = u01(block.x);
    }
}

/* Each group's inputs reversed, through local memory; n is a multiple of the group's size. */
__kernel void check_reverse(__global float *y, ulong y_offset, __global const float *x, ulong x_offset,
                            __local float *shared) {
    size_t l = get_local_id(0), size = get_local_size(0), i = get_global_id(0);
    shared[l] = AT(x)[i];
    barrier(CLK_LOCAL_MEM_FENCE);
    AT(y)[i] = shared[size - 1 - l];
}

/* 1 where no tensor is passed. */
__kernel void check_null(__global uint *y, ulong y_offset, __global const float *x, ulong x_offset) {
    AT(y)[0] = x ? 0u : 1u + (uint)x_offset;
}
