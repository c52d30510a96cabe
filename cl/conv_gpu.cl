/* Implicit-GEMM convolution for GPUs: the product of a matrix of patches, gathered as it is read, and the weights, in
 * tiles through local memory.
 *
 * A work-group computes a tile of BM x BN in steps of BK; a work-item TM x TN of it. Each round of the loop loads the
 * values of one step into registers while it multiplies those of the step before; two local buffers need one barrier a
 * round. QUADS: the channel counts are multiples of 4, so that four neighbours lie in one pixel and load as a vector.
 */
#define LX       (BN / TN)
#define LY       (BM / TM)
#define ITEMS    (LX * LY)
#define A_QUADS  (BM * BK / 4 / ITEMS) /* float4 that a work-item loads for a step */
#define B_QUADS  (BN * BK / 4 / ITEMS)
#define A_STRIDE (BM + 4)
#define B_STRIDE (BN + 4)

#define HEADER_INTS 8
#define TAP_INTS    4

/* The first `count` of four floats, zeros for the rest. */
static inline float4 load_part(__global const float *p, int count) {
    float4 v = (float4)(0.0f);
    if (count > 0)
        v.x = p[0];
    if (count > 1)
        v.y = p[1];
    if (count > 2)
        v.z = p[2];
    if (count > 3)
        v.w = p[3];
    return v;
}

static inline float4 load_quad(__global const float *p, int count) {
#if QUADS
    return count > 0 ? vload4(0, p) : (float4)(0.0f);
#else
    return load_part(p, count);
#endif
}

/* acc += the product of the local tiles a (BK, BM) and b (BK, BN). */
static inline void multiply(float (*acc)[TN], __local const float *a, __local const float *b, int tx, int ty) {
    for (int k = 0; k < BK; k++) {
        float row[TM], col[TN];
#pragma unroll
        for (int i = 0; i < TM; i++)
            row[i] = a[k * A_STRIDE + ty * TM + i];
#pragma unroll
        for (int j = 0; j < TN; j++)
            col[j] = b[k * B_STRIDE + tx * TN + j];
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++)
                acc[i][j] = fma(row[i], col[j], acc[i][j]);
    }
}

/* Where a pixel of a tile reads. */
typedef struct pixel {
    __global const float *in; /* the image */
    int h, w;                 /* the pixel that tap (0, 0) reads; far outside: no pixel */
} pixel;

/* in[i..i+4) of the pixel under a tap; past `run` it goes on with the next tap. */
static inline float4 gather_quad(const pixel *px, __global const int *taps, int tap, int tap_count, int i, int h_in,
                                 int w_in, int run) {
#if QUADS
    if (tap >= tap_count)
        return (float4)(0.0f);
    const int h = px->h + taps[tap * TAP_INTS], w = px->w + taps[tap * TAP_INTS + 1];
    if ((uint)h >= (uint)h_in || (uint)w >= (uint)w_in)
        return (float4)(0.0f);
    return vload4(0, px->in + ((ulong)h * w_in + w) * run + i);
#else
    float v[4];
    for (int e = 0; e < 4; e++) {
        v[e] = 0.0f;
        if (tap < tap_count) {
            const int h = px->h + taps[tap * TAP_INTS], w = px->w + taps[tap * TAP_INTS + 1];
            if ((uint)h < (uint)h_in && (uint)w < (uint)w_in)
                v[e] = px->in[((ulong)h * w_in + w) * run + i];
        }
        if (++i == run) {
            i = 0;
            tap++;
        }
    }
    return (float4)(v[0], v[1], v[2], v[3]);
#endif
}

/* Pixel m of a class of (n, rows_p, rows_q) outputs. */
static inline pixel place_pixel(__global const float *in, ulong m, ulong pixels, int rows_p, int rows_q, int step,
                                int h_in, int w_in, int run) {
    pixel px = {in, INT_MAX / 2, INT_MAX / 2};
    if (m < pixels) {
        const ulong row = m / rows_q;
        px.w = (int)(m - row * rows_q) * step;
        px.h = (int)(row % rows_p) * step;
        px.in = in + row / rows_p * h_in * w_in * run;
    }
    return px;
}

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

    const int a_k = item % (BK / 4) * 4,
              a_row = item / (BK / 4); /* this work-item's quad of A; further ones below it */
    const int b_col = item % (BN / 4) * 4, b_k = item / (BN / 4);
    int tap = a_k / run, i = a_k % run;
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
        const ulong row = m / rows_q, q = m - row * rows_q, p = row % rows_p, image = row / rows_p;
        __global float *to = out + out_offset +
                             ((image * h_out + p * step_out + header[2]) * w_out + q * step_out + header[3]) * c_out +
                             c0;
        for (int c = 0; c < TN; c++)
            if (m < pixels && c0 + tx * TN + c < c_out)
                to[tx * TN + c] = acc[r][c];
    }
}

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

    const int a_m = item % (BM / 4) * 4, a_k = item / (BM / 4);
    const int b_col = item % (BN / 4) * 4, b_k = item / (BN / 4);
    const int tap = (m0 + a_m) / run, i = (m0 + a_m) % run;

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

/* packed [tap][o][i] from w (kernel_h * kernel_w, c_in, c_out), taps in the table's order. */
__kernel void conv_gemm_pack(__global float *packed, __global const float *wt, ulong w_offset, __global const int *taps,
                             int taps_offset, int c_in, int c_out) {
    const int i = get_global_id(0), o = get_global_id(1), tap = get_global_id(2);
    if (i >= c_in || o >= c_out)
        return;
    const ulong from = taps[taps_offset + tap * TAP_INTS + 2];
    packed[((ulong)tap * c_out + o) * c_in + i] = wt[w_offset + (from * c_in + i) * c_out + o];
}
