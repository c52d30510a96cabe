/* The GPU family: Winograd F(4x4, 3x3) for 3x3 windows at stride 1 (cl/conv_gpu_winograd.cl, cl/conv_gpu_products.cl):
 * the input's patches are transformed to memory, multiplied in 36 matrix products, and the products transformed back.
 *
 * The products are a plain matrix product's work with a quarter of a direct convolution's arithmetic; what that costs
 * is memory traffic, each transformed value being written and read once. A fused kernel would save the traffic, but has
 * to keep 36 sums for every output of a register tile, or F(2x2, 3x3)'s 16 at 2.25 times less arithmetic instead of 4.
 *
 * Tiles are taken in slabs, so that scratch stays bounded and, where the device's cache is large, in it. */
#include <stdio.h>
#include <stdlib.h>

#include "ops/conv_gpu.h"

enum {
    POINTS = 36,
    ITEMS = 256,     /* work-items of a transform's work-group */
    ROUNDS = 4,      /* tiles that a work-item brings back */
    SLAB_MIB = 64,   /* of transformed values: about 1000 work-groups of products for any number of channels */
    BUDGET_PART = 8, /* of the memory budget, for them at most */
    MIN_CHUNK = 64,  /* tiles of a chunk of backward by weights */
    FLOP_PER_BYTE = 16,
};

/* No GPU has measured any of these defaults. */
const od_tuning_table od_conv_gpu_choice_table = {
    .variant = "conv_gpu_choice",
    .shape = OD_CONV_PLAN_CLASSES,
    .parameters = {{"winograd", OD_TUNING_VALUES(0, 1),
                    "1 for 3x3 at stride 1 where it saves 16 operations or more for each byte of its memory traffic: "
                    "from 43 channels on, if tiles of 4x4 fill the map"}},
    .count = 1,
};
const od_tuning_table od_conv_gpu_winograd_table = {
    .variant = "conv_gpu_winograd",
    .shape = OD_CONV_CLASSES,
    .parameters = {OD_GPU_TILE_PARAMETERS},
    .count = 5,
    .fits = od_gpu_values_fit,
};
const od_tuning_table od_conv_gpu_winograd_weight_table = {
    .variant = "conv_gpu_winograd_weight",
    .shape = OD_CONV_CLASSES,
    .parameters = {OD_GPU_TILE_PARAMETERS, OD_GPU_PER_UNIT_PARAMETER},
    .count = 6,
    .fits = od_gpu_values_fit,
};

enum { TUNED_ITEMS, TUNED_ROUNDS, TUNED_SLAB };
static bool transforms_fit(const od_device *device, const int *v) {
    return (size_t)v[TUNED_ITEMS] <= od_device_get_info(device)->max_work_group;
}
const od_tuning_table od_conv_gpu_transforms_table = {
    .variant = "conv_gpu_transforms",
    .shape = OD_CONV_CLASSES,
    .parameters = {{"items", OD_TUNING_VALUES(64, 128, 256), "256 work-items transform together"},
                   {"rounds", OD_TUNING_VALUES(1, 2, 4, 8, 16), "4 tiles that a work-item brings back"},
                   {"slab", OD_TUNING_VALUES(2, 8, 16, 32, 64, 128, 256, 512), "64 MiB of transformed values"}},
    .count = 3,
    .fits = transforms_fit,
};

typedef struct winograd {
    od_device *device;
    od_conv_shape shape;
    unsigned pass;
    od_winograd_maps maps;
    int c_in4, c_out4; /* padded to quads */
} winograd;

static int quads(int channels) {
    return od_div_up(channels, 4) * 4;
}

/* ---- where it runs ----------------------------------------------------------------------------------------------- */

/* Each tile takes 36 products instead of 9 for each of its pixels in the map; its transforms are written and read. */
static bool is_faster(int h, int w, const od_conv_shape *s) {
    const double tiles = (double)od_div_up(h, 4) * od_div_up(w, 4), pixels = (double)h * w;
    const double saved = 2.0 * s->c_in * s->c_out * (9 * pixels - POINTS * tiles);
    const double bytes = 2.0 * sizeof(float) * POINTS * tiles * (s->c_in + s->c_out);
    return saved >= FLOP_PER_BYTE * bytes;
}

