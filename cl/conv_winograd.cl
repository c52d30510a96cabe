/* Convolution 3x3 with stride 1 for CPU devices by Winograd's F(4x4, 3x3), fused: forward, and backward by data as the
 * same sum with turned, transposed weights.
 *
 * One work-item is one work-group: it owns a part of the scratch memory and takes blocks of tiles (4x4 outputs, 6x6
 * inputs) in turn. It transforms a block's input patches to v [point][tile][channel], multiplies them by the
 * transformed weights with register tiles, and brings the products m [point][tile][column] back to pixels, all while
 * both stay in the cache. What a pixel sums in which order does not depend on how tiles are blocked.
 *
 * VW: floats in a vector, VECS: vectors in a row of the register tile, ROWS: rows of it. */
#include "conv_winograd.clh"

/* m (rows, pitch) = (add ? m : 0) + v (rows, v_pitch) times a panel (c, COLS). */
static inline __attribute__((always_inline)) void multiply(const int rows, const int vecs, const int add,
                                                           __global float *m, int pitch, __global const float *v,
                                                           int v_pitch, __global const float *panel, int c) {
    vec acc[ROWS][VECS], b[VECS];
#define BEGIN(r, j)                                                                                                    \
    if (r < rows && j < vecs)                                                                                          \
        acc[r][j] = add ? VLOAD(j, m + r * pitch) : (vec)(0.0f);
#define BEGIN_ROW(r) EACH_VEC(BEGIN, r)
    EACH_ROW(BEGIN_ROW)
    for (int i = 0; i < c; i++, v++, panel += COLS) {
#define LOAD(r, j)                                                                                                     \
    if (j < vecs)                                                                                                      \
        b[j] = VLOAD(j, panel);
#define FMA(r, j)                                                                                                      \
    if (j < vecs)                                                                                                      \
        acc[r][j] = fma(s, b[j], acc[r][j]);
#define FMA_ROW(r)                                                                                                     \
    if (r < rows) {                                                                                                    \
        const vec s = (vec)(v[r * v_pitch]);                                                                           \
        EACH_VEC(FMA, r)                                                                                               \
    }
        EACH_VEC(LOAD, 0)
        EACH_ROW(FMA_ROW)
    }
#define KEEP(r, j)                                                                                                     \
    if (j < vecs)                                                                                                      \
        VSTORE(acc[r][j], j, m + r * pitch);
#define KEEP_ROW(r)                                                                                                    \
    if (r < rows) {                                                                                                    \
        EACH_VEC(KEEP, r)                                                                                              \
    }
    EACH_ROW(KEEP_ROW)
}

/* The block's last register tile may be lower, so that fewer rows are wasted. */
#define TWO_THIRDS ((2 * ROWS + 2) / 3)
#define THIRD      ((ROWS + 2) / 3)

static inline __attribute__((always_inline)) void multiply_block(const int vecs, const int add, __global float *m,
                                                                 int pitch, __global const float *v, int v_pitch,
                                                                 int tiles, __global const float *panel, int c) {
    for (int t = 0; t < tiles; t += ROWS, m += ROWS * pitch, v += ROWS * v_pitch)
        if (tiles - t > TWO_THIRDS)
            multiply(ROWS, vecs, add, m, pitch, v, v_pitch, panel, c);
        else if (tiles - t > THIRD)
            multiply(TWO_THIRDS, vecs, add, m, pitch, v, v_pitch, panel, c);
        else
            multiply(THIRD, vecs, add, m, pitch, v, v_pitch, panel, c);
}

/* Vector `value` at `to`, of which `cols` columns belong to the tensor. */
static inline __attribute__((always_inline)) void store(__global float *to, vec value, int cols) {
    if (cols >= VW) {
        VSTORE(value, 0, to);
        return;
    }
    float tail[VW];
    VSTORE(value, 0, tail);
    for (int j = 0; j < cols; j++)
        to[j] = tail[j];
}

/* Partial statistics of a work-group (3, c_out): values so far, in the first of its columns only, their mean and their
 * M2. A tile of `size` values joins by its own mean and M2, which come from sums of the differences to one of the
 * values: little cancels among the few of a tile. */
