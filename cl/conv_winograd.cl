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

/* m (rows, pitch) = (add ? m : 0) + v (rows, v_pitch) times a panel (c, COLS). What lies `next` floats after the panel
 * is used after it, and on its way into the cache. */
static inline __attribute__((always_inline)) void multiply(const int rows, const int vecs, const int add,
                                                           __global float *m, int pitch, __global const float *v,
                                                           int v_pitch, __global const float *panel, int c, long next) {
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
        FETCH_FAR(panel + next);
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
                                                                 int tiles, __global const float *panel, int c,
                                                                 long next) {
    for (int t = 0; t < tiles; t += ROWS, m += ROWS * pitch, v += ROWS * v_pitch)
        if (tiles - t > TWO_THIRDS)
            multiply(ROWS, vecs, add, m, pitch, v, v_pitch, panel, c, next);
        else if (tiles - t > THIRD)
            multiply(TWO_THIRDS, vecs, add, m, pitch, v, v_pitch, panel, c, next);
        else
            multiply(THIRD, vecs, add, m, pitch, v, v_pitch, panel, c, next);
}

/* Vector `value` at `to`, of which `cols` columns belong to the tensor. */
static inline __attribute__((always_inline)) void store(__global float *to, vec value, int cols) {
    if (cols >= VW) {
        PUT(value, to);
        return;
    }
    float tail[VW];
    VSTORE(value, 0, tail);
    for (int j = 0; j < cols; j++)
        to[j] = tail[j];
}

/* What a pass finds out about its output as it writes it, for batch norm: nothing; forward, the statistics of y;
 * backward by data, sums of the gradient behind the ReLU in front of x, which is what it then writes. */
enum { NOTHING, STATISTICS, GRADIENTS };
#define VALUES(kind) ((kind) == STATISTICS ? 3 : 2)

/* parts (n / images, work-groups, VALUES, c_out), see join_tile. GRADIENTS: u (n, h_out, w_out, c_out) is the output of
 * the convolution whose batch norm and ReLU gave x, saved (n / images, 4, c_out) that batch norm's mean, rstd, slope
 * and shift; the ReLU let through what is positive in `after`, or, without it, where u * slope + shift is. */
typedef struct epilogue {
    __global float *parts;
    ulong stride; /* of parts, from group to group */
    int images, c;
    __global const float *u, *after, *saved;
} epilogue;

/* STATISTICS (3, c): values so far, in the first of a work-group's columns only, their mean and their M2. A tile of
 * `size` values joins by its own mean and M2, which come from sums of the differences to one of the values: little
 * cancels among the few of a tile. */
static inline __attribute__((always_inline)) void join_tile(__global float *mean_, __global float *m2_, vec pivot,
                                                            vec sum, vec squares, float size, float before, int cols) {
    const vec old = load(mean_, cols), difference = fma(sum, (vec)(1.0f / size), pivot) - old;
    const float weight = size / (before + size);
    const vec m2 = fmax(fma(sum * (-1.0f / size), sum, squares), (vec)(0.0f));
    store(mean_, fma(difference, (vec)(weight), old), cols);
    store(m2_, load(m2_, cols) + fma(difference * difference, (vec)(before * weight), m2), cols);
}

/* One vector of a tile: back from m (36 planes, .) to 4x4 pixels at y, of which `height` x `width` lie in the image,
 * `line` floats from row to row. whole: all of them, and all of the vector's columns. add: to what is there. */
