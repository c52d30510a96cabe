/* Convolution in plain OpenCL C 1.2, for any device: one work-item for each element of the result. */
#include "conv_place.clh"

#define DIMS_PARAMS                                                                                                    \
    int h, int w, int c_in, int h_out, int w_out, int c_out, int kernel_h, int kernel_w, int stride, int pad

/* y (n, h_out, w_out, c_out) */
__kernel void conv_ref_forward(__global float *y, ulong y_offset, __global const float *x, ulong x_offset,
                               __global const float *wt, ulong w_offset, int n, DIMS_PARAMS) {
    const int o = get_global_id(0);
    const ulong pixel = get_global_id(1);
    if (o >= c_out || pixel >= (ulong)n * h_out * w_out)
        return;
    const place at = place_of(pixel, h_out, w_out);
    const int p = at.row, q = at.column;
    float sum = 0.0f;
    for (int r = 0; r < kernel_h; r++) {
        const int i_h = p * stride - pad + r;
        if (i_h < 0 || i_h >= h)
            continue;
        for (int s = 0; s < kernel_w; s++) {
            const int i_w = q * stride - pad + s;
            if (i_w < 0 || i_w >= w)
                continue;
            __global const float *from = x + x_offset + ((at.outer * h + i_h) * w + i_w) * c_in;
            __global const float *tap = wt + w_offset + (ulong)(r * kernel_w + s) * c_in * c_out + o;
            for (int i = 0; i < c_in; i++)
                sum += from[i] * tap[(ulong)i * c_out];
        }
    }
    y[y_offset + pixel * c_out + o] = sum;
}

/* dx (n, h, w, c_in) gathers from the outputs that read it. */
__kernel void conv_ref_backward_data(__global float *dx, ulong dx_offset, __global const float *dy, ulong dy_offset,
                                     __global const float *wt, ulong w_offset, int n, DIMS_PARAMS) {
    const int i = get_global_id(0);
    const ulong pixel = get_global_id(1);
    if (i >= c_in || pixel >= (ulong)n * h * w)
        return;
    const place at = place_of(pixel, h, w);
    const int i_h = at.row, i_w = at.column;
    float sum = 0.0f;
    for (int r = 0; r < kernel_h; r++) {
        const int p = (i_h + pad - r) / stride;
        if (i_h + pad - r < 0 || p * stride != i_h + pad - r || p >= h_out)
            continue;
        for (int s = 0; s < kernel_w; s++) {
            const int q = (i_w + pad - s) / stride;
            if (i_w + pad - s < 0 || q * stride != i_w + pad - s || q >= w_out)
                continue;
            __global const float *from = dy + dy_offset + ((at.outer * h_out + p) * w_out + q) * c_out;
            __global const float *tap = wt + w_offset + ((ulong)(r * kernel_w + s) * c_in + i) * c_out;
            for (int o = 0; o < c_out; o++)
                sum += from[o] * tap[o];
        }
    }
    dx[dx_offset + pixel * c_in + i] = sum;
}

/* part (chunks, kernel_h, kernel_w, c_in, c_out): each chunk sums its own output pixels. */
__kernel void conv_ref_backward_weight(__global float *part, __global const float *x, ulong x_offset,
                                       __global const float *dy, ulong dy_offset, int n, ulong chunk, DIMS_PARAMS) {
    const int o = get_global_id(0), row = get_global_id(1), k = get_global_id(2);
    if (o >= c_out || row >= kernel_h * kernel_w * c_in)
        return;
    const place tap = place_of(row, kernel_w, c_in);
    const int r = (int)tap.outer, s = tap.row, i = tap.column;
    const ulong begin = k * chunk, end = min(begin + chunk, (ulong)n * h_out * w_out);
    float sum = 0.0f;
    for (ulong pixel = begin; pixel < end; pixel++) {
        const place at = place_of(pixel, h_out, w_out);
        const int i_h = at.row * stride - pad + r, i_w = at.column * stride - pad + s;
        if (i_w >= 0 && i_w < w && i_h >= 0 && i_h < h)
            sum += x[x_offset + ((at.outer * h + i_h) * w + i_w) * c_in + i] * dy[dy_offset + pixel * c_out + o];
    }
    part[((ulong)k * kernel_h * kernel_w * c_in + row) * c_out + o] = sum;
}

/* dw (count) = (accumulate ? dw : 0) + the chunks of part (chunks, count), in order. */
__kernel void conv_sum_chunks(__global float *dw, ulong dw_offset, __global const float *part, ulong count, int chunks,
                              int accumulate) {
    const ulong e = get_global_id(0);
    if (e >= count)
        return;
    float sum = accumulate ? dw[dw_offset + e] : 0.0f;
    for (int k = 0; k < chunks; k++)
        sum += part[k * count + e];
    dw[dw_offset + e] = sum;
}