static bool supports(const od_device *device, const od_conv_shape *s, unsigned pass, const char **why) {
    const bool back = pass == OD_CONV_BACKWARD_DATA;
    const int h = od_conv_out_h(s), w = od_conv_out_w(s), most = s->c_in > s->c_out ? s->c_in : s->c_out;
    if (s->kernel_h != 3 || s->kernel_w != 3 || s->stride != 1)
        *why = "not a 3x3 window at stride 1";
    else if ((int64_t)s->h * s->w * s->c_in > INT32_MAX || (int64_t)h * w * s->c_out > INT32_MAX ||
             (int64_t)s->c_in * s->c_out > 1 << 26)
        *why = "an image of more than 2 Gi elements, or filters of more than 9 * 2^26";
    else if (od_conv_winograd_mode == OD_WINOGRAD_NEVER)
        *why = "switched off";
    else if (!od_gpu_tiles_fit(device) || od_device_get_info(device)->max_work_group < ITEMS)
        *why = "work-groups or local memory too small";
    else if (!od_variant_loops(device, OD_GPU_LOOPS_PER_TERM * (uint64_t)most, why))
        return false;
    else {
        int use = is_faster(back ? s->h : h, back ? s->w : w, s);
        char class[64];
        od_conv_class(class, pass, s, 0);
        if (od_conv_winograd_mode == OD_WINOGRAD_ALWAYS)
            use = 1;
        else
            (void)od_tuning_lookup(device, &od_conv_gpu_choice_table, class, &use);
        *why = use ? NULL : "its memory traffic costs more than the arithmetic that it saves";
    }
    return !*why;
}

bool od_conv_gpu_winograd_forward(const od_device *device, const void *shape, const char **why) {
    return supports(device, shape, OD_CONV_FORWARD, why);
}
bool od_conv_gpu_winograd_backward_data(const od_device *device, const void *shape, const char **why) {
    return supports(device, shape, OD_CONV_BACKWARD_DATA, why);
}
bool od_conv_gpu_winograd_backward_weight(const od_device *device, const void *shape, const char **why) {
    return supports(device, shape, OD_CONV_BACKWARD_WEIGHT, why);
}

static od_status winograd_create(od_device *device, const od_conv_shape *s, unsigned pass, void **state) {
    winograd *c = calloc(1, sizeof *c);
    *state = c;
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    *c = (winograd){.device = device, .shape = *s, .pass = pass, .maps = od_winograd_maps_of(s, pass)};
    c->c_in4 = quads(c->maps.c_in);
    c->c_out4 = quads(c->maps.c_out);
    return OD_OK;
}

/* ---- slabs ------------------------------------------------------------------------------------------------------- */

/* How a run is cut. A block is what a work-group brings back; the tiles of a group of images are `parts` of them. */
typedef struct winograd_cut {
    int items;
    int block;
    uint64_t per_group, parts, blocks; /* tiles and blocks of a group; all blocks */
    uint64_t slab;                     /* blocks of a slab */
} winograd_cut;

/* Channels beside each other in a work-group, by which the transforms' programs are built. */
static int lanes(int channels) {
    return channels > 32 ? 64 : channels > 16 ? 32 : 16;
}

static winograd_cut cut_run(const winograd *c, const od_conv_args *args) {
    const uint64_t budget = od_device_memory(c->device).budget / BUDGET_PART;
    int v[OD_TUNING_PARAMETERS] = {ITEMS, ROUNDS, SLAB_MIB};
    char class[64];
    od_conv_class(class, c->pass, &c->shape, args->n);
    (void)od_tuning_lookup(c->device, &od_conv_gpu_transforms_table, class, v);
    winograd_cut cut = {.items = v[TUNED_ITEMS], .block = v[TUNED_ITEMS] / lanes(c->maps.c_out) * v[TUNED_ROUNDS]};
    cut.per_group = (uint64_t)(args->n / args->groups) * c->maps.rows * c->maps.columns;
    cut.parts = (cut.per_group + cut.block - 1) / cut.block;
    cut.blocks = cut.parts * args->groups;
    const uint64_t bytes = (uint64_t)v[TUNED_SLAB] << 20, most = bytes < budget ? bytes : budget;
    const uint64_t block_bytes = sizeof(float) * POINTS * (uint64_t)cut.block * (c->c_in4 + c->c_out4);
    cut.slab = most / block_bytes < 1 ? 1 : most / block_bytes;
    const uint64_t slabs = (cut.blocks + cut.slab - 1) / cut.slab;
    cut.slab = (cut.blocks + slabs - 1) / slabs; /* all alike */
    return cut;
}

/* Consecutive blocks, and where their tiles lie. */
typedef struct winograd_slab {
    uint64_t first; /* block */
    int blocks, tiles;
    uint64_t image; /* of tile 0, and its place in there */
    int rest;
} winograd_slab;

