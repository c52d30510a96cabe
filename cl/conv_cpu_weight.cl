/* Backward by weights for CPU devices: dw[tap][i][o] = sum over pixels of x[i] dy[o], directly from NHWC.
 *
 * One work-item is one work-group: it owns a share of the panels of COLS output channels, a group of taps and a chunk
 * of the pixels. It walks the chunk in slabs that stay in the cache; for each tap it lists the pixels whose tap lies
 * inside the image and runs register tiles of ROWS input channels x VECS vectors over the list, panel by panel. Tiles
 * are kept in `part` [chunk][panel][tap][tile][ROWS][COLS] between slabs, and conv_weight_sum adds the chunks in order.
 *
 * VW: floats in a vector, VECS: vectors in a row of the tile, ROWS: rows of the tile, SLAB: pixels in a slab, GATHER: 1
 * to copy the listed pixels into the order in which the tiles read them. Of pixels that lie a power of two apart, few
 * stay in the first cache at a time; where all panels use them, the copies cost less than that. */
#include "conv_cpu.clh"

/* Offsets of a pixel's input channels and gradients. */
#if GATHER
#define X_AT(k)  ((k) * ROWS)
#define DY_AT(k) ((k) * COLS)
#else
#define X_AT(k)  list[k].x
#define DY_AT(k) list[k].y
#endif

