/* The products of GPU Winograd: 36 matrix products of one shape, in tiles through local memory; see conv_gpu.cl for the
 * loop. Every matrix is padded with zeros to whole quads of columns, so that all loads are aligned vectors.
 *
 * TRANSPOSED 0: out (36, rows, columns) = a (36, rows, depth) b (36, depth, columns).
 * TRANSPOSED 1: out (chunks, 36, rows, columns) = (add ? out : 0) + a^T b, from a (36, depth, rows) and b (36, depth,
 * columns), a part for each `chunk` of the depth. */
#include "conv_gpu.clh"

#define POINTS 36
#if TRANSPOSED
#define A_HOP (ITEMS * 4 / BM) /* from a work-item's quad of A to its next, in lines of a */
#else
#define A_HOP (ITEMS * 4 / BK)
#endif
#define B_HOP (ITEMS * 4 / BN)

/* Work-groups: (columns, rows, chunks * 36). */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gpu_products(__global float *out, __global const float *a, __global const float *b, int rows, int columns,
                  int depth, int chunk, int add) {
    __local __attribute__((aligned(16))) float pool[2 * (A_SIZE + B_SIZE)];
    const int tx = get_local_id(0), ty = get_local_id(1), item = ty * LX + tx;
    const int c0 = get_group_id(0) * BN, m0 = get_group_id(1) * BM;
    const int part = get_group_id(2) / POINTS, point = get_group_id(2) - part * POINTS, begin = part * chunk;
    const int count = min(chunk, depth - begin), steps = (max(count, 0) + BK - 1) / BK;

    /* this work-item's quad of A and of B; further ones below it */
#if TRANSPOSED
    const int a_line = item / (BM / 4), a_at = (item - a_line * (BM / 4)) * 4;
    a += ((ulong)point * depth + begin + a_line) * rows + m0 + a_at;
#else
    const int a_line = item / (BK / 4), a_at = (item - a_line * (BK / 4)) * 4;
    a += ((ulong)point * rows + m0 + a_line) * depth + a_at;
#endif
    const int b_line = item / (BN / 4), b_at = (item - b_line * (BN / 4)) * 4;
    b += ((ulong)point * depth + begin + b_line) * columns + c0 + b_at;

    float4 acc[TM][COLS4];
    clear(acc);
    float4 av[A_QUADS], bv[B_QUADS];
    for (int step = 0; step <= steps; step++) {
        __local float *as = pool + (step & 1) * A_SIZE, *bs = pool + 2 * A_SIZE + (step & 1) * B_SIZE;
        if (step > 0) { /* what the last round loaded */
#pragma unroll
            for (int j = 0; j < A_QUADS; j++) {
#if TRANSPOSED
                put_local(as + (a_line + j * A_HOP) * A_STRIDE + a_at, av[j]);
#else
                __local float *to = as + a_at * A_STRIDE + a_line + j * A_HOP;
                to[0] = av[j].x;
                to[A_STRIDE] = av[j].y;
                to[2 * A_STRIDE] = av[j].z;
                to[3 * A_STRIDE] = av[j].w;
#endif
            }
#pragma unroll
            for (int j = 0; j < B_QUADS; j++)
                put_local(bs + (b_line + j * B_HOP) * B_STRIDE + b_at, bv[j]);
        }
        barrier(CLK_LOCAL_MEM_FENCE); /* all are past the products of the other buffer, which may be written next */
#pragma unroll
        for (int j = 0; j < A_QUADS; j++) {
#if TRANSPOSED
            const int exists = step * BK + a_line + j * A_HOP < count ? rows - m0 - a_at : 0;
            av[j] = load_quad(a + (ulong)(j * A_HOP) * rows, exists);
#else
            const int exists = m0 + a_line + j * A_HOP < rows ? count - step * BK - a_at : 0;
            av[j] = load_quad(a + (ulong)(j * A_HOP) * depth, exists);
#endif
        }
#pragma unroll
        for (int j = 0; j < B_QUADS; j++)
            bv[j] = load_quad(b + (ulong)(j * B_HOP) * columns,
                              step * BK + b_line + j * B_HOP < count ? columns - c0 - b_at : 0);
        a += TRANSPOSED ? (ulong)BK * rows : BK;
        b += (ulong)BK * columns;
        if (step > 0)
            multiply(acc, as, bs, tx, ty);
    }
    out += ((ulong)get_group_id(2) * rows + m0) * columns + c0;
#pragma unroll
    for (int r = 0; r < TM; r++)
#pragma unroll
        for (int j = 0; j < COLS4; j++) {
            const int row = ROW_OF(r, ty), column = COLUMN_OF(j, tx);
            const int exists = m0 + row < rows ? columns - c0 - column : 0;
            __global float *to = out + (ulong)row * columns + column;
            store_quad(to, add ? acc[r][j] + load_quad(to, exists) : acc[r][j], exists);
        }
}
