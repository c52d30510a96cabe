/* The CPU family: backward by weights with Winograd at stride 1 and 2 (cl/conv_winograd_weight.cl). */
#include <stdio.h>
#include <stdlib.h>

#include "ops/conv_impl.h"
#include "ops/cpu_tile.h"
#include "ops/tunable.h"

enum {
    CORE_CACHE = 1 << 20, /* of a core, in bytes */
    SHARE = 4,            /* panels that a work-group takes at most */
    SHARE_STRIDE_2 = 8,
    BLOCK_STRIDE_2 = 3,      /* a tile has more rows than at stride 1: so many times fewer tiles at a time */
    PARTS_PER_CORE = 2,      /* work-groups, to balance */
    CHUNK = 16,              /* tiles that a work-group takes at least */
    SCRATCH_BYTES = 1 << 28, /* of all work-groups together */
    STORED_BLOCK = 64,       /* tiles at a time from stored transforms */
    STORED_SLOTS = 4,        /* work-groups a core, to balance */
    STORED_SHARE = 2,        /* panels of a work-group that uses them */
};

enum { TUNED_BLOCK, TUNED_SHARE, TUNED_PARTS, TUNED_STORED };
const od_tuning_table od_conv_winograd_weight_table = {
    .variant = "conv_cpu_winograd_weight",
    .shape = OD_CONV_CLASSES,
    .parameters =
        {{"block", OD_TUNING_VALUES(12, 24, 36, 48, 72, 96, 144, 192),
          "48 tiles, 96 where the sums take more than 1 MiB; 36 with vectors of less than 16; a third at stride 2"},
         {"share", OD_TUNING_VALUES(1, 2, 3, 4, 6, 8, 16), "4 panels of a work-group, at stride 2 8"},
         {"parts", OD_TUNING_VALUES(1, 2, 3, 4, 8), "2 work-groups a core"},
         {"stored", OD_TUNING_VALUES(0, 1),
          "1 where the transforms of all tiles take half the last cache at most and less than the sums"}},
    .count = 4,
};

typedef struct winograd_weight {
    od_device *device;
    od_conv_shape shape;
    od_winograd_maps maps;
    const od_cpu_tile *tile;
    int vw, rows, cols, panels;
    od_buffer *zeros; /* (c_in) */
    char options[OD_WINOGRAD_OPTIONS];
    od_kernel *main, *sum;
} winograd_weight;

static void weight_destroy(void *state) {
    winograd_weight *c = state;
    if (!c)
        return;
    od_buffer_release(c->zeros);
    free(c);
}

static od_status weight_create(od_device *device, const od_conv_shape *shape, unsigned pass, void **state) {
    (void)pass;
    winograd_weight *c = calloc(1, sizeof *c);
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    const od_cpu_tile *t = od_cpu_tile_of(device);
    *c = (winograd_weight){.device = device,
                           .shape = *shape,
                           .maps = od_winograd_maps_of(shape, OD_CONV_BACKWARD_WEIGHT),
                           .tile = t,
                           .vw = t->vw,
                           .rows = od_cpu_tile_rows(t, shape->c_in),
                           .cols = t->vw * t->vecs,
                           .panels = od_div_up(shape->c_out, t->vw * t->vecs)};
    od_winograd_options(t, c->rows, shape->stride, false, c->options);
    od_status status = od_kernel_get(device, "conv_winograd_weight", c->options, "conv_winograd_weight", &c->main);
    if (!status)
        status = od_kernel_get(device, "conv_winograd_weight", c->options, "conv_winograd_weight_sum", &c->sum);
    if (!status)
        status = od_conv_create_zeros(device, sizeof(float) * shape->c_in, &c->zeros);
    if (status) {
        weight_destroy(c);
        c = NULL;
    }
    *state = c;
    return status;
}

/* How a run is cut: by sizes and the number of cores alone, as the order of the sums follows from it. */
typedef struct weight_cut {
    int64_t chunk; /* tiles of a work-group */
    int chunks;
    int block;
    int share, shares; /* panels of a work-group */
    uint64_t slot;     /* floats of scratch of a work-group */
} weight_cut;

/* Floats from point to point of the stored transforms of all tiles, whole register tiles of them. */
static uint64_t stored_plane(const winograd_weight *c, int n, int channels) {
    const int rows = c->rows > c->tile->rows ? c->rows : c->tile->rows;
    return ((uint64_t)od_winograd_tiles(&c->maps, n) + rows) * od_winograd_pitch(channels, c->vw) + OD_WINOGRAD_LINE;
}

