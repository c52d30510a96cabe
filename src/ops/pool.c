/* Global average pooling, max pooling, and rows scaled to length 1. */
#include "offdiag/ops/pointwise.h"

/* Channels along the first dimension; as many of them in a work-group as there are, up to 64. */
static od_range range_over(int c, size_t pixels, size_t images) {
    const size_t width = c >= 64 ? 64 : c >= 16 ? 16 : 4;
    return OD_RANGE3((size_t)c, pixels, images, width, 1, 1);
}

static od_status check_sizes(const char *operation, int n, int h, int w, int c) {
    if (n < 0 || h < 1 || w < 1 || c < 1)
        return od_fail(OD_ERR_ARGUMENT, "%s: no image of (%d, %d, %d, %d)", operation, n, h, w, c);
    if ((int64_t)h * w > INT32_MAX)
        return od_fail(OD_ERR_ARGUMENT, "%s: an image of %d x %d pixels is too large", operation, h, w);
    return OD_OK;
}

/* Average pooling walks an image's pixels in one work-item. */
static od_status check_average(const od_device *device, int n, int h, int w, int c) {
    const uint64_t limit = od_device_loop_limit(device);
    if (limit && h > 0 && w > 0 && (uint64_t)h * (uint64_t)w > limit)
        return od_fail(OD_ERR_UNSUPPORTED, "avgpool: an image of %d x %d pixels is too large for %s", h, w,
                       od_device_get_info(device)->name);
    return check_sizes("avgpool", n, h, w, c);
}

od_status od_avgpool_forward(od_device *device, od_span y, od_span x, int n, int h, int w, int c) {
    od_kernel *kernel;
    od_status status = check_average(device, n, h, w, c);
    if (status == OD_OK)
        status = od_kernel_get(device, "pool", "", "avgpool_forward", &kernel);
    if (status != OD_OK)
        return status;
    const double results = (double)n * c, elements = results * h * w;
    const od_range range = od_range_work(range_over(c, (size_t)n, 1), elements, sizeof(float) * (elements + results));
    return OD_LAUNCH(kernel, range, OD_SPAN(y), OD_SPAN(x), OD_I32(h * w), OD_I32(c));
}

od_status od_avgpool_backward(od_device *device, od_span dx, od_span dy, int n, int h, int w, int c) {
    od_kernel *kernel;
    od_status status = check_average(device, n, h, w, c);
    if (status == OD_OK)
        status = od_kernel_get(device, "pool", "", "avgpool_backward", &kernel);
    if (status != OD_OK)
        return status;
    const double results = (double)n * c, elements = results * h * w;
    const od_range range = od_range_work(range_over(c, (size_t)n, 1), results, sizeof(float) * (elements + results));
    return OD_LAUNCH(kernel, range, OD_SPAN(dx), OD_SPAN(dy), OD_I32(h * w), OD_I32(c));
}

/* The output's size; each window must hold at least one pixel that is no padding. */
static od_status check_pool(const od_pool_shape *s, int n, int *h_out, int *w_out) {
    od_status status = check_sizes("maxpool", n, s->h, s->w, s->c);
    if (status != OD_OK)
        return status;
    if (s->size < 1 || s->stride < 1 || s->pad < 0 || s->pad >= s->size || s->size - 2 * s->pad > s->h ||
        s->size - 2 * s->pad > s->w)
        return od_fail(OD_ERR_ARGUMENT, "maxpool: window %d, stride %d, padding %d do not fit an image of %d x %d",
                       s->size, s->stride, s->pad, s->h, s->w);
    *h_out = (s->h + 2 * s->pad - s->size) / s->stride + 1;
    *w_out = (s->w + 2 * s->pad - s->size) / s->stride + 1;
    if ((*h_out - 1) * s->stride - s->pad >= s->h || (*w_out - 1) * s->stride - s->pad >= s->w)
        return od_fail(OD_ERR_ARGUMENT,
                       "maxpool: with window %d, stride %d, padding %d the last window sees only padding of "
                       "an image of %d x %d",
                       s->size, s->stride, s->pad, s->h, s->w);
    return OD_OK;
}

od_status od_maxpool_forward(od_device *device, const od_pool_shape *shape, od_span y, od_span argmax, od_span x,
                             int n) {
    const od_pool_shape *s = shape;
    int h_out = 0, w_out = 0;
    od_kernel *kernel;
    od_status status = check_pool(s, n, &h_out, &w_out);
    if (status == OD_OK)
        status = od_kernel_get(device, "pool", "", "maxpool_forward", &kernel);
    if (status != OD_OK)
        return status;
    const int pixels_out = h_out * w_out;
    return OD_LAUNCH(kernel, range_over(s->c, (size_t)pixels_out, (size_t)n), OD_SPAN(y), OD_SPAN(argmax), OD_SPAN(x),
                     OD_I32(s->h), OD_I32(s->w), OD_I32(s->c), OD_I32(w_out), OD_I32(pixels_out), OD_I32(s->size),
                     OD_I32(s->stride), OD_I32(s->pad));
}

od_status od_maxpool_backward(od_device *device, const od_pool_shape *shape, od_span dx, od_span dy, od_span argmax,
                              int n) {
    const od_pool_shape *s = shape;
    int h_out = 0, w_out = 0;
    od_kernel *kernel;
    od_status status = check_pool(s, n, &h_out, &w_out);
    if (status == OD_OK)
        status = od_kernel_get(device, "pool", "", "maxpool_backward", &kernel);
    if (status != OD_OK)
        return status;
    const int pixels = s->h * s->w;
    return OD_LAUNCH(kernel, range_over(s->c, (size_t)pixels, (size_t)n), OD_SPAN(dx), OD_SPAN(dy), OD_SPAN(argmax),
                     OD_I32(s->w), OD_I32(pixels), OD_I32(s->c), OD_I32(h_out), OD_I32(w_out), OD_I32(s->size),
                     OD_I32(s->stride), OD_I32(s->pad));
}

/* A row for 64 work-items on a GPU, for one elsewhere. */
static od_status row_kernel(od_device *device, const char *name, int rows, int c, od_kernel **kernel, size_t *team) {
    if (rows < 0 || c < 1)
        return od_fail(OD_ERR_ARGUMENT, "%s: no rows of (%d, %d)", name, rows, c);
    const bool wide = od_device_family(device) == OD_FAMILY_GPU && od_device_get_info(device)->max_work_group >= 64;
    *team = wide ? 64 : 1;
    return od_kernel_get(device, "normalize", wide ? "-DV=1 -DTEAM=64" : "-DV=1 -DTEAM=1", name, kernel);
}

od_status od_l2_normalize(od_device *device, od_span y, od_span x, int rows, int c, float eps) {
    od_kernel *kernel = NULL;
    size_t team = 1;
    od_status status = row_kernel(device, "l2_normalize", rows, c, &kernel, &team);
    if (status)
        return status;
    return OD_LAUNCH(kernel, OD_RANGE1((size_t)rows * team, team), OD_SPAN(y), OD_SPAN(x), OD_U64((uint64_t)c),
                     OD_F32(eps));
}

od_status od_l2_normalize_backward(od_device *device, od_span dx, od_span dy, od_span x, int rows, int c, float eps) {
    od_kernel *kernel = NULL;
    size_t team = 1;
    od_status status = row_kernel(device, "l2_normalize_backward", rows, c, &kernel, &team);
    if (status)
        return status;
    return OD_LAUNCH(kernel, OD_RANGE1((size_t)rows * team, team), OD_SPAN(dx), OD_SPAN(dy), OD_SPAN(x),
                     OD_U64((uint64_t)c), OD_F32(eps));
}
