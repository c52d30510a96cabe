/* Column sums in two stages. */
#include "columns.clh"

INLINE void sum_columns(__global float *partial, const __global float *x, uint rows, uint c, const uint nv,
                        const uint lanes, __local vec *scratch) {
    vec sum[WIDE];
    for (uint k = 0; k < nv; k++)
        sum[k] = ZERO;
    for (uint r = ROW_LANE; r < rows; r += TY)
        for (uint k = 0; k < nv; k++)
            sum[k] += load(x + (ulong)r * c + k * V, lanes);
    for (uint k = 0; k < nv; k++) {
        vec total = column_total(sum[k], scratch);
        if (ROW_LANE == 0)
            store(partial + k * V, total, lanes);
    }
}

/* partial (chunks, c) of x (rows, c). */
COLUMN_KERNEL(column_sum_chunks,
              (partial, partial_offset, x, x_offset, rows, c, chunk_rows),
              __global float *partial, ulong partial_offset, const __global float *x, ulong x_offset, ulong rows,
              uint c, uint chunk_rows) {
    ulong chunk = here.group[0], first = chunk * chunk_rows;
    uint n = (uint)min((ulong)chunk_rows, rows - first);
    __global float *out = partial + partial_offset + chunk * c;
    const __global float *in = x + x_offset + first * c;
#define CALL(col, nv, lanes) sum_columns(out + (col), in + (col), n, c, nv, lanes, scratch)
    FOR_COLUMNS(c, CALL)
#undef CALL
}

/* out (c) = (accumulate ? out : 0) + the sum over chunks; dimension 1 counts column blocks. */
COLUMN_KERNEL(column_sum_finish,
              (out, out_offset, partial, partial_offset, chunks, c, accumulate),
              __global float *out, ulong out_offset, const __global float *partial, ulong partial_offset, ulong chunks,
              uint c, int accumulate) {
    uint col = FIRST_COLUMN, lanes = LANES(col, c);
    vec sum = ZERO, lost = ZERO;
    for (ulong i = ROW_LANE; i < chunks; i += TY)
        add_compensated(&sum, &lost, load(partial + partial_offset + i * c + col, lanes));
    sum = column_total(sum - lost, scratch);
    out += out_offset + col;
    if (ROW_LANE == 0)
        store(out, accumulate ? load(out, lanes) + sum : sum, lanes);
}
