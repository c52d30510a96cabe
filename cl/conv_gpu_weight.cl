/* Implicit-GEMM convolution for GPUs, backward by weights: patches, transposed, times dy; see conv_gpu.cl for the loop.
 */
#include "conv_gpu.clh"

/* part (chunks, taps*run, c_out): a chunk's sums over its pixels of x[row] dy[o]. Groups: (channels, rows, chunks). */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gemm_weight(__global float *part, __global const float *x, ulong x_offset, __global const float *dy,
                 ulong dy_offset, __global const int *table, int n, int h_in, int w_in, int run, int c_out, int step_in,
                 ulong chunk) {
    __local float a_tile[2][BK * A_STRIDE], b_tile[2][BK * B_STRIDE];
    const int tx = get_local_id(0), ty = get_local_id(1), item = ty * LX + tx;
    const int rows_p = table[0], rows_q = table[1], tap_count = table[5];
    __global const int *taps = table + HEADER_INTS;
    const int c0 = get_group_id(0) * BN, m0 = get_group_id(1) * BM, rows = tap_count * run;
    const ulong begin = get_group_id(2) * chunk, end = min(begin + chunk, (ulong)n * rows_p * rows_q);
    const int steps = (int)((end - begin + BK - 1) / BK);

    const int a_k = item / (BM / 4), a_m = (item - a_k * (BM / 4)) * 4;
    const int b_k = item / (BN / 4), b_col = (item - b_k * (BN / 4)) * 4;
    const int tap = (m0 + a_m) / run, i = m0 + a_m - tap * run;

    float acc[TM][TN];
    for (int r = 0; r < TM; r++)
        for (int c = 0; c < TN; c++)
            acc[r][c] = 0.0f;
    float4 a[A_QUADS], b[B_QUADS];
    for (int step = 0; step <= steps; step++) {
        if (step > 0) {
            for (int j = 0; j < A_QUADS; j++)
                vstore4(a[j], 0, a_tile[step & 1] + (a_k + j * (ITEMS * 4 / BM)) * A_STRIDE + a_m);
            for (int j = 0; j < B_QUADS; j++)
                vstore4(b[j], 0, b_tile[step & 1] + (b_k + j * (ITEMS * 4 / BN)) * B_STRIDE + b_col);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        const ulong first = begin + (ulong)step * BK;
        for (int j = 0; j < A_QUADS; j++) {
            const pixel px = place_pixel(x + x_offset, first + a_k + j * (ITEMS * 4 / BM), end, rows_p, rows_q, step_in,
                                         h_in, w_in, run);
            a[j] = gather_quad(&px, taps, tap, tap_count, i, h_in, w_in, run);
        }
        for (int j = 0; j < B_QUADS; j++) {
            const ulong m = first + b_k + j * (ITEMS * 4 / BN);
            b[j] = load_quad(dy + dy_offset + m * c_out + c0 + b_col, m < end ? c_out - c0 - b_col : 0);
        }
        if (step > 0)
            multiply(acc, a_tile[step & 1], b_tile[step & 1], tx, ty);
    }
    part += ((ulong)get_group_id(2) * rows + m0 + ty * TM) * c_out + c0 + tx * TN;
    for (int r = 0; r < TM; r++)
        for (int c = 0; c < TN; c++)
            if (m0 + ty * TM + r < rows && c0 + tx * TN + c < c_out)
                part[(ulong)r * c_out + c] = acc[r][c];
}