static inline __attribute__((always_inline)) void join_tile(__global float *mean_, __global float *m2_, vec pivot,
                                                            vec sum, vec squares, float size, float before, int cols) {
    const vec old = load(mean_, cols), difference = fma(sum, (vec)(1.0f / size), pivot) - old;
    const float weight = size / (before + size);
    const vec m2 = fmax(fma(sum * (-1.0f / size), sum, squares), (vec)(0.0f));
    store(mean_, fma(difference, (vec)(weight), old), cols);
    store(m2_, load(m2_, cols) + fma(difference * difference, (vec)(before * weight), m2), cols);
}

/* Back from m (36 planes, .) to the 4x4 pixels at y, of which `height` x `width` lie in the image. stats: the partial
 * statistics (3, c_out) that they join, or 0. add: to what is there. */
static inline __attribute__((always_inline)) void restore_tile(__global float *y, __global float *stats, int add,
                                                               int w_out, int c_out, int height, int width,
                                                               __global const float *m, ulong plane, int cols) {
    const float size = (float)(min(height, 4) * min(width, 4)), before = stats ? *stats : 0.0f;
    for (int j = 0; j < cols; j += VW) {
        vec t[4][POINTS], pivot = (vec)(0.0f), sum = (vec)(0.0f), squares = (vec)(0.0f);
        __global const float *from = m + j;
#define TILE_IN(r)  m##r
#define TILE_OUT(r) t[r][column]
#define TILE_COLUMN(k)                                                                                                 \
    {                                                                                                                  \
        const int column = k;                                                                                          \
        const vec m0 = VLOAD(0, from + k * plane), m1 = VLOAD(0, from + (6 + k) * plane);                              \
        const vec m2 = VLOAD(0, from + (12 + k) * plane), m3 = VLOAD(0, from + (18 + k) * plane);                      \
        const vec m4 = VLOAD(0, from + (24 + k) * plane), m5 = VLOAD(0, from + (30 + k) * plane);                      \
        OUTPUT_TRANSFORM_4(TILE_OUT, TILE_IN)                                                                          \
    }
        EACH_6(TILE_COLUMN)
        const int rest = cols - j;
#define LINE_IN(q)  t[row][q]
#define LINE_OUT(q) p##q
#define TILE_ROW(r)                                                                                                    \
    if (r < height) {                                                                                                  \
        const int row = r;                                                                                             \
        __global float *to = y + (ulong)r * w_out * c_out + j;                                                         \
        vec p0, p1, p2, p3;                                                                                            \
        OUTPUT_TRANSFORM_4(LINE_OUT, LINE_IN)                                                                          \
        if (r == 0)                                                                                                    \
            pivot = p0;                                                                                                \
        PUT(0)                                                                                                         \
        PUT(1)                                                                                                         \
        PUT(2)                                                                                                         \
        PUT(3)                                                                                                         \
    }
#define PUT(q)                                                                                                         \
    if (q < width) {                                                                                                   \
        store(to + q * c_out, add ? load(to + q * c_out, rest) + p##q : p##q, rest);                                   \
        if (stats) {                                                                                                   \
            const vec difference = p##q - pivot;                                                                       \
            sum += difference;                                                                                         \
            squares = fma(difference, difference, squares);                                                            \
        }                                                                                                              \
    }
        EACH_4(TILE_ROW)
        if (stats)
            join_tile(stats + c_out + j, stats + 2 * c_out + j, pivot, sum, squares, size, before, rest);
    }
    if (stats)
        *stats = before + size;
}

/* One column of vectors of packed weights: the transforms of filters whose taps are `taps`[9], each to its plane. */
static inline __attribute__((always_inline)) void transform_filter(__global float *to, ulong plane, const vec *taps) {
    vec t[POINTS][3];
#define FILTER_IN(r)  taps[r * 3 + column]
#define FILTER_OUT(r) t[r][column]
#define FILTER_COLUMN(s)                                                                                               \
    {                                                                                                                  \
        const int column = s;                                                                                          \
        FILTER_TRANSFORM_3(FILTER_OUT, FILTER_IN)                                                                      \
    }
    FILTER_COLUMN(0)
    FILTER_COLUMN(1)
    FILTER_COLUMN(2)
#define FILTER_LINE_IN(s)  t[row][s]
#define FILTER_LINE_OUT(s) u##s
#define FILTER_ROW(r)                                                                                                  \
    {                                                                                                                  \
        const int row = r;                                                                                             \
        vec u0, u1, u2, u3, u4, u5;                                                                                    \
        FILTER_TRANSFORM_3(FILTER_LINE_OUT, FILTER_LINE_IN)                                                            \
        VSTORE(u0, 0, to);                                                                                             \
        VSTORE(u1, 0, to + plane);                                                                                     \
        VSTORE(u2, 0, to + 2 * plane);                                                                                 \
        VSTORE(u3, 0, to + 3 * plane);                                                                                 \
        VSTORE(u4, 0, to + 4 * plane);                                                                                 \
        VSTORE(u5, 0, to + 5 * plane);                                                                                 \
        to += 6 * plane;                                                                                               \
    }
    EACH_6(FILTER_ROW)
}

/* What the transformed weights of a pass are made from: w (3, 3, c_in, c_out). Transposed: the columns are input
 * channels, the rows output channels, and the window is turned by half. */
typedef struct filter {
    __global const float *w;
    int c_in, c_out, transposed;
} filter;

enum { LINES = 16 }; /* rows of transformed weights that are made at a time: a cache line of w when it is transposed */

/* Rows `first` .. `first` + `lines` (at most LINES) of a panel, the planes of each point `plane` apart; columns past
 * the last channel are zero. */
static void transform_lines(__global float *to, ulong plane, filter f, int panel, int first, int lines) {
    const int column = panel * COLS, cols = min((f.transposed ? f.c_in : f.c_out) - column, COLS);
    for (int j = 0; j < COLS; j += VW) {
        float tile[9][LINES][VW];
        for (int tap = 0; tap < 9; tap++)
            if (f.transposed) {
                __global const float *from = f.w + ((ulong)(8 - tap) * f.c_in + column + j) * f.c_out + first;
                for (int k = 0; k < VW; k++, from += f.c_out)
                    for (int i = 0; i < lines; i++)
                        tile[tap][i][k] = j + k < cols ? from[i] : 0.0f;
            } else {
                __global const float *from = f.w + ((ulong)tap * f.c_in + first) * f.c_out + column + j;
                for (int i = 0; i < lines; i++, from += f.c_out)
                    for (int k = 0; k < VW; k++)
                        tile[tap][i][k] = j + k < cols ? from[k] : 0.0f;
            }
        for (int i = 0; i < lines; i++) {
            vec taps[9];
            for (int tap = 0; tap < 9; tap++)
                taps[tap] = VLOAD(0, tile[tap][i]);
            transform_filter(to + i * COLS + j, plane, taps);
        }
    }
}

/* weights [36][panels][run][COLS], run the rows of a panel. One work-item (panel, LINES rows). */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void conv_winograd_weights(__global float *weights,
                                                                                   __global const float *w,
                                                                                   ulong w_offset, int c_in, int c_out,
                                                                                   int transposed) {
    const filter f = {w + w_offset, c_in, c_out, transposed};
    const int panel = get_global_id(0), first = get_global_id(1) * LINES, run = transposed ? c_out : c_in;
    transform_lines(weights + ((ulong)panel * run + first) * COLS, (ulong)get_global_size(0) * run * COLS, f, panel,
                    first, min(run - first, LINES));
}

static void clear_stats(__global float *stats, ulong stride, int groups, int c_out, int begin, int end) {
    for (int g = 0; g < groups; g++)
        for (int r = 0; r < 3; r++)
            for (int i = begin; i < end; i++)
                stats[g * stride + r * c_out + i] = 0.0f;
}

/* The number of values, from column `begin` to those up to `end`. */
static void spread_count(__global float *stats, ulong stride, int groups, int begin, int end) {
    for (int g = 0; g < groups; g++)
        for (int i = begin + 1; i < end; i++)
            stats[g * stride + i] = stats[g * stride + begin];
}

/* y (n, h_out, w_out, c_out) from x (n, h_in, w_in, c_in) and weights [36][panels][c_in][COLS]. Dimension 0 of the
 * range counts parts of the scratch, [c_in zeros][v][m] of `slot` floats each, which take every so many'th block of
 * `block` tiles (a multiple of ROWS); dimension 1 shares the panels out. m holds `group` panels at a time. affine: x is
 * read through this map, see input_map; `images` images share one, and share the statistics stats (n / images, parts of
 * the scratch, 3, c_out) of y. add: to what y holds. */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void
conv_winograd(__global float *y, ulong y_offset, __global const float *x, ulong x_offset, __global const float *weights,
              __global float *scratch, ulong slot, __global const float *affine, ulong affine_offset, ulong stride,
              __global float *stats, int images, int n, int h_in, int w_in, int c_in, int h_out, int w_out, int c_out,
              int pad, int block, int group, int add) {
    const tile_grid grid = {(h_out + 3) / 4, (w_out + 3) / 4, (ulong)n * ((h_out + 3) / 4) * ((w_out + 3) / 4)};
    const int panels = (c_out + COLS - 1) / COLS, share = (panels + get_global_size(1) - 1) / get_global_size(1);
    const int panel_begin = get_global_id(1) * share, panel_end = min(panel_begin + share, panels);
    const int v_pitch = c_in + VW, m_pitch = group * COLS; /* VW more: rows do not meet in the same cache sets */
    const ulong v_plane = (ulong)block * v_pitch + VW, m_plane = (ulong)block * m_pitch + VW;
    scratch += (get_global_id(1) * get_global_size(0) + get_global_id(0)) * slot;
    __global float *zeros = scratch, *v = zeros + c_in, *m = v + PATCH * v_plane;
    y += y_offset;
    x += x_offset;
    for (int i = 0; i < c_in; i++)
        zeros[i] = 0.0f;
    const input_map map = {affine ? affine + affine_offset : 0, stride, images};
    const ulong stats_stride = get_global_size(0) * 3 * c_out;
    if (stats) {
        stats += get_global_id(0) * 3 * c_out;
        clear_stats(stats, stats_stride, n / images, c_out, panel_begin * COLS, min(panel_end * COLS, c_out));
    }

    for (ulong first = get_global_id(0) * block; first < grid.tiles; first += get_global_size(0) * block) {
        const int count = (int)min((ulong)block, grid.tiles - first);
        transform_block(v, v_plane, v_pitch, x, map, zeros, grid, first, count, (count + ROWS - 1) / ROWS * ROWS, h_in,
                        w_in, c_in, pad);
        for (int begin = panel_begin; begin < panel_end; begin += group) {
            const int end = min(begin + group, panel_end);
            for (int k = 0; k < PATCH; k++)
                for (int p = begin; p < end; p++) {
                    __global const float *panel = weights + ((ulong)k * panels + p) * c_in * COLS;
                    __global float *to = m + k * m_plane + (p - begin) * COLS;
                    if (c_out - p * COLS <= VW)
                        multiply_block(1, 0, to, m_pitch, v + k * v_plane, v_pitch, count, panel, c_in);
                    else
                        multiply_block(VECS, 0, to, m_pitch, v + k * v_plane, v_pitch, count, panel, c_in);
                }
            const int column = begin * COLS, cols = min(c_out, end * COLS) - column;
            for (int t = 0; t < count; t++) {
                const place at = place_of(first + t, grid.rows, grid.columns);
                const int p = 4 * at.row, q = 4 * at.column;
                restore_tile(y + ((at.outer * h_out + p) * w_out + q) * c_out + column,
                             stats ? stats + at.outer / (uint)images * stats_stride + column : 0, add, w_out, c_out,
                             h_out - p, w_out - q, m + (ulong)t * m_pitch, m_plane, cols);
            }
        }
    }
    for (int begin = panel_begin; stats && begin < panel_end; begin += group)
        spread_count(stats, stats_stride, n / images, begin * COLS, min(c_out, min(begin + group, panel_end) * COLS));
}

/* ---- few tiles and many weights --------------------------------------------------------------------------------- */

/* v [36][tiles][c_in + VW] of all tiles, `plane` floats from point to point; the tiles are padded to whole register
 * tiles. Dimension 0 of the range counts blocks of ROWS tiles. */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void
conv_winograd_patches(__global float *v, ulong plane, __global const float *x, ulong x_offset,
                      __global const float *zeros, __global const float *affine, ulong affine_offset, ulong stride,
                      int images, int n, int h_in, int w_in, int c_in, int h_out, int w_out, int pad) {
    const tile_grid grid = {(h_out + 3) / 4, (w_out + 3) / 4, (ulong)n * ((h_out + 3) / 4) * ((w_out + 3) / 4)};
    const input_map map = {affine ? affine + affine_offset : 0, stride, images};
    const ulong first = get_global_id(0) * ROWS;
    transform_block(v + first * (c_in + VW), plane, c_in + VW, x + x_offset, map, zeros, grid, first,
                    (int)min((ulong)ROWS, grid.tiles - first), ROWS, h_in, w_in, c_in, pad);
}

/* y from v, as conv_winograd_patches leaves it, and w itself: a work-group takes every so many'th panel, transforms its
 * weights `chunk` rows at a time and uses them at once, so that they never leave the cache. `slot` floats of scratch
 * for each: [u: 36 planes of chunk x COLS][m: 36 planes of tiles x COLS]. stats (n / images, 1, 3, c_out). */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void
conv_winograd_panels(__global float *y, ulong y_offset, __global const float *v, ulong v_plane, __global const float *w,
                     ulong w_offset, int filter_in, int filter_out, int transposed, __global float *scratch, ulong slot,
                     __global float *stats, int images, int n, int c_in, int h_out, int w_out, int c_out, int chunk,
                     int add) {
    const tile_grid grid = {(h_out + 3) / 4, (w_out + 3) / 4, (ulong)n * ((h_out + 3) / 4) * ((w_out + 3) / 4)};
    const filter f = {w + w_offset, filter_in, filter_out, transposed};
    const int panels = (c_out + COLS - 1) / COLS, tiles = (int)grid.tiles, v_pitch = c_in + VW;
    const ulong u_plane = (ulong)chunk * COLS + VW, m_plane = (ulong)tiles * COLS + VW, stats_stride = 3 * c_out;
    __global float *u = scratch + get_global_id(0) * slot, *m = u + PATCH * u_plane;
    y += y_offset;
    for (int p = get_global_id(0); p < panels; p += get_global_size(0)) {
        const int column = p * COLS, cols = min(c_out - column, COLS);
        for (int from = 0; from < c_in; from += chunk) {
            const int lines = min(chunk, c_in - from);
            for (int i = 0; i < lines; i += LINES)
                transform_lines(u + i * COLS, u_plane, f, p, from + i, min(lines - i, LINES));
            for (int k = 0; k < PATCH; k++) {
                __global const float *a = v + k * v_plane + from, *panel = u + k * u_plane;
                if (cols <= VW)
                    multiply_block(1, from > 0, m + k * m_plane, COLS, a, v_pitch, tiles, panel, lines);
                else
                    multiply_block(VECS, from > 0, m + k * m_plane, COLS, a, v_pitch, tiles, panel, lines);
            }
        }
        if (stats)
            clear_stats(stats, stats_stride, n / images, c_out, column, column + cols);
        for (int t = 0; t < tiles; t++) {
            const place at = place_of(t, grid.rows, grid.columns);
            const int row = 4 * at.row, q = 4 * at.column;
            restore_tile(y + ((at.outer * h_out + row) * w_out + q) * c_out + column,
                         stats ? stats + at.outer / (uint)images * stats_stride + column : 0, add, w_out, c_out,
                         h_out - row, w_out - q, m + (ulong)t * COLS, m_plane, cols);
        }
        if (stats)
            spread_count(stats, stats_stride, n / images, column, column + cols);
    }
}
