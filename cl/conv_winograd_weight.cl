/* Backward by weights of a 3x3 convolution with stride 1 or 2 for CPU devices, by Winograd's minimal filtering: the 4x4
 * tiles of dy are filters on the patches of x, and what the tiles give is summed before it is transformed back, once.
 *
 * One work-item is one work-group: it owns a chunk of the tiles, a share of the panels and a part of the scratch
 * memory. It takes the chunk in blocks: it transforms them to v and u, for each of 36 matrices of sums the rows of
 * input channels and of columns that meet there, then adds their products to s
 * [matrix][panel][register tile][ROWS][COLS]. conv_winograd_weight_sum adds the chunks in order.
 *
 * VW: floats in a vector, VECS: vectors in a row of the register tile, ROWS: input channels in it. STRIDE: of the
 * window. */
#include "conv_winograd.clh"

#if STRIDE == 2
#include "conv_winograd_weight_stride2.clh"
#else
#include "conv_winograd_weight_stride1.clh"
#endif

/* u, `pitch` floats from row to row: the transforms of the tiles `first` .. `first` + `count` - 1 of dy (., h_out,
 * w_out, c_out), of `cols` columns from dy on. */
static void transform_gradients(__global float *u, ulong plane, int pitch, __global const float *dy, tile_grid grid,
                                ulong first, int count, int h_out, int w_out, int c_out, int cols) {
    for (int t = 0; t < count; t++) {
        const place at = place_of(first + t, grid.rows, grid.columns);
        const int height = min(4, h_out - 4 * at.row), width = min(4, w_out - 4 * at.column);
        __global const float *from = dy + ((at.outer * h_out + 4 * at.row) * w_out + 4 * at.column) * c_out;
        for (int j = 0; j < cols; j += VW)
            if (height == 4 && width == 4 && cols - j >= VW)
                transform_gradient(1, u + j, plane, pitch, t, from + j, w_out * c_out, c_out, 4, 4, VW);
            else
                transform_gradient(0, u + j, plane, pitch, t, from + j, w_out * c_out, c_out, height, width, cols - j);
    }
}

/* s (ROWS, COLS) = (first ? 0 : s) + v^T u over so many rows. */
INLINE void add_products(const int vecs, __global float *s, int first, __global const float *v, int v_pitch,
                         __global const float *u, int u_pitch, int rows) {
    vec acc[ROWS][VECS], b[VECS];
#define FETCH(r, j)                                                                                                    \
    if (j < vecs)                                                                                                      \
        acc[r][j] = first ? (vec)(0.0f) : VLOAD(j, s + r * COLS);
#define FETCH_ROW(r) EACH_VEC(FETCH, r)
    EACH_ROW(FETCH_ROW)
    for (int t = 0; t < rows; t++, v += v_pitch, u += u_pitch) {
#define LOAD(r, j)                                                                                                     \
    if (j < vecs)                                                                                                      \
        b[j] = VLOAD(j, u);
#define FMA(r, j)                                                                                                      \
    if (j < vecs)                                                                                                      \
        acc[r][j] = fma(a, b[j], acc[r][j]);
#define FMA_ROW(r)                                                                                                     \
    {                                                                                                                  \
        const vec a = (vec)(v[r]);                                                                                     \
        EACH_VEC(FMA, r)                                                                                               \
    }
        EACH_VEC(LOAD, 0)
        EACH_ROW(FMA_ROW)
    }
#define KEEP(r, j)                                                                                                     \
    if (j < vecs)                                                                                                      \
        PUT(acc[r][j], s + r * COLS + j * VW);
#define KEEP_ROW(r) EACH_VEC(KEEP, r)
    EACH_ROW(KEEP_ROW)
}

/* Part i of n of what the next matrix meets in v and u, so many floats, and the same tile of its sums. */
INLINE void fetch_next(__global const float *v, __global const float *u, __global const float *s, long v_floats,
                       long u_floats, int i, int n) {
    const long v_part = v_floats / n + 1, u_part = u_floats / n + 1;
    fetch(v, i * v_part, (i + 1) * v_part);
    fetch(u, i * u_part, (i + 1) * u_part);
    fetch(s, 0, ROWS * COLS);
}

