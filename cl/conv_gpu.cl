/* Implicit-GEMM convolution for GPUs, forward and backward by data: the product of a matrix of patches, gathered as it
 * is read, and the weights, in tiles through local memory.
 *
 * A work-group computes a tile of BM x BN in steps of BK; a work-item TM x TN of it. Each round of the loop loads the
 * values of one step into registers while it multiplies those of the step before; two local buffers need one barrier a
 * round. AFFINE: the input is made by batch norm's map and ReLU, on its way into local memory. STATS: batch norm's
 * partial statistics of the output, a part for each tile of rows. GRADS: the output is the gradient behind a ReLU, with
 * its batch norm's sums. */
#include "conv_gpu.clh"

/* Four elements of a column of patches. The tap is copied here: Mesa's compiler lets a function change a structure of
 * the caller's that was passed by value. */
static inline float4 gather(__global const float *in, const pixel *px, const tap *from, __global const int *taps,
                            int tap_count, int h_in, int w_in, int run, __global const float *affine) {
    tap t = *from;
#if QUADS
    return is_inside(px, &t, h_in, w_in) ? load_quad(in + px->at + t.offset + t.i, 4) : (float4)(0.0f);
#else
    float v[4];
#pragma unroll
    for (int e = 0; e < 4; e++) {
        v[e] = 0.0f;
        if (is_inside(px, &t, h_in, w_in)) {
            v[e] = in[px->at + t.offset + t.i];
#if AFFINE
            v[e] = normalised((float4)(v[e]), (float4)(affine[t.i]), (float4)(affine[run + t.i])).x;
#endif
        }
        tap_advance(&t, 1, taps, tap_count, w_in, run);
    }
    return (float4)(v[0], v[1], v[2], v[3]);
#endif
}

#if STATS || GRADS
/* What all work-items of a column have, summed; the same for each of them. */
static inline void sum_columns(float4 *sum, __local float *pool, int tx, int ty) {
    barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll
    for (int j = 0; j < COLS4; j++)
        put_local(pool + ty * BN + COLUMN_OF(j, tx), sum[j]);
    barrier(CLK_LOCAL_MEM_FENCE);
#pragma unroll
    for (int j = 0; j < COLS4; j++) {
        sum[j] = (float4)(0.0f);
#pragma unroll 2 /* more takes more registers than the products */
        for (int y = 0; y < LY; y++)
            sum[j] += local_quad(pool + y * BN + COLUMN_OF(j, tx));
    }
}

#endif

#if STATS
/* part (3, c_out): how many values each column has, their mean and their squares about it, in two passes. */
static inline void put_stats(__global float *part, float4 (*acc)[COLS4], __local float *pool, int rows, int c_out,
                             int c0, int tx, int ty) {
    float4 mean[COLS4], m2[COLS4];
#pragma unroll
    for (int j = 0; j < COLS4; j++) {
        mean[j] = m2[j] = (float4)(0.0f);
#pragma unroll
        for (int r = 0; r < TM; r++)
            mean[j] += acc[r][j]; /* zero past the last row */
    }
    sum_columns(mean, pool, tx, ty);
#pragma unroll
    for (int j = 0; j < COLS4; j++) {
        mean[j] /= (float)rows;
#pragma unroll
        for (int r = 0; r < TM; r++) {
            const float4 d = ROW_OF(r, ty) < rows ? acc[r][j] - mean[j] : (float4)(0.0f);
            m2[j] = fma(d, d, m2[j]);
        }
    }
    sum_columns(m2, pool, tx, ty);
#pragma unroll
    for (int j = 0; j < COLS4; j++) {
        const int column = c0 + COLUMN_OF(j, tx), count = ty == 0 ? c_out - column : 0;
        store_quad(part + column, (float4)((float)rows), count);
        store_quad(part + c_out + column, mean[j], count);
        store_quad(part + 2 * c_out + column, m2[j], count);
    }
}
#endif