static inline __attribute__((always_inline)) void restore_vector(const int whole, const int kind, __global float *y,
                                                                 epilogue e, int add, long line, int c_out, int height,
                                                                 int width, __global const float *m, ulong plane,
                                                                 float before, int cols) {
    vec t[4][POINTS], pivot = (vec)(0.0f), sum = (vec)(0.0f), squares = (vec)(0.0f), mean, slope, shift;
    if (whole) {
        height = width = 4;
        cols = VW;
    }
    if (kind == GRADIENTS) {
        mean = load(e.saved, cols);
        slope = load(e.saved + 2 * e.c, cols);
        shift = load(e.saved + 3 * e.c, cols);
    }
#define TILE_IN(r)  m##r
#define TILE_OUT(r) t[r][column]
#define TILE_COLUMN(k)                                                                                                 \
    {                                                                                                                  \
        const int column = k;                                                                                          \
        const vec m0 = VLOAD(0, m + k * plane), m1 = VLOAD(0, m + (6 + k) * plane);                                    \
        const vec m2 = VLOAD(0, m + (12 + k) * plane), m3 = VLOAD(0, m + (18 + k) * plane);                            \
        const vec m4 = VLOAD(0, m + (24 + k) * plane), m5 = VLOAD(0, m + (30 + k) * plane);                            \
        OUTPUT_TRANSFORM_4(TILE_OUT, TILE_IN)                                                                          \
    }
    EACH_6(TILE_COLUMN)
#define LINE_IN(q)  t[row][q]
#define LINE_OUT(q) p##q
#define TILE_ROW(r)                                                                                                    \
    if (r < height) {                                                                                                  \
        const int row = r;                                                                                             \
        vec p0, p1, p2, p3;                                                                                            \
        OUTPUT_TRANSFORM_4(LINE_OUT, LINE_IN)                                                                          \
        if (r == 0)                                                                                                    \
            pivot = p0;                                                                                                \
        PIXEL(r, 0)                                                                                                    \
        PIXEL(r, 1)                                                                                                    \
        PIXEL(r, 2)                                                                                                    \
        PIXEL(r, 3)                                                                                                    \
    }
#define PIXEL(r, q)                                                                                                    \
    if (q < width) {                                                                                                   \
        const long at = r * line + q * c_out;                                                                          \
        vec value = p##q;                                                                                              \
        if (add)                                                                                                       \
            value += load(y + at, cols);                                                                               \
        if (kind == GRADIENTS) {                                                                                       \
            const vec u = load(e.u + at, cols), through = e.after ? load(e.after + at, cols) : fma(u, slope, shift);   \
            value = select((vec)(0.0f), value, through > (vec)(0.0f));                                                 \
            sum += value;                                                                                              \
            squares = fma(value, u - mean, squares);                                                                   \
        }                                                                                                              \
        store(y + at, value, cols);                                                                                    \
        if (kind == STATISTICS) {                                                                                      \
            const vec difference = value - pivot;                                                                      \
            sum += difference;                                                                                         \
            squares = fma(difference, difference, squares);                                                            \
        }                                                                                                              \
    }
    EACH_4(TILE_ROW)
    if (kind == STATISTICS)
        join_tile(e.parts + e.c, e.parts + 2 * e.c, pivot, sum, squares, (float)(height * width), before, cols);
    if (kind == GRADIENTS) {
        store(e.parts, load(e.parts, cols) + sum, cols);
        store(e.parts + e.c, fma(squares, load(e.saved + e.c, cols), load(e.parts + e.c, cols)), cols);
    }
}

/* Where a pass writes to. */
typedef struct output {
    __global float *y; /* (., h, w, c) */
    tile_grid grid;
    int h, w, c, kind, add;
    epilogue e;
} output;

