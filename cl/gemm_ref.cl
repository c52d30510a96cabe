/* Matrix product, one work-item for each element of C: plain code for any device, and what other variants are checked
 * against. Also the sum over slices of k that the faster variants end with. */
#include "common.clh"

__kernel void gemm_ref(__global float *c, ulong c_offset, __global const float *a, ulong a_offset,
                       __global const float *b, ulong b_offset, int m, int n, int k, ulong lda, ulong ldb, ulong ldc,
                       int trans_a, int trans_b, float alpha, float beta) {
    const ulong j = get_global_id(0), i = get_global_id(1);
    if (j >= (ulong)n || i >= (ulong)m)
        return;
    a += a_offset + (trans_a ? i : i * lda);
    b += b_offset + (trans_b ? j * ldb : j);
    const ulong a_step = trans_a ? lda : 1, b_step = trans_b ? 1 : ldb;
    float sum = 0.0f;
    for (int kk = 0; kk < k; kk++)
        sum = mad(a[kk * a_step], b[kk * b_step], sum);
    __global float *to = AT(c) + i * ldc + j;
    *to = beta == 0.0f ? alpha * sum : mad(beta, *to, alpha * sum);
}

/* C (m, n) = alpha sum_s partial (slices, m, n)[s] + beta C, slices in their order. */
__kernel void gemm_sum_slices(__global float *c, ulong c_offset, __global const float *partial, ulong partial_offset,
                              int slices, int m, int n, ulong ldc, float alpha, float beta) {
    const ulong j = get_global_id(0), i = get_global_id(1);
    if (j >= (ulong)n || i >= (ulong)m)
        return;
    partial += partial_offset + i * n + j;
    float sum = 0.0f;
    for (int s = 0; s < slices; s++)
        sum += partial[(ulong)s * m * n];
    __global float *to = AT(c) + i * ldc + j;
    *to = beta == 0.0f ? alpha * sum : mad(beta, *to, alpha * sum);
}
