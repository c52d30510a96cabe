/* The GPU family: implicit GEMM through local memory (cl/conv_gpu.cl, cl/conv_gpu_weight.cl). */
#include "ops/conv_gpu.h"

#include <stdio.h>
#include <stdlib.h>

/* The first two have 12 local words a work-item reads for 32 products, and no spill on any target of `offdiag matrix
 * --offline`; 8x8 a work-item would read 8 for 32, but costs half of the waves everywhere and spills on gfx1100. */
const od_gpu_tile od_gpu_tiles[OD_GPU_TILES] = {{128, 64, 16, 8, 4}, {64, 64, 8, 8, 4}, {32, 64, 16, 4, 4}};
int od_gpu_tile_forced;

enum {
    GROUPS_PER_UNIT = 2, /* work-groups for each compute unit, at least, before a smaller tile is taken */
    MIN_CHUNK = 256,
    CHUNK_GROUPS_PER_UNIT = 8,
    MOST_PARTS = 128, /* of statistics; more are merged to KEPT_PARTS */
    KEPT_PARTS = 64,
};

/* ---- tiles ------------------------------------------------------------------------------------------------------- */

static size_t work_items(const od_gpu_tile *t) {
    return (size_t)(t->bm / t->tm) * (t->bn / t->tn);
}

/* Twice the local memory is asked for, since Mesa's rusticl counts a kernel's twice. */
static bool tile_fits(const od_device *device, const od_gpu_tile *t) {
    const od_device_info *info = od_device_get_info(device);
    return info->max_work_group >= work_items(t) && info->max_work_item[0] >= (size_t)(t->bn / t->tn) &&
           info->max_work_item[1] >= (size_t)(t->bm / t->tm) &&
           info->local_bytes >= 2 * sizeof(float) * 2 * t->bk * (t->bm + t->bn + 8);
}

bool od_gpu_tiles_fit(const od_device *device) {
    for (int i = 0; i < OD_GPU_TILES; i++)
        if (tile_fits(device, &od_gpu_tiles[i]))
            return true;
    return false;
}

uint64_t od_gpu_tile_count(const od_gpu_tile *t, uint64_t rows, uint64_t columns, uint64_t layers) {
    return (rows + t->bm - 1) / t->bm * ((columns + t->bn - 1) / t->bn) * layers;
}

bool od_gpu_values_fit(const od_device *device, const int *v) {
    const od_gpu_tile t = {v[0], v[1], v[2], v[3], v[4]};
    const int items = (int)work_items(&t);
    return items >= 32 && items <= 256 && t.bm * t.bk % (4 * items) == 0 && t.bn * t.bk % (4 * items) == 0 &&
           2 * sizeof(float) * t.bk * (t.bm + t.bn + 8) <= 32768 && tile_fits(device, &t);
}

const od_tuning_table od_conv_gpu_table = {
    .variant = "conv_gpu",
    .shape = OD_CONV_CLASSES,
    .parameters = {OD_GPU_TILE_PARAMETERS},
    .count = 5,
    .fits = od_gpu_values_fit,
};
const od_tuning_table od_conv_gpu_weight_table = {
    .variant = "conv_gpu_weight",
    .shape = OD_CONV_CLASSES,
    .parameters = {OD_GPU_TILE_PARAMETERS, OD_GPU_PER_UNIT_PARAMETER},
    .count = 6,
    .fits = od_gpu_values_fit,
};

od_range od_gpu_tile_range(const od_gpu_tile *t, uint64_t rows, uint64_t columns, uint64_t layers) {
    const size_t lx = t->bn / t->tn, ly = t->bm / t->tm;
    return OD_RANGE3((columns + t->bn - 1) / t->bn * lx, (rows + t->bm - 1) / t->bm * ly, layers, lx, ly, 1);
}

/* OD_ERR_UNSUPPORTED where the device runs too few work-items of it. */
static od_status build_tile(od_device *device, const char *program, const char *name, const char *more,
                            od_gpu_choice *choice) {
    const od_gpu_tile *t = &choice->tile;
    char options[160];
    snprintf(options, sizeof options, "-DBM=%d -DBN=%d -DBK=%d -DTM=%d -DTN=%d %s", t->bm, t->bn, t->bk, t->tm, t->tn,
             more);
    od_status status = od_kernel_get(device, program, options, name, &choice->kernel);
    if (!status && od_kernel_max_work_group(choice->kernel) < work_items(t))
        status = od_fail(OD_ERR_UNSUPPORTED, "convolution: the device runs too few work-items of %s", name);
    return status;
}