/* part [chunk][9][c_in][panels * COLS] from x (n, h_in, w_in, c_in) and dy (n, h_out, w_out, c_out), c_in >= ROWS.
 * Dimension 0 of the range counts chunks of `chunk` tiles, taken in blocks of `block`; dimension 1 counts shares of
 * `share` panels. A work-group has `slot` floats of scratch: [c_in zeros][v][u][s]. affine: x is read through this map,
 * see input_map, one for `images` images. */
CORE_KERNEL(conv_winograd_weight,
            (part, x, x_offset, dy, dy_offset, scratch, slot, affine, affine_offset, stride, images, n, h_in, w_in,
             c_in, h_out, w_out, c_out, pad, chunk, block, share),
            __global float *part, __global const float *x, ulong x_offset, __global const float *dy, ulong dy_offset,
            __global float *scratch, ulong slot, __global const float *affine, ulong affine_offset, ulong stride,
            int images, int n, int h_in, int w_in, int c_in, int h_out, int w_out, int c_out, int pad, ulong chunk,
            int block, int share) {
    const tile_grid grid = grid_of(n, h_out, w_out);
    const int panels = (c_out + COLS - 1) / COLS, strips = (c_in + ROWS - 1) / ROWS;
    const int panel_begin = here.group[1] * share, panel_count = min(share, panels - panel_begin);
    const int column = panel_begin * COLS, cols = min(c_out - column, panel_count * COLS);
    const int v_pitch = V_PITCH(c_in), u_pitch = share * COLS;
    const ulong v_plane = (ulong)block * v_pitch + LINE_FLOATS, u_plane = (ulong)block * u_pitch + LINE_FLOATS;
    const ulong s_plane = (ulong)share * strips * ROWS * COLS + LINE_FLOATS;
    scratch += (here.group[1] * here.groups[0] + here.group[0]) * slot;
    __global float *zeros = scratch, *v = zeros + (c_in + 15) / 16 * 16;
    __global float *u = v + TILE_ROWS * v_plane, *s = u + TILE_ROWS * u_plane;
    x += x_offset;
    dy += dy_offset + column;
    for (int i = 0; i < c_in; i++)
        zeros[i] = 0.0f;
    const input_map map = {affine ? affine + affine_offset : 0, stride, images};

    const ulong begin = here.group[0] * chunk, end = min(begin + chunk, grid.tiles);
    for (ulong first = begin; first < end; first += block) {
        const int count = (int)min((ulong)block, end - first), more = (int)min((ulong)block, end - first - count);
        transform_block(v, v_plane, v_pitch, x, map, zeros, grid, first, count, count, h_in, w_in, c_in, pad);
        transform_gradients(u, u_plane, u_pitch, dy, grid, first, count, h_out, w_out, c_out, cols);
        look_ahead ahead = {.runs = 0};
        expect_pixels(&ahead, x, grid, first + count, more, TILE_IN, TILE_HALO, h_in, w_in * c_in);
        if (2 * panel_count >= panels) /* else most of a pixel is others' */
            expect_pixels(&ahead, dy, grid, first + count, more, TILE_OUT, 0, h_out, w_out * c_out);
        set_pace(&ahead, MATRICES * panel_count * strips);
        for (int k = 0; k < MATRICES; k++) {
            __global const float *vk = v + ROWS_BEFORE(k) * v_plane, *uk = u + ROWS_BEFORE(k) * u_plane;
            const int rows = count * ROWS_OF(k), more_rows = count * ROWS_OF(k + 1);
            for (int p = 0; p < panel_count; p++)
                for (int strip = 0; strip < strips; strip++) {
                    /* the last strip begins earlier rather than read past the channels */
                    __global const float *a = vk + min(strip * ROWS, c_in - ROWS);
                    __global float *to = s + k * s_plane + ((ulong)p * strips + strip) * ROWS * COLS;
                    fetch_next(vk + ROWS_OF(k) * v_plane, uk + ROWS_OF(k) * u_plane, to + s_plane,
                               (long)more_rows * v_pitch, (long)more_rows * u_pitch, p * strips + strip,
                               panel_count * strips);
                    fetch_some(&ahead);
                    if (cols - p * COLS <= VW)
                        add_products(1, to, first == begin, a, v_pitch, uk + p * COLS, u_pitch, rows);
                    else
                        add_products(VECS, to, first == begin, a, v_pitch, uk + p * COLS, u_pitch, rows);
                }
        }
    }
    const int pitch = panels * COLS;
    part += here.group[0] * 9 * c_in * pitch + column;
    for (int i = 0; i < c_in; i++, part += pitch) {
        const int strip = i / ROWS, row = i - min(strip * ROWS, c_in - ROWS);
        for (int j = 0; j < cols; j += VW) {
            const int p = j / COLS;
            restore_taps(part + j, (ulong)c_in * pitch,
                         s + (((ulong)p * strips + strip) * ROWS + row) * COLS + j - p * COLS, s_plane);
        }
    }
}

