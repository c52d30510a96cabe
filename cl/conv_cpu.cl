/* Direct NHWC convolution for CPU devices: forward, and backward by data as the same sum over flipped taps.
 *
 * One work-item is one work-group: it owns a block of output pixels and a panel of COLS output channels, and walks the
 * block in register tiles of ROWS pixels x VECS vectors. The pixels are read in place through one pointer per row; a
 * tap that falls outside the image reads a row of zeros, and a tap outside for all rows of a tile is skipped. The
 * packed weights [panel][tap][i][COLS] stream from the cache, where they stay for the whole block.
 *
 * VW: floats in a vector, VECS: vectors in a row of the tile, ROWS: rows of the tile. */
#include "conv_cpu.clh"

/* A tile's rows: where their pixels lie. */
typedef struct tile_rows {
    __global const float *in[ROWS]; /* the input pixel that a tap (0, 0) reads */
    __global float *out[ROWS];      /* 0: the row is past the end; its input is another row's */
    int h[ROWS], w[ROWS];           /* the input pixel's coordinates */
    int h_min, h_max, w_min, w_max; /* over the rows */
} tile_rows;

/* Vector v of a row that has `cols` columns; add: to what is there. */
INLINE void store(__global float *row, int v, vec value, int cols, int add) {
    if (cols >= (v + 1) * VW) {
        PUT(add ? VLOAD(v, row) + value : value, row + v * VW);
        return;
    }
    float tail[VW];
    VSTORE(value, 0, tail);
    for (int j = v * VW; j < cols; j++)
        row[j] = add ? row[j] + tail[j - v * VW] : tail[j - v * VW];
}

/* One register tile: ROWS pixels x `vecs` vectors, over all taps. */
INLINE void conv_tile(const int vecs, const tile_rows *rows,
                      __global const float *panel, __global const float *zeros,
                      __global const int *taps, int tap_count, int h_in, int w_in,
                      int pitch, int run, int column, int cols, int add) {
    vec acc[ROWS][VECS], b[VECS];
#define CLEAR(r, v)  acc[r][v] = (vec)(0.0f);
#define CLEAR_ROW(r) EACH_VEC(CLEAR, r)
    EACH_ROW(CLEAR_ROW)
    int joined; /* taps of one window row, all inside the image, whose inputs and weights follow each other in memory */
    for (int t = 0; t < tap_count; t += joined, panel += (ulong)joined * run * COLS) {
        const int dh = taps[t * TAP_INTS], dw = taps[t * TAP_INTS + 1];
        const long shift = ((long)dh * w_in + dw) * pitch;
        __global const float *a[ROWS];
        joined = 1;
        if (rows->h_min + dh >= 0 && rows->h_max + dh < h_in && rows->w_min + dw >= 0 && rows->w_max + dw < w_in) {
            joined += min(taps[t * TAP_INTS + 3], w_in - 1 - (rows->w_max + dw));
#define PLACE(r) a[r] = rows->in[r] + shift;
            EACH_ROW(PLACE)
        } else {
            int any = 0;
#define PLACE_AT_EDGE(r)                                                                                               \
    {                                                                                                                  \
        const int inside = ((uint)(rows->h[r] + dh) < (uint)h_in) & ((uint)(rows->w[r] + dw) < (uint)w_in);            \
        a[r] = inside ? rows->in[r] + shift : zeros;                                                                   \
        any |= inside;                                                                                                 \
    }
            EACH_ROW(PLACE_AT_EDGE)
            if (!any)
                continue;
        }
        for (int i = 0; i < joined * run; i++) {
            __global const float *w = panel + (ulong)i * COLS;
#define LOAD(r, v)                                                                                                     \
    if (v < vecs)                                                                                                      \
        b[v] = VLOAD(v, w);
#define FMA(r, v)                                                                                                      \
    if (v < vecs)                                                                                                      \
        acc[r][v] = fma(s, b[v], acc[r][v]);
#define FMA_ROW(r)                                                                                                     \
    {                                                                                                                  \
        const vec s = (vec)(a[r][i]);                                                                                  \
        EACH_VEC(FMA, r)                                                                                               \
    }
            EACH_VEC(LOAD, 0)
            EACH_ROW(FMA_ROW)
        }
    }
#define STORE(r, v)                                                                                                    \
    if (v < vecs)                                                                                                      \
        store(rows->out[r] + column, v, acc[r][v], cols, add);
#define STORE_ROW(r)                                                                                                   \
    if (rows->out[r]) {                                                                                                \
        EACH_VEC(STORE, r)                                                                                             \
    }
    EACH_ROW(STORE_ROW)
}

