#include "model/batch_norm.h"

#include <limits.h>
#include <stdlib.h>

static od_status count_rows(double rows, int *all_rows) {
    if (rows > INT_MAX)
        return od_fail(OD_ERR_UNSUPPORTED, "batch norm over %.0f rows on all devices", rows);
    *all_rows = (int)rows;
    return OD_OK;
}

/* merged (groups, 3, C) of the rows here -> of all. Sums of values and of squares are in double precision, where means
 * a thousand times their deviation still leave more digits than float has. */
static od_status merge_all(od_member *member, const od_bn_shape *s, od_span merged, int *all_rows) {
    const size_t c = (size_t)s->c, values = (size_t)s->groups * c;
    float *host = malloc(3 * values * sizeof *host);
    double *sums = malloc((2 * values + 1) * sizeof *sums); /* (groups, 2, C), rows */
    od_status status = host && sums ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for statistics of %zu channels", c);
    if (status || (status = od_span_read(merged, host, 3 * values)))
        goto out;
    for (int g = 0; g < s->groups; g++)
        for (size_t i = 0; i < c; i++) {
            const float *at = host + 3 * g * c + i;
            double *to = sums + 2 * g * c + i;
            to[0] = (double)at[0] * at[c];
            to[c] = at[2 * c] + to[0] * at[c];
        }
    sums[2 * values] = s->rows;
    if ((status = od_member_sum(member, sums, 2 * values + 1)) || (status = count_rows(sums[2 * values], all_rows)))
        goto out;
    for (int g = 0; g < s->groups; g++)
        for (size_t i = 0; i < c; i++) {
            const double *from = sums + 2 * g * c + i, mean = from[0] / *all_rows, m2 = from[c] - from[0] * mean;
            float *at = host + 3 * g * c + i;
            at[0] = (float)*all_rows;
            at[c] = (float)mean;
            at[2 * c] = m2 > 0 ? (float)m2 : 0;
        }
    status = od_span_write(merged, host, 3 * values);
out:
    free(host);
    free(sums);
    return status;
}

static od_status finish_all(od_device *device, od_member *member, const od_bn_shape *shape, const od_bn_params *params,
                            od_span saved, od_span merged) {
    od_bn_shape all = *shape;
    od_status status = merge_all(member, shape, merged, &all.rows);
    return status ? status : od_bn_finish(device, &all, params, saved, merged, 1);
}

static od_status create_merged(od_device *device, const od_bn_shape *s, od_span *merged) {
    return od_span_create(device, (size_t)s->groups * 3 * (size_t)s->c, merged);
}

od_status od_bn_all_statistics(od_device *device, od_member *member, const od_bn_shape *shape,
                               const od_bn_params *params, od_span saved, od_span x) {
    od_span merged = OD_NO_SPAN;
    if (!member)
        return od_bn_statistics(device, shape, params, saved, x);
    od_status status = create_merged(device, shape, &merged);
    if (!status && !(status = od_bn_merged(device, shape, merged, x)))
        status = finish_all(device, member, shape, params, saved, merged);
    od_buffer_release(merged.buffer);
    return status;
}

od_status od_bn_all_finish(od_device *device, od_member *member, const od_bn_shape *shape, const od_bn_params *params,
                           od_span saved, od_span partial, int parts) {
    od_span merged = OD_NO_SPAN;
    if (!member)
        return od_bn_finish(device, shape, params, saved, partial, parts);
    od_status status = create_merged(device, shape, &merged);
    if (!status && !(status = od_bn_merge(device, shape, merged, partial, parts)))
        status = finish_all(device, member, shape, params, saved, merged);
    od_buffer_release(merged.buffer);
    return status;
}

od_status od_bn_all_sums(od_member *member, const od_bn_shape *s, od_span sums, int *all_rows) {
    const size_t values = (size_t)s->groups * 2 * (size_t)s->c;
    *all_rows = s->rows;
    if (!member)
        return OD_OK;
    float *host = malloc(values * sizeof *host);
    double *all = malloc((values + 1) * sizeof *all);
    od_status status = host && all ? OD_OK : od_fail(OD_ERR_MEMORY, "no memory for sums of %d channels", s->c);
    if (status || (status = od_span_read(sums, host, values)))
        goto out;
    for (size_t i = 0; i < values; i++)
        all[i] = host[i];
    all[values] = s->rows;
    if ((status = od_member_sum(member, all, values + 1)) || (status = count_rows(all[values], all_rows)))
        goto out;
    for (size_t i = 0; i < values; i++)
        host[i] = (float)all[i];
    status = od_span_write(sums, host, values);
out:
    free(host);
    free(all);
    return status;
}

od_status od_bn_all_backward(od_device *device, od_member *member, const od_bn_shape *shape, const od_bn_fuse *fuse,
                             od_span dx, od_span d_residual, od_span dgamma, od_span dbeta, od_span dy, od_span y,
                             od_span x, od_span saved, bool accumulate) {
    od_span sums = OD_NO_SPAN; /* (groups, 2, C) */
    int all_rows = 0;
    if (!member)
        return od_bn_backward(device, shape, fuse, dx, d_residual, dgamma, dbeta, dy, y, x, saved, accumulate);
    od_status status = od_span_create(device, (size_t)shape->groups * 2 * (size_t)shape->c, &sums);
    if (!status &&
        !(status = od_bn_backward_sums(device, shape, fuse, sums, dgamma, dbeta, dy, y, x, saved, accumulate)) &&
        !(status = od_bn_all_sums(member, shape, sums, &all_rows)))
        status = od_bn_backward_input(device, shape, all_rows, fuse, dx, d_residual, dy, y, x, saved, sums);
    od_buffer_release(sums.buffer);
    return status;
}