/* dw (9 * c_in, c_out) = (accumulate ? dw : 0) + the sum of the chunks, in order. One work-item a row. */
CORE_KERNEL(conv_winograd_weight_sum, (dw, dw_offset, part, c_out, pitch, chunks, accumulate), __global float *dw,
            ulong dw_offset, __global const float *part, int c_out, int pitch, int chunks, int accumulate) {
    const ulong size = here.groups[0] * pitch;
    dw += dw_offset + here.group[0] * c_out;
    part += here.group[0] * pitch;
    for (int j = 0; j < c_out; j++) {
        float sum = accumulate ? dw[j] : 0.0f;
        for (int k = 0; k < chunks; k++)
            sum += part[k * size + j];
        dw[j] = sum;
    }
}

#if STRIDE == 1
/* u [36][tiles][V_PITCH(panels * COLS)], `plane` floats from point to point, of all tiles of dy (n, h_out, w_out,
 * c_out). Dimension 0 of the range counts blocks of ROWS tiles. */
CORE_KERNEL(conv_winograd_gradients, (u, plane, dy, dy_offset, n, h_out, w_out, c_out), __global float *u, ulong plane,
            __global const float *dy, ulong dy_offset, int n, int h_out, int w_out, int c_out) {
    const tile_grid grid = grid_of(n, h_out, w_out);
    const int pitch = V_PITCH((c_out + COLS - 1) / COLS * COLS);
    const ulong first = here.group[0] * ROWS;
    transform_gradients(u + first * pitch, plane, pitch, dy + dy_offset, grid, first,
                        (int)min((ulong)ROWS, grid.tiles - first), h_out, w_out, c_out, c_out);
}

/* Part i of n of the rows of a point's v and u, `v_width` and `u_width` floats of each. */
INLINE void fetch_rows(__global const float *v, int v_pitch, int v_width, __global const float *u, int u_pitch,
                       int u_width, int tiles, int i, int n) {
    const int part = (tiles + n - 1) / n;
    for (int t = i * part; t < min((i + 1) * part, tiles); t++) {
        fetch(v + t * v_pitch, 0, v_width + LINE_FLOATS - 1);
        fetch(u + t * u_pitch, 0, u_width + LINE_FLOATS - 1);
    }
}

/* What conv_winograd_weight_stored works on: v and u of all `tiles`, `block` of them at a time. */
typedef struct stored {
    __global const float *v, *u; /* [36][tiles][pitch] */
    ulong v_plane, u_plane;
    int v_pitch, u_pitch, tiles, block, c_in;
} stored;

/* s [36][strip][panel][ROWS][COLS] = the sums over all tiles of `strips` strips of ROWS input channels from strip
 * `first` on, and of `cols` columns from `column` on. */
