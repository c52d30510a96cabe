/* The CPU family: fused Winograd for 3x3 windows at stride 1 and 2 (cl/conv_winograd.cl). */
#include <stdio.h>
#include <stdlib.h>

#include "ops/conv_impl.h"
#include "ops/cpu_tile.h"
#include "ops/tunable.h"

od_conv_winograd_use od_conv_winograd_mode;

enum {
    SHARE = 64,        /* rows of a panel whose weights a work-group transforms: whole LINES of the kernel */
    MIN_CHANNELS = 16, /* of a vector, and to be worth it */
    MIN_PIXELS = 12,   /* of the 16 of a tile, on average */
    MIN_PIXELS_STRIDE_2 = 14,
    BLOCK = 4,       /* tiles that are transformed at a time, in register tiles, at most */
    LARGE_BLOCK = 8, /* the same with weights that leave the cache between blocks */
    LARGE_BLOCK_STRIDE_2 = 4,
    GROUP = 4,               /* panels whose products are kept at a time, and that a share has at least */
    SLOTS_PER_CORE = 4,      /* work-groups, to balance */
    SCRATCH_BYTES = 1 << 28, /* of all work-groups together */
    FEW_TILES = 128,   /* up to here large weights are transformed where they are used; see conv_winograd_panels */
    MOST_TILES = 1024, /* the same for a tuning row */
    LARGE_WEIGHTS = 1 << 24, /* bytes of all transformed weights */
    CHUNK = 128,             /* rows of a panel that are transformed at a time */
};

enum { TUNED_BLOCK, TUNED_GROUP, TUNED_SLOTS, TUNED_PANELS };
const od_tuning_table od_conv_winograd_table = {
    .variant = "conv_cpu_winograd",
    .shape = OD_CONV_CLASSES,
    .parameters =
        {{"block", OD_TUNING_VALUES(1, 2, 3, 4, 5, 6, 8, 10, 12, 16),
          "up to 4 register tiles of tiles, as a core's cache holds them; with weights of more than half the cache "
          "8, at stride 2 4; fewer to occupy all cores"},
         {"group", OD_TUNING_VALUES(1, 2, 3, 4, 6, 8, 16), "4 panels whose products are kept"},
         {"slots", OD_TUNING_VALUES(1, 2, 4, 8, 16), "4 work-groups a core"},
         {"by_panels", OD_TUNING_VALUES(0, 1),
          "1 for up to 128 tiles with weights of more than 16 MiB: these are transformed where they are used"}},
    .count = 4,
};

typedef struct winograd_conv {
    od_device *device;
    od_conv_shape shape;
    unsigned pass;
    bool transposed;
    od_winograd_maps maps;
    int filter_in, filter_out; /* w's own */
    const od_cpu_tile *tile;
    int cols, panels;
    od_buffer *zeros;                  /* (c_in) */
    char options[OD_WINOGRAD_OPTIONS]; /* of its programs */
    od_kernel *pack, *main;
} winograd_conv;

/* Whether tiles of 4x4 leave little of a map over: 36 multiplications a tile, at stride 2 81, against 9 a pixel. */
static bool map_fits(int h, int w, int pixels) {
    return (int64_t)h * w >= (int64_t)pixels * od_div_up(h, 4) * od_div_up(w, 4);
}
static bool maps_fit(const od_conv_shape *s) {
    const int h = od_conv_out_h(s), w = od_conv_out_w(s);
    return s->stride == 2 ? map_fits(h, w, MIN_PIXELS_STRIDE_2)
                          : map_fits(h, w, MIN_PIXELS) && map_fits(s->h, s->w, MIN_PIXELS);
}

