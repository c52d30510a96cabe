/* The GPU family: implicit GEMM through local memory (cl/conv_gpu.cl). */
#include <stdio.h>
#include <stdlib.h>

#include "ops/conv_impl.h"

/* Tiles: (bm/tm) * (bn/tn) work-items a group, two local buffers of (bm + bn + 8) * bk floats. bm*bk and bn*bk must be
 * multiples of 4 * work-items. */
typedef struct gpu_tile {
    int bm, bn, bk, tm, tn;
} gpu_tile;
static const gpu_tile tiles[] = {{64, 64, 16, 4, 4}, {32, 64, 16, 4, 4}};

enum { MAX_CHUNKS = 64, MIN_CHUNK = 256, GROUPS_PER_UNIT = 8, MAX_PART_BYTES = 1 << 26 };

typedef struct gpu_conv {
    od_device *device;
    od_conv_shape shape;
    unsigned pass;
    od_conv_gather gather;
    const gpu_tile *tile;
    od_kernel *main, *pack, *sum;
} gpu_conv;

static size_t work_items(const gpu_tile *t) {
    return (size_t)(t->bm / t->tm) * (t->bn / t->tn);
}

/* The first tile that the device has room for; twice the local memory is asked for, since Mesa's rusticl counts a
 * kernel's twice. NULL: none. */
static const gpu_tile *tile_of(const od_device *device) {
    const od_device_info *info = od_device_get_info(device);
    for (size_t i = 0; i < sizeof tiles / sizeof *tiles; i++) {
        const gpu_tile *t = &tiles[i];
        if (info->max_work_group >= work_items(t) && info->max_work_item[0] >= (size_t)(t->bn / t->tn) &&
            info->max_work_item[1] >= (size_t)(t->bm / t->tm) &&
            info->local_bytes >= 2 * sizeof(float) * 2 * t->bk * (t->bm + t->bn + 8))
            return t;
    }
    return NULL;
}

/* Loop rounds of a work-item for each term of a sum, with its share of the loads: 6.2 was measured on llvmpipe, whose
 * compiler keeps one of the inner loops. */
enum { LOOPS_PER_TERM = 8 };

bool od_conv_gpu_supports(const od_device *device, const void *shape, const char **why) {
    const od_conv_shape *s = shape;
    const int channels = s->c_in > s->c_out ? s->c_in : s->c_out;
    if (!od_variant_loops(device, LOOPS_PER_TERM * (uint64_t)s->kernel_h * s->kernel_w * channels, why))
        return false;
    *why = "work-groups or local memory too small";
    return tile_of(device) != NULL;
}

static void gpu_destroy(void *state) {
    gpu_conv *c = state;
    if (!c)
        return;
    od_conv_gather_destroy(&c->gather);
    free(c);
}

static od_status get_kernels(gpu_conv *c) {
    const gpu_tile *t = c->tile;
    bool quads = c->shape.c_in % 4 == 0 && c->shape.c_out % 4 == 0, weight = c->pass == OD_CONV_BACKWARD_WEIGHT;
    char options[128];
    snprintf(options, sizeof options, "-DBM=%d -DBN=%d -DBK=%d -DTM=%d -DTN=%d -DQUADS=%d", t->bm, t->bn, t->bk, t->tm,
             t->tn, quads);
    od_status status = od_kernel_get(c->device, weight ? "conv_gpu_weight" : "conv_gpu", options,
                                     weight ? "conv_gemm_weight" : "conv_gemm", &c->main);
    if (!status && c->pass == OD_CONV_BACKWARD_DATA)
        status = od_kernel_get(c->device, "conv_gpu", options, "conv_gemm_pack", &c->pack);
    if (!status && weight)
        status = od_kernel_get(c->device, "conv_ref", "", "conv_sum_chunks", &c->sum);
    if (!status && od_kernel_max_work_group(c->main) < work_items(t))
        status =
            od_fail(OD_ERR_UNSUPPORTED, "convolution: the device runs only %zu work-items of a kernel that needs %zu",
                    od_kernel_max_work_group(c->main), work_items(t));
    return status;
}

static od_status gpu_create(od_device *device, const od_conv_shape *shape, unsigned pass, void **state) {
    gpu_conv *c = calloc(1, sizeof *c);
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    *c = (gpu_conv){.device = device, .shape = *shape, .pass = pass, .tile = tile_of(device)};
    od_status status = od_conv_gather_create(device, shape, pass, false, &c->gather);
    if (!status)
        status = get_kernels(c);
    if (status) {
        gpu_destroy(c);
        c = NULL;
    }
    *state = c;
    return status;
}