/* By the rule, without tuning rows: the first of the table to be tried. */
static int first_tile(const od_device *device, uint64_t rows, uint64_t columns, uint64_t layers) {
    const uint64_t wanted = (uint64_t)GROUPS_PER_UNIT * od_device_get_info(device)->compute_units;
    int first = 0;
    if (od_gpu_tile_forced && tile_fits(device, &od_gpu_tiles[od_gpu_tile_forced - 1]))
        return od_gpu_tile_forced - 1;
    for (int i = 0; i < OD_GPU_TILES; i++) /* the smallest that fits, unless a larger one fills the device */
        if (tile_fits(device, &od_gpu_tiles[i])) {
            first = i;
            if (od_gpu_tile_count(&od_gpu_tiles[i], rows, columns, layers) >= wanted)
                break;
        }
    return first;
}

od_status od_gpu_tile_kernel(od_device *device, const char *program, const char *name, const char *more, uint64_t rows,
                             uint64_t columns, uint64_t layers, const od_tuning_table *table, const char *class,
                             od_gpu_choice *choice) {
    const int first = first_tile(device, rows, columns, layers);
    const od_gpu_tile *t = &od_gpu_tiles[first];
    od_status status;
    for (;;) {
        int v[OD_TUNING_PARAMETERS] = {t->bm, t->bn, t->bk, t->tm, t->tn, CHUNK_GROUPS_PER_UNIT};
        if (!od_tuning_lookup(device, table, class, v))
            break;
        *choice = (od_gpu_choice){{v[0], v[1], v[2], v[3], v[4]}, v[5], NULL};
        status = build_tile(device, program, name, more, choice);
        if ((status != OD_ERR_BUILD && status != OD_ERR_UNSUPPORTED) || !od_tuning_reject(device, table, class))
            return status;
    }
    status = od_fail(OD_ERR_UNSUPPORTED, "convolution: the device has room for no tile of %s", name);
    for (int i = first; i < OD_GPU_TILES && status == OD_ERR_UNSUPPORTED; i++)
        if (tile_fits(device, &od_gpu_tiles[i])) {
            *choice = (od_gpu_choice){od_gpu_tiles[i], CHUNK_GROUPS_PER_UNIT, NULL};
            status = build_tile(device, program, name, more, choice);
        }
    return status;
}

int od_gpu_quads(int a, int b, const od_span *spans, size_t count) {
    if (a % 4 != 0 || b % 4 != 0)
        return 0;
    for (size_t i = 0; i < count; i++)
        if (spans[i].buffer && spans[i].offset % 4 != 0)
            return 1;
    return 2;
}

/* Where a run's parts are kept, and how many values of a channel each has: statistics 3, sums 2. */
static od_span *parts_of(const od_conv_args *args, int **parts, int *values) {
    *values = args->stats ? 3 : 2;
    *parts = args->stats ? &args->stats->parts : args->grads ? &args->grads->parts : NULL;
    return args->stats ? &args->stats->partial : args->grads ? &args->grads->partial : NULL;
}

od_status od_gpu_parts_open(od_device *device, const od_conv_args *args, uint64_t parts, int c, od_buffer **partial) {
    int *count, values;
    od_span *span = parts_of(args, &count, &values);
    *partial = NULL;
    if (!span)
        return OD_OK;
    *count = (int)parts;
    od_status status = od_span_borrow(device, args->groups * parts * values * (uint64_t)c, span);
    *partial = span->buffer;
    return status;
}

od_status od_gpu_parts_merge(od_device *device, const od_conv_args *args, int c) {
    int *parts, values;
    od_span *partial = parts_of(args, &parts, &values), out;
    od_kernel *kernel;
    if (!partial || *parts <= MOST_PARTS)
        return OD_OK;
    const int each = od_div_up(*parts, KEPT_PARTS), kept = od_div_up(*parts, each);
    const int columns = args->stats ? c : values * c;
    od_status status =
        od_kernel_get(device, "conv_gpu_stats", "", args->stats ? "conv_gpu_stats" : "conv_gpu_sums", &kernel);
    if (!status)
        status = od_span_borrow(device, (size_t)args->groups * kept * values * c, &out);
    if (status)
        return status;
    status = OD_LAUNCH(kernel, OD_RANGE3(columns, kept, args->groups, 64, 1, 1), OD_BUF(out.buffer),
                       OD_BUF(partial->buffer), OD_I32(*parts), OD_I32(each), OD_I32(columns), OD_I32(kept));
    od_buffer_release(partial->buffer);
    *partial = out;
    *parts = kept;
    return status;
}