bool od_conv_winograd_supports(const od_device *device, const void *shape, const char **why) {
    const od_conv_shape *s = shape;
    const int h = od_conv_out_h(s), w = od_conv_out_w(s);
    if (s->kernel_h != 3 || s->kernel_w != 3 || s->stride > 2 || (s->stride == 2 && s->pad != 1))
        *why = "not a 3x3 window at stride 1, or at stride 2 with padding 1";
    else if (s->c_in < MIN_CHANNELS || s->c_out < MIN_CHANNELS)
        *why = "fewer than 16 channels";
    else if (od_device_loop_limit(device))
        *why = "more loop rounds for one work-item than the driver allows";
    else if ((int64_t)s->h * s->w * s->c_in > INT32_MAX || (int64_t)h * w * s->c_out > INT32_MAX)
        *why = "an image of more than 2 Gi elements";
    else if (od_conv_winograd_mode == OD_WINOGRAD_NEVER)
        *why = "switched off";
    else if (od_conv_winograd_mode == OD_WINOGRAD_AUTO && !maps_fit(s))
        *why = "too much of its tiles outside the map";
    else
        *why = NULL;
    return !*why;
}

static void winograd_destroy(void *state) {
    winograd_conv *c = state;
    if (!c)
        return;
    od_buffer_release(c->zeros);
    free(c);
}

void od_winograd_options(const od_cpu_tile *tile, int rows, int stride, bool data, char options[OD_WINOGRAD_OPTIONS]) {
    snprintf(options, OD_WINOGRAD_OPTIONS, "-DVW=%d -DVECS=%d -DROWS=%d%s%s -cl-fast-relaxed-math", tile->vw,
             tile->vecs, rows, stride == 2 ? " -DSTRIDE=2" : "", stride == 2 && data ? " -DDATA=1" : "");
}

static od_status winograd_create(od_device *device, const od_conv_shape *s, unsigned pass, void **state) {
    winograd_conv *c = calloc(1, sizeof *c);
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    *c = (winograd_conv){.device = device,
                         .shape = *s,
                         .pass = pass,
                         .transposed = pass == OD_CONV_BACKWARD_DATA,
                         .maps = od_winograd_maps_of(s, pass),
                         .filter_in = s->c_in,
                         .filter_out = s->c_out,
                         .tile = od_cpu_tile_of(device)};
    c->cols = c->tile->vw * c->tile->vecs;
    c->panels = od_div_up(c->maps.c_out, c->cols);
    od_winograd_options(c->tile, c->tile->rows, s->stride, c->transposed, c->options);
    od_status status = od_kernel_get(device, "conv_winograd", c->options, "conv_winograd_weights", &c->pack);
    if (!status)
        status = od_kernel_get(device, "conv_winograd", c->options, "conv_winograd", &c->main);
    if (!status)
        status = od_conv_create_zeros(device, sizeof(float) * c->maps.c_in, &c->zeros);
    if (status) {
        winograd_destroy(c);
        c = NULL;
    }
    *state = c;
    return status;
}

/* [36][panels][c_in][cols] */
static size_t transformed_size(const winograd_conv *c) {
    return (size_t)OD_WINOGRAD_POINTS * c->panels * c->maps.c_in * c->cols;
}

/* Register tiles of tiles whose patches, products and pixels leave a quarter of a core's cache to the weights. */
static int block_in_cache(const winograd_conv *c) {
    const int cols = c->cols * (c->panels < GROUP ? c->panels : GROUP), pixels = 16 * (c->maps.c_in + cols);
    const size_t tile =
        sizeof(float) *
        ((size_t)c->maps.products * (od_winograd_pitch(c->maps.c_in, c->tile->vw) + cols) + (size_t)pixels);
    const int blocks = (int)(c->tile->core_cache / 4 * 3 / (tile * (size_t)c->tile->rows));
    return blocks < 1 ? 1 : blocks < BLOCK ? blocks : BLOCK;
}

