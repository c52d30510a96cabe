/* Matrix product for CPU devices: C (m, n) = alpha op(A) op(B) + beta C, row-major.
 *
 * A work-group is ONE work-item, so that the compiler sees plain serial code on explicit vectors. It owns a block of rows
 * of one panel of COLUMNS = VECTORS * W columns. For each K_CHUNK of k it copies the panel of op(B) into local memory
 * (32 KiB: it stays in L1), then walks down its rows in register tiles of ROWS x COLUMNS accumulators; A's elements are
 * broadcast straight from where they lie, which is why no A is ever packed.
 *
 * Options: W (vector width), VECTORS, ROWS > ROWS_B > ROWS_C > 1 (register tiles; what is left over is done row by row),
 * K_CHUNK. */
#include "common.clh"

#define PASTE_(a, b)  a##b
#define PASTE(a, b)   PASTE_(a, b)
#define floatW        PASTE(float, W)
#define vloadW        PASTE(vload, W)
#define vstoreW       PASTE(vstore, W)
#define COLUMNS       (VECTORS * W)

#define A_AT(i, kk) a[trans_a ? (ulong)(kk)*lda + (i) : (ulong)(i)*lda + (kk)]

/* panel (kc, COLUMNS) = op(B)[0..kc, 0..columns], zero beyond `columns`. */
INLINE void pack_transposed(__local float *panel, __global const float *b, ulong ldb, int columns,
                            int kc) {
    const int k4 = W >= 8 ? kc & ~3 : 0; /* blocks of 4 x 4, whose shuffles crash Oclgrind (there W is 4) */
    for (int j = 0; j < COLUMNS; j += 4) {
        if (j + 4 <= columns) {
            __global const float *row = b + (ulong)j * ldb;
            for (int kk = 0; kk < k4; kk += 4) {
                const float4 r0 = vload4(0, row + kk), r1 = vload4(0, row + ldb + kk);
                const float4 r2 = vload4(0, row + 2 * ldb + kk), r3 = vload4(0, row + 3 * ldb + kk);
                __local float *to = panel + kk * COLUMNS + j;
                vstore4((float4)(r0.x, r1.x, r2.x, r3.x), 0, to);
                vstore4((float4)(r0.y, r1.y, r2.y, r3.y), 0, to + COLUMNS);
                vstore4((float4)(r0.z, r1.z, r2.z, r3.z), 0, to + 2 * COLUMNS);
                vstore4((float4)(r0.w, r1.w, r2.w, r3.w), 0, to + 3 * COLUMNS);
            }
            for (int kk = k4; kk < kc; kk++)
                for (int q = 0; q < 4; q++)
                    panel[kk * COLUMNS + j + q] = row[q * ldb + kk];
        } else {
            for (int q = 0; q < 4; q++)
                for (int kk = 0; kk < kc; kk++)
                    panel[kk * COLUMNS + j + q] = j + q < columns ? b[(ulong)(j + q) * ldb + kk] : 0.0f;
        }
    }
}

INLINE void pack_panel(__local float *panel, __global const float *b, ulong ldb, int columns, int kc) {
    for (int kk = 0; kk < kc; kk++) {
        __global const float *row = b + (ulong)kk * ldb;
        __local float *to = panel + kk * COLUMNS;
        if (columns == COLUMNS) {
#pragma unroll
            for (int v = 0; v < VECTORS; v++)
                vstoreW(vloadW(v, row), v, to);
        } else {
            for (int j = 0; j < COLUMNS; j++)
                to[j] = j < columns ? row[j] : 0.0f;
        }
    }
}

/* out (rows, COLUMNS) = a (rows, kc) panel (kc, COLUMNS); `rows` is a constant after inlining. */
INLINE void tile(const int trans_a, const int rows, float *out, __global const float *a, ulong lda,
                 __local const floatW *panel, int kc) {
    floatW sum[ROWS][VECTORS];
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            if (i < rows)
                sum[i][v] = (floatW)(0.0f);

    for (int kk = 0; kk < kc; kk++) {
        floatW bv[VECTORS];
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            bv[v] = panel[kk * VECTORS + v];
#pragma unroll
        for (int i = 0; i < ROWS; i++)
            if (i < rows) {
                const floatW av = (floatW)(A_AT(i, kk));
#pragma unroll
                for (int v = 0; v < VECTORS; v++)
                    sum[i][v] = fma(av, bv[v], sum[i][v]);
            }
    }

#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int v = 0; v < VECTORS; v++)
            if (i < rows)
                vstoreW(sum[i][v], i * VECTORS + v, out);
}

