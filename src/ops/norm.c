/* Batch normalisation: partial sums over chunks of rows, their total, and an element-wise pass. */
#include "offdiag/ops/norm.h"

#include "ops/team.h"

/* Flags of cl/norm.cl. */
enum { RELU = 1, RESIDUAL = 2, AFFINE = 4, VARIANCE = 8 };

static od_status check_shape(const od_bn_shape *s, const char *pass, int least_rows) {
    if (s->groups <= 0 || s->rows <= 0 || s->c <= 0)
        return od_fail(OD_ERR_ARGUMENT, "batch norm %s: %d groups of %d rows of %d channels", pass, s->groups, s->rows,
                       s->c);
    if (s->rows < least_rows)
        return od_fail(OD_ERR_ARGUMENT, "batch norm %s: the variance over 1 row (%d channels) is undefined", pass,
                       s->c);
    return OD_OK;
}

static od_status check_affine(const od_bn_params *params) {
    if (!params->gamma.buffer != !params->beta.buffer)
        return od_fail(OD_ERR_ARGUMENT, "batch norm: gamma without beta, or beta without gamma");
    return OD_OK;
}

static od_status norm_kernel(od_device *device, const od_columns *columns, const char *name, od_kernel **out) {
    return od_kernel_get(device, "norm", columns->options, name, out);
}

static uint32_t fuse_flags(const od_bn_params *params, const od_bn_fuse *fuse) {
    return (fuse && fuse->relu ? RELU : 0) | (fuse && fuse->residual.buffer ? RESIDUAL : 0) |
           (params->gamma.buffer ? AFFINE : 0);
}

/* y = act((x - mean) * spread * gamma + beta + residual); the statistics of a group are stats_stride after the last's.
 */
static od_status apply(od_device *device, const od_columns *columns, const od_bn_params *params, const od_bn_fuse *fuse,
                       od_span y, od_span x, od_span mean, od_span spread, uint32_t stats_stride, int groups,
                       size_t rows, int c, float eps, uint32_t flags) {
    od_kernel *kernel;
    od_status status = norm_kernel(device, columns, "apply", &kernel);
    if (status)
        return status;
    od_span residual = fuse ? fuse->residual : OD_NO_SPAN;
    return OD_LAUNCH(kernel, od_columns_range(columns, c, groups), OD_SPAN(y), OD_SPAN(x), OD_SPAN(residual),
                     OD_SPAN(mean), OD_SPAN(spread), OD_SPAN(params->gamma), OD_SPAN(params->beta),
                     OD_U32(stats_stride), OD_U64(rows), OD_U32((uint32_t)c), OD_U32((uint32_t)columns->chunk_rows),
                     OD_F32(eps), OD_U32(flags));
}

/* saved (groups, 2, c) from x, and the running statistics. */
static od_status statistics(od_device *device, const od_columns *columns, const od_bn_shape *s,
                            const od_bn_params *params, od_span saved, od_span x) {
    uint32_t c = (uint32_t)s->c, rows = (uint32_t)s->rows;
    uint32_t chunk_rows = (uint32_t)columns->chunk_rows, chunks = (uint32_t)columns->chunks;
    od_kernel *stats, *finish;
    od_span partial; // (groups, chunks, 2, c)
    od_status status = norm_kernel(device, columns, "stats", &stats);
    if (!status)
        status = norm_kernel(device, columns, "finish_stats", &finish);
    if (!status)
        status = od_span_create(device, (size_t)s->groups * chunks * 2 * c, &partial);
    if (status)
        return status;
    status = OD_LAUNCH(stats, od_columns_range(columns, s->c, s->groups), OD_SPAN(partial), OD_SPAN(x), OD_U32(rows),
                       OD_U32(c), OD_U32(chunk_rows), OD_U32(chunks));
    if (!status)
        status = OD_LAUNCH(finish, od_columns_finish_range(columns, s->c), OD_SPAN(saved),
                           OD_SPAN(params->running_mean), OD_SPAN(params->running_var), OD_SPAN(partial), OD_SPAN(x),
                           OD_U32((uint32_t)s->groups), OD_U32(rows), OD_U32(c), OD_U32(chunk_rows), OD_U32(chunks),
                           OD_F32(s->eps), OD_F32(params->momentum), OD_I32(params->running_mean.buffer != NULL),
                           OD_I32(params->running_var.buffer != NULL));
    od_buffer_release(partial.buffer);
    return status;
}

od_status od_bn_forward(od_device *device, const od_bn_shape *shape, const od_bn_params *params, const od_bn_fuse *fuse,
                        od_span y, od_span saved, od_span x) {
    od_status status = check_shape(shape, "forward", 2);
    if (!status)
        status = check_affine(params);
    if (status)
        return status;
    od_columns columns =
        OD_COLUMNS_OF(device, "bn_forward", (size_t)shape->rows, shape->c, y, saved, x, params->gamma, params->beta,
                      params->running_mean, params->running_var, fuse ? fuse->residual : OD_NO_SPAN);
    status = statistics(device, &columns, shape, params, saved, x);
    if (status)
        return status;
    od_span rstd = od_span_at(saved, (size_t)shape->c);
    return apply(device, &columns, params, fuse, y, x, saved, rstd, 2 * (uint32_t)shape->c, shape->groups,
                 (size_t)shape->rows, shape->c, shape->eps, fuse_flags(params, fuse));
}

