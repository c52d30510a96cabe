/* Convolution: each window, stride and edge of channels that the encoders use. */
#include <stdio.h>
#include <string.h>

#include "cli/selftest/runner.h"
#include "ops/conv_impl.h"
#include "reference/conv_ref.h"

typedef struct conv_data {
    od_conv_shape shape;
    int n;
    size_t nx, ny, nw;
    od_conv *conv;
} conv_data;

static void open_case(od_check *k, const conv_data *d, const char *operation, unsigned pass, const char *more) {
    const od_conv_shape *s = &d->shape;
    od_check_operation(k, operation);
    od_check_case(k, "%dx%d stride %d pad %d, %d of %dx%dx%d to %d channels%s%s%s", s->kernel_h, s->kernel_w, s->stride,
                  s->pad, d->n, s->h, s->w, s->c_in, s->c_out, more, d->conv ? ", " : "",
                  d->conv ? od_conv_variant(d->conv, pass) : "");
}

static void check_forward(od_check *k, const conv_data *d) {
    open_case(k, d, "conv_forward", OD_CONV_FORWARD, "");
    float *x = od_check_normals(k, d->nx, 0), *w = od_check_normals(k, d->nw, 1);
    double *ref = od_check_alloc(k, d->ny * sizeof *ref);
    od_span xs = od_check_input(k, x, d->nx), ws = od_check_input(k, w, d->nw), y = od_check_output(k, d->ny);
    if (!od_check_ready(k))
        return;
    conv_ref_forward(ref, x, w, &d->shape, d->n);
    if (od_check_ran(k, od_conv_set_weights(d->conv, ws)) && od_check_ran(k, od_conv_forward(d->conv, y, xs, d->n)))
        od_check_near(k, "y", y, ref, 1e-5);
}

static void check_backward_data(od_check *k, const conv_data *d) {
    open_case(k, d, "conv_backward_data", OD_CONV_BACKWARD_DATA, "");
    float *dy = od_check_normals(k, d->ny, 0), *w = od_check_normals(k, d->nw, 1);
    double *ref = od_check_alloc(k, d->nx * sizeof *ref);
    od_span dys = od_check_input(k, dy, d->ny), ws = od_check_input(k, w, d->nw), dx = od_check_output(k, d->nx);
    if (!od_check_ready(k))
        return;
    conv_ref_backward_data(ref, dy, w, &d->shape, d->n);
    if (od_check_ran(k, od_conv_set_weights(d->conv, ws)) &&
        od_check_ran(k, od_conv_backward_data(d->conv, dx, dys, d->n)))
        od_check_near(k, "dx", dx, ref, 1e-5);
}

static void check_backward_weight(od_check *k, const conv_data *d, bool accumulate) {
    open_case(k, d, "conv_backward_weight", OD_CONV_BACKWARD_WEIGHT, accumulate ? ", added" : "");
    float *x = od_check_normals(k, d->nx, 0), *dy = od_check_normals(k, d->ny, 1);
    float *old = od_check_normals(k, d->nw, 2);
    double *ref = od_check_alloc(k, d->nw * sizeof *ref);
    od_span xs = od_check_input(k, x, d->nx), dys = od_check_input(k, dy, d->ny);
    od_span dw = accumulate ? od_check_inout(k, old, d->nw) : od_check_output(k, d->nw);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; accumulate && i < d->nw; i++)
        ref[i] = old[i];
    conv_ref_backward_weight(ref, x, dy, &d->shape, d->n);
    if (od_check_ran(k, od_conv_backward_weight(d->conv, dw, xs, dys, d->n, accumulate)))
        od_check_near(k, "dw", dw, ref, 1e-5);
}

/* A plan for the shape; where none can be made, one case that says so. */
static bool make_plan(od_check *k, conv_data *d) {
    od_status status = od_conv_create(k->device, &d->shape, OD_CONV_ALL, &d->conv);
    if (status) { /* the same for all three: none of them can run */
        open_case(k, d, "conv_forward", OD_CONV_FORWARD, "");
        (void)od_check_ran(k, status);
        od_check_end(k);
    }
    return !status;
}

