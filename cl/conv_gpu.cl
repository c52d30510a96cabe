/* Implicit-GEMM convolution for GPUs, forward and backward by data: the product of a matrix of patches, gathered as it
 * is read, and the weights, in tiles through local memory.
 *
 * A work-group computes a tile of BM x BN in steps of BK; a work-item TM x TN of it. Each round of the loop loads the
 * values of one step into registers while it multiplies those of the step before; two local buffers need one barrier a
 * round. */
#include "conv_gpu.clh"

/* out (n, h_out, w_out, c_out) from in (n, h_in, w_in, run) and w (taps, run, c_out): a gather convolution, see
 * src/ops/conv_impl.h. Groups: (channels, pixels, classes). */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gemm(__global float *out, ulong out_offset, __global const float *in, ulong in_offset, __global const float *wt,
          ulong w_offset, __global const int *table, int n, int h_in, int w_in, int run, int h_out, int w_out,
          int c_out, int step_in, int step_out) {
    __local float a_tile[2][BK * A_STRIDE], b_tile[2][BK * B_STRIDE];
    const int tx = get_local_id(0), ty = get_local_id(1), item = ty * LX + tx;
    __global const int *header = table + get_group_id(2) * HEADER_INTS;
    const int rows_p = header[0], rows_q = header[1], tap_count = header[5];
    __global const int *taps = table + get_num_groups(2) * HEADER_INTS + header[4] * TAP_INTS;
    const ulong pixels = (ulong)n * rows_p * rows_q, m0 = (ulong)get_group_id(1) * BM;
    const int c0 = get_group_id(0) * BN;
    const int depth = tap_count * run, steps = m0 < pixels ? (depth + BK - 1) / BK : 0;
    wt += w_offset + (ulong)header[4] * run * c_out;

    /* this work-item's quad of A and of B; further ones below it */
    const int a_row = item / (BK / 4), a_k = (item - a_row * (BK / 4)) * 4;
    const int b_k = item / (BN / 4), b_col = (item - b_k * (BN / 4)) * 4;
    int tap = a_k / run, i = a_k - tap * run;
    pixel px[A_QUADS];
    for (int j = 0; j < A_QUADS; j++)
        px[j] = place_pixel(in + in_offset, m0 + a_row + j * (ITEMS * 4 / BK), pixels, rows_p, rows_q, step_in, h_in,
                            w_in, run);

    float acc[TM][TN];
    for (int r = 0; r < TM; r++)
        for (int c = 0; c < TN; c++)
            acc[r][c] = 0.0f;
    float4 a[A_QUADS], b[B_QUADS];
    for (int step = 0; step <= steps; step++) {
        if (step > 0) { /* what the last round loaded */
            __local float *as = a_tile[step & 1], *bs = b_tile[step & 1];
            for (int j = 0; j < A_QUADS; j++) {
                __local float *to = as + a_k * A_STRIDE + a_row + j * (ITEMS * 4 / BK);
                to[0] = a[j].x;
                to[A_STRIDE] = a[j].y;
                to[2 * A_STRIDE] = a[j].z;
                to[3 * A_STRIDE] = a[j].w;
            }
            for (int j = 0; j < B_QUADS; j++)
                vstore4(b[j], 0, bs + (b_k + j * (ITEMS * 4 / BN)) * B_STRIDE + b_col);
        }
        barrier(CLK_LOCAL_MEM_FENCE); /* all are past the products of the other buffer, which may be written next */
        for (int j = 0; j < A_QUADS; j++)
            a[j] = gather_quad(&px[j], taps, tap, tap_count, i, h_in, w_in, run);
        for (int j = 0; j < B_QUADS; j++) {
            const int k = step * BK + b_k + j * (ITEMS * 4 / BN);
            b[j] = load_quad(wt + (ulong)k * c_out + c0 + b_col, k < depth ? c_out - c0 - b_col : 0);
        }
        for (i += BK; i >= run; i -= run)
            tap++;
        if (step > 0)
            multiply(acc, a_tile[step & 1], b_tile[step & 1], tx, ty);
    }
    for (int r = 0; r < TM; r++) {
        const ulong m = m0 + ty * TM + r;
        const place at = place_of(m, rows_p, rows_q);
        const ulong line = at.outer * h_out + at.row * step_out + header[2];
        __global float *to = out + out_offset + (line * w_out + at.column * step_out + header[3]) * c_out + c0;
        for (int c = 0; c < TN; c++)
            if (m < pixels && c0 + tx * TN + c < c_out)
                to[tx * TN + c] = acc[r][c];
    }
}

/* packed [tap][o][i] from w (kernel_h * kernel_w, c_in, c_out), taps in the table's order. */
__kernel void conv_gemm_pack(__global float *packed, __global const float *wt, ulong w_offset, __global const int *taps,
                             int taps_offset, int c_in, int c_out) {
    const int i = get_global_id(0), o = get_global_id(1), tap = get_global_id(2);
    if (i >= c_in || o >= c_out)
        return;
    const ulong from = taps[taps_offset + tap * TAP_INTS + 2];
    packed[((ulong)tap * c_out + o) * c_in + i] = wt[w_offset + (from * c_in + i) * c_out + o];
}
