#include <stdlib.h>

#include "ops/conv_impl.h"

/* Floor division and its remainder, for the taps of a strided backward pass. */
static int floor_div(int a, int b) {
    return a >= 0 ? a / b : -((-a + b - 1) / b);
}

static void add_tap(int32_t *table, const od_conv_gather *g, int *tap, int dh, int dw, int row) {
    int32_t *t = table + g->classes * OD_CONV_HEADER_INTS + *tap * OD_CONV_TAP_INTS;
    t[0] = dh;
    t[1] = dw;
    t[2] = row;
    ++*tap;
}

/* Of the taps [first, end), how many follow each one to the right in the same window row. */
static void set_followers(int32_t *table, const od_conv_gather *g, int first, int end) {
    int32_t *t = table + g->classes * OD_CONV_HEADER_INTS;
    for (int tap = end - 2; tap >= first && !g->narrow; tap--) {
        int32_t *this = t + tap * OD_CONV_TAP_INTS, *next = this + OD_CONV_TAP_INTS;
        if (next[0] == this[0] && next[1] == this[1] + 1)
            this[3] = next[3] + 1;
    }
}

/* Class c of the outputs (p*step_out + a, q*step_out + b); its taps begin at `first`. */
static void set_header(int32_t *table, od_conv_gather *g, int c, int a, int b, int first, int count) {
    int32_t *header = table + c * OD_CONV_HEADER_INTS;
    header[0] = od_div_up(g->h_out - a, g->step_out);
    header[1] = od_div_up(g->w_out - b, g->step_out);
    header[2] = a;
    header[3] = b;
    header[4] = first;
    header[5] = count;
    header[6] = g->taps;
}

static void fill_forward(int32_t *table, od_conv_gather *g, const od_conv_shape *s) {
    int tap = 0;
    set_header(table, g, 0, 0, 0, 0, g->taps);
    for (int r = 0; r < s->kernel_h; r++) {
        if (g->narrow)
            add_tap(table, g, &tap, r, 0, r * g->run);
        for (int c = 0; c < s->kernel_w && !g->narrow; c++)
            add_tap(table, g, &tap, r - s->pad, c - s->pad, (r * s->kernel_w + c) * s->c_in);
    }
    set_followers(table, g, 0, tap);
}

/* dx[h] takes dy[(h + pad - r) / stride] where that is whole: for h = p*stride + a, the taps r = a + pad (mod stride).
 */
static void fill_backward(int32_t *table, od_conv_gather *g, const od_conv_shape *s) {
    int tap = 0;
    for (int a = 0; a < s->stride; a++)
        for (int b = 0; b < s->stride; b++) {
            int first = tap;
            for (int r = s->kernel_h - 1; r >= 0; r--) /* so that dh and dw ascend */
                for (int c = s->kernel_w - 1; c >= 0; c--) {
                    int dh = floor_div(a + s->pad - r, s->stride), dw = floor_div(b + s->pad - c, s->stride);
                    if (dh * s->stride == a + s->pad - r && dw * s->stride == b + s->pad - c)
                        add_tap(table, g, &tap, dh, dw, r * s->kernel_w + c);
                }
            set_followers(table, g, first, tap);
            set_header(table, g, a * s->stride + b, a, b, first, tap - first);
        }
}

od_status od_conv_gather_create(od_device *device, const od_conv_shape *s, unsigned pass, bool narrow,
                                od_conv_gather *out) {
    bool back = pass == OD_CONV_BACKWARD_DATA;
    int h_y = od_conv_out_h(s), w_y = od_conv_out_w(s);
    *out = (od_conv_gather){0};
    out->narrow = narrow && !back;
    out->pad = out->narrow ? s->pad : 0;
    out->h_in = back ? h_y : s->h + 2 * out->pad;
    out->w_in = back ? w_y : s->w + 2 * out->pad;
    out->pitch = back ? s->c_out : s->c_in;
    out->run = out->narrow ? s->kernel_w * s->c_in : out->pitch;
    out->h_out = back ? s->h : h_y;
    out->w_out = back ? s->w : w_y;
    out->c_out = back ? s->c_in : s->c_out;
    out->step_in = back ? 1 : s->stride;
    out->step_out = back ? s->stride : 1;
    out->classes = back ? s->stride * s->stride : 1;
    out->taps = out->narrow ? s->kernel_h : s->kernel_h * s->kernel_w;
    out->grid_h = od_div_up(out->h_out, out->step_out);
    out->grid_w = od_div_up(out->w_out, out->step_out);

    size_t ints = (size_t)out->classes * OD_CONV_HEADER_INTS + (size_t)out->taps * OD_CONV_TAP_INTS;
    int32_t *table = calloc(ints, sizeof *table);
    if (!table)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a table of %zu bytes", ints * sizeof *table);
    if (back)
        fill_backward(table, out, s);
    else
        fill_forward(table, out, s);
    od_status status = od_buffer_create(device, ints * sizeof *table, &out->table);
    if (!status)
        status = od_buffer_write(out->table, 0, table, ints * sizeof *table);
    free(table);
    if (status)
        od_conv_gather_destroy(out);
    return status;
}

void od_conv_gather_destroy(od_conv_gather *gather) {
    od_buffer_release(gather->table);
    gather->table = NULL;
}