/* The parameters of a run. By panels: where the weights' transforms would cost more memory traffic than all else. */
static void parameters(const winograd_conv *c, int n, int *v) {
    const od_device_info *info = od_device_get_info(c->device);
    const uint64_t weights = sizeof(float) * transformed_size(c);
    char class[64];
    v[TUNED_BLOCK] = !info->cache_bytes || weights <= info->cache_bytes / 2 ? block_in_cache(c)
                     : c->shape.stride == 2                                 ? LARGE_BLOCK_STRIDE_2
                                                                            : LARGE_BLOCK;
    v[TUNED_GROUP] = GROUP;
    v[TUNED_SLOTS] = SLOTS_PER_CORE;
    v[TUNED_PANELS] = c->shape.stride == 1 && od_winograd_tiles(&c->maps, n) <= FEW_TILES &&
                      (unsigned)c->panels >= 2 * info->compute_units &&
                      (weights > LARGE_WEIGHTS || od_conv_winograd_mode == OD_WINOGRAD_ALWAYS);
    od_conv_class(class, c->pass, &c->shape, n);
    (void)od_tuning_lookup(c->device, &od_conv_winograd_table, class, v);
    if (c->shape.stride != 1 || od_winograd_tiles(&c->maps, n) > MOST_TILES)
        v[TUNED_PANELS] = 0; /* its scratch grows with them */
}

static bool by_panels(const winograd_conv *c, int n) {
    int v[OD_TUNING_PARAMETERS];
    parameters(c, n, v);
    return v[TUNED_PANELS];
}

static size_t winograd_packed_size(const void *state, int n) {
    return by_panels(state, n) ? 0 : transformed_size(state);
}

static od_status winograd_pack(void *state, od_span packed, od_span w) {
    winograd_conv *c = state;
    const od_range range =
        od_range_work(OD_RANGE2(c->panels, od_div_up(c->maps.c_in, SHARE), 1, 1), 0,
                      sizeof(float) * (9.0 * c->maps.c_in * c->maps.c_out + (double)transformed_size(c)));
    return OD_LAUNCH(c->pack, range, OD_BUF(packed.buffer), OD_SPAN(w), OD_I32(c->filter_in), OD_I32(c->filter_out),
                     OD_I32(c->transposed), OD_I32(SHARE));
}

/* How a run is cut. */
typedef struct winograd_cut {
    int block;     /* tiles that are transformed at a time */
    int group;     /* panels whose products are kept at a time */
    int slots;     /* work-groups that take the blocks in turn */
    int shares;    /* work-groups that share the panels of a block */
    uint64_t slot; /* floats of scratch of a work-group */
} winograd_cut;

static uint64_t slot_floats(const winograd_conv *c, int block, int group) {
    const uint64_t v = (uint64_t)block * od_winograd_pitch(c->maps.c_in, c->tile->vw) + OD_WINOGRAD_LINE;
    const uint64_t m = (uint64_t)block * group * c->cols + OD_WINOGRAD_LINE;
    return (((uint64_t)c->maps.c_in + 15) / 16 * 16 + (uint64_t)c->maps.products * (v + m) + 15) / 16 * 16;
}

static winograd_cut cut_run(const winograd_conv *c, int n) {
    const od_device_info *info = od_device_get_info(c->device);
    const int64_t cores = info->compute_units, rows = c->tile->rows;
    const int64_t all = od_winograd_tiles(&c->maps, n);
    int v[OD_TUNING_PARAMETERS];
    parameters(c, n, v);
    winograd_cut cut = {.group = c->panels < v[TUNED_GROUP] ? c->panels : v[TUNED_GROUP], .shares = 1};
    int64_t block = rows * v[TUNED_BLOCK];
    while (cut.shares * 2 * GROUP <= c->panels && (all + block - 1) / block * cut.shares < 2 * cores)
        cut.shares *= 2;
    while (block > rows && ((all + block - 1) / block * cut.shares < 2 * cores ||
                            sizeof(float) * slot_floats(c, (int)block, cut.group) * cores > SCRATCH_BYTES))
        block -= rows;
    int64_t blocks = (all + block - 1) / block;
    block = ((all + blocks - 1) / blocks + rows - 1) / rows * rows; /* all alike */
    blocks = (all + block - 1) / block;
    cut.block = (int)block;
    cut.slot = slot_floats(c, cut.block, cut.group);
    int64_t slots = od_div_up((int)cores * v[TUNED_SLOTS], cut.shares);
    const int64_t most = SCRATCH_BYTES / (int64_t)(cut.slot * sizeof(float)) / cut.shares;
    slots = slots < most ? slots : most;
    slots = slots < blocks ? slots : blocks;
    cut.slots = slots < 1 ? 1 : (int)slots;
    return cut;
}

