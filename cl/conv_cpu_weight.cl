/* Backward by weights for CPU devices: dw[tap][i][o] = sum over pixels of x[i] dy[o], directly from NHWC.
 *
 * One work-item is one work-group: it owns a panel of COLS output channels, a group of taps and a chunk of the pixels.
 * It walks the chunk in slabs that stay in the cache; for each tap it lists the pixels whose tap lies inside the image,
 * then runs register tiles of ROWS input channels x VECS vectors over the list. Tiles are kept in `part`
 * [chunk][panel][tap][tile][ROWS][COLS] between slabs, and conv_weight_sum adds the chunks in order.
 *
 * VW: floats in a vector, VECS: vectors in a row of the tile, ROWS: rows of the tile, SLAB: pixels in a slab. */
#include "conv_cpu.clh"

/* The tile += x^T dy over the listed pixels (offsets of their x and dy). */
static inline __attribute__((always_inline)) void weight_tile(const int vecs, __global float *part, int first,
                                                              __global const float *x, __global const float *dy,
                                                              const uint2 *list, int count) {
    vec acc[ROWS][VECS], g[VECS];
#define FETCH(r, v)                                                                                                    \
    if (v < vecs)                                                                                                      \
        acc[r][v] = first ? (vec)(0.0f) : VLOAD(v, part + r * COLS);
#define FETCH_ROW(r) EACH_VEC(FETCH, r)
    EACH_ROW(FETCH_ROW)
    for (int k = 0; k < count; k++) {
        __global const float *a = x + list[k].x, *b = dy + list[k].y;
#define LOAD(r, v)                                                                                                     \
    if (v < vecs)                                                                                                      \
        g[v] = VLOAD(v, b);
#define FMA(r, v)                                                                                                      \
    if (v < vecs)                                                                                                      \
        acc[r][v] = fma(s, g[v], acc[r][v]);
#define FMA_ROW(r)                                                                                                     \
    {                                                                                                                  \
        const vec s = (vec)(a[r]);                                                                                     \
        EACH_VEC(FMA, r)                                                                                               \
    }
        EACH_VEC(LOAD, 0)
        EACH_ROW(FMA_ROW)
    }
#define KEEP(r, v)                                                                                                     \
    if (v < vecs)                                                                                                      \
        VSTORE(acc[r][v], v, part + r * COLS);
#define KEEP_ROW(r) EACH_VEC(KEEP, r)
    EACH_ROW(KEEP_ROW)
}

/* x (n, h_in, w_in, .) with pixels `pitch` floats apart, of which `run` belong to a tap; dy (n, p, q, dy_pitch),
 * dy_pitch
 * whole panels, or whole panels and one vector. ROWS floats from a tap's first channel are readable even where run is
 * smaller. */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void
conv_direct_weight(__global float *part, __global const float *x, ulong x_offset, __global const float *dy,
                   ulong dy_offset, __global const int *table, int n, int h_in, int w_in, int pitch, int run,
                   int dy_pitch, int step_in, int taps_in_group, int chunk) {
    const int panel = get_global_id(0), column = panel * COLS;
    const int rows_p = table[0], rows_q = table[1], taps_total = table[6];
    __global const int *taps = table + HEADER_INTS;
    const int tap_begin = get_global_id(1) * taps_in_group, tap_end = min(tap_begin + taps_in_group, taps_total);
    const int tiles = (run + ROWS - 1) / ROWS;
    const ulong map = (ulong)rows_p * rows_q;
    const ulong begin = (ulong)get_global_id(2) * chunk, end = min(begin + chunk, n * map);
    part += (get_global_id(2) * get_global_size(0) + panel) * taps_total * tiles * ROWS * COLS;
    x += x_offset;
    dy += dy_offset + column;

    uint2 list[SLAB];
    for (ulong slab = begin; slab < end; slab += SLAB) {
        const int size = (int)min((ulong)SLAB, end - slab);
        const place at = place_of(slab, rows_p, rows_q);
        const int p0 = at.row, q0 = at.column;
        __global const float *xs = x + at.outer * h_in * w_in * pitch, *dys = dy + slab * dy_pitch;
        for (int t = tap_begin; t < tap_end; t++) {
            const int dh = taps[t * TAP_INTS], dw = taps[t * TAP_INTS + 1];
            int count = 0, h = p0 * step_in + dh, w = q0 * step_in + dw, base = 0;
            for (int k = 0; k < size; k++) {
                list[count] = (uint2)((base + h * w_in + w) * pitch, k * dy_pitch);
                count += ((uint)h < (uint)h_in) & ((uint)w < (uint)w_in);
                w += step_in;
                if (w == rows_q * step_in + dw) {
                    w = dw;
                    h += step_in;
                    if (h == rows_p * step_in + dh) {
                        h = dh;
                        base += h_in * w_in;
                    }
                }
            }
            for (int tile = 0; tile < tiles; tile++) {
                /* the last tile begins earlier rather than read past the channels; conv_weight_sum knows */
                const int i = max(min(tile * ROWS, run - ROWS), 0);
                __global float *to = part + ((ulong)t * tiles + tile) * ROWS * COLS;
                if (dy_pitch - column <= VW)
                    weight_tile(1, to, slab == begin, xs + i, dys, list, count);
                else
                    weight_tile(VECS, to, slab == begin, xs + i, dys, list, count);
            }
        }
    }
}

/* dw (taps, run, c_out) = (accumulate ? dw : 0) + the sum of the chunks, in order. One work-item a (panel, tap). */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void conv_weight_sum(__global float *dw, ulong dw_offset,
                                                                             __global const float *part, int run,
                                                                             int c_out, int chunks, int accumulate) {
    const int panel = get_global_id(0), tap = get_global_id(1), column = panel * COLS;
    const int cols = min(c_out - column, COLS), tiles = (run + ROWS - 1) / ROWS;
    const ulong panel_size = (ulong)get_global_size(1) * tiles * ROWS * COLS;
    dw += dw_offset + (ulong)tap * run * c_out + column;
    part += panel * panel_size + (ulong)tap * tiles * ROWS * COLS;
    for (int i = 0; i < run; i++, dw += c_out) {
        const int tile = i / ROWS, row = i - max(min(tile * ROWS, run - ROWS), 0);
        __global const float *from = part + (tile * ROWS + row) * COLS;
        if (cols == COLS) {
#pragma unroll
            for (int v = 0; v < VECS; v++) {
                vec sum = accumulate ? VLOAD(v, dw) : (vec)(0.0f);
                for (int k = 0; k < chunks; k++)
                    sum += VLOAD(v, from + k * panel_size * get_global_size(0));
                VSTORE(sum, v, dw);
            }
        } else {
            for (int j = 0; j < cols; j++) {
                float sum = accumulate ? dw[j] : 0.0f;
                for (int k = 0; k < chunks; k++)
                    sum += from[k * panel_size * get_global_size(0) + j];
                dw[j] = sum;
            }
        }
    }
}
