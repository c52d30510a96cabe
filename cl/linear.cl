/* y (rows, c) += bias (c). */
#include "common.clh"

__kernel void bias_add(__global float *y, ulong y_offset, __global const float *bias, ulong bias_offset, ulong rows,
                       int c, int rows_each) {
    const ulong j = get_global_id(0), first = get_global_id(1) * rows_each;
    if (j >= (ulong)c)
        return;
    const float b = AT(bias)[j];
    const ulong end = min(rows, first + rows_each);
    for (ulong i = first; i < end; i++)
        AT(y)[i * c + j] += b;
}