static inline __attribute__((always_inline)) void restore_block(const int kind, const output *o, ulong first, int count,
                                                                int column, int cols, __global const float *m,
                                                                ulong plane, int pitch) {
    const int c = o->c, add = o->add;
    const long line = (long)o->w * c;
    for (int t = 0; t < count; t++, m += pitch) {
        const place at = place_of(first + t, o->grid.rows, o->grid.columns);
        const int height = min(4, o->h - 4 * at.row), width = min(4, o->w - 4 * at.column);
        const ulong pixel = ((at.outer * o->h + 4 * at.row) * o->w + 4 * at.column) * c + column;
        epilogue e = o->e;
        float before = 0.0f;
        if (kind != NOTHING) {
            const uint group = (uint)at.outer / (uint)e.images;
            e.parts += group * e.stride + column;
            if (kind == STATISTICS) {
                before = *e.parts;
                *e.parts = before + (float)(height * width);
            } else {
                e.u += pixel;
                e.after += e.after ? pixel : 0;
                e.saved += (ulong)group * 4 * c + column;
            }
        }
        for (int j = 0; j < cols; j += VW) {
            __global float *y = o->y + pixel + j;
            if (height == 4 && width == 4 && cols - j >= VW)
                restore_vector(1, kind, y, e, add, line, c, 4, 4, m + j, plane, before, VW);
            else
                restore_vector(0, kind, y, e, add, line, c, height, width, m + j, plane, before, cols - j);
            e.parts += VW;
            e.u += VW;
            e.saved += VW;
            e.after += e.after ? VW : 0;
        }
    }
}

/* The tiles `first` .. `first` + `count` - 1 of columns `column` .. `column` + `cols` - 1 from m, the planes of each
 * point `plane` apart and tiles `pitch`. */