/* y (n, h_out, w_out, c_out) from x (n, h_in, w_in, .), pixels `pitch` floats apart of which `run` are summed. A class
 * of outputs (p * step_out + a, q * step_out + b) has its own taps. Pixels are numbered (image group, p, q, image in
 * group), with `group` images in a group: with ROWS images, the rows of a tile share their place, so that taps drop out
 * at the edges and join inside. panel_dim: which dimension of the range counts shares of `share` panels, for which
 * a tile's places are found once; the other one counts blocks of `block` pixels; 2 counts classes. add: to what y holds.
 */
CORE_KERNEL(conv_direct,
            (y, y_offset, x, x_offset, packed, zeros, table, n, h_in, w_in, pitch, run, h_out, w_out, c_out, step_in,
             step_out, group, block, share, panel_dim, add),
            __global float *y, ulong y_offset, __global const float *x, ulong x_offset, __global const float *packed,
            __global const float *zeros, __global const int *table, int n, int h_in, int w_in, int pitch, int run,
            int h_out, int w_out, int c_out, int step_in, int step_out, int group, int block, int share, int panel_dim,
            int add) {
    const int panels = (c_out + COLS - 1) / COLS, panel_begin = here.group[panel_dim] * share;
    const int panel_end = min(panel_begin + share, panels);
    const int class_count = here.groups[2], taps_total = table[6];
    __global const int *header = table + here.group[2] * HEADER_INTS;
    const int rows_p = header[0], rows_q = header[1];
    __global const int *taps = table + class_count * HEADER_INTS + header[4] * TAP_INTS;
    const int tap_count = header[5];

    const ulong pixels = (ulong)n * rows_p * rows_q;
    const ulong begin = (ulong)here.group[1 - panel_dim] * block, end = min(begin + block, pixels);
    if (begin >= end || (add && !tap_count))
        return;
    packed += (ulong)header[4] * run * COLS;
    y += y_offset + ((ulong)header[2] * w_out + header[3]) * c_out;
    x += x_offset;

    /* the place of the first pixel; then counted on */
    const ulong group_pixels = (ulong)group * rows_p * rows_q;
    const int group_index = (int)(begin / group_pixels);
    int image0 = group_index * group;
    int width = min(group, n - image0); /* images in this group */
    const place at = place_of(begin - group_index * group_pixels, rows_q, width);
    int k = at.column, q = at.row, p = (int)at.outer;

    for (ulong m = begin; m < end; m += ROWS) {
        tile_rows rows;
        rows.h_min = rows.w_min = INT_MAX;
        rows.h_max = rows.w_max = 0;
        for (int r = 0; r < ROWS; r++) {
            if (m + r >= end) {
                rows.h[r] = rows.h[0];
                rows.w[r] = rows.w[0];
                rows.in[r] = rows.in[0];
                rows.out[r] = 0;
                continue;
            }
            const ulong image = image0 + k;
            rows.h[r] = p * step_in;
            rows.w[r] = q * step_in;
            rows.in[r] = x + ((image * h_in + rows.h[r]) * w_in + rows.w[r]) * pitch;
            rows.out[r] = y + ((image * h_out + p * step_out) * w_out + q * step_out) * c_out;
            rows.h_min = min(rows.h_min, rows.h[r]);
            rows.h_max = max(rows.h_max, rows.h[r]);
            rows.w_min = min(rows.w_min, rows.w[r]);
            rows.w_max = max(rows.w_max, rows.w[r]);
            if (++k == width) {
                k = 0;
                if (++q == rows_q) {
                    q = 0;
                    if (++p == rows_p) {
                        p = 0;
                        image0 += group;
                        width = min(group, n - image0);
                    }
                }
            }
        }
        for (int index = panel_begin; index < panel_end; index++) {
            const int column = index * COLS, cols = min(c_out - column, COLS);
            __global const float *panel = packed + (ulong)index * taps_total * run * COLS;
            if (cols <= VW)
                conv_tile(1, &rows, panel, zeros, taps, tap_count, h_in, w_in, pitch, run, column, cols, add);
            else
                conv_tile(VECS, &rows, panel, zeros, taps, tap_count, h_in, w_in, pitch, run, column, cols, add);
        }
    }
}

/* packed [panel][tap][i][COLS] from w (taps, c_in, c_out), columns past c_out zero. One work-item a (tap, panel). */
CORE_KERNEL(conv_pack,
            (packed, w, w_offset, table, run, c_out),
            __global float *packed, __global const float *w, ulong w_offset, __global const int *table, int run,
            int c_out) {
    const int tap = here.group[0], panel = here.group[1], tap_count = here.groups[0];
    const int column = panel * COLS, cols = min(c_out - column, COLS);
    const ulong w_row = table[HEADER_INTS + tap * TAP_INTS + 2];
    packed += ((ulong)panel * tap_count + tap) * run * COLS;
    w += w_offset + w_row * c_out + column;
    for (int i = 0; i < run; i++, packed += COLS, w += c_out)
        for (int j = 0; j < COLS; j++)
            packed[j] = j < cols ? w[j] : 0.0f;
}

