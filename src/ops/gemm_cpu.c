/* Matrix product for CPU devices: cl/gemm_cpu.cl explains the kernel, this cuts the work. */
#include <stdio.h>

#include "ops/gemm_impl.h"

/* Register tiles by vector width: 24 accumulators of 32 registers with AVX-512, 12 of 16 with AVX2, 24 of 32 with NEON.
 * k_chunk columns of a panel fill at most 32 KiB. */
static const struct {
    unsigned width;
    int vectors, rows, rows_b, rows_c, k_chunk;
} tiles[] = {
    {16, 2, 12, 8, 4, 256},
    {8, 2, 6, 4, 2, 256},
    {4, 3, 8, 4, 2, 256},
};
enum { TILES = sizeof tiles / sizeof tiles[0] };

static int ceil_div(int a, int b) {
    return (a - 1) / b + 1;
}

/* The kernel of the widest tile that the device's vectors carry and its local memory holds; none: *kernel is NULL. */
static od_status get_kernel(od_device *device, const od_gemm_shape *s, size_t *tile, od_kernel **kernel) {
    const od_device_info *info = od_device_get_info(device);
    *kernel = NULL;
    for (size_t t = 0; t < TILES; t++) {
        if (t + 1 < TILES && tiles[t].width > info->vector_width)
            continue;
        char options[160];
        snprintf(options, sizeof options,
                 "-DW=%u -DVECTORS=%d -DROWS=%d -DROWS_B=%d -DROWS_C=%d -DK_CHUNK=%d -DTRANS_A=%d -DTRANS_B=%d",
                 tiles[t].width, tiles[t].vectors, tiles[t].rows, tiles[t].rows_b, tiles[t].rows_c, tiles[t].k_chunk,
                 s->trans_a, s->trans_b);
        od_kernel *candidate;
        od_status status = od_kernel_get(device, "gemm_cpu", options, "gemm_cpu", &candidate);
        if (status != OD_OK)
            return status;
        if (od_kernel_local_bytes(candidate) <= info->local_bytes) { /* llvmpipe counts it twice */
            *tile = t;
            *kernel = candidate;
            break;
        }
    }
    return OD_OK;
}

od_status od_gemm_cpu(od_device *device, const od_gemm_call *call) {
    const od_gemm_shape *s = &call->shape;
    const od_device_info *info = od_device_get_info(device);
    size_t t = 0;
    od_kernel *kernel;
    od_status status = get_kernel(device, s, &t, &kernel);
    if (status != OD_OK)
        return status;
    if (!kernel)
        return od_gemm_ref(device, call);
    const int columns = tiles[t].vectors * (int)tiles[t].width, rows = tiles[t].rows;

    /* Four work-items a core balance the load. Cut the rows first, as long as a panel's copy serves four tiles; then k.
     */
    const int wanted = info->compute_units > 4096 ? 16384 : 4 * (int)info->compute_units;
    const int panels = ceil_div(s->n, columns);
    int blocks = ceil_div(wanted, panels);
    if (blocks > ceil_div(s->m, 4 * rows))
        blocks = ceil_div(s->m, 4 * rows);
    int block_rows = ceil_div(ceil_div(s->m, blocks), rows) * rows;
    /* For each step of k: a round to copy each column, and at most two for each tile. */
    const int most_rows = (OD_GEMM_LOOPS - columns) / 2 * rows;
    if (od_device_loop_limit(device) && block_rows > most_rows)
        block_rows = most_rows;
    blocks = ceil_div(s->m, block_rows);
    od_gemm_slices slices;
    status = od_gemm_slices_begin(device, call, panels < wanted ? ceil_div(wanted, panels * blocks) : 1,
                                  2 * tiles[t].k_chunk, &slices);
    if (status != OD_OK)
        return status;
    od_range range = OD_RANGE3(panels, blocks, slices.count, 1, 1, 1);
    range.work = od_gemm_work(call, slices.count);
    status =
        OD_LAUNCH(kernel, range, OD_SPAN(slices.out), OD_SPAN(call->a), OD_SPAN(call->b), OD_I32(s->m), OD_I32(s->n),
                  OD_I32(s->k), OD_U64(s->lda), OD_U64(s->ldb), OD_U64(slices.ldc), OD_F32(slices.alpha),
                  OD_F32(slices.beta), OD_I32(block_rows), OD_I32(slices.slice_k), OD_U64(slices.stride));
    const od_status end = status == OD_OK ? od_gemm_slices_end(device, call, &slices) : status;
    if (status != OD_OK)
        od_buffer_release(slices.parts);
    return end;
}
