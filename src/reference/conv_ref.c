#include "reference/conv_ref.h"

#include <string.h>

/* Calls visit with the offsets of every term y[yo .. +c_out] += x[xo .. +c_in] * w[wo .. ] of the sum. */
typedef void visit_fn(void *out, const float *a, const float *b, size_t x, size_t y, size_t w, const od_conv_shape *s);

static void each_term(const od_conv_shape *s, int n, visit_fn *visit, void *out, const float *a, const float *b) {
    int h_out = od_conv_out_h(s), w_out = od_conv_out_w(s);
    for (int image = 0; image < n; image++)
        for (int p = 0; p < h_out; p++)
            for (int q = 0; q < w_out; q++)
                for (int r = 0; r < s->kernel_h; r++)
                    for (int c = 0; c < s->kernel_w; c++) {
                        int i = p * s->stride - s->pad + r, j = q * s->stride - s->pad + c;
                        if (i < 0 || i >= s->h || j < 0 || j >= s->w)
                            continue;
                        size_t x = (((size_t)image * s->h + i) * s->w + j) * s->c_in;
                        size_t y = (((size_t)image * h_out + p) * w_out + q) * s->c_out;
                        visit(out, a, b, x, y, ((size_t)r * s->kernel_w + c) * s->c_in * s->c_out, s);
                    }
}

static void visit_forward(void *out, const float *x_data, const float *w_data, size_t x, size_t y, size_t w,
                          const od_conv_shape *s) {
    double *to = (double *)out + y;
    for (int i = 0; i < s->c_in; i++)
        for (int o = 0; o < s->c_out; o++)
            to[o] += (double)x_data[x + i] * w_data[w + (size_t)i * s->c_out + o];
}

static void visit_data(void *out, const float *dy_data, const float *w_data, size_t x, size_t y, size_t w,
                       const od_conv_shape *s) {
    double *to = (double *)out + x;
    for (int i = 0; i < s->c_in; i++)
        for (int o = 0; o < s->c_out; o++)
            to[i] += (double)dy_data[y + o] * w_data[w + (size_t)i * s->c_out + o];
}

static void visit_weight(void *out, const float *x_data, const float *dy_data, size_t x, size_t y, size_t w,
                         const od_conv_shape *s) {
    double *to = (double *)out + w;
    for (int i = 0; i < s->c_in; i++)
        for (int o = 0; o < s->c_out; o++)
            to[(size_t)i * s->c_out + o] += (double)x_data[x + i] * dy_data[y + o];
}

void conv_ref_forward(double *y, const float *x, const float *w, const od_conv_shape *s, int n) {
    memset(y, 0, sizeof *y * n * od_conv_out_h(s) * od_conv_out_w(s) * s->c_out);
    each_term(s, n, visit_forward, y, x, w);
}

void conv_ref_backward_data(double *dx, const float *dy, const float *w, const od_conv_shape *s, int n) {
    memset(dx, 0, sizeof *dx * n * s->h * s->w * s->c_in);
    each_term(s, n, visit_data, dx, dy, w);
}

void conv_ref_backward_weight(double *dw, const float *x, const float *dy, const od_conv_shape *s, int n) {
    each_term(s, n, visit_weight, dw, x, dy);
}
