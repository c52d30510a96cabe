/* Forward and backward by data as in conv_winograd.cl, for few tiles and many weights: all tiles are transformed first,
 * and the weights of a panel where they are used, so that they never reach memory.
 *
 * VW: floats in a vector, VECS: vectors in a row of the register tile, ROWS: rows of it. */
#include "conv_winograd_pass.clh"

/* v [36][tiles][V_PITCH(c_in)] of all tiles, `plane` floats from point to point; the tiles are padded to whole register
 * tiles. Dimension 0 of the range counts blocks of ROWS tiles. */
CORE_KERNEL(conv_winograd_patches,
            (v, plane, x, x_offset, zeros, affine, affine_offset, stride, images, n, h_in, w_in, c_in, h_out, w_out,
             pad),
            __global float *v, ulong plane, __global const float *x, ulong x_offset, __global const float *zeros,
            __global const float *affine, ulong affine_offset, ulong stride, int images, int n, int h_in, int w_in,
            int c_in, int h_out, int w_out, int pad) {
    const tile_grid grid = grid_of(n, h_out, w_out);
    const input_map map = {affine ? affine + affine_offset : 0, stride, images};
    const ulong first = here.group[0] * ROWS;
    transform_block(v + first * V_PITCH(c_in), plane, V_PITCH(c_in), x + x_offset, map, zeros, grid, first,
                    (int)min((ulong)ROWS, grid.tiles - first), ROWS, h_in, w_in, c_in, pad);
}

/* y from v, as conv_winograd_patches leaves it, and w itself: a work-group takes every so many'th panel, transforms its
 * weights `chunk` rows at a time and uses them at once, so that they never leave the cache. `slot` floats of scratch
 * for each: [filters: 36 planes of chunk x COLS][m: 36 planes of tiles x COLS]. The epilogue has one part. */
CORE_KERNEL(conv_winograd_panels,
            (y, y_offset, v, v_plane, w, w_offset, filter_in, filter_out, transposed, scratch, slot, kind, partial, u,
             u_offset, after, after_offset, saved, saved_offset, images, n, c_in, h_out, w_out, c_out, chunk, add),
            __global float *y, ulong y_offset, __global const float *v, ulong v_plane, __global const float *w,
            ulong w_offset, int filter_in, int filter_out, int transposed, __global float *scratch, ulong slot,
            int kind, __global float *partial, __global const float *u, ulong u_offset, __global const float *after,
            ulong after_offset, __global const float *saved, ulong saved_offset, int images, int n, int c_in, int h_out,
            int w_out, int c_out, int chunk, int add) {
    const tile_grid grid = grid_of(n, h_out, w_out);
    const filter f = {w + w_offset, filter_in, filter_out, transposed};
    const int panels = (c_out + COLS - 1) / COLS, tiles = (int)grid.tiles, v_pitch = V_PITCH(c_in);
    const ulong f_plane = (ulong)chunk * COLS + VW, m_plane = (ulong)tiles * COLS + VW;
    __global float *filters = scratch + here.group[0] * slot, *m = filters + PATCH * f_plane;
    const epilogue e = epilogue_of(kind, partial, 0, 1, images, c_out, u + u_offset, after ? after + after_offset : 0,
                                   saved + saved_offset);
    const output out = {y + y_offset, grid, h_out, w_out, c_out, kind, add, e};
    for (int p = here.group[0]; p < panels; p += here.groups[0]) {
        const int column = p * COLS, cols = min(c_out - column, COLS);
        for (int from = 0; from < c_in; from += chunk) {
            const int lines = min(chunk, c_in - from);
            for (int i = 0; i < lines; i += LINES)
                transform_lines(filters + i * COLS, f_plane, f, p, from + i, min(lines - i, LINES));
            look_ahead ahead = {.runs = 0};
            for (int k = 0; k < PATCH; k++) {
                __global const float *a = v + k * v_plane + from, *panel = filters + k * f_plane;
                if (cols <= VW)
                    multiply_block(1, from > 0, m + k * m_plane, COLS, a, v_pitch, tiles, panel, lines, f_plane, &ahead);
                else
                    multiply_block(VECS, from > 0, m + k * m_plane, COLS, a, v_pitch, tiles, panel, lines, f_plane, &ahead);
            }
        }
        clear_parts(kind, e, n / images, column, column + cols);
        restore(&out, 0, tiles, column, cols, (products){m, m_plane, COLS});
        spread_count(kind, e, n / images, column, column + cols);
    }
}