static uint64_t tile_of(const winograd_cut *cut, uint64_t block) {
    return block / cut->parts * cut->per_group + block % cut->parts * cut->block;
}

static winograd_slab slab_at(const winograd *c, const winograd_cut *cut, uint64_t first) {
    const uint64_t end = first + cut->slab < cut->blocks ? first + cut->slab : cut->blocks;
    const uint64_t tile = tile_of(cut, first), of_image = (uint64_t)c->maps.rows * c->maps.columns;
    return (winograd_slab){first, (int)(end - first), (int)(tile_of(cut, end) - tile), tile / of_image,
                           (int)(tile % of_image)};
}

static od_status transform_kernel(const winograd *c, const winograd_cut *cut, const char *name, int channels,
                                  od_kernel **kernel) {
    char options[64];
    snprintf(options, sizeof options, "-DLX=%d -DLY=%d", lanes(channels), cut->items / lanes(channels));
    return od_kernel_get(c->device, "conv_gpu_winograd", options, name, kernel);
}

/* One work-item for each channel of each tile. It reads `maps` pixels of each and writes 36. */
static od_range transform_range(const winograd_cut *cut, const winograd_slab *slab, int channels, double pixels) {
    const size_t lx = (size_t)lanes(channels), ly = (size_t)cut->items / lx;
    return od_range_work(OD_RANGE2((size_t)channels, (size_t)slab->tiles, lx, ly), 0,
                         sizeof(float) * channels * (double)slab->tiles * (pixels + POINTS));
}

/* Of transforms and products of all slabs together. */
static od_range products_work(od_range range, const winograd *c, double tiles, double weights, double out) {
    return od_range_work(range, 2.0 * POINTS * tiles * c->maps.c_in * c->maps.c_out,
                         sizeof(float) * POINTS * (weights + out));
}

static od_status put_patches(const winograd *c, const winograd_cut *cut, const winograd_slab *slab, od_kernel *kernel,
                             od_span v, const od_conv_args *args) {
    return OD_LAUNCH(kernel, transform_range(cut, slab, c->c_in4, 16), OD_BUF(v.buffer), OD_SPAN(args->in),
                     OD_SPAN(args->affine), OD_U64(args->stride), OD_I32(args->n / args->groups), OD_U64(slab->image),
                     OD_I32(slab->rest), OD_I32(slab->tiles), OD_I32(c->maps.rows), OD_I32(c->maps.columns),
                     OD_I32(c->maps.h_in), OD_I32(c->maps.w_in), OD_I32(c->maps.c_in), OD_I32(c->c_in4),
                     OD_I32(c->maps.pad));
}

/* ---- forward, backward by data ----------------------------------------------------------------------------------- */

static size_t winograd_packed_size(const void *state, int n) {
    (void)n;
    const winograd *c = state;
    return (size_t)POINTS * c->c_in4 * c->c_out4;
}

/* [36][c_in4][c_out4] */
static od_status winograd_pack(void *state, od_span packed, od_span w) {
    const winograd *c = state;
    const winograd_cut any = {.items = ITEMS};
    od_kernel *kernel;
    od_status status = transform_kernel(c, &any, "conv_gpu_winograd_filters", c->maps.c_out, &kernel);
    const double bytes = sizeof(float) * (9.0 * c->maps.c_in * c->maps.c_out + (double)winograd_packed_size(c, 0));
    return status ? status
                  : OD_LAUNCH(kernel, od_range_work(OD_RANGE2(c->c_out4, c->c_in4, 16, 16), 0, bytes),
                              OD_BUF(packed.buffer), OD_SPAN(w), OD_I32(c->maps.c_in), OD_I32(c->maps.c_out),
                              OD_I32(c->c_in4), OD_I32(c->c_out4), OD_I32(c->pass == OD_CONV_BACKWARD_DATA));
}

/* What a run of slabs holds. */
typedef struct winograd_run {
    od_kernel *first, *second; /* transforms */
    od_gpu_choice products;
    od_span v, m; /* (36, tiles, c_in4), (36, tiles, c_out4) of a slab */
} winograd_run;

