/* Philox numbers into a tensor: element i is word i % 4 of block i / 4, whatever the launch (base/rng.h). */
#include "philox.clh"

static inline uint4 stream_block(ulong block, uint2 key, uint2 stream) {
    return philox4x32((uint4)((uint)block, (uint)(block >> 32), stream.x, stream.y), key);
}

static inline void put_block(__global float *x, ulong block, ulong count, float4 v) {
    float word[4] = {v.x, v.y, v.z, v.w};
    for (uint i = 0; i < 4; i++)
        if (block * 4 + i < count)
            x[block * 4 + i] = word[i];
}

__kernel void fill_uniform(__global float *x, ulong x_offset, ulong count, float low, float span, uint seed_low,
                           uint seed_high, uint stream_low, uint stream_high) {
    ulong block = get_global_id(0);
    uint4 bits = stream_block(block, (uint2)(seed_low, seed_high), (uint2)(stream_low, stream_high));
    float4 unit = (float4)(u01(bits.x), u01(bits.y), u01(bits.z), u01(bits.w));
    put_block(x + x_offset, block, count, fma((float4)(span), unit, (float4)(low)));
}

/* Box and Muller's pair; u is in (0, 1], so that its logarithm is finite. */
static inline float2 box_muller(uint a, uint b) {
    float u = ((float)(a >> 8) + 1.0f) * 0x1p-24f, turns = 2.0f * u01(b);
    float radius = sqrt(-2.0f * log(u));
    return (float2)(radius * cospi(turns), radius * sinpi(turns));
}

__kernel void fill_normal(__global float *x, ulong x_offset, ulong count, float factor, uint seed_low, uint seed_high,
                          uint stream_low, uint stream_high) {
    ulong block = get_global_id(0);
    uint4 bits = stream_block(block, (uint2)(seed_low, seed_high), (uint2)(stream_low, stream_high));
    float4 normal = (float4)(box_muller(bits.x, bits.y), box_muller(bits.z, bits.w));
    put_block(x + x_offset, block, count, factor * normal);
}
