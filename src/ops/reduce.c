/* Reductions, in two stages of a fixed order. */
#include "ops/reduce.h"

#include "offdiag/ops/pointwise.h"
#include "ops/team.h"

od_status od_sum_partials(od_device *device, od_span out, od_span partials, size_t count, float factor,
                          bool accumulate) {
    od_team team = OD_TEAM_OF(device, "sum_partials", partials);
    team.work = (od_work){(double)count, 4.0 * (double)count};
    return OD_TEAM_LAUNCH(device, &team, "rows", "sum_partials", 1, OD_SPAN(out), OD_SPAN(partials), OD_U64(count),
                          OD_F32(factor), OD_I32(accumulate));
}

/* The first stage's kernel by its name; blocks grow with x, so that the second stage adds at most about 16384 numbers.
 */
static od_status reduce(od_device *device, const char *kernel, od_span out, od_span x, size_t count) {
    od_team team = OD_TEAM_OF(device, kernel, x);
    team.work = (od_work){(double)count, 4.0 * (double)count};
    size_t block = team.block * od_ceil_div(od_ceil_div(count, team.block), 16384);
    size_t blocks = count ? od_ceil_div(count, block) : 0;
    od_span partial;
    od_status status = od_span_create(device, blocks ? blocks : 1, &partial);
    if (status)
        return status;
    status = OD_TEAM_LAUNCH(device, &team, "rows", kernel, blocks, OD_SPAN(partial), OD_SPAN(x), OD_U64(count),
                            OD_U64(block));
    if (!status)
        status = od_sum_partials(device, out, partial, blocks, 1.0f, false);
    od_buffer_release(partial.buffer);
    return status;
}

od_status od_sum(od_device *device, od_span out, od_span x, size_t count) {
    return reduce(device, "block_sum", out, x, count);
}

od_status od_sum_squares(od_device *device, od_span out, od_span x, size_t count) {
    return reduce(device, "block_sum_squares", out, x, count);
}

od_status od_count_nonfinite(od_device *device, od_span out, od_span x, size_t count) {
    return reduce(device, "block_count_nonfinite", out, x, count);
}

od_status od_column_sum(od_device *device, od_span out, od_span x, size_t rows, int c, bool accumulate) {
    if (c <= 0)
        return od_fail(OD_ERR_ARGUMENT, "column sum: %d columns", c);
    od_columns columns = OD_COLUMNS_OF(device, "column_sum", rows, c, out, x);
    od_kernel *chunks, *finish;
    od_span partial;
    od_status status = od_kernel_get(device, "columns", columns.options, "column_sum_chunks", &chunks);
    if (!status)
        status = od_kernel_get(device, "columns", columns.options, "column_sum_finish", &finish);
    if (!status)
        status = od_span_create(device, (columns.chunks ? columns.chunks : 1) * (size_t)c, &partial);
    if (status)
        return status;
    const double elements = (double)rows * c, partials = (double)columns.chunks * c;
    od_range range = od_range_work(od_columns_range(&columns, c, 1), elements, sizeof(float) * (elements + partials));
    status = OD_LAUNCH(chunks, range, OD_SPAN(partial), OD_SPAN(x), OD_U64(rows), OD_U32((uint32_t)c),
                       OD_U32((uint32_t)columns.chunk_rows));
    range = od_range_work(od_columns_finish_range(&columns, c), partials, sizeof(float) * (partials + c));
    if (!status)
        status = OD_LAUNCH(finish, range, OD_SPAN(out), OD_SPAN(partial), OD_U64(columns.chunks), OD_U32((uint32_t)c),
                           OD_I32(accumulate));
    od_buffer_release(partial.buffer);
    return status;
}