/* out (groups, n, h_out, w_out, c_out) from in (groups, n, h_in, w_in, run) and w (taps, run, c_out): a gather
 * convolution, see src/ops/conv_impl.h. Work-groups: (channels, pixels, groups * classes). affine: slope, shift (2,
 * run) of each group. add: to what out holds. STATS: partial (groups, parts, 3, c_out), where
 * there is one class. GRADS: partial (groups, classes * parts, 2, c_out) of the sums of g = out and g (u - mean) rstd,
 * from u (as out) and saved (groups, 4, c_out): mean, rstd, slope, shift; g is 0 where `after`, or, where that is NULL,
 * u * slope + shift, is not positive. */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gemm(__global float *out, ulong out_offset, __global const float *in, ulong in_offset, __global const float *wt,
          ulong w_offset, __global const int *table, int n, int h_in, int w_in, int run, int h_out, int w_out,
          int c_out, int step_in, int step_out, int classes, int add, __global const float *affine, ulong affine_offset,
          ulong affine_stride, __global float *partial, __global const float *u, ulong u_offset,
          __global const float *after, ulong after_offset, __global const float *saved, ulong saved_offset) {
    __local __attribute__((aligned(16))) float pool[2 * (A_SIZE + B_SIZE)];
    const int tx = get_local_id(0), ty = get_local_id(1), item = ty * LX + tx;
    const int group = get_group_id(2) / classes, class = get_group_id(2) - group * classes;
    __global const int *header = table + class * HEADER_INTS;
    /* a stride wider than the map has classes without pixels, whose places must not divide by zero */
    const int rows_p = max(header[0], 1), rows_q = max(header[1], 1), tap_count = header[5];
    __global const int *taps = table + classes * HEADER_INTS + header[4] * TAP_INTS;
    const ulong pixels = (ulong)n * header[0] * header[1], m0 = (ulong)get_group_id(1) * BM;
    const int c0 = get_group_id(0) * BN, rows = (int)(min(m0 + BM, pixels) - min(m0, pixels));
    const int depth = tap_count * run, steps = rows ? (depth + BK - 1) / BK : 0;
    const place first = place_of(m0, rows_p, rows_q);
    in += in_offset + (ulong)group * n * h_in * w_in * run;
    out += out_offset + (ulong)group * n * h_out * w_out * c_out;
    affine += affine_offset + group * affine_stride;

    /* this work-item's quad of A and of B; further ones below it */
    const int a_row = item / (BK / 4), a_k = (item - a_row * (BK / 4)) * 4;
    const int b_k = item / (BN / 4), b_col = (item - b_k * (BN / 4)) * 4;
    tap t = tap_at(taps, a_k / run, tap_count, a_k - a_k / run * run, w_in, run);
    pixel px[A_QUADS];
#pragma unroll
    for (int j = 0; j < A_QUADS; j++) {
        const int row = a_row + j * (ITEMS * 4 / BK);
        px[j] = pixel_at(place_near(first, row, rows_p, rows_q), step_in, h_in, w_in, run);
        px[j].h = row < rows ? px[j].h : OUTSIDE;
    }
    wt += w_offset + ((ulong)header[4] * run + b_k) * c_out + c0 + b_col;

    float4 acc[TM][COLS4];
    clear(acc);
    float4 a[A_QUADS], b[B_QUADS];
#if AFFINE && QUADS
    float4 slope = (float4)(0.0f), shift = (float4)(0.0f);
    int inside = 0; /* a bit for each quad of A */
#endif
    for (int step = 0; step <= steps; step++) {
        __local float *as = pool + (step & 1) * A_SIZE, *bs = pool + 2 * A_SIZE + (step & 1) * B_SIZE;
        if (step > 0) { /* what the last round loaded */
#pragma unroll
            for (int j = 0; j < A_QUADS; j++) {
#if AFFINE && QUADS
                a[j] = inside >> j & 1 ? normalised(a[j], slope, shift) : (float4)(0.0f);
#endif
                __local float *to = as + a_k * A_STRIDE + a_row + j * (ITEMS * 4 / BK);
                to[0] = a[j].x;
                to[A_STRIDE] = a[j].y;
                to[2 * A_STRIDE] = a[j].z;
                to[3 * A_STRIDE] = a[j].w;
            }
#pragma unroll
            for (int j = 0; j < B_QUADS; j++)
                put_local(bs + (b_k + j * (ITEMS * 4 / BN)) * B_STRIDE + b_col, b[j]);
        }
        barrier(CLK_LOCAL_MEM_FENCE); /* all are past the products of the other buffer, which may be written next */
#pragma unroll
        for (int j = 0; j < A_QUADS; j++)
            a[j] = gather(in, &px[j], &t, taps, tap_count, h_in, w_in, run, affine);
#pragma unroll
        for (int j = 0; j < B_QUADS; j++)
            b[j] = load_quad(wt + (ulong)(j * (ITEMS * 4 / BN)) * c_out,
                             step * BK + b_k + j * (ITEMS * 4 / BN) < depth ? c_out - c0 - b_col : 0);
        wt += (ulong)BK * c_out;
#if AFFINE && QUADS
        inside = 0;
#pragma unroll
        for (int j = 0; j < A_QUADS; j++)
            inside |= is_inside(&px[j], &t, h_in, w_in) << j;
        slope = load_quad(affine + t.i, 4);
        shift = load_quad(affine + run + t.i, 4);
#endif
        tap_advance(&t, BK, taps, tap_count, w_in, run);
        if (step > 0)
            multiply(acc, as, bs, tx, ty);
    }
#if GRADS
    float4 sum[COLS4], squares[COLS4], mean[COLS4], slope_u[COLS4], shift_u[COLS4];
    const ulong images = (ulong)group * n * h_out * w_out * c_out;
    saved += saved_offset + (ulong)group * 4 * c_out + c0;
#pragma unroll
    for (int j = 0; j < COLS4; j++) {
        const int column = COLUMN_OF(j, tx), exists = c_out - c0 - column;
        sum[j] = squares[j] = (float4)(0.0f);
        mean[j] = load_quad(saved + column, exists);
        slope_u[j] = load_quad(saved + 2 * c_out + column, exists);
        shift_u[j] = load_quad(saved + 3 * c_out + column, exists);
    }
#endif
#pragma unroll
    for (int r = 0; r < TM; r++) {
        const int row = ROW_OF(r, ty);
        ulong pixel_out = m0 + row;
        if (step_out > 1) {
            const place at = place_near(first, row, rows_p, rows_q);
            pixel_out = (at.outer * h_out + at.row * step_out + header[2]) * w_out + at.column * step_out + header[3];
        }
        __global float *to = out + pixel_out * c_out;
#pragma unroll
        for (int j = 0; j < COLS4; j++) {
            const int column = c0 + COLUMN_OF(j, tx), exists = row < rows ? c_out - column : 0;
            if (add)
                acc[r][j] += load_quad(to + column, exists);
#if GRADS
            const ulong from = images + pixel_out * c_out + column;
            const float4 un = load_quad(u + u_offset + from, exists);
            const float4 through =
                after ? load_quad(after + after_offset + from, exists) : fma(un, slope_u[j], shift_u[j]);
            acc[r][j] = select((float4)(0.0f), acc[r][j], (through > (float4)(0.0f)) & (int4)(exists > 0 ? -1 : 0));
            sum[j] += acc[r][j];
            squares[j] = fma(acc[r][j], un - mean[j], squares[j]);
#endif
            store_quad(to + column, acc[r][j], exists);
        }
    }
#if GRADS
    sum_columns(sum, pool, tx, ty);
    sum_columns(squares, pool, tx, ty);
    partial += ((ulong)get_group_id(2) * get_num_groups(1) + get_group_id(1)) * 2 * c_out + c0;
#pragma unroll
    for (int j = 0; j < COLS4; j++) {
        const int column = COLUMN_OF(j, tx), count = ty == 0 ? c_out - c0 - column : 0;
        store_quad(partial + column, sum[j], count);
        store_quad(partial + c_out + column, squares[j] * load_quad(saved + c_out + column, count), count);
    }
#endif
#if STATS
    put_stats(partial + ((ulong)group * get_num_groups(1) + get_group_id(1)) * 3 * c_out, acc, pool, rows, c_out, c0,
              tx, ty);
#endif
}