/* The parameters of a run. Stored: where the sums would go through memory and the transforms need not. */
static void parameters(const winograd_weight *c, int n, int *v) {
    const od_conv_shape *s = &c->shape;
    const uint64_t last_cache = od_device_get_info(c->device)->cache_bytes;
    const uint64_t channels = (uint64_t)od_div_up(s->c_in, c->rows) * c->rows;
    const int most = s->stride == 2 ? SHARE_STRIDE_2 : SHARE, share = c->panels < most ? c->panels : most;
    const bool large =
        sizeof(float) * OD_WINOGRAD_POINTS * (channels * share * c->cols + OD_WINOGRAD_LINE) > CORE_CACHE;
    const uint64_t sums = OD_WINOGRAD_POINTS * channels * c->panels * c->cols,
                   transforms =
                       OD_WINOGRAD_POINTS * (stored_plane(c, n, s->c_in) + stored_plane(c, n, c->panels * c->cols));
    v[TUNED_BLOCK] = c->tile->winograd_block[large] / (s->stride == 2 ? BLOCK_STRIDE_2 : 1);
    v[TUNED_SHARE] = share;
    v[TUNED_PARTS] = PARTS_PER_CORE;
    v[TUNED_STORED] = s->stride == 1 && transforms < sums && sizeof(float) * transforms <= last_cache / 2;
    char class[64];
    od_conv_class(class, OD_CONV_BACKWARD_WEIGHT, s, n);
    (void)od_tuning_lookup(c->device, &od_conv_winograd_weight_table, class, v);
    if (s->stride != 1 || sizeof(float) * transforms > SCRATCH_BYTES)
        v[TUNED_STORED] = 0;
}

static weight_cut cut_run(const winograd_weight *c, int n, const int *v) {
    const od_conv_shape *s = &c->shape;
    const int64_t all = od_winograd_tiles(&c->maps, n);
    const uint64_t channels = (uint64_t)od_div_up(s->c_in, c->rows) * c->rows;
    const int64_t parts = (int64_t)od_device_get_info(c->device)->compute_units * v[TUNED_PARTS];
    weight_cut cut = {.block = v[TUNED_BLOCK], .share = c->panels < v[TUNED_SHARE] ? c->panels : v[TUNED_SHARE]};
    cut.shares = od_div_up(c->panels, cut.share);
    const uint64_t columns = (uint64_t)cut.share * c->cols, sums = channels * columns + OD_WINOGRAD_LINE;
    cut.slot = ((uint64_t)s->c_in + 15) / 16 * 16 +
               (uint64_t)c->maps.products *
                   (cut.block * (od_winograd_pitch(s->c_in, c->vw) + columns) + 2 * OD_WINOGRAD_LINE) +
               OD_WINOGRAD_POINTS * sums;
    cut.slot = (cut.slot + 15) / 16 * 16;
    int64_t chunks = (parts + cut.shares - 1) / cut.shares;
    const int64_t most = SCRATCH_BYTES / (int64_t)(cut.slot * sizeof(float)) / cut.shares, useful = all / CHUNK;
    chunks = chunks < most ? chunks : most;
    chunks = chunks < useful ? chunks : useful;
    chunks = chunks < 1 ? 1 : chunks;
    cut.chunk = (all + chunks - 1) / chunks;
    cut.chunks = (int)((all + cut.chunk - 1) / cut.chunk);
    return cut;
}

/* Strips of a work-group's share whose sums fill half of a core's cache. */
static int strips_in_cache(const winograd_weight *c, int share) {
    const size_t strip = sizeof(float) * OD_WINOGRAD_POINTS * (size_t)(c->rows * share * c->cols);
    const int strips = (int)(c->tile->core_cache / 2 / strip), all = od_div_up(c->shape.c_in, c->rows);
    return strips < 1 ? 1 : strips < all ? strips : all;
}

static od_range with_work(const winograd_weight *c, int n, od_range range, double chunks) {
    const double products =
        2.0 * c->maps.products * (double)od_winograd_tiles(&c->maps, n) * c->shape.c_in * c->shape.c_out;
    return od_conv_work(range, &c->shape, n, products, od_conv_weights(&c->shape) * chunks);
}