/* Backward by data reads a transposed copy. */
static size_t gpu_packed_size(const void *state, int n) {
    (void)n;
    const gpu_conv *c = state;
    return c->pass == OD_CONV_BACKWARD_DATA ? (size_t)c->gather.taps * c->shape.c_in * c->shape.c_out : 0;
}

static od_status gpu_pack(void *state, od_span packed, od_span w) {
    gpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    return OD_LAUNCH(c->pack, OD_RANGE3(c->shape.c_in, c->shape.c_out, g->taps, 16, 4, 1), OD_BUF(packed.buffer),
                     OD_SPAN(w), OD_BUF(g->table), OD_I32(g->classes * OD_CONV_HEADER_INTS), OD_I32(c->shape.c_in),
                     OD_I32(c->shape.c_out));
}

/* A range of whole groups, (columns, rows, layers) of them. */
static od_range group_range(const gpu_tile *t, size_t columns, size_t rows, size_t layers) {
    size_t lx = t->bn / t->tn, ly = t->bm / t->tm;
    return OD_RANGE3(columns * lx, rows * ly, layers, lx, ly, 1);
}

static od_status gpu_run(void *state, const od_conv_args *args) {
    gpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    size_t pixels = (size_t)args->n * g->grid_h * g->grid_w;
    od_range range =
        group_range(c->tile, od_div_up(g->c_out, c->tile->bn), (pixels + c->tile->bm - 1) / c->tile->bm, g->classes);
    return OD_LAUNCH(c->main, range, OD_SPAN(args->out), OD_SPAN(args->in), OD_SPAN(args->weights), OD_BUF(g->table),
                     OD_I32(args->n), OD_I32(g->h_in), OD_I32(g->w_in), OD_I32(g->run), OD_I32(g->h_out),
                     OD_I32(g->w_out), OD_I32(g->c_out), OD_I32(g->step_in), OD_I32(g->step_out));
}

static od_status gpu_weight_run(void *state, const od_conv_args *args) {
    gpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    const gpu_tile *t = c->tile;
    size_t rows = (size_t)g->taps * g->run, count = rows * g->c_out;
    uint64_t pixels = (uint64_t)args->n * g->grid_h * g->grid_w;
    uint64_t groups = (uint64_t)od_div_up(g->c_out, t->bn) * ((rows + t->bm - 1) / t->bm);
    uint64_t chunks = (uint64_t)od_device_get_info(c->device)->compute_units * GROUPS_PER_UNIT / groups + 1;
    uint64_t most = MAX_PART_BYTES / (count * sizeof(float)), useful = pixels / MIN_CHUNK;
    chunks = chunks < MAX_CHUNKS ? chunks : MAX_CHUNKS;
    chunks = chunks < most ? chunks : most;
    chunks = chunks < useful ? chunks : useful;
    const uint64_t limit = od_device_loop_limit(c->device);
    if (limit && chunks < pixels * LOOPS_PER_TERM / limit + 1)
        chunks = pixels * LOOPS_PER_TERM / limit + 1;
    chunks = chunks < 1 ? 1 : chunks;
    uint64_t chunk = (pixels + chunks - 1) / chunks;
    chunks = (pixels + chunk - 1) / chunk;
    od_span part;
    od_status status = od_span_borrow(c->device, count * chunks, &part);
    if (status)
        return status;
    od_range range = group_range(t, od_div_up(g->c_out, t->bn), (rows + t->bm - 1) / t->bm, chunks);
    status = OD_LAUNCH(c->main, range, OD_BUF(part.buffer), OD_SPAN(args->in), OD_SPAN(args->grad), OD_BUF(g->table),
                       OD_I32(args->n), OD_I32(g->h_in), OD_I32(g->w_in), OD_I32(g->run), OD_I32(g->c_out),
                       OD_I32(g->step_in), OD_U64(chunk));
    if (!status)
        status = OD_LAUNCH(c->sum, OD_RANGE1(count, 64), OD_SPAN(args->out), OD_BUF(part.buffer), OD_U64(count),
                           OD_I32((int)chunks), OD_I32(args->accumulate));
    od_buffer_release(part.buffer);
    return status;
}

const od_conv_impl od_conv_gpu = {gpu_create, gpu_destroy, gpu_packed_size, gpu_pack, gpu_run, false};
const od_conv_impl od_conv_gpu_weight = {gpu_create, gpu_destroy, NULL, NULL, gpu_weight_run, false};
