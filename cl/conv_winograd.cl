/* Convolution 3x3 with stride 1 or 2 for CPU devices by Winograd's minimal filtering, fused: forward, and backward by
 * data as the same sum with turned, transposed weights.
 *
 * One work-item is one work-group: it owns a part of the scratch memory and takes a run of blocks of tiles, so that it
 * finds the rows that two blocks share in the cache. It transforms a block's input patches to v, for each of the 36
 * matrices of transformed weights the rows that meet it, multiplies them with register tiles, and brings the products m
 * back to pixels, all while both stay in the cache. What a pixel sums in which order does not depend on how tiles are
 * blocked.
 *
 * VW: floats in a vector, VECS: vectors in a row of the register tile, ROWS: rows of it. STRIDE: of the window; DATA: 1
 * backward by data at stride 2. */
#include "conv_winograd_pass.clh"

/* weights [36][panels][run][COLS], run the rows of a panel. One work-item (panel, `share` rows). */
CORE_KERNEL(conv_winograd_weights,
            (weights, w, w_offset, c_in, c_out, transposed, share),
            __global float *weights, __global const float *w, ulong w_offset, int c_in, int c_out, int transposed,
            int share) {
    const filter f = {w + w_offset, c_in, c_out, transposed};
    const int panel = here.group[0], run = transposed ? c_out : c_in, begin = here.group[1] * share;
    for (int first = begin; first < min(begin + share, run); first += LINES)
        transform_lines(weights + ((ulong)panel * run + first) * COLS, (ulong)here.groups[0] * run * COLS, f, panel,
                        first, min(run - first, LINES));
}

/* What the multiplication of a block has time to bring into the cache: the pixels of its `count` tiles from `first` on,
 * which are written then, and those of the `more` tiles after them, which are read next. */
INLINE void expect_block(look_ahead *ahead, const output *o, ulong first, int count, __global const float *x, int h_in,
                         int line_in, int more) {
    const int line = o->w * o->c;
    expect_pixels(ahead, o->y, o->grid, first, count, TILE_OUT, 0, o->h, line);
    if (o->kind == GRADIENTS)
        expect_pixels(ahead, o->e.u, o->grid, first, count, TILE_OUT, 0, o->h, line);
    if (o->kind == GRADIENTS && o->e.after)
        expect_pixels(ahead, o->e.after, o->grid, first, count, TILE_OUT, 0, o->h, line);
    expect_pixels(ahead, x, o->grid, first + count, more, TILE_IN, TILE_HALO, h_in, line_in);
}

/* y (n, h_out, w_out, c_out) from x (n, h_in, w_in, c_in) and weights [36][panels][c_in][COLS]. Dimension 0 of the
 * range counts parts of the scratch, [c_in zeros][v][m] of `slot` floats each, which take a run of blocks of `block`
 * tiles (a multiple of ROWS) each; dimension 1 shares the panels out. m holds `group` panels at a time. affine: x is
 * read through this map, see input_map; `images` images share one. kind, partial, u, after, saved: see epilogue. add:
 * to what y holds. */
CORE_KERNEL(conv_winograd,
            (y, y_offset, x, x_offset, weights, scratch, slot, affine, affine_offset, stride, kind, partial, u,
             u_offset, after, after_offset, saved, saved_offset, images, n, h_in, w_in, c_in, h_out, w_out, c_out, pad,
             block, group, add),
            __global float *y, ulong y_offset, __global const float *x, ulong x_offset, __global const float *weights,
            __global float *scratch, ulong slot, __global const float *affine, ulong affine_offset, ulong stride,
            int kind, __global float *partial, __global const float *u, ulong u_offset, __global const float *after,
            ulong after_offset, __global const float *saved, ulong saved_offset, int images, int n, int h_in, int w_in,
            int c_in, int h_out, int w_out, int c_out, int pad, int block, int group, int add) {
    const tile_grid grid = grid_of(n, h_out, w_out);
    const int panels = (c_out + COLS - 1) / COLS, share = (panels + here.groups[1] - 1) / here.groups[1];
    const int panel_begin = here.group[1] * share, panel_end = min(panel_begin + share, panels);
    const int v_pitch = V_PITCH(c_in), m_pitch = group * COLS;
    const ulong v_plane = (ulong)block * v_pitch + LINE_FLOATS, m_plane = (ulong)block * m_pitch + LINE_FLOATS;
    scratch += (here.group[1] * here.groups[0] + here.group[0]) * slot;
    __global float *zeros = scratch, *v = zeros + (c_in + 15) / 16 * 16, *m = v + TILE_ROWS * v_plane;
    x += x_offset;
    for (int i = 0; i < c_in; i++)
        zeros[i] = 0.0f;
    const input_map map = {affine ? affine + affine_offset : 0, stride, images};
    const epilogue e = epilogue_of(kind, partial, here.group[0], here.groups[0], images, c_out, u + u_offset,
                                   after ? after + after_offset : 0, saved + saved_offset);
    const output out = {y + y_offset, grid, h_out, w_out, c_out, kind, add, e};
    clear_parts(kind, e, n / images, panel_begin * COLS, min(panel_end * COLS, c_out));

    const ulong blocks = (grid.tiles + block - 1) / block, begin_block = here.group[0] * blocks / here.groups[0];
    const ulong last = min((here.group[0] + 1) * blocks / here.groups[0] * block, grid.tiles);
    for (ulong first = begin_block * block; first < last; first += block) {
        const int count = (int)min((ulong)block, last - first);
        const int more = (int)min((ulong)block, last - first - count);
        transform_block(v, v_plane, v_pitch, x, map, zeros, grid, first, count, (count + ROWS - 1) / ROWS * ROWS, h_in,
                        w_in, c_in, pad);
        for (int begin = panel_begin; begin < panel_end; begin += group) {
            const int end = min(begin + group, panel_end);
            look_ahead ahead = {.runs = 0};
            if (begin == panel_begin)
                expect_block(&ahead, &out, first, count, x, h_in, w_in * c_in, more);
            set_pace(&ahead, TILE_ROWS * (end - begin) * ((count + ROWS - 1) / ROWS));
            for (int k = 0; k < MATRICES; k++) {
                __global const float *a = v + ROWS_BEFORE(k) * v_plane;
                const int rows = count * ROWS_OF(k);
                for (int p = begin; p < end; p++) {
                    __global const float *panel = weights + ((ulong)k * panels + p) * c_in * COLS;
                    __global float *to = m + ROWS_BEFORE(k) * m_plane + (p - begin) * COLS;
                    const long after = (p + 1 < end ? 1 : panels - (p - begin)) * (long)c_in * COLS;
                    if (c_out - p * COLS <= VW)
                        multiply_block(1, 0, to, m_pitch, a, v_pitch, rows, panel, c_in, after, &ahead);
                    else
                        multiply_block(VECS, 0, to, m_pitch, a, v_pitch, rows, panel, c_in, after, &ahead);
                }
            }
            const int column = begin * COLS;
            restore(&out, first, count, column, min(c_out, end * COLS) - column, (products){m, m_plane, m_pitch});
        }
    }
    for (int begin = panel_begin; begin < panel_end; begin += group)
        spread_count(kind, e, n / images, begin * COLS, min(c_out, min(begin + group, panel_end) * COLS));
}
