/* Weights as the GPU family's backward by data reads them. */
#define TAP_INTS 4

/* packed [tap][o][i] from w (kernel_h * kernel_w, c_in, c_out), taps in the table's order. */
__kernel void conv_gemm_pack(__global float *packed, __global const float *wt, ulong w_offset, __global const int *taps,
                             int taps_offset, int c_in, int c_out) {
    const int i = get_global_id(0), o = get_global_id(1), tap = get_global_id(2);
    if (i >= c_in || o >= c_out)
        return;
    const ulong from = taps[taps_offset + tap * TAP_INTS + 2];
    packed[((ulong)tap * c_out + o) * c_in + i] = wt[w_offset + (from * c_in + i) * c_out + o];
}