static od_status run_stored(const winograd_weight *c, const od_conv_args *args) {
    const od_conv_shape *s = &c->shape;
    const int n = args->n, tiles = (int)od_winograd_tiles(&c->maps, n);
    const int share = c->panels < STORED_SHARE ? c->panels : STORED_SHARE, strips = strips_in_cache(c, share);
    const int pairs = od_div_up(od_div_up(s->c_in, c->rows), strips) * od_div_up(c->panels, share);
    const int most = (int)od_device_get_info(c->device)->compute_units * STORED_SLOTS,
              slots = pairs < most ? pairs : most;
    const int blocks = od_div_up(tiles, STORED_BLOCK), block = od_div_up(tiles, blocks); /* all alike */
    const uint64_t v_plane = stored_plane(c, n, s->c_in), u_plane = stored_plane(c, n, c->panels * c->cols);
    const uint64_t sums = (uint64_t)strips * share * c->rows * c->cols + OD_WINOGRAD_LINE;
    const uint64_t slot = (OD_WINOGRAD_POINTS * sums + 9 * (uint64_t)c->vw + 15) / 16 * 16;
    od_kernel *gradients, *main;
    od_span v = OD_NO_SPAN, u = OD_NO_SPAN, scratch = OD_NO_SPAN;
    od_status status =
        od_kernel_get(c->device, "conv_winograd_weight", c->options, "conv_winograd_gradients", &gradients);
    if (!status)
        status = od_kernel_get(c->device, "conv_winograd_weight", c->options, "conv_winograd_weight_stored", &main);
    if (!status)
        status = od_span_borrow(c->device, OD_WINOGRAD_POINTS * u_plane, &u);
    if (!status)
        status = od_span_borrow(c->device, slot * (uint64_t)slots, &scratch);
    if (!status)
        status = od_winograd_patches(c->device, c->tile, &c->maps, c->zeros, args, v_plane, &v);
    if (!status)
        status = OD_LAUNCH(gradients, OD_RANGE1(od_div_up(tiles, c->rows), 1), OD_BUF(u.buffer), OD_U64(u_plane),
                           OD_SPAN(args->grad), OD_I32(n), OD_I32(od_conv_out_h(s)), OD_I32(od_conv_out_w(s)),
                           OD_I32(s->c_out));
    if (!status)
        status = OD_LAUNCH(main, with_work(c, n, OD_RANGE1(slots, 1), 1), OD_SPAN(args->out), OD_BUF(v.buffer),
                           OD_U64(v_plane), OD_BUF(u.buffer), OD_U64(u_plane), OD_BUF(scratch.buffer), OD_U64(slot),
                           OD_I32(tiles), OD_I32(block), OD_I32(s->c_in), OD_I32(s->c_out), OD_I32(strips),
                           OD_I32(share), OD_I32(args->accumulate));
    od_buffer_release(v.buffer);
    od_buffer_release(u.buffer);
    od_buffer_release(scratch.buffer);
    return status;
}

static od_status weight_run(void *state, const od_conv_args *args) {
    winograd_weight *c = state;
    const od_conv_shape *s = &c->shape;
    int v[OD_TUNING_PARAMETERS];
    parameters(c, args->n, v);
    if (v[TUNED_STORED])
        return run_stored(c, args);
    const weight_cut cut = cut_run(c, args->n, v);
    const int pitch = c->panels * c->cols, rows = 9 * s->c_in;
    od_span part = OD_NO_SPAN, scratch = OD_NO_SPAN;
    od_status status = od_span_borrow(c->device, (size_t)cut.chunks * rows * pitch, &part);
    if (!status)
        status = od_span_borrow(c->device, cut.slot * cut.chunks * cut.shares, &scratch);
    if (!status)
        status = OD_LAUNCH(c->main, with_work(c, args->n, OD_RANGE2(cut.chunks, cut.shares, 1, 1), cut.chunks),
                           OD_BUF(part.buffer), OD_SPAN(args->in), OD_SPAN(args->grad), OD_BUF(scratch.buffer),
                           OD_U64(cut.slot), OD_SPAN(args->affine), OD_U64(args->stride),
                           OD_I32(args->n / args->groups), OD_I32(args->n), OD_I32(s->h), OD_I32(s->w), OD_I32(s->c_in),
                           OD_I32(od_conv_out_h(s)), OD_I32(od_conv_out_w(s)), OD_I32(s->c_out), OD_I32(s->pad),
                           OD_U64((uint64_t)cut.chunk), OD_I32(cut.block), OD_I32(cut.share));
    if (!status)
        status = OD_LAUNCH(c->sum, od_conv_sum_work(OD_RANGE1(rows, 1), od_conv_weights(s), cut.chunks),
                           OD_SPAN(args->out), OD_BUF(part.buffer), OD_I32(s->c_out), OD_I32(pitch), OD_I32(cut.chunks),
                           OD_I32(args->accumulate));
    od_buffer_release(part.buffer);
    od_buffer_release(scratch.buffer);
    return status;
}

const od_conv_impl od_conv_winograd_weight = {weight_create, weight_destroy, NULL, NULL, weight_run, true};