/* What a run makes for batch norm, as the kernels take it. */
enum { NOTHING, STATISTICS, GRADIENTS };
typedef struct winograd_epilogue {
    int kind;
    od_buffer *partial;
    od_span u, after, saved;
} winograd_epilogue;

static od_status make_epilogue(const winograd_conv *c, const od_conv_args *args, int parts, winograd_epilogue *e) {
    const od_conv_grads *g = args->grads;
    *e = (winograd_epilogue){.kind = args->stats ? STATISTICS : g ? GRADIENTS : NOTHING};
    if (e->kind == NOTHING)
        return OD_OK;
    od_span *partial = args->stats ? &args->stats->partial : &args->grads->partial;
    *(args->stats ? &args->stats->parts : &args->grads->parts) = parts;
    const size_t values = args->stats ? 3 : 2;
    od_status status = od_span_create(c->device, (size_t)args->groups * parts * values * c->maps.c_out, partial);
    e->partial = partial->buffer;
    if (g) {
        e->u = g->u;
        e->after = g->y;
        e->saved = g->saved;
    }
    return status;
}
#define EPILOGUE(e) OD_I32((e).kind), OD_BUF((e).partial), OD_SPAN((e).u), OD_SPAN((e).after), OD_SPAN((e).saved)

/* A launch with a pass's work: products alone, the transforms are a small part; `weights` floats of them are read. */
static od_range with_work(od_range range, const winograd_conv *c, int n, double weights) {
    const double maps =
        (double)c->maps.h_in * c->maps.w_in * c->maps.c_in + (double)c->maps.h_out * c->maps.w_out * c->maps.c_out;
    return od_range_work(range,
                         2.0 * c->maps.products * (double)od_winograd_tiles(&c->maps, n) * c->maps.c_in * c->maps.c_out,
                         sizeof(float) * (n * maps + weights));
}

od_status od_winograd_patches(od_device *device, const od_cpu_tile *tile, const od_winograd_maps *maps,
                              od_buffer *zeros, const od_conv_args *args, uint64_t plane, od_span *v) {
    const int blocks = od_div_up((int)od_winograd_tiles(maps, args->n), tile->rows);
    char options[OD_WINOGRAD_OPTIONS];
    od_kernel *patches;
    od_winograd_options(tile, tile->rows, 1, false, options);
    *v = (od_span)OD_NO_SPAN;
    od_status status = od_kernel_get(device, "conv_winograd_panels", options, "conv_winograd_patches", &patches);
    if (!status)
        status = od_span_borrow(device, OD_WINOGRAD_POINTS * plane, v);
    if (status)
        return status;
    status = OD_LAUNCH(patches, OD_RANGE1(blocks, 1), OD_BUF(v->buffer), OD_U64(plane), OD_SPAN(args->in),
                       OD_BUF(zeros), OD_SPAN(args->affine), OD_U64(args->stride), OD_I32(args->n / args->groups),
                       OD_I32(args->n), OD_I32(maps->h_in), OD_I32(maps->w_in), OD_I32(maps->c_in), OD_I32(maps->h_out),
                       OD_I32(maps->w_out), OD_I32(maps->pad));
    if (status) {
        od_buffer_release(v->buffer);
        *v = (od_span)OD_NO_SPAN;
    }
    return status;
}