/* ---- plans ------------------------------------------------------------------------------------------------------- */

typedef struct gpu_conv {
    od_device *device;
    od_conv_shape shape;
    unsigned pass;
    od_conv_gather gather;
    od_kernel *pack, *sum;
} gpu_conv;

bool od_conv_gpu_supports(const od_device *device, const void *shape, const char **why) {
    const od_conv_shape *s = shape;
    const int channels = s->c_in > s->c_out ? s->c_in : s->c_out;
    if (!od_variant_loops(device, OD_GPU_LOOPS_PER_TERM * (uint64_t)s->kernel_h * s->kernel_w * channels, why))
        return false;
    *why = "work-groups or local memory too small";
    return od_gpu_tiles_fit(device);
}

static void gpu_destroy(void *state) {
    gpu_conv *c = state;
    if (!c)
        return;
    od_conv_gather_destroy(&c->gather);
    free(c);
}

static od_status gpu_create(od_device *device, const od_conv_shape *shape, unsigned pass, void **state) {
    gpu_conv *c = calloc(1, sizeof *c);
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    c->device = device;
    c->shape = *shape;
    c->pass = pass;
    od_status status = od_conv_gather_create(device, shape, pass, false, &c->gather);
    if (!status && pass == OD_CONV_BACKWARD_DATA)
        status = od_kernel_get(device, "conv_gpu_pack", "", "conv_gemm_pack", &c->pack);
    if (!status && pass == OD_CONV_BACKWARD_WEIGHT)
        status = od_kernel_get(device, "conv_ref", "", "conv_sum_chunks", &c->sum);
    if (status) {
        gpu_destroy(c);
        c = NULL;
    }
    *state = c;
    return status;
}

/* [tap][o][i] for backward by data; forward reads w as it is. */
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

/* A later group's map: its offset decides on aligned vectors too. */
static od_span affine_at(const od_conv_args *args) {
    return od_span_at(args->affine, args->stride % 4);
}

/* What a backward pass by data reads of batch norm; nothing where it is not asked. */
static od_conv_grads grads_of(const od_conv_args *args) {
    return args->grads ? *args->grads : (od_conv_grads){0};
}

static od_status gpu_run(void *state, const od_conv_args *args) {
    gpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    const int n = args->n / args->groups;
    const uint64_t pixels = (uint64_t)n * g->grid_h * g->grid_w, layers = (uint64_t)g->classes * args->groups;
    const od_conv_grads grads = grads_of(args);
    const od_span spans[] = {args->out,       args->in, args->weights, args->affine,
                             affine_at(args), grads.u,  grads.y,       grads.saved};
    od_buffer *partial = NULL;
    od_gpu_choice choice;
    char options[64], class[64];
    od_conv_class(class, c->pass, &c->shape, args->n);
    snprintf(options, sizeof options, "-DQUADS=%d -DAFFINE=%d -DSTATS=%d -DGRADS=%d",
             od_gpu_quads(c->shape.c_in, c->shape.c_out, spans, sizeof spans / sizeof *spans),
             args->affine.buffer != NULL, args->stats != NULL, args->grads != NULL);
    od_status status = od_gpu_tile_kernel(c->device, "conv_gpu", "conv_gemm", options, pixels, g->c_out, layers,
                                          &od_conv_gpu_table, class, &choice);
    if (!status)
        status = od_gpu_parts_open(c->device, args, (pixels + choice.tile.bm - 1) / choice.tile.bm * g->classes,
                                   g->c_out, &partial);
    if (status)
        return status;
    od_range range = od_conv_work(od_gpu_tile_range(&choice.tile, pixels, g->c_out, layers), &c->shape, args->n,
                                  od_conv_flop(&c->shape, args->n), od_conv_weights(&c->shape));
    status = OD_LAUNCH(choice.kernel, range, OD_SPAN(args->out), OD_SPAN(args->in), OD_SPAN(args->weights),
                       OD_BUF(g->table), OD_I32(n), OD_I32(g->h_in), OD_I32(g->w_in), OD_I32(g->run), OD_I32(g->h_out),
                       OD_I32(g->w_out), OD_I32(g->c_out), OD_I32(g->step_in), OD_I32(g->step_out), OD_I32(g->classes),
                       OD_I32(args->accumulate), OD_SPAN(args->affine), OD_U64(args->stride), OD_BUF(partial),
                       OD_SPAN(grads.u), OD_SPAN(grads.y), OD_SPAN(grads.saved));
    return status ? status : od_gpu_parts_merge(c->device, args, g->c_out);
}

