/* Matrix product for GPUs: cl/gemm_gpu.cl explains the kernel, this picks a tile and cuts the work. */
#include <stdio.h>

#include "ops/gemm_impl.h"
#include "ops/tunable.h"

enum { TILE_M, TILE_N, TILE_K, ITEM_M, ITEM_N, PER_UNIT };

/* From large to small: work per byte falls, the number of work-groups rises. All are 64 or 256 work-items with at most
 * 8.1 KiB of local memory (llvmpipe counts it twice). Two work-groups a compute unit. */
static const int tiles[][6] = {
    {128, 128, 8, 8, 8, 2},
    {64, 64, 16, 4, 4, 2},
    {32, 32, 16, 4, 4, 2},
};
enum { TILES = sizeof tiles / sizeof tiles[0] };

static size_t work_items(const int *v) {
    return (size_t)(v[TILE_M] / v[ITEM_M]) * (size_t)(v[TILE_N] / v[ITEM_N]);
}

static bool fits(const od_device *device, const int *v) {
    const od_device_info *info = od_device_get_info(device);
    const size_t items = work_items(v), local = sizeof(float) * v[TILE_K] * (v[TILE_M] + v[TILE_N] + 2);
    return v[TILE_M] % v[ITEM_M] == 0 && v[TILE_N] % v[ITEM_N] == 0 && items >= 16 && items <= 256 &&
           items <= info->max_work_group && local <= 32768 && local <= info->local_bytes;
}

const od_tuning_table od_gemm_gpu_table = {
    .variant = "gemm_gpu",
    .shape = OD_GEMM_CLASSES,
    .parameters = {{"tile_m", OD_TUNING_VALUES(16, 32, 64, 128), "the largest of 128, 64, 32 that fills the device"},
                   {"tile_n", OD_TUNING_VALUES(16, 32, 64, 128), "as tile_m"},
                   {"tile_k", OD_TUNING_VALUES(8, 16, 32), "8 for 128, else 16"},
                   {"item_m", OD_TUNING_VALUES(2, 4, 8), "8 for 128, else 4"},
                   {"item_n", OD_TUNING_VALUES(2, 4, 8), "as item_m"},
                   {"groups", OD_TUNING_VALUES(1, 2, 4, 8), "2 work-groups a compute unit, by cutting k"}},
    .count = 6,
    .fits = fits,
};

static int ceil_div(int a, int b) {
    return (a - 1) / b + 1;
}

static size_t tile_count(const int *v, const od_gemm_shape *s) {
    return (size_t)ceil_div(s->m, v[TILE_M]) * (size_t)ceil_div(s->n, v[TILE_N]);
}

/* *kernel is NULL where the device can't run its work-group. */
static od_status build_kernel(od_device *device, const od_gemm_shape *s, const int *v, od_kernel **kernel) {
    const od_device_info *info = od_device_get_info(device);
    char options[160];
    snprintf(options, sizeof options,
             "-DTILE_M=%d -DTILE_N=%d -DTILE_K=%d -DITEM_M=%d -DITEM_N=%d -DTRANS_A=%d -DTRANS_B=%d", v[TILE_M],
             v[TILE_N], v[TILE_K], v[ITEM_M], v[ITEM_N], s->trans_a, s->trans_b);
    od_status status = od_kernel_get(device, "gemm_gpu", options, "gemm_gpu", kernel);
    if (!status &&
        (od_kernel_max_work_group(*kernel) < work_items(v) || od_kernel_local_bytes(*kernel) > info->local_bytes))
        *kernel = NULL;
    return status;
}

/* The kernel of what a tuning row says, or else of the largest tile that still gives each compute unit two work-groups
 * and that the device can run. None: *kernel is NULL. */
static od_status get_kernel(od_device *device, const od_gemm_shape *s, int *v, od_kernel **kernel) {
    const od_device_info *info = od_device_get_info(device);
    od_status status = OD_OK;
    *kernel = NULL;
    for (size_t t = 0; t < TILES && !status && !*kernel; t++) {
        const size_t wanted = (size_t)tiles[t][PER_UNIT] * info->compute_units;
        if ((t + 1 < TILES && tile_count(tiles[t], s) < wanted) || work_items(tiles[t]) > info->max_work_group)
            continue;
        status = od_gemm_tuned(device, &od_gemm_gpu_table, s, tiles[t], build_kernel, v, kernel);
    }
    return status;
}

od_status od_gemm_gpu(od_device *device, const od_gemm_call *call) {
    const od_gemm_shape *s = &call->shape;
    int v[OD_TUNING_PARAMETERS];
    od_kernel *kernel;
    od_status status = get_kernel(device, s, v, &kernel);
    if (status != OD_OK)
        return status;
    if (!kernel)
        return od_gemm_ref(device, call);

    const size_t wanted = (size_t)v[PER_UNIT] * od_device_get_info(device)->compute_units;
    const size_t groups = tile_count(v, s);
    od_gemm_slices slices;
    status = od_gemm_slices_begin(device, call, groups < wanted ? (int)((wanted - 1) / groups + 1) : 1, 16 * v[TILE_K],
                                  &slices);
    if (status != OD_OK)
        return status;
    const size_t x = (size_t)(v[TILE_N] / v[ITEM_N]), y = (size_t)(v[TILE_M] / v[ITEM_M]);
    const size_t tiles_n = (size_t)ceil_div(s->n, v[TILE_N]), tiles_m = (size_t)ceil_div(s->m, v[TILE_M]);
    od_range range = OD_RANGE3(tiles_n * x, tiles_m * y, slices.count, x, y, 1);
    range.work = od_gemm_work(call, slices.count);
    status = OD_LAUNCH(kernel, range, OD_SPAN(slices.out), OD_SPAN(call->a), OD_SPAN(call->b), OD_I32(s->m),
                       OD_I32(s->n), OD_I32(s->k), OD_U64(s->lda), OD_U64(s->ldb), OD_U64(slices.ldc),
                       OD_F32(slices.alpha), OD_F32(slices.beta), OD_I32(slices.slice_k), OD_U64(slices.stride));
    return od_gemm_slices_end(device, call, &slices, status);
}
