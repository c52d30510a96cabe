/* Matrix product for CPU devices: cl/gemm_cpu.cl explains the kernel, this cuts the work. */
#include <stdio.h>

#include "ops/cpu_tile.h"
#include "ops/gemm_impl.h"
#include "ops/tunable.h"

/* Columns of a panel, and work-items a core to balance the load. */
enum { K_CHUNK = 256, ITEMS = 4, ROWS_AT_LEAST = 6 /* so that there are two smaller tiles for what is left over */ };

enum { WIDTH, VECTORS, ROWS, CHUNK, PER_CORE };

/* A panel (chunk, vectors * width) of at most 32 KiB stays in the nearest cache. */
static bool fits(const od_device *device, const int *v) {
    (void)device;
    return v[CHUNK] * v[VECTORS] * v[WIDTH] * (int)sizeof(float) <= 32768;
}

const od_tuning_table od_gemm_cpu_table = {
    .variant = "gemm_cpu",
    .shape = OD_GEMM_CLASSES,
    .parameters = {{"width", OD_TUNING_VALUES(4, 8, 16), "the device's native vector width"},
                   {"vectors", OD_TUNING_VALUES(1, 2, 3, 4), "by width: 2, 2, 3 for 16, 8, 4"},
                   {"rows", OD_TUNING_VALUES(6, 8, 10, 12, 14), "by width: 12, 6, 8; as many as registers hold"},
                   {"k_chunk", OD_TUNING_VALUES(64, 128, 256, 512), "256"},
                   {"items", OD_TUNING_VALUES(1, 2, 4, 8, 16), "4 work-items a core"}},
    .count = 5,
    .fits = fits,
};

static int ceil_div(int a, int b) {
    return (a - 1) / b + 1;
}

/* *kernel is NULL where the device has too little local memory. */
static od_status build_kernel(od_device *device, const od_gemm_shape *s, const int *v, od_kernel **kernel) {
    const int rows_c = v[ROWS] >= 10 ? v[ROWS] / 3 : 2; /* tiles of what is left over; then single rows */
    char options[160];
    static const char *const names[2][2] = {{"gemm_cpu_nn", "gemm_cpu_nt"}, {"gemm_cpu_tn", "gemm_cpu_tt"}};
    snprintf(options, sizeof options, "-DW=%d -DVECTORS=%d -DROWS=%d -DROWS_B=%d -DROWS_C=%d -DK_CHUNK=%d", v[WIDTH],
             v[VECTORS], v[ROWS], 2 * rows_c, rows_c, v[CHUNK]);
    od_status status = od_kernel_get(device, "gemm_cpu", options, names[s->trans_a][s->trans_b], kernel);
    if (!status && od_kernel_local_bytes(*kernel) > od_device_get_info(device)->local_bytes)
        *kernel = NULL; /* llvmpipe counts it twice */
    return status;
}

/* The kernel of what a tuning row says, or else of the widest tile that the device's vectors carry and its local memory
 * holds; none: *kernel is NULL. */
static od_status get_kernel(od_device *device, const od_gemm_shape *s, int *v, od_kernel **kernel) {
    od_status status = OD_OK;
    *kernel = NULL;
    for (size_t t = od_cpu_tile_choose(device); t < OD_CPU_TILES && !status && !*kernel; t++) {
        const od_cpu_tile *tile = &od_cpu_tiles[t];
        const int rows = tile->rows < ROWS_AT_LEAST ? ROWS_AT_LEAST : tile->rows;
        const int defaults[] = {tile->vw, tile->vecs, rows, K_CHUNK, ITEMS};
        status = od_gemm_tuned(device, &od_gemm_cpu_table, s, defaults, build_kernel, v, kernel);
    }
    return status;
}

od_status od_gemm_cpu(od_device *device, const od_gemm_call *call) {
    const od_gemm_shape *s = &call->shape;
    const od_device_info *info = od_device_get_info(device);
    int v[OD_TUNING_PARAMETERS];
    od_kernel *kernel;
    od_status status = get_kernel(device, s, v, &kernel);
    if (status != OD_OK)
        return status;
    if (!kernel)
        return od_gemm_ref(device, call);
    const int columns = v[VECTORS] * v[WIDTH], rows = v[ROWS];

    /* Cut the rows first, as long as a panel's copy serves four tiles; then k. */
    const int wanted = v[PER_CORE] * (info->compute_units > 4096 ? 4096 : (int)info->compute_units);
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
    status = od_gemm_slices_begin(device, call, panels < wanted ? ceil_div(wanted, panels * blocks) : 1, 2 * v[CHUNK],
                                  &slices);
    if (status != OD_OK)
        return status;
    od_range range = OD_RANGE3(panels, blocks, slices.count, 1, 1, 1);
    range.work = od_gemm_work(call, slices.count);
    status =
        OD_LAUNCH(kernel, range, OD_SPAN(slices.out), OD_SPAN(call->a), OD_SPAN(call->b), OD_I32(s->m), OD_I32(s->n),
                  OD_I32(s->k), OD_U64(s->lda), OD_U64(s->ldb), OD_U64(slices.ldc), OD_F32(slices.alpha),
                  OD_F32(slices.beta), OD_I32(block_rows), OD_I32(slices.slice_k), OD_U64(slices.stride));
    return od_gemm_slices_end(device, call, &slices, status);
}
