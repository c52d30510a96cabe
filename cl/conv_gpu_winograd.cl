/* Convolution 3x3 with stride 1 for GPUs by Winograd's F(4x4, 3x3): the transforms around its 36 matrix products
 * (conv_gpu_products.cl). Forward, and backward by data as the same sum with turned, transposed weights; backward by
 * weights as F(3x3, 4x4): the 4x4 tiles of dy are filters on the 6x6 patches of x.
 *
 * Neighbouring work-items have neighbouring channels of one tile (4x4 outputs, 6x6 inputs), a channel each: that
 * coalesces, any number of channels will do, and 36 values are few registers. Transformed matrices are [point][line]
 * [column], their columns padded with zeros to a multiple of 4. Tiles are counted from the beginning of a slab of them,
 * whose first is tile `rest` of image `image`.
 *
 * LX, LY: work-group, of LX channels and LY tiles. */
#include "conv_place.clh"

typedef float vec;
#include "winograd_points.clh"

#define ITEMS (LX * LY)

/* v (36, tiles, c4): the transforms of the patches of x (., h, w, c), `rows` x `columns` of them in an image. affine: x
 * is read as relu(x * slope + shift), slope, shift (2, c) for every `images` images, `stride` floats on; NULL: as it
 * is. */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gpu_winograd_patches(__global float *v, __global const float *x, ulong x_offset, __global const float *affine,
                          ulong affine_offset, ulong stride, int images, ulong image, int rest, int tiles, int rows,
                          int columns, int h, int w, int c, int c4, int pad) {
    const int i = get_global_id(0), tile = get_global_id(1);
    if (i >= c4 || tile >= tiles)
        return;
    const place from = {image, 0, 0}, p = place_near(from, rest + tile, rows, columns);
    const int top = 4 * p.row - pad, left = 4 * p.column - pad;
    float slope = 1.0f, shift = 0.0f;
    if (affine && i < c) {
        affine += affine_offset + p.outer / (uint)images * stride + i;
        slope = affine[0];
        shift = affine[c];
    }
    x += x_offset + p.outer * h * w * c + i;
    float t[POINTS][POINTS];
#define INSIDE(r, s) ((i < c) & ((uint)(top + (r)) < (uint)h) & ((uint)(left + (s)) < (uint)w))
#define LOAD(r, s)                                                                                                     \
    float d##r = 0.0f;                                                                                                 \
    if (INSIDE(r, s)) {                                                                                                \
        d##r = x[((long)(top + r) * w + left + s) * c];                                                                \
        if (affine) {                                                                                                  \
            d##r = fma(d##r, slope, shift);                                                                            \
            d##r = d##r < 0.0f ? 0.0f : d##r; /* not a maximum, which would swallow a NaN */                           \
        }                                                                                                              \
    }
#define PATCH_IN(r)  d##r
#define PATCH_OUT(r) t[r][column]
#define PATCH_COLUMN(s)                                                                                                \
    {                                                                                                                  \
        const int column = s;                                                                                          \
        LOAD(0, s) LOAD(1, s) LOAD(2, s) LOAD(3, s) LOAD(4, s) LOAD(5, s) INPUT_TRANSFORM(PATCH_OUT, PATCH_IN)         \
    }
    EACH_6(PATCH_COLUMN)
#define LINE_IN(s)  t[row][s]
#define LINE_OUT(s) u##s
#define PUT_LINE(transform)                                                                                            \
    {                                                                                                                  \
        float u0, u1, u2, u3, u4, u5;                                                                                  \
        transform(LINE_OUT, LINE_IN) to[0] = u0;                                                                       \
        to[plane] = u1;                                                                                                \
        to[2 * plane] = u2;                                                                                            \
        to[3 * plane] = u3;                                                                                            \
        to[4 * plane] = u4;                                                                                            \
        to[5 * plane] = u5;                                                                                            \
        to += 6 * plane;                                                                                               \
    }
#define PATCH_ROW(r)                                                                                                   \
    {                                                                                                                  \
        const int row = r;                                                                                             \
        PUT_LINE(INPUT_TRANSFORM)                                                                                      \
    }
    const ulong plane = (ulong)tiles * c4;
    __global float *to = v + (ulong)tile * c4 + i;
    EACH_6(PATCH_ROW)
}

