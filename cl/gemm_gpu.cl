/* Matrix product for GPUs: C (m, n) = alpha op(A) op(B) + beta C, row-major.
 *
 * A work-group of (TILE_N / ITEM_N) x (TILE_M / ITEM_M) work-items computes a TILE_M x TILE_N tile of C. It steps through k
 * by TILE_K: both operands' tiles go to local memory (zero outside the matrices, so that the inner loop tests nothing),
 * then each work-item adds ITEM_M x ITEM_N products. Its elements lie a work-group's width apart: neighbouring work-items
 * read neighbouring words of local memory and write neighbouring words of C.
 *
 * Options: TILE_M, TILE_N, TILE_K, ITEM_M, ITEM_N, TRANS_A, TRANS_B. */
#include "common.clh"

#define ITEMS_X (TILE_N / ITEM_N)
#define ITEMS_Y (TILE_M / ITEM_M)
#define ITEMS   (ITEMS_X * ITEMS_Y)
/* One word more than the tile: writes of a transposing load fall on different banks. */
#define PITCH_M (TILE_M + 1)
#define PITCH_N (TILE_N + 1)

/* tile (TILE_K, pitch)[kk][i] = element (i0 + i, k0 + kk) of a matrix whose element (i, kk) lies at i * i_step + kk * k_step,
 * one of the steps being 1: neighbouring work-items take neighbouring addresses. */
static inline void load_tile(__local float *tile, const int pitch, const int extent, __global const float *x, ulong i_step,
                             ulong k_step, int i0, int i_end, int k0, int k_end, const int k_contiguous, int item) {
    for (int t = item; t < extent * TILE_K; t += ITEMS) {
        /* Remainders as products and a bitwise and: otherwise there are instructions (freeze) that Oclgrind cannot run. */
        const int slow = t / (k_contiguous ? TILE_K : extent), fast = t - slow * (k_contiguous ? TILE_K : extent);
        const int i = k_contiguous ? slow : fast, kk = k_contiguous ? fast : slow;
        const int inside = (i0 + i < i_end) & (k0 + kk < k_end);
        tile[kk * pitch + i] = inside ? x[(ulong)(i0 + i) * i_step + (ulong)(k0 + kk) * k_step] : 0.0f;
    }
}

/* Global range: (ITEMS_X * tiles of n, ITEMS_Y * tiles of m, slices of k). With one slice C is the result; with more, slice s
 * writes its partial product to c + s * slice_stride for gemm_sum_slices. */
__kernel GROUP(ITEMS_X, ITEMS_Y, 1) void gemm_gpu(__global float *c, ulong c_offset, __global const float *a,
                                                  ulong a_offset, __global const float *b, ulong b_offset, int m, int n,
                                                  int k, ulong lda, ulong ldb, ulong ldc, float alpha, float beta,
                                                  int slice_k, ulong slice_stride) {
    __local float a_tile[TILE_K * PITCH_M], b_tile[TILE_K * PITCH_N];
    const int x = (int)get_local_id(0), y = (int)get_local_id(1), item = y * ITEMS_X + x;
    const int j0 = (int)get_group_id(0) * TILE_N, i0 = (int)get_group_id(1) * TILE_M;
    const int k_begin = (int)get_group_id(2) * slice_k, k_end = min(k, k_begin + slice_k);
    a += a_offset;
    b += b_offset;

    float sum[ITEM_M][ITEM_N];
#pragma unroll
    for (int i = 0; i < ITEM_M; i++)
#pragma unroll
        for (int j = 0; j < ITEM_N; j++)
            sum[i][j] = 0.0f;

    for (int k0 = k_begin; k0 < k_end; k0 += TILE_K) {
        load_tile(a_tile, PITCH_M, TILE_M, a, TRANS_A ? 1 : lda, TRANS_A ? lda : 1, i0, m, k0, k_end, !TRANS_A, item);
        load_tile(b_tile, PITCH_N, TILE_N, b, TRANS_B ? ldb : 1, TRANS_B ? 1 : ldb, j0, n, k0, k_end, TRANS_B, item);
        barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll 4
        for (int kk = 0; kk < TILE_K; kk++) {
            float av[ITEM_M], bv[ITEM_N];
#pragma unroll
            for (int i = 0; i < ITEM_M; i++)
                av[i] = a_tile[kk * PITCH_M + y + i * ITEMS_Y];
#pragma unroll
            for (int j = 0; j < ITEM_N; j++)
                bv[j] = b_tile[kk * PITCH_N + x + j * ITEMS_X];
#pragma unroll
            for (int i = 0; i < ITEM_M; i++)
#pragma unroll
                for (int j = 0; j < ITEM_N; j++)
                    sum[i][j] = mad(av[i], bv[j], sum[i][j]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }

    c += c_offset + get_group_id(2) * slice_stride;
#pragma unroll
    for (int i = 0; i < ITEM_M; i++) {
        const int row = i0 + y + i * ITEMS_Y;
#pragma unroll
        for (int j = 0; j < ITEM_N; j++) {
            const int column = j0 + x + j * ITEMS_X;
            if ((row < m) & (column < n)) {
                __global float *to = c + (ulong)row * ldc + column;
                const float out = alpha * sum[i][j];
                *to = beta == 0.0f ? out : mad(beta, *to, out);
            }
        }
    }
}
