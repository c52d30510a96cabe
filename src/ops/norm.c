/* Batch normalisation: partial sums over chunks of rows, their total, and an element-wise pass. */
#include "offdiag/ops/norm.h"

#include "ops/team.h"

/* Flags of cl/norm.cl. */
enum { RELU = 1, RESIDUAL = 2, AFFINE = 4, Y = 8, BN_INPUT = 16, CUT = 32 };

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

static od_status check_statistics(const od_bn_shape *shape, const od_bn_params *params) {
    od_status status = check_shape(shape, "forward", 2);
    return status ? status : check_affine(params);
}

static od_status norm_kernel(od_device *device, const od_columns *columns, const char *name, od_kernel **out) {
    return od_kernel_get(device, "norm", columns->options, name, out);
}

static uint32_t affine_flag(const od_bn_params *params) {
    return params->gamma.buffer ? AFFINE : 0;
}

/* For profiles: a pass over `tensors` tensors of the shape, with so many operations an element. */
static od_range pass_range(const od_columns *columns, const od_bn_shape *s, double flop, int tensors) {
    const double elements = (double)s->groups * s->rows * s->c;
    return od_range_work(od_columns_range(columns, s->c, s->groups), flop * elements,
                         sizeof(float) * tensors * elements);
}

/* ... and the kernel that adds up `values` of each channel for each of `parts` in each group. */
static od_range finish_range(const od_columns *columns, const od_bn_shape *s, double parts, int values) {
    const double partials = parts * values * s->groups * s->c;
    return od_range_work(od_columns_finish_range(columns, s->c), 2 * partials, sizeof(float) * partials);
}

/* ---- statistics ------------------------------------------------------------------------------------------------- */

static od_columns statistics_columns(od_device *device, const od_bn_shape *s, const od_bn_params *params, od_span saved,
                                     od_span x) {
    return OD_COLUMNS_OF(device, "bn_statistics", (size_t)s->rows, s->c, saved, x, params->gamma, params->beta,
                         params->running_mean, params->running_var);
}

/* pivot: what the means of the parts are relative to, or OD_NO_SPAN. */
static od_status finish(od_device *device, const od_columns *columns, const od_bn_shape *s, const od_bn_params *params,
                        od_span saved, od_span partial, size_t parts, od_span pivot) {
    od_kernel *kernel;
    od_status status = norm_kernel(device, columns, "finish_stats", &kernel);
    if (status)
        return status;
    return OD_LAUNCH(kernel, finish_range(columns, s, (double)parts, 3), OD_SPAN(saved), OD_SPAN(params->running_mean),
                     OD_SPAN(params->running_var), OD_SPAN(partial), OD_SPAN(pivot), OD_SPAN(params->gamma),
                     OD_SPAN(params->beta), OD_U32((uint32_t)s->groups), OD_U32((uint32_t)s->rows),
                     OD_U32((uint32_t)s->c), OD_U32((uint32_t)parts), OD_F32(s->eps), OD_F32(params->momentum),
                     OD_I32(pivot.buffer != NULL), OD_I32(params->running_mean.buffer != NULL),
                     OD_I32(params->running_var.buffer != NULL), OD_U32(affine_flag(params)));
}

/* partial (groups, chunks, 3, c) of x, from the pool. */
static od_status chunk_statistics(od_device *device, const od_columns *columns, const od_bn_shape *s, od_span *partial,
                                  od_span x) {
    od_kernel *stats;
    od_status status = norm_kernel(device, columns, "stats", &stats);
    if (!status)
        status = od_span_create(device, (size_t)s->groups * columns->chunks * 3 * (size_t)s->c, partial);
    if (status)
        return status;
    status =
        OD_LAUNCH(stats, pass_range(columns, s, 4, 1), OD_SPAN(*partial), OD_SPAN(x), OD_U32((uint32_t)s->rows),
                  OD_U32((uint32_t)s->c), OD_U32((uint32_t)columns->chunk_rows), OD_U32((uint32_t)columns->chunks));
    if (status) {
        od_buffer_release(partial->buffer);
        *partial = OD_NO_SPAN;
    }
    return status;
}