/* u (36, lines, columns4) from w (3, 3, c_in, c_out): lines of input channels, columns of output channels; transposed:
 * the other way round, and the window turned by half. `lines` and `columns` are as many as w has, lines4 and columns4
 * as u has. */
__attribute__((reqd_work_group_size(16, 16, 1))) __kernel void
conv_gpu_winograd_filters(__global float *u, __global const float *w, ulong w_offset, int lines, int columns,
                          int lines4, int columns4, int transposed) {
    const int o = get_global_id(0), i = get_global_id(1);
    if (o >= columns4 || i >= lines4)
        return;
    w += w_offset;
    const int exists = (o < columns) & (i < lines);
    float t[POINTS][3];
#define TAP(r, s)                                                                                                      \
    (!exists      ? 0.0f                                                                                               \
     : transposed ? w[((ulong)(8 - 3 * (r) - (s)) * columns + o) * lines + i]                                          \
                  : w[((ulong)(3 * (r) + (s)) * lines + i) * columns + o])
#define FILTER_COLUMN(s)                                                                                               \
    {                                                                                                                  \
        const int column = s;                                                                                          \
        const float d0 = TAP(0, s), d1 = TAP(1, s), d2 = TAP(2, s);                                                    \
        FILTER_TRANSFORM_3(PATCH_OUT, PATCH_IN)                                                                        \
    }
    FILTER_COLUMN(0)
    FILTER_COLUMN(1)
    FILTER_COLUMN(2)
#define FILTER_ROW(r)                                                                                                  \
    {                                                                                                                  \
        const int row = r;                                                                                             \
        PUT_LINE(FILTER_TRANSFORM_3)                                                                                   \
    }
    const ulong plane = (ulong)lines4 * columns4;
    __global float *to = u + (ulong)i * columns4 + o;
    EACH_6(FILTER_ROW)
}

/* What a work-group finds out for batch norm as it writes a block. Forward: how many values, their mean, their sum of
 * squares about it. Backward by data: the sums of g and of g (u - mean), in mean and m2. */
typedef struct moments {
    float count, mean, m2;
} moments;

static inline moments join(moments a, moments b, int sums) {
    const float count = a.count + b.count, weight = count > 0.0f ? b.count / count : 0.0f, difference = b.mean - a.mean;
    const float m2 = a.m2 + b.m2;
    const moments both = {count, sums ? a.mean + b.mean : fma(difference, weight, a.mean),
                          sums ? m2 : fma(difference * difference, a.count * weight, m2)};
    return both;
}