static od_status run_by_panels(const winograd_conv *c, const od_conv_args *args) {
    const od_device_info *info = od_device_get_info(c->device);
    const int count = (int)od_winograd_tiles(&c->maps, args->n), rows = c->tile->rows, vw = c->tile->vw;
    const int blocks = od_div_up(count, rows), images = args->n / args->groups;
    const int slots =
        c->panels < (int)info->compute_units * SLOTS_PER_CORE ? c->panels : (int)info->compute_units * SLOTS_PER_CORE;
    const uint64_t plane = (uint64_t)blocks * rows * od_winograd_pitch(c->maps.c_in, c->tile->vw) + OD_WINOGRAD_LINE;
    const uint64_t slot = (OD_WINOGRAD_POINTS * ((uint64_t)(CHUNK + count + rows) * c->cols + 2 * vw) + 15) / 16 * 16;
    od_span v = OD_NO_SPAN, scratch = OD_NO_SPAN;
    od_kernel *by_panels;
    winograd_epilogue e;
    od_status status = od_kernel_get(c->device, "conv_winograd_panels", c->options, "conv_winograd_panels", &by_panels);
    if (!status)
        status = od_span_borrow(c->device, slots * slot, &scratch);
    if (!status)
        status = make_epilogue(c, args, 1, &e);
    if (!status)
        status = od_winograd_patches(c->device, c->tile, &c->maps, c->zeros, args, plane, &v);
    if (!status)
        status =
            OD_LAUNCH(by_panels, with_work(OD_RANGE1(slots, 1), c, args->n, 9.0 * c->maps.c_in * c->maps.c_out),
                      OD_SPAN(args->out), OD_BUF(v.buffer), OD_U64(plane), OD_SPAN(args->weights), OD_I32(c->filter_in),
                      OD_I32(c->filter_out), OD_I32(c->transposed), OD_BUF(scratch.buffer), OD_U64(slot), EPILOGUE(e),
                      OD_I32(images), OD_I32(args->n), OD_I32(c->maps.c_in), OD_I32(c->maps.h_out),
                      OD_I32(c->maps.w_out), OD_I32(c->maps.c_out), OD_I32(CHUNK), OD_I32(args->accumulate));
    od_buffer_release(v.buffer);
    od_buffer_release(scratch.buffer);
    return status;
}

static od_status winograd_run(void *state, const od_conv_args *args) {
    winograd_conv *c = state;
    if (by_panels(c, args->n))
        return run_by_panels(c, args);
    const winograd_cut cut = cut_run(c, args->n);
    od_span scratch = OD_NO_SPAN;
    winograd_epilogue e;
    od_status status = od_span_borrow(c->device, cut.slot * cut.slots * cut.shares, &scratch);
    if (!status)
        status = make_epilogue(c, args, cut.slots, &e);
    if (!status)
        status = OD_LAUNCH(c->main,
                           with_work(OD_RANGE2(cut.slots, cut.shares, 1, 1), c, args->n, (double)transformed_size(c)),
                           OD_SPAN(args->out), OD_SPAN(args->in), OD_BUF(args->weights.buffer), OD_BUF(scratch.buffer),
                           OD_U64(cut.slot), OD_SPAN(args->affine), OD_U64(args->stride), EPILOGUE(e),
                           OD_I32(args->n / args->groups), OD_I32(args->n), OD_I32(c->maps.h_in), OD_I32(c->maps.w_in),
                           OD_I32(c->maps.c_in), OD_I32(c->maps.h_out), OD_I32(c->maps.w_out), OD_I32(c->maps.c_out),
                           OD_I32(c->maps.pad), OD_I32(cut.block), OD_I32(cut.group), OD_I32(args->accumulate));
    od_buffer_release(scratch.buffer);
    return status;
}

const od_conv_impl od_conv_winograd = {
    winograd_create, winograd_destroy, winograd_packed_size, winograd_pack, winograd_run, true, true, true};