/* The same for the transposed taps of the backward pass: packed [panel][tap][o][COLS], the columns are input channels.
 */
CORE_KERNEL(conv_pack_transposed,
            (packed, w, w_offset, table, class_count, c_in, c_out),
            __global float *packed, __global const float *w, ulong w_offset, __global const int *table, int class_count,
            int c_in, int c_out) {
    const int tap = here.group[0], panel = here.group[1], tap_count = here.groups[0];
    const int column = panel * COLS, cols = min(c_in - column, COLS);
    const ulong w_row = table[class_count * HEADER_INTS + tap * TAP_INTS + 2];
    packed += ((ulong)panel * tap_count + tap) * c_out * COLS;
    w += w_offset + (w_row * c_in + column) * c_out;
    for (int o = 0; o < c_out; o += 16) { /* 16: a cache line of a row of w */
        const int count = min(c_out - o, 16);
        for (int j = 0; j < COLS; j++)
            for (int k = 0; k < count; k++)
                packed[(ulong)(o + k) * COLS + j] = j < cols ? w[(ulong)j * c_out + o + k] : 0.0f;
    }
}

/* out (n, h + 2 pad, w + 2 pad, c_out) from in (n, h, w, c): zeros around each image and after the channels, and
 * `slack` more behind the last. One work-item a row of the result. */
CORE_KERNEL(conv_pad,
            (out, in, in_offset, h, w, c, c_out, pad, slack),
            __global float *out, __global const float *in, ulong in_offset, int h, int w, int c, int c_out, int pad,
            int slack) {
    const ulong row = here.group[0], image = row / (h + 2 * pad);
    const int width = w + 2 * pad, p = (int)(row - image * (h + 2 * pad)) - pad;
    const int left = pad * c_out, right = left + w * c_out; /* where the row's own pixels lie */
    out += row * width * c_out;
    if (row + 1 == here.groups[0])
        for (int j = 0; j < slack; j++)
            out[width * c_out + j] = 0.0f;
    if (p < 0 || p >= h) {
        for (int j = 0; j < width * c_out; j++)
            out[j] = 0.0f;
        return;
    }
    in += in_offset + (image * h + p) * w * c;
    for (int j = 0; j < left; j++)
        out[j] = 0.0f;
    if (c == c_out)
        for (int j = left; j < right; j++)
            out[j] = in[j - left];
    else
        for (int q = 0; q < w; q++)
            for (int i = 0; i < c_out; i++)
                out[left + q * c_out + i] = i < c ? in[(ulong)q * c + i] : 0.0f;
    for (int j = right; j < width * c_out; j++)
        out[j] = 0.0f;
}

/* dw (taps, run, c_out) = (accumulate ? dw : 0) + the sum of the chunks that conv_direct_weight leaves, in order;
 * `rows` is its ROWS. One work-item a (panel, tap). */
CORE_KERNEL(conv_weight_sum,
            (dw, dw_offset, part, run, c_out, rows, chunks, accumulate),
            __global float *dw, ulong dw_offset, __global const float *part, int run, int c_out, int rows, int chunks,
            int accumulate) {
    const int panel = here.group[0], tap = here.group[1], column = panel * COLS;
    const int cols = min(c_out - column, COLS), tiles = (run + rows - 1) / rows;
    const ulong panel_size = (ulong)here.groups[1] * tiles * rows * COLS;
    dw += dw_offset + (ulong)tap * run * c_out + column;
    part += panel * panel_size + (ulong)tap * tiles * rows * COLS;
    for (int i = 0; i < run; i++, dw += c_out) {
        const int tile = i / rows, row = i - max(min(tile * rows, run - rows), 0);
        __global const float *from = part + (tile * rows + row) * COLS;
        if (cols == COLS) {
#pragma unroll
            for (int v = 0; v < VECS; v++) {
                vec sum = accumulate ? VLOAD(v, dw) : (vec)(0.0f);
                for (int k = 0; k < chunks; k++)
                    sum += VLOAD(v, from + k * panel_size * here.groups[0]);
                PUT(sum, dw + v * VW);
            }
        } else {
            for (int j = 0; j < cols; j++) {
                float sum = accumulate ? dw[j] : 0.0f;
                for (int k = 0; k < chunks; k++)
                    sum += from[k * panel_size * here.groups[0] + j];
                dw[j] = sum;
            }
        }
    }
}