static void restore(const output *o, ulong first, int count, int column, int cols, __global const float *m, ulong plane,
                    int pitch) {
    if (o->kind == NOTHING)
        restore_block(NOTHING, o, first, count, column, cols, m, plane, pitch);
    else if (o->kind == STATISTICS)
        restore_block(STATISTICS, o, first, count, column, cols, m, plane, pitch);
    else
        restore_block(GRADIENTS, o, first, count, column, cols, m, plane, pitch);
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

/* Columns `begin` .. `end` - 1 of parts, before the first tile. */
static void clear_parts(int kind, epilogue e, int groups, int begin, int end) {
    for (int g = 0; kind != NOTHING && g < groups; g++)
        for (int r = 0; r < VALUES(kind); r++)
            for (int i = begin; i < end; i++)
                e.parts[g * e.stride + r * e.c + i] = 0.0f;
}

/* STATISTICS: the number of values, from column `begin` to those up to `end`. */
static void spread_count(int kind, epilogue e, int groups, int begin, int end) {
    for (int g = 0; kind == STATISTICS && g < groups; g++)
        for (int i = begin + 1; i < end; i++)
            e.parts[g * e.stride + i] = e.parts[g * e.stride + begin];
}

/* The arguments of a kernel as an epilogue; `part` of `parts` is this work-group's. */
static epilogue epilogue_of(int kind, __global float *partial, int part, ulong parts, int images, int c_out,
                            __global const float *u, __global const float *after, __global const float *saved) {
    const ulong size = (ulong)VALUES(kind) * c_out;
    epilogue e = {partial, parts * size, images, c_out, u, after, saved};
    if (partial)
        e.parts += part * size;
    return e;
}

/* Part k of what the multiplication of a block has time to bring into the cache: the pixels it will write, and `next`,
 * `ahead` tiles after `first`, which are read then. */
static inline void fetch_around(const output *o, ulong first, int count, __global const float *x, int h_in, int line_in,
                                ulong next, int ahead, int k) {
    const int line = o->w * o->c;
    fetch_part(o->y, o->grid, first, count, o->h, line, k);
    if (o->kind == GRADIENTS)
        fetch_part(o->e.u, o->grid, first, count, o->h, line, k);
    if (o->kind == GRADIENTS && o->e.after)
        fetch_part(o->e.after, o->grid, first, count, o->h, line, k);
    fetch_part(x, o->grid, next, ahead, h_in, line_in, k);
}

/* y (n, h_out, w_out, c_out) from x (n, h_in, w_in, c_in) and weights [36][panels][c_in][COLS]. Dimension 0 of the
 * range counts parts of the scratch, [c_in zeros][v][m] of `slot` floats each, which take every so many'th block of
 * `block` tiles (a multiple of ROWS); dimension 1 shares the panels out. m holds `group` panels at a time. affine: x is
 * read through this map, see input_map; `images` images share one. kind, partial, u, after, saved: see epilogue. add:
 * to what y holds. */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void
conv_winograd(__global float *y, ulong y_offset, __global const float *x, ulong x_offset, __global const float *weights,
              __global float *scratch, ulong slot, __global const float *affine, ulong affine_offset, ulong stride,
              int kind, __global float *partial, __global const float *u, ulong u_offset, __global const float *after,
              ulong after_offset, __global const float *saved, ulong saved_offset, int images, int n, int h_in,
              int w_in, int c_in, int h_out, int w_out, int c_out, int pad, int block, int group, int add) {
    const tile_grid grid = {(h_out + 3) / 4, (w_out + 3) / 4, (ulong)n * ((h_out + 3) / 4) * ((w_out + 3) / 4)};
    const int panels = (c_out + COLS - 1) / COLS, share = (panels + get_global_size(1) - 1) / get_global_size(1);
    const int panel_begin = get_global_id(1) * share, panel_end = min(panel_begin + share, panels);
    const int v_pitch = V_PITCH(c_in), m_pitch = group * COLS;
    const ulong v_plane = (ulong)block * v_pitch + LINE, m_plane = (ulong)block * m_pitch + LINE;
    scratch += (get_global_id(1) * get_global_size(0) + get_global_id(0)) * slot;
    __global float *zeros = scratch, *v = zeros + (c_in + 15) / 16 * 16, *m = v + PATCH * v_plane;
    x += x_offset;
    for (int i = 0; i < c_in; i++)
        zeros[i] = 0.0f;
    const input_map map = {affine ? affine + affine_offset : 0, stride, images};
    const epilogue e = epilogue_of(kind, partial, get_global_id(0), get_global_size(0), images, c_out, u + u_offset,
                                   after ? after + after_offset : 0, saved + saved_offset);
    const output out = {y + y_offset, grid, h_out, w_out, c_out, kind, add, e};
    clear_parts(kind, e, n / images, panel_begin * COLS, min(panel_end * COLS, c_out));

    for (ulong first = get_global_id(0) * block; first < grid.tiles; first += get_global_size(0) * block) {
        const int count = (int)min((ulong)block, grid.tiles - first);
        const ulong next = min(first + get_global_size(0) * block, grid.tiles);
        const int ahead = (int)min((ulong)block, grid.tiles - next);
        transform_block(v, v_plane, v_pitch, x, map, zeros, grid, first, count, (count + ROWS - 1) / ROWS * ROWS, h_in,
                        w_in, c_in, pad);
        for (int begin = panel_begin; begin < panel_end; begin += group) {
            const int end = min(begin + group, panel_end);
            for (int k = 0; k < PATCH; k++) {
                if (begin == panel_begin)
                    fetch_around(&out, first, count, x, h_in, w_in * c_in, next, ahead, k);
                for (int p = begin; p < end; p++) {
                    __global const float *panel = weights + ((ulong)k * panels + p) * c_in * COLS;
                    __global float *to = m + k * m_plane + (p - begin) * COLS;
                    const long after = (p + 1 < end ? 1 : panels - (p - begin)) * (long)c_in * COLS;
                    if (c_out - p * COLS <= VW)
                        multiply_block(1, 0, to, m_pitch, v + k * v_plane, v_pitch, count, panel, c_in, after);
                    else
                        multiply_block(VECS, 0, to, m_pitch, v + k * v_plane, v_pitch, count, panel, c_in, after);
                }
            }
            const int column = begin * COLS;
            restore(&out, first, count, column, min(c_out, end * COLS) - column, m, m_plane, m_pitch);
        }
    }
    for (int begin = panel_begin; begin < panel_end; begin += group)
        spread_count(kind, e, n / images, begin * COLS, min(c_out, min(begin + group, panel_end) * COLS));
}

/* ---- few tiles and many weights --------------------------------------------------------------------------------- */

/* v [36][tiles][V_PITCH(c_in)] of all tiles, `plane` floats from point to point; the tiles are padded to whole register
 * tiles. Dimension 0 of the range counts blocks of ROWS tiles. */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void
conv_winograd_patches(__global float *v, ulong plane, __global const float *x, ulong x_offset,
                      __global const float *zeros, __global const float *affine, ulong affine_offset, ulong stride,
                      int images, int n, int h_in, int w_in, int c_in, int h_out, int w_out, int pad) {
    const tile_grid grid = {(h_out + 3) / 4, (w_out + 3) / 4, (ulong)n * ((h_out + 3) / 4) * ((w_out + 3) / 4)};
    const input_map map = {affine ? affine + affine_offset : 0, stride, images};
    const ulong first = get_global_id(0) * ROWS;
    transform_block(v + first * V_PITCH(c_in), plane, V_PITCH(c_in), x + x_offset, map, zeros, grid, first,
                    (int)min((ulong)ROWS, grid.tiles - first), ROWS, h_in, w_in, c_in, pad);
}

/* y from v, as conv_winograd_patches leaves it, and w itself: a work-group takes every so many'th panel, transforms its
 * weights `chunk` rows at a time and uses them at once, so that they never leave the cache. `slot` floats of scratch
 * for each: [filters: 36 planes of chunk x COLS][m: 36 planes of tiles x COLS]. The epilogue has one part. */
__attribute__((reqd_work_group_size(1, 1, 1))) __kernel void
conv_winograd_panels(__global float *y, ulong y_offset, __global const float *v, ulong v_plane, __global const float *w,
                     ulong w_offset, int filter_in, int filter_out, int transposed, __global float *scratch, ulong slot,
                     int kind, __global float *partial, __global const float *u, ulong u_offset,
                     __global const float *after, ulong after_offset, __global const float *saved, ulong saved_offset,
                     int images, int n, int c_in, int h_out, int w_out, int c_out, int chunk, int add) {
    const tile_grid grid = {(h_out + 3) / 4, (w_out + 3) / 4, (ulong)n * ((h_out + 3) / 4) * ((w_out + 3) / 4)};
    const filter f = {w + w_offset, filter_in, filter_out, transposed};
    const int panels = (c_out + COLS - 1) / COLS, tiles = (int)grid.tiles, v_pitch = V_PITCH(c_in);
    const ulong f_plane = (ulong)chunk * COLS + VW, m_plane = (ulong)tiles * COLS + VW;
    __global float *filters = scratch + get_global_id(0) * slot, *m = filters + PATCH * f_plane;
    const epilogue e = epilogue_of(kind, partial, 0, 1, images, c_out, u + u_offset, after ? after + after_offset : 0,
                                   saved + saved_offset);
    const output out = {y + y_offset, grid, h_out, w_out, c_out, kind, add, e};
    for (int p = get_global_id(0); p < panels; p += get_global_size(0)) {
        const int column = p * COLS, cols = min(c_out - column, COLS);
        for (int from = 0; from < c_in; from += chunk) {
            const int lines = min(chunk, c_in - from);
            for (int i = 0; i < lines; i += LINES)
                transform_lines(filters + i * COLS, f_plane, f, p, from + i, min(lines - i, LINES));
            for (int k = 0; k < PATCH; k++) {
                __global const float *a = v + k * v_plane + from, *panel = filters + k * f_plane;
                if (cols <= VW)
                    multiply_block(1, from > 0, m + k * m_plane, COLS, a, v_pitch, tiles, panel, lines, f_plane);
                else
                    multiply_block(VECS, from > 0, m + k * m_plane, COLS, a, v_pitch, tiles, panel, lines, f_plane);
            }
        }
        clear_parts(kind, e, n / images, column, column + cols);
        restore(&out, 0, tiles, column, cols, m, m_plane, COLS);
        spread_count(kind, e, n / images, column, column + cols);
    }
}