/* y (., h, w, c) from the products m (36, tiles, c4): added to what it holds, or in its place. A work-group takes a
 * block of `block` tiles. The `images` images of a group of batch norm have `parts` blocks, the last one shorter, and
 * tile 0 of the slab is the first of block `first`. Work-groups: (channels, blocks of the slab).
 *
 * partial (groups, parts, 3, c): the statistics of each block; NULL: not wanted. With u (., h, w, c) instead the sums
 * (groups, parts, 2, c) of the gradient g behind a ReLU, which is what y becomes: saved (groups, 4, c) is its batch
 * norm's mean, rstd, slope and shift, and it let through what is positive in `after`, or, where that is NULL, in u *
 * slope + shift. */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gpu_winograd_restore(__global float *y, ulong y_offset, __global const float *m, ulong image, int rest, int tiles,
                          int rows, int columns, int h, int w, int c, int c4, int add, __global float *partial,
                          ulong first, ulong parts, int block, int images, __global const float *u, ulong u_offset,
                          __global const float *after, ulong after_offset, __global const float *saved,
                          ulong saved_offset) {
    __local float pool[3 * ITEMS];
    const int lx = get_local_id(0), ly = get_local_id(1), i = get_global_id(0), sums = u != 0;
    const ulong at = first + get_group_id(1), group = at / parts, part = at - group * parts;
    const ulong group0 = first / parts, part0 = first - group0 * parts, per_group = (ulong)images * rows * columns;
    const ulong begin = group * per_group + part * block, end = min(begin + block, (group + 1) * per_group);
    const ulong slab = group0 * per_group + part0 * block, plane = (ulong)tiles * c4;
    const int last = i < c ? (int)(end - slab) : 0;
    const place from = {image, 0, 0};
    float mean = 0.0f, rstd = 1.0f, slope = 0.0f, shift = 0.0f;
    if (sums && i < c) {
        saved += saved_offset + group * 4 * c + i;
        mean = saved[0];
        rstd = saved[c];
        slope = saved[2 * c];
        shift = saved[3 * c];
    }
    y += y_offset;
    u += u_offset;
    m += i;
    moments all = {0.0f, 0.0f, 0.0f};
    for (int tile = (int)(begin - slab) + ly; tile < last; tile += LY) {
        const place p = place_near(from, rest + tile, rows, columns);
        const int height = min(h - 4 * p.row, 4), width = min(w - 4 * p.column, 4);
        __global const float *in = m + (ulong)tile * c4;
        ulong pixel = ((p.outer * h + 4 * p.row) * w + 4 * p.column) * c + i;
        float t[4][POINTS], pivot = 0.0f, sum = 0.0f, squares = 0.0f;
#define TILE_COLUMN(s)                                                                                                 \
    {                                                                                                                  \
        const int column = s;                                                                                          \
        const float d0 = in[s * plane], d1 = in[(6 + s) * plane], d2 = in[(12 + s) * plane];                           \
        const float d3 = in[(18 + s) * plane], d4 = in[(24 + s) * plane], d5 = in[(30 + s) * plane];                   \
        OUTPUT_TRANSFORM_4(PATCH_OUT, PATCH_IN)                                                                        \
    }
        EACH_6(TILE_COLUMN)
#define PIXEL(q)                                                                                                       \
    if (q < width) {                                                                                                   \
        const ulong to = pixel + q * c;                                                                                \
        float value = add ? y[to] + u##q : u##q, factor = value - pivot;                                               \
        if (sums) {                                                                                                    \
            const float through = after ? after[after_offset + to] : fma(u[to], slope, shift);                         \
            value = through > 0.0f ? value : 0.0f;                                                                     \
            sum += value;                                                                                              \
            squares = fma(value, u[to] - mean, squares);                                                               \
        } else {                                                                                                       \
            sum += factor;                                                                                             \
            squares = fma(factor, factor, squares);                                                                    \
        }                                                                                                              \
        y[to] = value;                                                                                                 \
    }
#define TILE_ROW(r)                                                                                                    \
    if (r < height) {                                                                                                  \
        const int row = r;                                                                                             \
        float u0, u1, u2, u3;                                                                                          \
        OUTPUT_TRANSFORM_4(LINE_OUT, LINE_IN)                                                                          \
        if (r == 0)                                                                                                    \
            pivot = u0;                                                                                                \
        PIXEL(0) PIXEL(1) PIXEL(2) PIXEL(3) pixel += w * c;                                                            \
    }
        EACH_4(TILE_ROW)
        const float size = (float)(height * width), less = sum / size;
        const moments gradients = {size, sum, squares},
                      values = {size, pivot + less, fmax(fma(-less, sum, squares), 0.0f)};
        all = join(all, sums ? gradients : values, sums);
    }
    pool[ly * LX + lx] = all.count;
    pool[ITEMS + ly * LX + lx] = all.mean;
    pool[2 * ITEMS + ly * LX + lx] = all.m2;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (!partial || ly > 0 || i >= c)
        return;
    for (int lane = 1; lane < LY; lane++) {
        const moments one = {pool[lane * LX + lx], pool[ITEMS + lane * LX + lx], pool[2 * ITEMS + lane * LX + lx]};
        all = join(all, one, sums);
    }
    partial += at * (sums ? 2 : 3) * c + i;
    if (sums) {
        partial[0] = all.mean;
        partial[c] = all.m2 * rstd;
    } else {
        partial[0] = all.count;
        partial[c] = all.mean;
        partial[2 * c] = all.m2;
    }
}

