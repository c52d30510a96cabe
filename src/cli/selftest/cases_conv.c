/* Convolution: each window, stride and edge of channels that the encoders use. */
#include "cli/selftest/runner.h"
#include "reference/conv_ref.h"

enum { IMAGES = 2 };

typedef struct conv_data {
    od_conv_shape shape;
    size_t nx, ny, nw;
    od_conv *conv;
} conv_data;

static void open_case(od_check *k, const conv_data *d, const char *operation, const char *more) {
    const od_conv_shape *s = &d->shape;
    od_check_operation(k, operation);
    od_check_case(k, "%dx%d stride %d, %dx%dx%d to %d channels%s", s->kernel_h, s->kernel_w, s->stride, s->h, s->w,
                  s->c_in, s->c_out, more);
}

static void check_forward(od_check *k, const conv_data *d) {
    open_case(k, d, "conv_forward", "");
    float *x = od_check_normals(k, d->nx, 0), *w = od_check_normals(k, d->nw, 1);
    double *ref = od_check_alloc(k, d->ny * sizeof *ref);
    od_span xs = od_check_input(k, x, d->nx), ws = od_check_input(k, w, d->nw), y = od_check_output(k, d->ny);
    if (!od_check_ready(k))
        return;
    conv_ref_forward(ref, x, w, &d->shape, IMAGES);
    if (od_check_ran(k, od_conv_set_weights(d->conv, ws)) && od_check_ran(k, od_conv_forward(d->conv, y, xs, IMAGES)))
        od_check_near(k, "y", y, ref, 1e-5);
}

static void check_backward_data(od_check *k, const conv_data *d) {
    open_case(k, d, "conv_backward_data", "");
    float *dy = od_check_normals(k, d->ny, 0), *w = od_check_normals(k, d->nw, 1);
    double *ref = od_check_alloc(k, d->nx * sizeof *ref);
    od_span dys = od_check_input(k, dy, d->ny), ws = od_check_input(k, w, d->nw), dx = od_check_output(k, d->nx);
    if (!od_check_ready(k))
        return;
    conv_ref_backward_data(ref, dy, w, &d->shape, IMAGES);
    if (od_check_ran(k, od_conv_set_weights(d->conv, ws)) &&
        od_check_ran(k, od_conv_backward_data(d->conv, dx, dys, IMAGES)))
        od_check_near(k, "dx", dx, ref, 1e-5);
}

static void check_backward_weight(od_check *k, const conv_data *d, bool accumulate) {
    open_case(k, d, "conv_backward_weight", accumulate ? ", added" : "");
    float *x = od_check_normals(k, d->nx, 0), *dy = od_check_normals(k, d->ny, 1);
    float *old = od_check_normals(k, d->nw, 2);
    double *ref = od_check_alloc(k, d->nw * sizeof *ref);
    od_span xs = od_check_input(k, x, d->nx), dys = od_check_input(k, dy, d->ny);
    od_span dw = accumulate ? od_check_inout(k, old, d->nw) : od_check_output(k, d->nw);
    if (!od_check_ready(k))
        return;
    for (size_t i = 0; accumulate && i < d->nw; i++)
        ref[i] = old[i];
    conv_ref_backward_weight(ref, x, dy, &d->shape, IMAGES);
    if (od_check_ran(k, od_conv_backward_weight(d->conv, dw, xs, dys, IMAGES, accumulate)))
        od_check_near(k, "dw", dw, ref, 1e-5);
}

void od_check_conv(od_check *k) {
    static const od_conv_shape shapes[] = {
        /* h, w, c_in, c_out, kernel_h, kernel_w, stride, pad */
        {9, 11, 4, 16, 3, 3, 1, 1},  {7, 10, 3, 33, 3, 3, 1, 1},  {8, 8, 64, 64, 3, 3, 1, 1},
        {6, 9, 33, 16, 3, 3, 1, 1},  {9, 12, 16, 64, 3, 3, 2, 1}, {8, 7, 33, 33, 3, 3, 2, 1},
        {8, 8, 64, 33, 1, 1, 2, 0},  {9, 7, 16, 64, 1, 1, 2, 0},  {18, 15, 3, 64, 7, 7, 2, 3},
        {15, 16, 4, 16, 7, 7, 2, 3},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && !k->stopped; i++) {
        const od_conv_shape *s = &shapes[i];
        conv_data d = {.shape = *s};
        d.nx = (size_t)IMAGES * (size_t)s->h * (size_t)s->w * (size_t)s->c_in;
        d.ny = (size_t)IMAGES * (size_t)od_conv_out_h(s) * (size_t)od_conv_out_w(s) * (size_t)s->c_out;
        d.nw = (size_t)s->kernel_h * (size_t)s->kernel_w * (size_t)s->c_in * (size_t)s->c_out;
        od_status status = od_conv_create(k->device, s, OD_CONV_ALL, &d.conv);
        if (status) { /* the same for all three: none of them can run */
            open_case(k, &d, "conv_forward", "");
            (void)od_check_ran(k, status);
            continue;
        }
        check_forward(k, &d);
        check_backward_data(k, &d);
        check_backward_weight(k, &d, i % 2);
        od_check_end(k);
        od_conv_destroy(d.conv);
    }
}
