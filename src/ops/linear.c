/* The linear layer: three matrix products, a bias and its gradient. */
#include "offdiag/ops/gemm.h"
#include "offdiag/ops/pointwise.h"

od_status od_bias_add(od_device *device, od_span y, od_span bias, int rows, int c) {
    enum { ROWS_EACH = 8 };
    if (rows < 0 || c < 0)
        return od_fail(OD_ERR_ARGUMENT, "bias_add: negative size in rows %d, c %d", rows, c);
    od_kernel *kernel;
    od_status status = od_kernel_get(device, "linear", "", "bias_add", &kernel);
    if (status != OD_OK)
        return status;
    const double elements = (double)rows * c;
    const od_range range = od_range_work(OD_RANGE2(c, ((size_t)rows + ROWS_EACH - 1) / ROWS_EACH, 0, 0), elements,
                                         sizeof(float) * (2 * elements + c));
    return OD_LAUNCH(kernel, range, OD_SPAN(y), OD_SPAN(bias), OD_U64((uint64_t)rows), OD_I32(c), OD_I32(ROWS_EACH));
}

od_status od_linear_forward(od_device *device, od_span y, od_span x, od_span w, od_span bias, int rows, int in,
                            int out) {
    const od_gemm_shape shape = {.m = rows, .n = out, .k = in};
    od_status status = od_gemm(device, &shape, y, x, w, 1.0f, 0.0f);
    if (status == OD_OK && bias.buffer)
        status = od_bias_add(device, y, bias, rows, out);
    return status;
}

od_status od_linear_backward(od_device *device, od_span dx, od_span dw, od_span dbias, od_span dy, od_span x, od_span w,
                             int rows, int in, int out, bool accumulate) {
    od_status status = OD_OK;
    if (dx.buffer) { /* dx (rows, in) = dy (rows, out) w^T */
        const od_gemm_shape shape = {.trans_b = true, .m = rows, .n = in, .k = out};
        status = od_gemm(device, &shape, dx, dy, w, 1.0f, 0.0f);
    }
    if (status == OD_OK && dw.buffer) { /* dw (in, out) = x^T dy (rows, out) */
        const od_gemm_shape shape = {.trans_a = true, .m = in, .n = out, .k = rows};
        status = od_gemm(device, &shape, dw, x, dy, 1.0f, accumulate ? 1.0f : 0.0f);
    }
    if (status == OD_OK && dbias.buffer)
        status = od_column_sum(device, dbias, dy, (size_t)rows, out, accumulate);
    return status;
}
