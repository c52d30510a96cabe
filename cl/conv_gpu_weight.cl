/* Implicit-GEMM convolution for GPUs, backward by weights: patches, transposed, times dy; see conv_gpu.cl for the loop.
 * AFFINE: x is made by batch norm's map and ReLU, on its way into local memory.
 */
#include "conv_gpu.clh"

#define LANES (ITEMS / BK) /* work-items side by side on one pixel's channels */

/* Taps are copied where they are advanced: Mesa's compiler lets a function change a structure of the caller's that was
 * passed by value. */

/* x at four neighbouring rows of the patches under one pixel. */
static inline float4 gather_rows(__global const float *x, const pixel *px, const tap *from, __global const int *taps,
                                 int tap_count, int h_in, int w_in, int run) {
    tap t = *from;
#if QUADS
    return is_inside(px, &t, h_in, w_in) ? load_quad(x + px->at + t.offset + t.i, 4) : (float4)(0.0f);
#else
    float v[4];
    for (int e = 0; e < 4; e++) {
        v[e] = is_inside(px, &t, h_in, w_in) ? x[px->at + t.offset + t.i] : 0.0f;
        tap_advance(&t, 1, taps, tap_count, w_in, run);
    }
    return (float4)(v[0], v[1], v[2], v[3]);
#endif
}

#if AFFINE
/* The same, for rows and pixels that exist. */
static inline float4 normalised_rows(float4 v, const pixel *px, const tap *from, __global const int *taps,
                                     int tap_count, int h_in, int w_in, int run, __global const float *affine,
                                     float4 slope, float4 shift) {
    tap t = *from;
#if QUADS
    return is_inside(px, &t, h_in, w_in) ? normalised(v, slope, shift) : (float4)(0.0f);
#else
    float out[4], in[4];
    vstore4(v, 0, in);
    for (int e = 0; e < 4; e++) {
        out[e] = 0.0f;
        if (is_inside(px, &t, h_in, w_in))
            out[e] = normalised((float4)(in[e]), (float4)(affine[t.i]), (float4)(affine[run + t.i])).x;
        tap_advance(&t, 1, taps, tap_count, w_in, run);
    }
    return (float4)(out[0], out[1], out[2], out[3]);
#endif
}
#endif

/* part (groups * chunks, taps*run, c_out): the sums of x[row] dy[o] over a chunk of a group's pixels. x (groups, n,
 * h_in, w_in, run), dy (groups, pixels, c_out); affine: slope, shift (2, run) of each group. Work-groups: (channels,
 * rows, groups * chunks). */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gemm_weight(__global float *part, __global const float *x, ulong x_offset, __global const float *dy,
                 ulong dy_offset, __global const int *table, int n, int h_in, int w_in, int run, int c_out, int step_in,
                 int chunks, ulong chunk, __global const float *affine, ulong affine_offset, ulong affine_stride) {
    __local __attribute__((aligned(16))) float pool[2 * (A_SIZE + B_SIZE)];
    const int tx = get_local_id(0), ty = get_local_id(1), item = ty * LX + tx;
    const int rows_p = table[0], rows_q = table[1], tap_count = table[5];
    __global const int *taps = table + HEADER_INTS;
    const int c0 = get_group_id(0) * BN, m0 = get_group_id(1) * BM, rows = tap_count * run;
    const int group = get_group_id(2) / chunks, index = get_group_id(2) - group * chunks;
    const ulong pixels = (ulong)n * rows_p * rows_q, begin = index * chunk, end = min(begin + chunk, pixels);
    const int count = (int)(end - begin), steps = (count + BK - 1) / BK;
    x += x_offset + (ulong)group * n * h_in * w_in * run;
    affine += affine_offset + group * affine_stride;

    /* this work-item's pixel of a step, and its quads of channels beside each other */
    const int k = item / LANES, lane = (item - k * LANES) * 4;
    const uint hop_lines = BK / (uint)rows_q, hop_images = hop_lines / (uint)rows_p;
    const int hop_columns = BK - hop_lines * rows_q, hop_rows = hop_lines - hop_images * rows_p;
    place at = place_near(place_of(begin, rows_p, rows_q), k, rows_p, rows_q);
    dy += dy_offset + ((ulong)group * pixels + begin + k) * c_out + c0 + lane;
    tap t[A_QUADS];
#if AFFINE
    float4 slope[A_QUADS], shift[A_QUADS];
    pixel before; /* what `a` was read under */
#endif
#pragma unroll
    for (int j = 0; j < A_QUADS; j++) {
        const int row = m0 + lane + j * LANES * 4, tap = row / run;
        t[j] = tap_at(taps, tap, tap_count, row - tap * run, w_in, run);
#if AFFINE
        slope[j] = load_part(affine + t[j].i, run - t[j].i);
        shift[j] = load_part(affine + run + t[j].i, run - t[j].i);
#endif
    }

    float4 acc[TM][COLS4];
    clear(acc);
    float4 a[A_QUADS], b[B_QUADS];
    for (int step = 0; step <= steps; step++) {
        __local float *as = pool + (step & 1) * A_SIZE, *bs = pool + 2 * A_SIZE + (step & 1) * B_SIZE;
        if (step > 0) {
#pragma unroll
            for (int j = 0; j < A_QUADS; j++) {
#if AFFINE
                a[j] =
                    normalised_rows(a[j], &before, &t[j], taps, tap_count, h_in, w_in, run, affine, slope[j], shift[j]);
#endif
                put_local(as + k * A_STRIDE + lane + j * LANES * 4, a[j]);
            }
#pragma unroll
            for (int j = 0; j < B_QUADS; j++)
                put_local(bs + k * B_STRIDE + lane + j * LANES * 4, b[j]);
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        pixel px = pixel_at(at, step_in, h_in, w_in, run);
        const int exists = step * BK + k < count;
        px.h = exists ? px.h : OUTSIDE;
#pragma unroll
        for (int j = 0; j < A_QUADS; j++)
            a[j] = gather_rows(x, &px, &t[j], taps, tap_count, h_in, w_in, run);
#pragma unroll
        for (int j = 0; j < B_QUADS; j++)
            b[j] = load_quad(dy + j * LANES * 4, exists ? c_out - c0 - lane - j * LANES * 4 : 0);
#if AFFINE
        before = px;
#endif
        dy += (ulong)BK * c_out;
        at.column += hop_columns;
        const int line = at.column >= rows_q;
        at.column -= line ? rows_q : 0;
        at.row += hop_rows + line;
        const int image = at.row >= rows_p;
        at.row -= image ? rows_p : 0;
        at.outer += hop_images + image;
        if (step > 0)
            multiply(acc, as, bs, tx, ty);
    }
    part += ((ulong)get_group_id(2) * rows + m0) * c_out + c0;
#pragma unroll
    for (int r = 0; r < TM; r++)
#pragma unroll
        for (int j = 0; j < COLS4; j++) {
            const int row = ROW_OF(r, ty), column = COLUMN_OF(j, tx);
            store_quad(part + (ulong)row * c_out + column, acc[r][j], m0 + row < rows ? c_out - c0 - column : 0);
        }
}