static od_status open_run(const winograd *c, const winograd_cut *cut, const od_conv_args *args, bool weight,
                          winograd_run *run) {
    const int most = (int)(cut->slab * cut->block);
    char class[64];
    od_conv_class(class, c->pass, &c->shape, args->n);
    *run = (winograd_run){0};
    od_status status = transform_kernel(c, cut, "conv_gpu_winograd_patches", c->maps.c_in, &run->first);
    if (!status)
        status = transform_kernel(c, cut, weight ? "conv_gpu_winograd_gradients" : "conv_gpu_winograd_restore",
                                  c->maps.c_out, &run->second);
    if (!status)
        status = od_gpu_tile_kernel(c->device, "conv_gpu_products", "conv_gpu_products",
                                    weight ? "-DQUADS=2 -DTRANSPOSED=1" : "-DQUADS=2 -DTRANSPOSED=0",
                                    weight ? c->maps.c_in : most, c->maps.c_out, POINTS,
                                    weight ? &od_conv_gpu_winograd_weight_table : &od_conv_gpu_winograd_table, class,
                                    &run->products);
    if (!status)
        status = od_span_borrow(c->device, (size_t)POINTS * most * c->c_in4, &run->v);
    if (!status)
        status = od_span_borrow(c->device, (size_t)POINTS * most * c->c_out4, &run->m);
    return status;
}

static void close_run(winograd_run *run) {
    od_buffer_release(run->v.buffer);
    od_buffer_release(run->m.buffer);
}

static od_status run_slab(const winograd *c, const winograd_cut *cut, const winograd_slab *slab,
                          const winograd_run *run, const od_conv_args *args, od_buffer *partial) {
    const size_t lx = (size_t)lanes(c->maps.c_out), ly = (size_t)cut->items / lx;
    const double tiles = slab->tiles, per_pixel = 1 + (args->accumulate ? 1 : 0) + (args->grads ? 1 : 0);
    const od_conv_grads grads = args->grads ? *args->grads : (od_conv_grads){0};
    const od_range products =
        products_work(od_gpu_tile_range(&run->products.tile, (uint64_t)slab->tiles, c->c_out4, POINTS), c, tiles,
                      (double)c->c_in4 * c->c_out4, tiles * (c->c_in4 + c->c_out4));
    od_status status = put_patches(c, cut, slab, run->first, run->v, args);
    if (!status)
        status = OD_LAUNCH(run->products.kernel, products, OD_BUF(run->m.buffer), OD_BUF(run->v.buffer),
                           OD_BUF(args->weights.buffer), OD_I32(slab->tiles), OD_I32(c->c_out4), OD_I32(c->c_in4),
                           OD_I32(c->c_in4), OD_I32(0));
    const od_range range = od_range_work(OD_RANGE2((size_t)c->maps.c_out, (size_t)slab->blocks * ly, lx, ly), 0,
                                         sizeof(float) * tiles * c->maps.c_out * (POINTS + 16 * per_pixel));
    if (!status)
        status = OD_LAUNCH(run->second, range, OD_SPAN(args->out), OD_BUF(run->m.buffer), OD_U64(slab->image),
                           OD_I32(slab->rest), OD_I32(slab->tiles), OD_I32(c->maps.rows), OD_I32(c->maps.columns),
                           OD_I32(c->maps.h_out), OD_I32(c->maps.w_out), OD_I32(c->maps.c_out), OD_I32(c->c_out4),
                           OD_I32(args->accumulate), OD_BUF(partial), OD_U64(slab->first), OD_U64(cut->parts),
                           OD_I32(cut->block), OD_I32(args->n / args->groups), OD_SPAN(grads.u), OD_SPAN(grads.y),
                           OD_SPAN(grads.saved));
    return status;
}

static od_status winograd_run_all(void *state, const od_conv_args *args) {
    const winograd *c = state;
    const winograd_cut cut = cut_run(c, args);
    winograd_run run;
    od_buffer *partial = NULL;
    od_status status = open_run(c, &cut, args, false, &run);
    if (!status)
        status = od_gpu_parts_open(c->device, args, cut.parts, c->maps.c_out, &partial);
    for (uint64_t first = 0; first < cut.blocks && !status; first += cut.slab) {
        const winograd_slab slab = slab_at(c, &cut, first);
        status = run_slab(c, &cut, &slab, &run, args, partial);
    }
    close_run(&run);
    return status ? status : od_gpu_parts_merge(c->device, args, c->maps.c_out);
}

/* ---- backward by weights ----------------------------------------------------------------------------------------- */

