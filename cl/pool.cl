/* Pooling over NHWC images, and rows scaled to length 1. Neighbouring work-items take neighbouring channels. */
#include "common.clh"

/* y (n, c) = mean over pixels of x (n, pixels, c). */
__kernel void avgpool_forward(__global float *y, ulong y_offset, __global const float *x, ulong x_offset, int pixels,
                              int c) {
    const ulong channel = get_global_id(0), image = get_global_id(1);
    if (channel >= (ulong)c)
        return;
    x += x_offset + image * pixels * c + channel;
    float sum = 0.0f;
    for (int p = 0; p < pixels; p++)
        sum += x[(ulong)p * c];
    AT(y)[image * c + channel] = sum / (float)pixels;
}

/* dx (n, pixels, c) = dy (n, c) / pixels. */
__kernel void avgpool_backward(__global float *dx, ulong dx_offset, __global const float *dy, ulong dy_offset,
                               int pixels, int c) {
    const ulong channel = get_global_id(0), image = get_global_id(1);
    if (channel >= (ulong)c)
        return;
    const float each = AT(dy)[image * c + channel] / (float)pixels;
    dx += dx_offset + image * pixels * c + channel;
    for (int p = 0; p < pixels; p++)
        dx[(ulong)p * c] = each;
}

/* Global range: (c, output pixels of an image, images). argmax holds the input pixel's index row * w + column; a NaN wins,
 * as the first one would. */
__kernel void maxpool_forward(__global float *y, ulong y_offset, __global int *argmax, ulong argmax_offset,
                              __global const float *x, ulong x_offset, int h, int w, int c, int w_out, int pixels_out,
                              int size, int stride, int pad) {
    const ulong channel = get_global_id(0), image = get_global_id(2);
    const int pixel = (int)get_global_id(1);
    if (channel >= (ulong)c || pixel >= pixels_out)
        return;
    /* Remainders as products: a pair of / and % becomes an instruction (freeze) that Oclgrind cannot run. */
    const int p = pixel / w_out, q = pixel - p * w_out;
    const int top = p * stride - pad, left = q * stride - pad;
    x += x_offset + image * h * w * c + channel;
    int best_at = -1;
    float best = 0.0f;
    for (int row = max(top, 0); row < min(top + size, h); row++)
        for (int column = max(left, 0); column < min(left + size, w); column++) {
            const float v = x[(ulong)(row * w + column) * c];
            if (best_at < 0 || v > best || (v != v && best == best)) {
                best = v;
                best_at = row * w + column;
            }
        }
    const ulong at = (image * pixels_out + pixel) * c + channel;
    AT(y)[at] = best;
    AT(argmax)[at] = best_at;
}

/* Global range: (c, input pixels of an image, images). Each input pixel gathers from the windows that cover it. */
__kernel void maxpool_backward(__global float *dx, ulong dx_offset, __global const float *dy, ulong dy_offset,
                               __global const int *argmax, ulong argmax_offset, int w, int pixels, int c, int h_out,
                               int w_out, int size, int stride, int pad) {
    const ulong channel = get_global_id(0), image = get_global_id(2);
    const int pixel = (int)get_global_id(1);
    if (channel >= (ulong)c || pixel >= pixels)
        return;
    /* Window p covers row when p * stride <= row + pad < p * stride + size. */
    const int row_in = pixel / w, row = row_in + pad, column = pixel - row_in * w + pad;
    const int p_begin = row < size ? 0 : (row - size) / stride + 1, p_end = min(row / stride + 1, h_out);
    const int q_begin = column < size ? 0 : (column - size) / stride + 1, q_end = min(column / stride + 1, w_out);
    const ulong base = image * h_out * w_out * c + channel;
    dy += dy_offset + base;
    argmax += argmax_offset + base;
    float sum = 0.0f;
    for (int p = p_begin; p < p_end; p++)
        for (int q = q_begin; q < q_end; q++) {
            const ulong at = (ulong)(p * w_out + q) * c;
            if (argmax[at] == pixel)
                sum += dy[at];
        }
    AT(dx)[(image * pixels + pixel) * c + channel] = sum;
}