/* c (rows, columns) = alpha tile + beta c. Apart from the register tile: unrolled, masks would double the build time. */
static inline void store_tile(__global float *c, ulong ldc, const float *out, int rows, int columns, float alpha,
                              float beta) {
    for (int i = 0; i < rows; i++, c += ldc, out += COLUMNS) {
        if (columns == COLUMNS) {
            for (int v = 0; v < VECTORS; v++) {
                const floatW x = alpha * vloadW(v, out);
                vstoreW(beta == 0.0f ? x : fma((floatW)(beta), vloadW(v, c), x), v, c);
            }
        } else {
            for (int j = 0; j < columns; j++)
                c[j] = beta == 0.0f ? alpha * out[j] : fma(beta, c[j], alpha * out[j]);
        }
    }
}

/* Global range: (panels, row blocks, slices of k). With one slice C is the result; with more, slice s writes its partial
 * product to c + s * slice_stride for gemm_sum_slices. */
INLINE void product(const int trans_a, const int trans_b, const work_place *here, __local floatW *panel,
                    __global float *c, __global const float *a, __global const float *b, int m, int n,
                    int k, ulong lda, ulong ldb, ulong ldc, float alpha, float beta, int block_rows,
                    int slice_k, ulong slice_stride) {
    float out[ROWS * COLUMNS];
    const int j0 = (int)here->group[0] * COLUMNS, columns = min(COLUMNS, n - j0);
    const int i_begin = (int)here->group[1] * block_rows, i_end = min(m, i_begin + block_rows);
    const int k_begin = (int)here->group[2] * slice_k, k_end = min(k, k_begin + slice_k);
    c += here->group[2] * slice_stride + j0;

    for (int k0 = k_begin; k0 < k_end; k0 += K_CHUNK) {
        const int kc = min(K_CHUNK, k_end - k0);
        const float keep = k0 == k_begin ? beta : 1.0f;
        if (trans_b)
            pack_transposed((__local float *)panel, b + (ulong)j0 * ldb + k0, ldb, columns, kc);
        else
            pack_panel((__local float *)panel, b + (ulong)k0 * ldb + j0, ldb, columns, kc);
        int i = i_begin;
#define TILES(rows)                                                                                                    \
    for (; i + (rows) <= i_end; i += (rows)) {                                                                         \
        tile(trans_a, (rows), out, &A_AT(i, k0), lda, panel, kc);                                                      \
        store_tile(c + (ulong)i * ldc, ldc, out, (rows), columns, alpha, keep);                                        \
    }
        TILES(ROWS)
        TILES(ROWS_B)
        TILES(ROWS_C)
        TILES(1)
#undef TILES
    }
}

/* A kernel for each pair of transpositions: n(ormal) or t(ransposed), first that of A. The panel goes through a volatile:
 * PoCL gives every core its own in the kernel alone, so the compiler must not put the variable itself into the body. */
#define GEMM_KERNEL(name, trans_a, trans_b)                                                                            \
    OUTLINED name##_body(const work_place here, __local floatW *panel, __global float *c, __global const float *a,     \
                         __global const float *b, int m, int n, int k, ulong lda, ulong ldb, ulong ldc, float alpha,   \
                         float beta, int block_rows, int slice_k, ulong slice_stride) {                                \
        product(trans_a, trans_b, &here, panel, c, a, b, m, n, k, lda, ldb, ldc, alpha, beta, block_rows, slice_k,     \
                slice_stride);                                                                                         \
    }                                                                                                                  \
    __kernel GROUP(1, 1, 1) void name(__global float *c, ulong c_offset, __global const float *a, ulong a_offset,      \
                                      __global const float *b, ulong b_offset, int m, int n, int k, ulong lda,         \
                                      ulong ldb, ulong ldc, float alpha, float beta, int block_rows, int slice_k,      \
                                      ulong slice_stride) {                                                            \
        __local floatW panel[K_CHUNK * VECTORS];                                                                       \
        __local floatW *volatile own = panel;                                                                          \
        name##_body(this_place(), own, AT(c), AT(a), AT(b), m, n, k, lda, ldb, ldc, alpha, beta, block_rows, slice_k,  \
                    slice_stride);                                                                                     \
    }
GEMM_KERNEL(gemm_cpu_nn, 0, 0)
GEMM_KERNEL(gemm_cpu_nt, 0, 1)
GEMM_KERNEL(gemm_cpu_tn, 1, 0)
GEMM_KERNEL(gemm_cpu_tt, 1, 1)