/* How many chunks a slab's tiles are cut into: their products are kept apart until the last slab. */
static int count_chunks(const winograd *c, const winograd_run *run, uint64_t tiles) {
    const uint64_t units = od_device_get_info(c->device)->compute_units, limit = od_device_loop_limit(c->device);
    const uint64_t groups = od_gpu_tile_count(&run->products.tile, c->maps.c_in, c->maps.c_out, POINTS);
    const uint64_t part_bytes = sizeof(float) * POINTS * (uint64_t)c->c_in4 * c->c_out4;
    uint64_t chunks = units * run->products.per_unit / groups + 1;
    const uint64_t most = OD_GPU_MAX_PART_BYTES / part_bytes, useful = tiles / MIN_CHUNK;
    chunks = chunks < OD_GPU_MAX_CHUNKS ? chunks : OD_GPU_MAX_CHUNKS;
    chunks = chunks < most ? chunks : most;
    chunks = chunks < useful ? chunks : useful;
    if (limit && chunks < tiles * OD_GPU_LOOPS_PER_TERM / limit + 1)
        chunks = tiles * OD_GPU_LOOPS_PER_TERM / limit + 1;
    return chunks < 1 ? 1 : (int)chunks;
}

static od_status weight_slab(const winograd *c, const winograd_cut *cut, const winograd_slab *slab,
                             const winograd_run *run, const od_conv_args *args, od_span parts, int chunks) {
    const double out = (double)chunks * c->c_in4 * c->c_out4, tiles = slab->tiles;
    const od_range products =
        products_work(od_gpu_tile_range(&run->products.tile, c->c_in4, c->c_out4, (uint64_t)POINTS * chunks), c, tiles,
                      tiles * (c->c_in4 + c->c_out4), slab->first ? 2 * out : out);
    od_status status = put_patches(c, cut, slab, run->first, run->v, args);
    if (!status)
        status = OD_LAUNCH(run->second, transform_range(cut, slab, c->c_out4, 16), OD_BUF(run->m.buffer),
                           OD_SPAN(args->grad), OD_U64(slab->image), OD_I32(slab->rest), OD_I32(slab->tiles),
                           OD_I32(c->maps.rows), OD_I32(c->maps.columns), OD_I32(c->maps.h_out), OD_I32(c->maps.w_out),
                           OD_I32(c->maps.c_out), OD_I32(c->c_out4));
    if (!status)
        status = OD_LAUNCH(run->products.kernel, products, OD_BUF(parts.buffer), OD_BUF(run->v.buffer),
                           OD_BUF(run->m.buffer), OD_I32(c->c_in4), OD_I32(c->c_out4), OD_I32(slab->tiles),
                           OD_I32(od_div_up(slab->tiles, chunks)), OD_I32(slab->first > 0));
    return status;
}

static od_status weight_run(void *state, const od_conv_args *args) {
    const winograd *c = state;
    const winograd_cut cut = cut_run(c, args);
    winograd_run run;
    od_span parts = OD_NO_SPAN;
    od_kernel *sums;
    int chunks = 1;
    od_status status = open_run(c, &cut, args, true, &run);
    if (!status)
        status = transform_kernel(c, &cut, "conv_gpu_winograd_sums", c->maps.c_out, &sums);
    if (!status) {
        chunks = count_chunks(c, &run, cut.slab * cut.block);
        status = od_span_borrow(c->device, (size_t)chunks * POINTS * c->c_in4 * c->c_out4, &parts);
    }
    for (uint64_t first = 0; first < cut.blocks && !status; first += cut.slab) {
        const winograd_slab slab = slab_at(c, &cut, first);
        status = weight_slab(c, &cut, &slab, &run, args, parts, chunks);
    }
    const double bytes =
        sizeof(float) * (double)c->maps.c_in * c->maps.c_out * (POINTS * chunks + (args->accumulate ? 18 : 9));
    if (!status)
        status =
            OD_LAUNCH(sums, od_range_work(OD_RANGE2((size_t)c->maps.c_out, (size_t)c->maps.c_in, 16, 16), 0, bytes),
                      OD_SPAN(args->out), OD_BUF(parts.buffer), OD_I32(c->maps.c_in), OD_I32(c->maps.c_out),
                      OD_I32(c->c_in4), OD_I32(c->c_out4), OD_I32(chunks), OD_I32(args->accumulate));
    od_buffer_release(parts.buffer);
    close_run(&run);
    return status;
}

const od_conv_impl od_conv_gpu_winograd = {
    winograd_create, free, winograd_packed_size, winograd_pack, winograd_run_all, true, true, true};
const od_conv_impl od_conv_gpu_winograd_weight = {winograd_create, free, NULL, NULL, weight_run, true};