od_status od_bn_statistics(od_device *device, const od_bn_shape *s, const od_bn_params *params, od_span saved,
                           od_span x) {
    od_status status = check_statistics(s, params);
    if (status)
        return status;
    od_columns columns = statistics_columns(device, s, params, saved, x);
    od_span partial = OD_NO_SPAN; // (groups, chunks, 3, c)
    status = chunk_statistics(device, &columns, s, &partial, x);
    if (!status)
        status = finish(device, &columns, s, params, saved, partial, columns.chunks, x);
    od_buffer_release(partial.buffer);
    return status;
}

od_status od_bn_finish(od_device *device, const od_bn_shape *s, const od_bn_params *params, od_span saved,
                       od_span partial, int parts) {
    od_status status = check_statistics(s, params);
    if (status)
        return status;
    od_columns columns = statistics_columns(device, s, params, saved, partial);
    return finish(device, &columns, s, params, saved, partial, (size_t)parts, OD_NO_SPAN);
}

static od_status merge(od_device *device, const od_columns *columns, const od_bn_shape *s, od_span merged,
                       od_span partial, size_t parts, od_span pivot) {
    od_kernel *kernel;
    od_status status = norm_kernel(device, columns, "merge_stats", &kernel);
    if (status)
        return status;
    return OD_LAUNCH(kernel, finish_range(columns, s, (double)parts, 3), OD_SPAN(merged), OD_SPAN(partial),
                     OD_SPAN(pivot), OD_U32((uint32_t)s->groups), OD_U32((uint32_t)s->rows), OD_U32((uint32_t)s->c),
                     OD_U32((uint32_t)parts), OD_I32(pivot.buffer != NULL));
}

od_status od_bn_merge(od_device *device, const od_bn_shape *s, od_span merged, od_span partial, int parts) {
    static const od_bn_params none;
    od_status status = check_shape(s, "forward", 1);
    if (status)
        return status;
    od_columns columns = statistics_columns(device, s, &none, merged, partial);
    return merge(device, &columns, s, merged, partial, (size_t)parts, OD_NO_SPAN);
}

od_status od_bn_merged(od_device *device, const od_bn_shape *s, od_span merged, od_span x) {
    static const od_bn_params none;
    od_status status = check_shape(s, "forward", 1);
    if (status)
        return status;
    od_columns columns = statistics_columns(device, s, &none, merged, x);
    od_span partial = OD_NO_SPAN; // (groups, chunks, 3, c)
    status = chunk_statistics(device, &columns, s, &partial, x);
    if (!status)
        status = merge(device, &columns, s, merged, partial, columns.chunks, x);
    od_buffer_release(partial.buffer);
    return status;
}

od_status od_bn_running(od_device *device, const od_bn_shape *s, const od_bn_params *params, od_span saved) {
    od_status status = check_shape(s, "inference", 1);
    if (!status)
        status = check_affine(params);
    if (!status && (!params->running_mean.buffer || !params->running_var.buffer))
        status =
            od_fail(OD_ERR_ARGUMENT, "batch norm inference needs the running mean and variance (%d channels)", s->c);
    if (status)
        return status;
    od_columns columns = statistics_columns(device, s, params, saved, saved);
    od_kernel *kernel;
    status = norm_kernel(device, &columns, "running_stats", &kernel);
    if (status)
        return status;
    return OD_LAUNCH(kernel, finish_range(&columns, s, 1, 2), OD_SPAN(saved), OD_SPAN(params->running_mean),
                     OD_SPAN(params->running_var), OD_SPAN(params->gamma), OD_SPAN(params->beta),
                     OD_U32((uint32_t)s->c), OD_F32(s->eps), OD_U32(affine_flag(params)));
}

/* ---- forward ---------------------------------------------------------------------------------------------------- */

static od_status apply(od_device *device, const od_bn_shape *s, const od_bn_fuse *fuse, od_span y, od_span x,
                       od_span affine, size_t stride) {
    od_status status = check_shape(s, "forward", 1);
    if (status)
        return status;
    const od_span residual_affine = fuse->residual_saved.buffer ? od_bn_affine(fuse->residual_saved, s->c) : OD_NO_SPAN;
    od_columns columns =
        OD_COLUMNS_OF(device, "bn_apply", (size_t)s->rows, s->c, y, x, affine, fuse->residual, residual_affine);
    od_kernel *kernel;
    status = norm_kernel(device, &columns, "apply", &kernel);
    if (status)
        return status;
    const uint32_t flags = (fuse->relu ? RELU : 0) | (fuse->residual.buffer ? RESIDUAL : 0) |
                           (residual_affine.buffer ? BN_INPUT : 0) | (fuse->residual_relu ? CUT : 0);
    return OD_LAUNCH(kernel, pass_range(&columns, s, 3, fuse->residual.buffer ? 3 : 2), OD_SPAN(y), OD_SPAN(x),
                     OD_SPAN(affine), OD_SPAN(fuse->residual), OD_SPAN(residual_affine), OD_U32((uint32_t)stride),
                     OD_U64((uint64_t)s->rows), OD_U32((uint32_t)s->c), OD_U32((uint32_t)columns.chunk_rows),
                     OD_U32(flags));
}