/* ---- backward by weights ----------------------------------------------------------------------------------------- */

/* u (36, tiles, c4): the transforms of the 4x4 tiles of dy (., h, w, c), which are zero outside of it. */
__attribute__((reqd_work_group_size(LX, LY, 1))) __kernel void
conv_gpu_winograd_gradients(__global float *u, __global const float *dy, ulong dy_offset, ulong image, int rest,
                            int tiles, int rows, int columns, int h, int w, int c, int c4) {
    const int i = get_global_id(0), tile = get_global_id(1);
    if (i >= c4 || tile >= tiles)
        return;
    const place from = {image, 0, 0}, p = place_near(from, rest + tile, rows, columns);
    const int height = i < c ? h - 4 * p.row : 0, width = w - 4 * p.column;
    dy += dy_offset + ((p.outer * h + 4 * p.row) * w + 4 * p.column) * c + i;
    float t[POINTS][4];
#define GRADIENT(r, s) (((r) < height && (s) < width) ? dy[((ulong)(r)*w + (s)) * c] : 0.0f)
#define GRADIENT_COLUMN(s)                                                                                             \
    {                                                                                                                  \
        const int column = s;                                                                                          \
        const float d0 = GRADIENT(0, s), d1 = GRADIENT(1, s), d2 = GRADIENT(2, s), d3 = GRADIENT(3, s);                \
        FILTER_TRANSFORM_4(PATCH_OUT, PATCH_IN)                                                                        \
    }
    EACH_4(GRADIENT_COLUMN)
#define GRADIENT_ROW(r)                                                                                                \
    {                                                                                                                  \
        const int row = r;                                                                                             \
        PUT_LINE(FILTER_TRANSFORM_4)                                                                                   \
    }
    const ulong plane = (ulong)tiles * c4;
    __global float *to = u + (ulong)tile * c4 + i;
    EACH_6(GRADIENT_ROW)
}

/* dw (3, 3, c_in, c_out) = (add ? dw : 0) + the products s (chunks, 36, lines4, columns4), the chunks added in order.
 */
__attribute__((reqd_work_group_size(16, 16, 1))) __kernel void
conv_gpu_winograd_sums(__global float *dw, ulong dw_offset, __global const float *s, int c_in, int c_out, int lines4,
                       int columns4, int chunks, int add) {
    const int o = get_global_id(0), i = get_global_id(1);
    if (o >= c_out || i >= c_in)
        return;
    const ulong plane = (ulong)lines4 * columns4;
    s += (ulong)i * columns4 + o;
    float t[3][POINTS];
#define SUM(r)                                                                                                         \
    float d##r = 0.0f;                                                                                                 \
    for (int k = 0; k < chunks; k++)                                                                                   \
        d##r += s[((ulong)k * PATCH + 6 * r + column) * plane];
#define SUM_COLUMN(q)                                                                                                  \
    {                                                                                                                  \
        const int column = q;                                                                                          \
        SUM(0) SUM(1) SUM(2) SUM(3) SUM(4) SUM(5) OUTPUT_TRANSFORM_3(PATCH_OUT, PATCH_IN)                              \
    }
    EACH_6(SUM_COLUMN)
    dw += dw_offset + (ulong)i * c_out + o;
    const ulong tap = (ulong)c_in * c_out;
#define TAP_ROW(r)                                                                                                     \
    {                                                                                                                  \
        const int row = r;                                                                                             \
        float u0, u1, u2;                                                                                              \
        OUTPUT_TRANSFORM_3(LINE_OUT, LINE_IN)                                                                          \
        __global float *to = dw + (3 * r) * tap;                                                                       \
        to[0] = add ? to[0] + u0 : u0;                                                                                 \
        to[tap] = add ? to[tap] + u1 : u1;                                                                             \
        to[2 * tap] = add ? to[2 * tap] + u2 : u2;                                                                     \
    }
    TAP_ROW(0)
    TAP_ROW(1)
    TAP_ROW(2)
}
