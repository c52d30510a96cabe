/* Element-wise operations: each work-group takes `block` elements (a multiple of TEAM * V). */
#include "vector.clh"

TEAM_KERNEL relu_forward(__global float *y, ulong y_offset, const __global float *x, ulong x_offset, ulong count,
                         uint block) {
    FOR_BLOCK(at, lanes, count, block)
    store(y + y_offset + at, relu(load(x + x_offset + at, lanes)), lanes);
}

TEAM_KERNEL relu_backward(__global float *dx, ulong dx_offset, const __global float *dy, ulong dy_offset,
                          const __global float *y, ulong y_offset, ulong count, uint block) {
    FOR_BLOCK(at, lanes, count, block) {
        vec out = load(y + y_offset + at, lanes);
        store(dx + dx_offset + at, keep(load(dy + dy_offset + at, lanes), out > ZERO), lanes);
    }
}

TEAM_KERNEL add(__global float *out, ulong out_offset, const __global float *a, ulong a_offset, const __global float *b,
                ulong b_offset, ulong count, uint block) {
    FOR_BLOCK(at, lanes, count, block)
    store(out + out_offset + at, load(a + a_offset + at, lanes) + load(b + b_offset + at, lanes), lanes);
}

TEAM_KERNEL scale(__global float *x, ulong x_offset, float factor, ulong count, uint block) {
    FOR_BLOCK(at, lanes, count, block)
    store(x + x_offset + at, load(x + x_offset + at, lanes) * factor, lanes);
}

TEAM_KERNEL axpy(__global float *y, ulong y_offset, const __global float *x, ulong x_offset, float alpha, ulong count,
                 uint block) {
    FOR_BLOCK(at, lanes, count, block) {
        vec sum = load(y + y_offset + at, lanes) + alpha * load(x + x_offset + at, lanes);
        store(y + y_offset + at, sum, lanes);
    }
}