/* The variants that come first; for the wide list also those after them which are the family's own. */
static void check_shape(od_check *k, const od_conv_shape *s, int n, bool accumulate) {
    static const unsigned passes[3] = {OD_CONV_FORWARD, OD_CONV_BACKWARD_DATA, OD_CONV_BACKWARD_WEIGHT};
    char done[3][40] = {"", "", ""};
    conv_data d = {.shape = *s, .n = n};
    d.nx = (size_t)n * (size_t)s->h * (size_t)s->w * (size_t)s->c_in;
    d.ny = (size_t)n * (size_t)od_conv_out_h(s) * (size_t)od_conv_out_w(s) * (size_t)s->c_out;
    d.nw = (size_t)s->kernel_h * (size_t)s->kernel_w * (size_t)s->c_in * (size_t)s->c_out;
    if (!od_check_affords(k, od_conv_flop(s, n) / 2))
        return;
    od_conv_winograd_mode = k->wide ? OD_WINOGRAD_ALWAYS : OD_WINOGRAD_AUTO;
    for (bool more = true; more && !k->stopped; od_variant_pass_over++) {
        more = false;
        if (!make_plan(k, &d))
            break;
        for (int p = 0; p < 3; p++) {
            const char *variant = od_conv_variant(d.conv, passes[p]);
            if (strcmp(variant, done[p]) == 0 || (done[p][0] && strcmp(variant, "ref") == 0))
                continue;
            (void)snprintf(done[p], sizeof done[p], "%s", variant);
            more = k->wide;
            if (p == 0)
                check_forward(k, &d);
            else if (p == 1)
                check_backward_data(k, &d);
            else
                check_backward_weight(k, &d, accumulate);
        }
        od_check_end(k);
        od_conv_destroy(d.conv);
        d.conv = NULL;
    }
    od_variant_pass_over = 0;
    od_conv_winograd_mode = OD_WINOGRAD_AUTO;
}

/* Every edge of channels in one window, then windows, strides and padding, then images too small for a tile. */
static void check_wide(od_check *k) {
    static const int channels[][2] = {{1, 1},   {1, 8},   {2, 5},   {3, 16},  {4, 32},  {5, 3},
                                      {7, 12},  {8, 8},   {12, 20}, {15, 17}, {16, 16}, {17, 15},
                                      {24, 40}, {31, 33}, {32, 1},  {48, 24}, {65, 31}, {66, 130}};
    static const struct {
        int kernel_h, kernel_w, stride, pad;
    } windows[] = {{1, 1, 1, 0}, {1, 1, 2, 0}, {2, 2, 2, 0}, {3, 3, 1, 0}, {3, 3, 2, 1}, {3, 3, 3, 1},
                   {5, 5, 1, 2}, {5, 5, 2, 2}, {7, 7, 2, 3}, {1, 5, 1, 2}, {5, 1, 1, 2}, {4, 4, 4, 0}};
    static const int sides[][2] = {{1, 1}, {1, 9}, {2, 2}, {3, 4}, {4, 4}, {5, 5}, {8, 8}, {13, 7}, {16, 16}, {17, 33}};
    for (size_t i = 0; i < sizeof channels / sizeof *channels; i++) {
        const od_conv_shape s = {8, 7, channels[i][0], channels[i][1], 3, 3, 1, 1};
        check_shape(k, &s, 1 + (int)(i % 3), i % 2);
    }
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++) {
        const od_conv_shape s = {
            11, 9, 8, 18, windows[i].kernel_h, windows[i].kernel_w, windows[i].stride, windows[i].pad};
        const od_conv_shape deep = {
            8, 12, 36, 32, windows[i].kernel_h, windows[i].kernel_w, windows[i].stride, windows[i].pad};
        check_shape(k, &s, 3, i % 2);
        check_shape(k, &deep, 1, i % 2 == 0);
    }
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
        const od_conv_shape s = {sides[i][0], sides[i][1], 16, 32, 3, 3, 1, 1};
        const od_conv_shape two = {sides[i][0], sides[i][1], 16, 24, 3, 3, 2, 1};
        check_shape(k, &s, 5, i % 2);
        check_shape(k, &two, 2, i % 2 == 0);
    }
}

void od_check_conv(od_check *k) {
    static const od_conv_shape shapes[] = {
        /* h, w, c_in, c_out, kernel_h, kernel_w, stride, pad */
        {9, 11, 4, 16, 3, 3, 1, 1},  {7, 10, 3, 33, 3, 3, 1, 1},  {8, 8, 64, 64, 3, 3, 1, 1},
        {6, 9, 33, 16, 3, 3, 1, 1},  {9, 12, 16, 64, 3, 3, 2, 1}, {8, 7, 33, 33, 3, 3, 2, 1},
        {8, 8, 64, 33, 1, 1, 2, 0},  {9, 7, 16, 64, 1, 1, 2, 0},  {18, 15, 3, 64, 7, 7, 2, 3},
        {15, 16, 4, 16, 7, 7, 2, 3}, {12, 8, 70, 50, 3, 3, 1, 1},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        check_shape(k, &shapes[i], 2, i % 2);
    if (k->wide)
        check_wide(k);
}