od_status od_bn_inference(od_device *device, const od_bn_shape *shape, const od_bn_params *params,
                          const od_bn_fuse *fuse, od_span y, od_span x) {
    od_status status = check_shape(shape, "inference", 1);
    if (!status)
        status = check_affine(params);
    if (status)
        return status;
    if (!params->running_mean.buffer || !params->running_var.buffer)
        return od_fail(OD_ERR_ARGUMENT, "batch norm inference needs the running mean and variance (%d channels)",
                       shape->c);
    size_t rows = (size_t)shape->groups * (size_t)shape->rows;
    od_columns columns = OD_COLUMNS_OF(device, "bn_inference", rows, shape->c, y, x, params->gamma, params->beta,
                                       params->running_mean, params->running_var, fuse ? fuse->residual : OD_NO_SPAN);
    return apply(device, &columns, params, fuse, y, x, params->running_mean, params->running_var, 0, 1, rows, shape->c,
                 shape->eps, fuse_flags(params, fuse) | VARIANCE);
}

/* sums (groups, 2, c) of the masked gradient g and of g xhat; dgamma and dbeta from them. */
static od_status gradient_sums(od_device *device, const od_columns *columns, const od_bn_shape *s, uint32_t flags,
                               od_span sums, od_span dgamma, od_span dbeta, od_span dy, od_span y, od_span x,
                               od_span saved, bool accumulate) {
    uint32_t c = (uint32_t)s->c, chunks = (uint32_t)columns->chunks;
    od_kernel *grads, *finish;
    od_span partial; // (groups, chunks, 2, c)
    od_status status = norm_kernel(device, columns, "grads", &grads);
    if (!status)
        status = norm_kernel(device, columns, "finish_grads", &finish);
    if (!status)
        status = od_span_create(device, (size_t)s->groups * chunks * 2 * c, &partial);
    if (status)
        return status;
    status = OD_LAUNCH(grads, od_columns_range(columns, s->c, s->groups), OD_SPAN(partial), OD_SPAN(dy), OD_SPAN(y),
                       OD_SPAN(x), OD_SPAN(saved), OD_U32((uint32_t)s->rows), OD_U32(c),
                       OD_U32((uint32_t)columns->chunk_rows), OD_U32(chunks), OD_U32(flags));
    if (!status)
        status = OD_LAUNCH(finish, od_columns_finish_range(columns, s->c), OD_SPAN(sums), OD_SPAN(dgamma),
                           OD_SPAN(dbeta), OD_SPAN(partial), OD_U32((uint32_t)s->groups), OD_U32(c), OD_U32(chunks),
                           OD_I32(dgamma.buffer != NULL), OD_I32(dbeta.buffer != NULL), OD_I32(accumulate));
    od_buffer_release(partial.buffer);
    return status;
}

od_status od_bn_backward(od_device *device, const od_bn_shape *shape, const od_bn_params *params,
                         const od_bn_fuse *fuse, od_span dx, od_span d_residual, od_span dgamma, od_span dbeta,
                         od_span dy, od_span y, od_span x, od_span saved, bool accumulate) {
    od_status status = check_shape(shape, "backward", 2);
    if (!status)
        status = check_affine(params);
    if (!status && fuse && fuse->relu && !y.buffer)
        status = od_fail(OD_ERR_ARGUMENT, "batch norm backward: a ReLU's gradient needs the forward output");
    if (status)
        return status;
    od_columns columns = OD_COLUMNS_OF(device, "bn_backward", (size_t)shape->rows, shape->c, dx, d_residual, dgamma,
                                       dbeta, dy, y, x, saved, params->gamma);
    uint32_t flags = (fuse_flags(params, fuse) & ~(uint32_t)RESIDUAL) | (d_residual.buffer ? RESIDUAL : 0);
    od_kernel *input_grads;
    od_span sums; // (groups, 2, c)
    status = norm_kernel(device, &columns, "input_grads", &input_grads);
    if (!status)
        status = od_span_create(device, (size_t)shape->groups * 2 * (size_t)shape->c, &sums);
    if (status)
        return status;
    status = gradient_sums(device, &columns, shape, flags, sums, dgamma, dbeta, dy, y, x, saved, accumulate);
    if (!status)
        status = OD_LAUNCH(input_grads, od_columns_range(&columns, shape->c, shape->groups), OD_SPAN(dx),
                           OD_SPAN(d_residual), OD_SPAN(dy), OD_SPAN(y), OD_SPAN(x), OD_SPAN(saved), OD_SPAN(sums),
                           OD_SPAN(params->gamma), OD_U32((uint32_t)shape->rows), OD_U32((uint32_t)shape->c),
                           OD_U32((uint32_t)columns.chunk_rows), OD_U32(flags));
    od_buffer_release(sums.buffer);
    return status;
}