static void sum_stored(__global float *s, ulong s_plane, const stored *t, int first, int strips, int column, int cols) {
    const int panels = (cols + COLS - 1) / COLS, steps = strips * panels, row = min(first * ROWS, t->c_in - ROWS);
    for (int begin = 0; begin < t->tiles; begin += t->block) {
        const int count = min(t->block, t->tiles - begin);
        for (int k = 0; k < PATCH; k++) {
            __global const float *v = t->v + k * t->v_plane + (ulong)begin * t->v_pitch;
            __global const float *u = t->u + k * t->u_plane + (ulong)begin * t->u_pitch + column;
            __global float *to = s + k * s_plane;
            for (int step = 0; step < steps; step++, to += ROWS * COLS) {
                const int strip = step / panels, p = step - strip * panels;
                /* the last strip begins earlier rather than read past the channels */
                __global const float *a = v + min((first + strip) * ROWS, t->c_in - ROWS);
                fetch_rows(v + t->v_plane + row, t->v_pitch, strips * ROWS, u + t->u_plane, t->u_pitch, cols, count,
                           step, steps);
                if (cols - p * COLS <= VW)
                    add_products(1, to, begin == 0, a, t->v_pitch, u + p * COLS, t->u_pitch, count);
                else
                    add_products(VECS, to, begin == 0, a, t->v_pitch, u + p * COLS, t->u_pitch, count);
            }
        }
    }
}

/* dw (9 * c_in, c_out) = (accumulate ? dw : 0) + the same sums, from the transforms of all tiles: v as
 * conv_winograd_patches leaves it, and u. `strips` strips of input channels and `share` panels at a time have their
 * sums in a core's cache from the first tile to the last; a work-group takes a run of these pairs, and has
 * `slot` floats of scratch: [s][9 taps of a vector]. */
CORE_KERNEL(conv_winograd_weight_stored,
            (dw, dw_offset, v, v_plane, u, u_plane, scratch, slot, tiles, block, c_in, c_out, strips, share,
             accumulate),
            __global float *dw, ulong dw_offset, __global const float *v, ulong v_plane, __global const float *u,
            ulong u_plane, __global float *scratch, ulong slot, int tiles, int block, int c_in, int c_out, int strips,
            int share, int accumulate) {
    const int panels = (c_out + COLS - 1) / COLS, all_strips = (c_in + ROWS - 1) / ROWS;
    const int groups = (all_strips + strips - 1) / strips, shares = (panels + share - 1) / share;
    const stored t = {v, u, v_plane, u_plane, V_PITCH(c_in), V_PITCH(panels * COLS), tiles, block, c_in};
    const ulong s_plane = (ulong)strips * share * ROWS * COLS + LINE_FLOATS;
    __global float *s = scratch + here.group[0] * slot, *taps = s + PATCH * s_plane;
    const int pairs = groups * shares;
    const int pair_begin = here.group[0] * pairs / here.groups[0],
              pair_end = (here.group[0] + 1) * pairs / here.groups[0];
    dw += dw_offset;
    for (int pair = pair_begin; pair < pair_end; pair++) {
        const int column = pair / groups * share * COLS, cols = min(c_out - column, share * COLS);
        const int first = (pair - pair / groups * groups) * strips, count = min(strips, all_strips - first);
        const int panel_count = (cols + COLS - 1) / COLS;
        sum_stored(s, s_plane, &t, first, count, column, cols);
        for (int i = first * ROWS; i < min((first + count) * ROWS, c_in); i++) {
            const int strip = i / ROWS, row = i - min(strip * ROWS, c_in - ROWS);
            for (int tap = 0; tap < 9; tap++) /* of the row after the next */
                fetch(dw + ((ulong)tap * c_in + i + 2) * c_out + column, 0, cols);
            for (int j = 0; j < cols; j += VW) {
                const int p = j / COLS;
                restore_taps(taps, VW,
                             s + (((ulong)(strip - first) * panel_count + p) * ROWS + row) * COLS + j - p * COLS,
                             s_plane);
                for (int tap = 0; tap < 9; tap++) {
                    __global float *at = dw + ((ulong)tap * c_in + i) * c_out + column + j;
                    const vec sum = VLOAD(0, taps + tap * VW);
                    store(at, accumulate ? load(at, cols - j) + sum : sum, cols - j);
                }
            }
        }
    }
}
#endif
