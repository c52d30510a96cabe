/* The CPU family: backward by weights with Winograd F(3x3, 4x4) (cl/conv_winograd_weight.cl). */
#include <stdio.h>
#include <stdlib.h>

#include "ops/conv_impl.h"
#include "ops/cpu_tile.h"
#include "ops/tunable.h"

enum {
    POINTS = 36,
    LINE = 16,               /* as in the kernel */
    CORE_CACHE = 1 << 20,    /* of a core, in bytes */
    SHARE = 4,               /* panels that a work-group takes at most */
    PARTS_PER_CORE = 2,      /* work-groups, to balance */
    CHUNK = 16,              /* tiles that a work-group takes at least */
    SCRATCH_BYTES = 1 << 28, /* of all work-groups together */
};

enum { TUNED_BLOCK, TUNED_SHARE, TUNED_PARTS };
const od_tuning_table od_conv_winograd_weight_table = {
    .variant = "conv_cpu_winograd_weight",
    .shape = OD_CONV_CLASSES,
    .parameters = {{"block", OD_TUNING_VALUES(12, 24, 36, 48, 72, 96, 144, 192),
                    "48 tiles, 96 where the sums take more than 1 MiB; 36 with vectors of less than 16"},
                   {"share", OD_TUNING_VALUES(1, 2, 3, 4, 6, 8, 16), "4 panels of a work-group"},
                   {"parts", OD_TUNING_VALUES(1, 2, 3, 4, 8), "2 work-groups a core"}},
    .count = 3,
};

typedef struct winograd_weight {
    od_device *device;
    od_conv_shape shape;
    const od_cpu_tile *tile;
    int vw, rows, cols, panels;
    od_kernel *main, *sum;
} winograd_weight;

static od_status weight_create(od_device *device, const od_conv_shape *shape, unsigned pass, void **state) {
    (void)pass;
    winograd_weight *c = calloc(1, sizeof *c);
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    const od_cpu_tile *t = &od_cpu_tiles[od_cpu_tile_choose(device)];
    *c = (winograd_weight){.device = device,
                           .shape = *shape,
                           .tile = t,
                           .vw = t->vw,
                           .rows = od_cpu_tile_rows(t, shape->c_in),
                           .cols = t->vw * t->vecs,
                           .panels = od_div_up(shape->c_out, t->vw * t->vecs)};
    char options[160];
    snprintf(options, sizeof options, "-DVW=%d -DVECS=%d -DROWS=%d -cl-fast-relaxed-math", t->vw, t->vecs, c->rows);
    od_status status = od_kernel_get(device, "conv_winograd_weight", options, "conv_winograd_weight", &c->main);
    if (!status)
        status = od_kernel_get(device, "conv_winograd_weight", options, "conv_winograd_weight_sum", &c->sum);
    if (status) {
        free(c);
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

static weight_cut cut_run(const winograd_weight *c, int n) {
    const od_conv_shape *s = &c->shape;
    const od_winograd_maps maps = od_winograd_maps_of(s, OD_CONV_BACKWARD_WEIGHT);
    const int64_t all = (int64_t)n * maps.rows * maps.columns;
    const uint64_t channels = (uint64_t)od_div_up(s->c_in, c->rows) * c->rows;
    const int share = c->panels < SHARE ? c->panels : SHARE;
    const bool large = sizeof(float) * POINTS * (channels * share * c->cols + LINE) > CORE_CACHE;
    int v[OD_TUNING_PARAMETERS] = {c->tile->winograd_block[large], share, PARTS_PER_CORE};
    char class[64];
    od_conv_class(class, OD_CONV_BACKWARD_WEIGHT, s, n);
    (void)od_tuning_lookup(c->device, &od_conv_winograd_weight_table, class, v);
    const int64_t parts = (int64_t)od_device_get_info(c->device)->compute_units * v[TUNED_PARTS];
    weight_cut cut = {.block = v[TUNED_BLOCK], .share = c->panels < v[TUNED_SHARE] ? c->panels : v[TUNED_SHARE]};
    cut.shares = od_div_up(c->panels, cut.share);
    const uint64_t columns = (uint64_t)cut.share * c->cols, sums = channels * columns + LINE;
    cut.slot = ((uint64_t)s->c_in + 15) / 16 * 16 +
               POINTS * (cut.block * (od_conv_winograd_pitch(s->c_in, c->vw) + columns) + 2 * LINE + sums);
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

static od_status weight_run(void *state, const od_conv_args *args) {
    winograd_weight *c = state;
    const od_conv_shape *s = &c->shape;
    const weight_cut cut = cut_run(c, args->n);
    const int pitch = c->panels * c->cols, rows = 9 * s->c_in;
    od_span part = OD_NO_SPAN, scratch = OD_NO_SPAN;
    od_status status = od_span_borrow(c->device, (size_t)cut.chunks * rows * pitch, &part);
    if (!status)
        status = od_span_borrow(c->device, cut.slot * cut.chunks * cut.shares, &scratch);
    const od_winograd_maps maps = od_winograd_maps_of(s, OD_CONV_BACKWARD_WEIGHT);
    const double products = 2.0 * POINTS * args->n * maps.rows * maps.columns * s->c_in * s->c_out,
                 weights = od_conv_weights(s);
    const od_range range =
        od_conv_work(OD_RANGE2(cut.chunks, cut.shares, 1, 1), s, args->n, products, weights * cut.chunks);
    if (!status)
        status = OD_LAUNCH(c->main, range, OD_BUF(part.buffer), OD_SPAN(args->in), OD_SPAN(args->grad),
                           OD_BUF(scratch.buffer), OD_U64(cut.slot), OD_SPAN(args->affine), OD_U64(args->stride),
                           OD_I32(args->n / args->groups), OD_I32(args->n), OD_I32(s->h), OD_I32(s->w), OD_I32(s->c_in),
                           OD_I32(od_conv_out_h(s)), OD_I32(od_conv_out_w(s)), OD_I32(s->c_out), OD_I32(s->pad),
                           OD_U64((uint64_t)cut.chunk), OD_I32(cut.block), OD_I32(cut.share));
    if (!status)
        status = OD_LAUNCH(c->sum, od_conv_sum_work(OD_RANGE1(rows, 1), weights, cut.chunks), OD_SPAN(args->out),
                           OD_BUF(part.buffer), OD_I32(s->c_out), OD_I32(pitch), OD_I32(cut.chunks),
                           OD_I32(args->accumulate));
    od_buffer_release(part.buffer);
    od_buffer_release(scratch.buffer);
    return status;
}

const od_conv_impl od_conv_winograd_weight = {weight_create, free, NULL, NULL, weight_run, true};