od_status od_bn_apply(od_device *device, const od_bn_shape *s, const od_bn_fuse *fuse, od_span y, od_span x,
                      od_span saved) {
    static const od_bn_fuse none;
    return apply(device, s, fuse ? fuse : &none, y, x, od_bn_affine(saved, s->c), OD_BN_SAVED * (size_t)s->c);
}

od_status od_affine_relu(od_device *device, od_span y, od_span x, od_span affine, size_t stride, int groups, int rows,
                         int c) {
    return apply(device, &(od_bn_shape){.groups = groups, .rows = rows, .c = c}, &(od_bn_fuse){.relu = true}, y, x,
                 affine, stride);
}

od_status od_bn_forward(od_device *device, const od_bn_shape *shape, const od_bn_params *params, const od_bn_fuse *fuse,
                        od_span y, od_span saved, od_span x) {
    od_status status = od_bn_statistics(device, shape, params, saved, x);
    return status ? status : od_bn_apply(device, shape, fuse, y, x, saved);
}

od_status od_bn_inference(od_device *device, const od_bn_shape *shape, const od_bn_params *params,
                          const od_bn_fuse *fuse, od_span y, od_span x) {
    const od_bn_shape all = {.groups = 1, .rows = shape->groups * shape->rows, .c = shape->c, .eps = shape->eps};
    od_span saved; // (1, 4, c)
    od_status status = check_shape(shape, "inference", 1);
    if (!status)
        status = od_span_create(device, OD_BN_SAVED * (size_t)shape->c, &saved);
    if (status)
        return status;
    status = od_bn_running(device, &all, params, saved);
    if (!status)
        status = od_bn_apply(device, &all, fuse, y, x, saved);
    od_buffer_release(saved.buffer);
    return status;
}

/* ---- backward --------------------------------------------------------------------------------------------------- */

/* sums (groups, 2, c) from their parts (groups, parts, 2, c); dgamma and dbeta from them. */
static od_status finish_sums(od_device *device, const od_columns *columns, const od_bn_shape *s, od_span sums,
                             od_span dgamma, od_span dbeta, od_span partial, uint32_t parts, bool accumulate) {
    od_kernel *kernel;
    od_status status = norm_kernel(device, columns, "finish_grads", &kernel);
    if (status)
        return status;
    return OD_LAUNCH(kernel, finish_range(columns, s, parts, 2), OD_SPAN(sums), OD_SPAN(dgamma), OD_SPAN(dbeta),
                     OD_SPAN(partial), OD_U32((uint32_t)s->groups), OD_U32((uint32_t)s->c), OD_U32(parts),
                     OD_I32(dgamma.buffer != NULL), OD_I32(dbeta.buffer != NULL), OD_I32(accumulate));
}

od_status od_bn_backward_finish(od_device *device, const od_bn_shape *shape, od_span sums, od_span dgamma,
                                od_span dbeta, od_span partial, int parts, bool accumulate) {
    od_status status = check_shape(shape, "backward", 1);
    if (status)
        return status;
    od_columns columns =
        OD_COLUMNS_OF(device, "bn_backward", (size_t)shape->rows, shape->c, sums, dgamma, dbeta, partial);
    return finish_sums(device, &columns, shape, sums, dgamma, dbeta, partial, (uint32_t)parts, accumulate);
}

