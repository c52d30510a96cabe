/* Matrix product for GPUs: cl/gemm_gpu.cl explains the kernel, this picks a tile and cuts the work. */
#include <stdio.h>

#include "ops/gemm_impl.h"

/* From large to small: work per byte falls, the number of work-groups rises. All are 64 or 256 work-items with at most
 * 8.1 KiB of local memory (llvmpipe counts it twice). */
typedef struct gpu_tile {
    int tile_m, tile_n, tile_k, item_m, item_n;
} gpu_tile;
static const gpu_tile tiles[] = {
    {128, 128, 8, 8, 8},
    {64, 64, 16, 4, 4},
    {32, 32, 16, 4, 4},
};
enum { TILES = sizeof tiles / sizeof tiles[0] };

static int ceil_div(int a, int b) {
    return (a - 1) / b + 1;
}

static size_t tile_count(const gpu_tile *tile, const od_gemm_shape *s) {
    return (size_t)ceil_div(s->m, tile->tile_m) * (size_t)ceil_div(s->n, tile->tile_n);
}

static od_status get_kernel(od_device *device, const gpu_tile *tile, const od_gemm_shape *s, od_kernel **kernel) {
    char options[160];
    snprintf(options, sizeof options,
             "-DTILE_M=%d -DTILE_N=%d -DTILE_K=%d -DITEM_M=%d -DITEM_N=%d -DTRANS_A=%d -DTRANS_B=%d", tile->tile_m,
             tile->tile_n, tile->tile_k, tile->item_m, tile->item_n, s->trans_a, s->trans_b);
    return od_kernel_get(device, "gemm_gpu", options, "gemm_gpu", kernel);
}

od_status od_gemm_gpu(od_device *device, const od_gemm_call *call) {
    const od_gemm_shape *s = &call->shape;
    const od_device_info *info = od_device_get_info(device);
    /* The largest tile that still gives each compute unit two work-groups, and whose work-group the device can run. */
    const size_t wanted = 2 * (size_t)info->compute_units;
    const gpu_tile *tile = NULL;
    od_kernel *kernel = NULL;
    for (size_t t = 0; t < TILES; t++) {
        const gpu_tile *candidate = &tiles[t];
        const size_t items = (size_t)(candidate->tile_m / candidate->item_m) * (candidate->tile_n / candidate->item_n);
        if ((t + 1 < TILES && tile_count(candidate, s) < wanted) || items > info->max_work_group)
            continue;
        od_status status = get_kernel(device, candidate, s, &kernel);
        if (status != OD_OK)
            return status;
        if (od_kernel_max_work_group(kernel) >= items && od_kernel_local_bytes(kernel) <= info->local_bytes) {
            tile = candidate;
            break;
        }
    }
    if (!tile)
        return od_gemm_ref(device, call);

    const size_t groups = tile_count(tile, s);
    od_gemm_slices slices;
    od_status status = od_gemm_slices_begin(device, call, groups < wanted ? (int)((wanted - 1) / groups + 1) : 1,
                                            16 * tile->tile_k, &slices);
    if (status != OD_OK)
        return status;
    const size_t x = (size_t)(tile->tile_n / tile->item_n), y = (size_t)(tile->tile_m / tile->item_m);
    const size_t tiles_n = (size_t)ceil_div(s->n, tile->tile_n), tiles_m = (size_t)ceil_div(s->m, tile->tile_m);
    od_range range = OD_RANGE3(tiles_n * x, tiles_m * y, slices.count, x, y, 1);
    range.work = od_gemm_work(call, slices.count);
    status = OD_LAUNCH(kernel, range, OD_SPAN(slices.out), OD_SPAN(call->a), OD_SPAN(call->b), OD_I32(s->m),
                       OD_I32(s->n), OD_I32(s->k), OD_U64(s->lda), OD_U64(s->ldb), OD_U64(slices.ldc),
                       OD_F32(slices.alpha), OD_F32(slices.beta), OD_I32(slices.slice_k), OD_U64(slices.stride));
    const od_status end = status == OD_OK ? od_gemm_slices_end(device, call, &slices) : status;
    if (status != OD_OK)
        od_buffer_release(slices.parts);
    return end;
}