/* How a group's pixels are cut into chunks, whose sums are added up in order. */
typedef struct weight_cut {
    uint64_t chunk, chunks;
} weight_cut;

static weight_cut cut_weight(const gpu_conv *c, const od_gpu_choice *choice, uint64_t rows, uint64_t pixels,
                             uint64_t groups) {
    const int columns = c->gather.c_out;
    const uint64_t units = od_device_get_info(c->device)->compute_units, limit = od_device_loop_limit(c->device);
    const uint64_t most = OD_GPU_MAX_PART_BYTES / (rows * columns * sizeof(float)) / groups,
                   useful = pixels / MIN_CHUNK;
    uint64_t chunks = units * choice->per_unit / (od_gpu_tile_count(&choice->tile, rows, columns, groups)) + 1;
    chunks = chunks < OD_GPU_MAX_CHUNKS ? chunks : OD_GPU_MAX_CHUNKS;
    chunks = chunks < most ? chunks : most;
    chunks = chunks < useful ? chunks : useful;
    if (limit && chunks < pixels * OD_GPU_LOOPS_PER_TERM / limit + 1)
        chunks = pixels * OD_GPU_LOOPS_PER_TERM / limit + 1;
    chunks = chunks < pixels / (1 << 30) + 1 ? pixels / (1 << 30) + 1 : chunks; /* a chunk is counted in 32 bits */
    weight_cut cut = {.chunk = (pixels + chunks - 1) / chunks};
    cut.chunks = (pixels + cut.chunk - 1) / cut.chunk;
    return cut;
}

static od_status gpu_weight_run(void *state, const od_conv_args *args) {
    gpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    const uint64_t rows = (uint64_t)g->taps * g->run, count = rows * g->c_out, groups = (uint64_t)args->groups;
    const uint64_t pixels = args->n / groups * g->grid_h * g->grid_w;
    const uint64_t chunks = pixels / MIN_CHUNK < OD_GPU_MAX_CHUNKS ? pixels / MIN_CHUNK + 1 : OD_GPU_MAX_CHUNKS;
    const od_span spans[] = {args->in, args->grad};
    od_gpu_choice choice;
    od_span part;
    char options[64], class[64];
    od_conv_class(class, c->pass, &c->shape, args->n);
    snprintf(options, sizeof options, "-DQUADS=%d -DAFFINE=%d",
             od_gpu_quads(c->shape.c_in, c->shape.c_out, spans, sizeof spans / sizeof *spans),
             args->affine.buffer != NULL);
    od_status status = od_gpu_tile_kernel(c->device, "conv_gpu_weight", "conv_gemm_weight", options, rows, g->c_out,
                                          chunks * groups, &od_conv_gpu_weight_table, class, &choice);
    if (status)
        return status;
    const weight_cut cut = cut_weight(c, &choice, rows, pixels, groups);
    const uint64_t parts = cut.chunks * groups;
    if ((status = od_span_borrow(c->device, count * parts, &part)))
        return status;
    od_range range = od_conv_work(od_gpu_tile_range(&choice.tile, rows, g->c_out, parts), &c->shape, args->n,
                                  od_conv_flop(&c->shape, args->n), (double)count * parts);
    status = OD_LAUNCH(choice.kernel, range, OD_BUF(part.buffer), OD_SPAN(args->in), OD_SPAN(args->grad),
                       OD_BUF(g->table), OD_I32((int)(args->n / groups)), OD_I32(g->h_in), OD_I32(g->w_in),
                       OD_I32(g->run), OD_I32(g->c_out), OD_I32(g->step_in), OD_I32((int)cut.chunks), OD_U64(cut.chunk),
                       OD_SPAN(args->affine), OD_U64(args->stride));
    if (!status)
        status =
            OD_LAUNCH(c->sum, od_conv_sum_work(OD_RANGE1(count, 64), (double)count, (double)parts), OD_SPAN(args->out),
                      OD_BUF(part.buffer), OD_U64(count), OD_I32((int)parts), OD_I32(args->accumulate));
    od_buffer_release(part.buffer);
    return status;
}

const od_conv_impl od_conv_gpu = {gpu_create, gpu_destroy, gpu_packed_size, gpu_pack, gpu_run, true, true, true};
const od_conv_impl od_conv_gpu_weight = {gpu_create, gpu_destroy, NULL, NULL, gpu_weight_run, true};