/* The tile += x^T dy over the listed pixels. */
INLINE void weight_tile(const int vecs, __global float *part, int first,
                        __global const float *x, __global const float *dy,
                        const uint2 *list, int count) {
    vec acc[ROWS][VECS], g[VECS];
#define FETCH(r, v)                                                                                                    \
    if (v < vecs)                                                                                                      \
        acc[r][v] = first ? (vec)(0.0f) : VLOAD(v, part + r * COLS);
#define FETCH_ROW(r) EACH_VEC(FETCH, r)
    EACH_ROW(FETCH_ROW)
    for (int k = 0; k < count; k++) {
        __global const float *a = x + X_AT(k), *b = dy + DY_AT(k);
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
        PUT(acc[r][v], part + r * COLS + v * VW);
#define KEEP_ROW(r) EACH_VEC(KEEP, r)
    EACH_ROW(KEEP_ROW)
}

#if GATHER
/* Channels that a row of a tile is gathered with: whole vectors, of which the next pixel's overwrite what is over. */
#define GATHERED ((ROWS + VW - 1) / VW * VW)
/* Floats of a tile's rows in a slab, as in conv_cpu.c. */
#define TILE_SLAB (SLAB * ROWS + VW)

/* to [tile][count][ROWS]: the listed pixels' channels. */
INLINE void gather_rows(__global float *to, __global const float *x, const uint2 *list, int count, int run) {
    const int last = max(run - ROWS, 0);
    for (int k = 0; k < count; k++) {
        __global const float *from = x + list[k].x;
        __global float *row = to + k * ROWS;
        int i = 0;
        for (; i + GATHERED <= run && i < last; i += ROWS, row += TILE_SLAB)
#pragma unroll
            for (int v = 0; v < GATHERED; v += VW)
                PUT(VLOAD(0, from + i + v), row + v);
        for (; i < run; i += ROWS, row += TILE_SLAB) {
#define GATHER_ROW(r) row[r] = from[min(i, last) + r];
            EACH_ROW(GATHER_ROW)
        }
    }
}

/* to [count][COLS]: `vecs` vectors of the listed pixels' gradients. */
INLINE void gather_columns(const int vecs, __global float *to, __global const float *dy, const uint2 *list,
                           int count) {
    for (int k = 0; k < count; k++) {
#define GATHER_VEC(r, v)                                                                                               \
    if (v < vecs)                                                                                                      \
        PUT(VLOAD(v, dy + list[k].y), to + k * COLS + v * VW);
        EACH_VEC(GATHER_VEC, 0)
    }
}
#endif

/* Each tile of a panel. The last one begins earlier rather than read past the channels; conv_weight_sum knows. x: the
 * gathered rows, and `columns` memory for gradients, or the image. */
INLINE void weight_panel(const int vecs, __global float *part, int first,
                         __global const float *x, __global float *columns,
                         __global const float *dy, const uint2 *list, int count,
                         int run) {
#if GATHER
    gather_columns(vecs, columns, dy, list, count);
    dy = columns;
#endif
    for (int i = 0; i < run; i += ROWS, part += ROWS * COLS) {
#if GATHER
        weight_tile(vecs, part, first, x, dy, list, count);
        x += TILE_SLAB;
#else
        weight_tile(vecs, part, first, x + max(min(i, run - ROWS), 0), dy, list, count);
#endif
    }
}

/* The pixels of a slab whose tap (dh, dw) lies inside the image: offsets of their x, from the slab's first image on,
 * and dy, from the slab's first pixel on. */
INLINE int list_pixels(uint2 *list, place at, int size, int rows_p, int rows_q, int dh, int dw, int h_in,
                       int w_in, int pitch, int dy_pitch, int step_in) {
    int count = 0, h = at.row * step_in + dh, w = at.column * step_in + dw, base = 0;
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
    return count;
}

/* x (n, h_in, w_in, .) with pixels `pitch` floats apart, of which `run` belong to a tap; dy (n, p, q, dy_pitch),
 * dy_pitch whole panels, or whole panels and one vector. ROWS floats from a tap's first channel are readable even where
 * run is smaller. Dimension 0 of the range counts shares of `share` panels, 1 groups of `group` taps, 2 chunks of
 * `chunk` pixels; a work-group that gathers has tiles * TILE_SLAB + SLAB * COLS floats of scratch. */
CORE_KERNEL(conv_direct_weight,
            (part, scratch, x, x_offset, dy, dy_offset, table, n, h_in, w_in, pitch, run, dy_pitch, step_in, panels,
             share, group, chunk),
            __global float *part, __global float *scratch, __global const float *x, ulong x_offset,
            __global const float *dy, ulong dy_offset, __global const int *table, int n, int h_in, int w_in, int pitch,
            int run, int dy_pitch, int step_in, int panels, int share, int group, int chunk) {
    const int panel_begin = here.group[0] * share, panel_end = min(panel_begin + share, panels);
    const int rows_p = table[0], rows_q = table[1], taps_total = table[6];
    __global const int *taps = table + HEADER_INTS;
    const int tap_begin = here.group[1] * group, tap_end = min(tap_begin + group, taps_total);
    const int tiles = (run + ROWS - 1) / ROWS, tap_part = tiles * ROWS * COLS;
    const ulong map = (ulong)rows_p * rows_q;
    const ulong begin = (ulong)here.group[2] * chunk, end = min(begin + chunk, n * map);
    part += here.group[2] * panels * taps_total * tap_part;
#if GATHER
    const ulong item = (here.group[2] * here.groups[1] + here.group[1]) * here.groups[0] + here.group[0];
    __global float *rows = scratch + item * ((ulong)tiles * TILE_SLAB + SLAB * COLS);
    scratch = rows + (ulong)tiles * TILE_SLAB;
#endif
    x += x_offset;
    dy += dy_offset;

    uint2 list[SLAB];
    for (ulong slab = begin; slab < end; slab += SLAB) {
        const place at = place_of(slab, rows_p, rows_q);
        __global const float *xs = x + at.outer * h_in * w_in * pitch, *dys = dy + slab * dy_pitch;
        for (int t = tap_begin; t < tap_end; t++) {
            const int count = list_pixels(list, at, (int)min((ulong)SLAB, end - slab), rows_p, rows_q,
                                          taps[t * TAP_INTS], taps[t * TAP_INTS + 1], h_in, w_in, pitch, dy_pitch, step_in);
#if GATHER
            gather_rows(rows, xs, list, count, run);
            __global const float *from = rows;
#else
            __global const float *from = xs;
#endif
            for (int panel = panel_begin; panel < panel_end; panel++) {
                __global float *to = part + ((ulong)panel * taps_total + t) * tap_part;
                const int column = panel * COLS;
                if (dy_pitch - column <= VW)
                    weight_panel(1, to, slab == begin, from, scratch, dys + column, list, count, run);
                else
                    weight_panel(VECS, to, slab == begin, from, scratch, dys + column, list, count, run);
            }
        }
    }
}