/* sums (groups, 2, c) of the masked gradient g and of g xhat; dgamma and dbeta from them. */
static od_status gradient_sums(od_device *device, const od_columns *columns, const od_bn_shape *s, uint32_t flags,
                               od_span sums, od_span dgamma, od_span dbeta, od_span dy, od_span y, od_span x,
                               od_span saved, bool accumulate) {
    const uint32_t c = (uint32_t)s->c, chunks = (uint32_t)columns->chunks;
    od_kernel *grads;
    od_span partial; // (groups, chunks, 2, c)
    od_status status = norm_kernel(device, columns, "grads", &grads);
    if (!status)
        status = od_span_create(device, (size_t)s->groups * chunks * 2 * c, &partial);
    if (status)
        return status;
    status = OD_LAUNCH(grads, pass_range(columns, s, 5, (flags & Y) ? 3 : 2), OD_SPAN(partial), OD_SPAN(dy), OD_SPAN(y),
                       OD_SPAN(x), OD_SPAN(saved), OD_U32((uint32_t)s->rows), OD_U32(c),
                       OD_U32((uint32_t)columns->chunk_rows), OD_U32(chunks), OD_U32(flags));
    if (!status)
        status = finish_sums(device, columns, s, sums, dgamma, dbeta, partial, chunks, accumulate);
    od_buffer_release(partial.buffer);
    return status;
}

static uint32_t backward_flags(const od_bn_fuse *fuse, od_span y, od_span d_residual) {
    return (fuse && fuse->relu ? RELU : 0) | (y.buffer ? Y : 0) | (d_residual.buffer ? RESIDUAL : 0);
}

od_status od_bn_backward_sums(od_device *device, const od_bn_shape *shape, const od_bn_fuse *fuse, od_span sums,
                              od_span dgamma, od_span dbeta, od_span dy, od_span y, od_span x, od_span saved,
                              bool accumulate) {
    od_status status = check_shape(shape, "backward", 1);
    if (status)
        return status;
    od_columns columns =
        OD_COLUMNS_OF(device, "bn_backward", (size_t)shape->rows, shape->c, sums, dgamma, dbeta, dy, y, x, saved);
    return gradient_sums(device, &columns, shape, backward_flags(fuse, y, OD_NO_SPAN), sums, dgamma, dbeta, dy, y, x,
                         saved, accumulate);
}

od_status od_bn_backward_input(od_device *device, const od_bn_shape *shape, int all_rows, const od_bn_fuse *fuse,
                               od_span dx, od_span d_residual, od_span dy, od_span y, od_span x, od_span saved,
                               od_span sums) {
    od_status status = check_shape(shape, "backward", 1);
    if (!status && all_rows < 2)
        status = od_fail(OD_ERR_ARGUMENT, "batch norm backward: means over %d rows", all_rows);
    if (status)
        return status;
    od_columns columns =
        OD_COLUMNS_OF(device, "bn_backward", (size_t)shape->rows, shape->c, dx, d_residual, dy, y, x, saved, sums);
    od_kernel *kernel;
    status = norm_kernel(device, &columns, "input_grads", &kernel);
    if (status)
        return status;
    return OD_LAUNCH(kernel, pass_range(&columns, shape, 6, 3 + (y.buffer != NULL) + (d_residual.buffer != NULL)),
                     OD_SPAN(dx), OD_SPAN(d_residual), OD_SPAN(dy), OD_SPAN(y), OD_SPAN(x), OD_SPAN(saved),
                     OD_SPAN(sums), OD_U32((uint32_t)shape->rows), OD_U32((uint32_t)all_rows),
                     OD_U32((uint32_t)shape->c), OD_U32((uint32_t)columns.chunk_rows),
                     OD_U32(backward_flags(fuse, y, d_residual)));
}

od_status od_bn_backward(od_device *device, const od_bn_shape *shape, const od_bn_fuse *fuse, od_span dx,
                         od_span d_residual, od_span dgamma, od_span dbeta, od_span dy, od_span y, od_span x,
                         od_span saved, bool accumulate) {
    od_span sums = OD_NO_SPAN; // (groups, 2, c)
    od_status status = check_shape(shape, "backward", 2);
    if (!status)
        status = od_span_create(device, (size_t)shape->groups * 2 * (size_t)shape->c, &sums);
    if (!status)
        status = od_bn_backward_sums(device, shape, fuse, sums, dgamma, dbeta, dy, y, x, saved, accumulate);
    if (!status)
        status = od_bn_backward_input(device, shape, shape->rows, fuse, dx, d_residual, dy, y, x, saved, sums);
    od_buffer_release(sums.buffer);
    return status;
}
