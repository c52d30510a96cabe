/* The CPU family: direct NHWC convolution with register tiles (cl/conv_cpu.cl, cl/conv_cpu_weight.cl). */
#include <stdio.h>
#include <stdlib.h>

#include "ops/conv_impl.h"
#include "ops/cpu_tile.h"
#include "ops/tunable.h"

enum {
    NARROW_CHANNELS = 12,        /* up to here the taps of a kernel row are joined to one run */
    BLOCKS_PER_CORE = 32,        /* work-groups of a launch, to balance */
    WEIGHT_BLOCKS_PER_CORE = 16, /* of backward by weights: each gathers pixels anew */
    SLAB_CHANNELS = 256,         /* of input: more are many to backward by weights, see od_cpu_tile.slab */
    SHARE_BYTES = 1 << 17,       /* packed weights of the panels that a work-group takes, at most, unless it is one */
    PANEL_MAJOR_BYTES = 1 << 19, /* packed weights up to here stay in the cache beside a block of pixels */
    GROUP_BYTES = 1 << 19,       /* images are grouped where the rows of input under a tile fit; see conv_direct */
    GATHER_CHANNELS = 256,       /* of output: from here on backward by weights gathers its pixels */
    SLABS_AT_LEAST = 4, /* in a chunk of backward by weights, whose partial sums are read and written for each */
    GROUPED_PART_BYTES =
        1 << 19, /* up to here a work-group of backward by weights takes all taps: they stay in the cache */
    MAX_PART_BYTES = 1 << 24, /* partial sums of backward by weights */
};

/* Both passes' tables begin alike. */
enum {
    TUNED_VECS,
    TUNED_ROWS,
    TUNED_BLOCKS,
    TUNED_PANEL_FIRST,
    TUNED_GROUPED,
    TUNED_SLAB = TUNED_PANEL_FIRST,
    TUNED_GATHER
};

#define BY_WIDTH "by the native vector width; as many as registers hold"
const od_tuning_table od_conv_cpu_table = {
    .variant = "conv_cpu_direct",
    .shape = OD_CONV_PLAN_CLASSES,
    .parameters = {{"vecs", OD_TUNING_VALUES(1, 2, 3, 4), BY_WIDTH},
                   {"rows", OD_TUNING_VALUES(4, 6, 8, 10, 12, 13, 14), BY_WIDTH},
                   {"blocks", OD_TUNING_VALUES(4, 8, 16, 32, 64, 128), "32 work-groups a core"},
                   {"panel_first", OD_TUNING_VALUES(0, 1), "1 with weights of up to 512 KiB"},
                   {"grouped", OD_TUNING_VALUES(0, 1), "1 where a tile's rows of as many images take up to 512 KiB"}},
    .count = 5,
};
const od_tuning_table od_conv_cpu_weight_table = {
    .variant = "conv_cpu_direct_weight",
    .shape = OD_CONV_PLAN_CLASSES,
    .parameters = {{"vecs", OD_TUNING_VALUES(1, 2, 3, 4), BY_WIDTH},
                   {"rows", OD_TUNING_VALUES(4, 6, 8, 10, 12, 13, 14), "the one of two, by width, that wastes less"},
                   {"blocks", OD_TUNING_VALUES(4, 8, 16, 32, 64, 128), "16 work-groups a core"},
                   {"slab", OD_TUNING_VALUES(64, 128, 256, 512),
                    "256 pixels, 128 with more than 256 channels; 64 with vectors of 8"},
                   {"gather", OD_TUNING_VALUES(0, 1), "1 with 256 output channels or more"}},
    .count = 5,
};

typedef struct cpu_conv {
    od_device *device;
    unsigned pass;
    od_conv_shape shape;
    od_conv_gather gather;
    int vw, tuned[OD_TUNING_PARAMETERS];
    int rows, cols; /* of the register tile */
    int panels;     /* of cols output channels */
    od_buffer *zeros;
    od_kernel *pack, *main, *pad, *sum;
} cpu_conv;

/* Where the driver limits the rounds of a work-item's loops, which walk far here: upper bounds of what they need. The
 * larger channel count stands for both, and the largest tile that a tuning row may set for each. */
enum { MOST_COLS = 64, MOST_ROWS = 14 };

/* Of conv_direct, a register tile: its taps, its rows, and the columns of a partial vector. */
static int64_t tile_rounds(const od_conv_shape *s) {
    const int channels = s->c_in > s->c_out ? s->c_in : s->c_out;
    return (int64_t)s->kernel_h * s->kernel_w * (channels + 1) + MOST_ROWS * (1 + MOST_COLS);
}

/* Of conv_direct_weight with one panel, a pixel: the list, both gatherings, then each tile of channels reads it. */
static int64_t pixel_rounds(const od_conv_shape *s) {
    const int run = s->c_in <= NARROW_CHANNELS ? s->c_in * s->kernel_w : s->c_in;
    return 3 + 2 * (1 + run / 4);
}

/* Of conv_weight_sum, a chunk. */
static int64_t chunk_rounds(const od_conv_shape *s) {
    const int run = s->c_in <= NARROW_CHANNELS ? s->c_in * s->kernel_w : s->c_in;
    return (int64_t)run * (s->c_out % 16 ? 16 : 4);
}

static bool loops_fit(const od_device *device, const od_conv_shape *s, const char **why) {
    const int channels = s->c_in > s->c_out ? s->c_in : s->c_out;
    const int64_t row = (int64_t)(s->w + 2 * s->pad) * (channels + MOST_COLS);             /* conv_pad */
    const int64_t pixels = (int64_t)od_conv_out_h(s) * od_conv_out_w(s) * pixel_rounds(s); /* of one image */
    const int64_t limit = (int64_t)od_device_loop_limit(device);
    return od_variant_loops(device, tile_rounds(s), why) && od_variant_loops(device, row, why) &&
           od_variant_loops(device, (int64_t)channels * MOST_COLS, why) && /* packing */
           (!limit || od_variant_loops(device, (pixels / limit + 1) * chunk_rounds(s), why));
}

bool od_conv_cpu_supports(const od_device *device, const void *shape, const char **why) {
    const od_conv_shape *s = shape;
    if (!loops_fit(device, s, why))
        return false;
    int64_t in = (int64_t)(s->h + 2 * s->pad) * (s->w + 2 * s->pad) * s->c_in;
    int64_t out = (int64_t)od_conv_out_h(s) * od_conv_out_w(s) * s->c_out;
    /* the lists of backward by weights hold 32-bit offsets from the first image of a slab: 256 more images at most */
    if (in > (1 << 22) || out > (1 << 22)) {
        *why = "an image of more than 4 Mi elements";
        return false;
    }
    return true;
}

static void cpu_destroy(void *state) {
    cpu_conv *c = state;
    if (!c)
        return;
    od_conv_gather_destroy(&c->gather);
    od_buffer_release(c->zeros);
    free(c);
}

static od_status get_kernels(cpu_conv *c) {
    char options[160];
    const int vecs = c->tuned[TUNED_VECS];
    bool back = c->pass == OD_CONV_BACKWARD_DATA, weight = c->pass == OD_CONV_BACKWARD_WEIGHT;
    snprintf(options, sizeof options, "-DVW=%d -DVECS=%d -DROWS=%d -cl-fast-relaxed-math", c->vw, vecs,
             weight ? od_cpu_tile_of(c->device)->rows : c->rows);
    od_status status = od_kernel_get(c->device, "conv_cpu", options, "conv_pad", &c->pad);
    if (!status)
        status = od_kernel_get(c->device, "conv_cpu", options, back ? "conv_pack_transposed" : "conv_pack", &c->pack);
    if (!status)
        status = od_kernel_get(c->device, "conv_cpu", options, "conv_direct", &c->main);
    if (!status && weight)
        status = od_kernel_get(c->device, "conv_cpu", options, "conv_weight_sum", &c->sum);
    if (status || !weight)
        return status;
    snprintf(options, sizeof options, "-DVW=%d -DVECS=%d -DROWS=%d -DSLAB=%d -DGATHER=%d -cl-fast-relaxed-math", c->vw,
             vecs, c->rows, c->tuned[TUNED_SLAB], c->tuned[TUNED_GATHER]);
    return od_kernel_get(c->device, "conv_cpu_weight", options, "conv_direct_weight", &c->main);
}

static size_t packed_floats(const cpu_conv *c) {
    return (size_t)c->panels * c->gather.taps * c->gather.run * c->cols;
}

/* Panels of a work-group: those whose weights stay in a core's cache while its pixels go by. */
static int share_of(const cpu_conv *c) {
    const int64_t panel = (int64_t)c->gather.taps * c->gather.run * c->cols * (int64_t)sizeof(float);
    const int64_t share = SHARE_BYTES / panel;
    return share < 1 ? 1 : share < c->panels ? (int)share : c->panels;
}

/* The plan's parameters, and whether a tuning row sets some. */
static bool choose(cpu_conv *c, const char *class) {
    const od_conv_gather *g = &c->gather;
    const od_cpu_tile *t = od_cpu_tile_of(c->device);
    const bool weight = c->pass == OD_CONV_BACKWARD_WEIGHT;
    int *v = c->tuned;
    c->vw = t->vw;
    c->rows = v[TUNED_ROWS] = weight ? od_cpu_tile_rows(t, g->run) : t->rows;
    v[TUNED_VECS] = t->vecs;
    c->cols = t->vw * t->vecs;
    c->panels = od_div_up(g->c_out, c->cols);
    v[TUNED_BLOCKS] = weight ? WEIGHT_BLOCKS_PER_CORE : BLOCKS_PER_CORE;
    if (weight) {
        v[TUNED_SLAB] = t->slab[g->run > SLAB_CHANNELS];
        v[TUNED_GATHER] = g->c_out >= GATHER_CHANNELS;
    } else {
        const int64_t under = (int64_t)t->rows * c->shape.kernel_h * g->w_in * g->pitch * (int64_t)sizeof(float);
        v[TUNED_PANEL_FIRST] = packed_floats(c) * sizeof(float) <= PANEL_MAJOR_BYTES;
        v[TUNED_GROUPED] = under <= GROUP_BYTES;
    }
    const bool tuned = !od_device_loop_limit(c->device) && /* whose bounds know the default tiles alone */
                       od_tuning_lookup(c->device, weight ? &od_conv_cpu_weight_table : &od_conv_cpu_table, class, v);
    c->rows = v[TUNED_ROWS];
    c->cols = t->vw * v[TUNED_VECS];
    c->panels = od_div_up(g->c_out, c->cols);
    return tuned;
}

/* Written, not filled: Oclgrind takes what clEnqueueFillBuffer wrote for uninitialised. */
od_status od_conv_create_zeros(od_device *device, size_t bytes, od_buffer **out) {
    void *zeros = calloc(1, bytes);
    if (!zeros)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for %zu bytes", bytes);
    od_status status = od_buffer_create(device, bytes, out);
    if (!status)
        status = od_buffer_write(*out, 0, zeros, bytes);
    free(zeros);
    return status;
}

static od_status cpu_create(od_device *device, const od_conv_shape *shape, unsigned pass, void **state) {
    cpu_conv *c = calloc(1, sizeof *c);
    if (!c)
        return od_fail(OD_ERR_MEMORY, "convolution: no memory for a plan");
    c->device = device;
    c->pass = pass;
    c->shape = *shape;
    const bool weight = pass == OD_CONV_BACKWARD_WEIGHT;
    char class[64];
    bool tuned;
    od_conv_class(class, pass, shape, 0);
    od_status status = od_conv_gather_create(device, shape, pass, shape->c_in <= NARROW_CHANNELS, &c->gather);
    if (status)
        goto out;
    do {
        tuned = choose(c, class);
        status = get_kernels(c);
    } while (tuned && status == OD_ERR_BUILD &&
             od_tuning_reject(device, weight ? &od_conv_cpu_weight_table : &od_conv_cpu_table, class));
    if (status || weight)
        goto out;
    status = od_conv_create_zeros(device, (size_t)c->gather.run * sizeof(float), &c->zeros);
out:
    if (status) {
        cpu_destroy(c);
        c = NULL;
    }
    *state = c;
    return status;
}

static size_t cpu_packed_size(const void *state, int n) {
    (void)n;
    return packed_floats(state);
}

static od_status cpu_pack(void *state, od_span packed, od_span w) {
    cpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    od_range range = od_range_work(OD_RANGE2(g->taps, c->panels, 1, 1), 0,
                                   sizeof(float) * (od_conv_weights(&c->shape) + (double)cpu_packed_size(c, 1)));
    if (c->pass == OD_CONV_BACKWARD_DATA)
        return OD_LAUNCH(c->pack, range, OD_BUF(packed.buffer), OD_SPAN(w), OD_BUF(g->table), OD_I32(g->classes),
                         OD_I32(c->shape.c_in), OD_I32(c->shape.c_out));
    return OD_LAUNCH(c->pack, range, OD_BUF(packed.buffer), OD_SPAN(w), OD_BUF(g->table), OD_I32(g->run),
                     OD_I32(c->shape.c_out));
}

/* out (n, h + 2 margin, w + 2 margin, c_to), with `slack` more floats behind, from in (n, h, w, c). */
static od_status padded_copy(cpu_conv *c, od_span *out, od_span in, int n, int h, int w, int channels, int c_to,
                             int margin, int slack) {
    size_t rows = (size_t)n * (h + 2 * margin);
    od_status status = od_span_borrow(c->device, rows * (w + 2 * margin) * c_to + slack, out);
    if (status)
        return status;
    const double read = (double)n * h * w * channels, written = (double)rows * (w + 2 * margin) * c_to;
    return OD_LAUNCH(c->pad, od_range_work(OD_RANGE1(rows, 1), 0, sizeof(float) * (read + written)),
                     OD_BUF(out->buffer), OD_SPAN(in), OD_I32(h), OD_I32(w), OD_I32(channels), OD_I32(c_to),
                     OD_I32(margin), OD_I32(slack));
}

static od_status cpu_run(void *state, const od_conv_args *args) {
    cpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    od_span in = args->in, copy = OD_NO_SPAN;
    od_status status = OD_OK;
    if (g->narrow) {
        status = padded_copy(c, &copy, in, args->n, c->shape.h, c->shape.w, c->shape.c_in, c->shape.c_in, g->pad, 0);
        in = copy;
    }
    if (!status) {
        int map = g->grid_h * g->grid_w, cores = (int)od_device_get_info(c->device)->compute_units;
        int64_t pixels = (int64_t)args->n * map;
        const int share = od_device_loop_limit(c->device) ? 1 : share_of(c), shares = od_div_up(c->panels, share);
        int64_t blocks = od_div_up(cores * c->tuned[TUNED_BLOCKS], shares);
        int64_t block = (pixels + blocks - 1) / blocks;
        block = (block + c->rows - 1) / c->rows * c->rows;
        const int64_t limit = (int64_t)od_device_loop_limit(c->device), most = limit / tile_rounds(&c->shape) * c->rows;
        block = limit && block > most ? most : block;
        blocks = (pixels + block - 1) / block;
        int group = c->tuned[TUNED_GROUPED] && args->n >= c->rows ? c->rows : 1;
        bool panel_first = c->tuned[TUNED_PANEL_FIRST];
        od_range range = panel_first ? OD_RANGE3(shares, blocks, g->classes, 1, 1, 1)
                                     : OD_RANGE3(blocks, shares, g->classes, 1, 1, 1);
        range = od_conv_work(range, &c->shape, args->n, od_conv_flop(&c->shape, args->n), od_conv_weights(&c->shape));
        status = OD_LAUNCH(c->main, range, OD_SPAN(args->out), OD_SPAN(in), OD_BUF(args->weights.buffer),
                           OD_BUF(c->zeros), OD_BUF(g->table), OD_I32(args->n), OD_I32(g->h_in), OD_I32(g->w_in),
                           OD_I32(g->pitch), OD_I32(g->run), OD_I32(g->h_out), OD_I32(g->w_out), OD_I32(g->c_out),
                           OD_I32(g->step_in), OD_I32(g->step_out), OD_I32(group), OD_I32((int)block), OD_I32(share),
                           OD_I32(panel_first ? 0 : 1), OD_I32(args->accumulate));
    }
    od_buffer_release(copy.buffer);
    return status;
}

/* How backward by weights is cut: work-groups for (share of the panels, group of taps, chunk of pixels). More chunks
 * need more partial sums, more shares gather the same input again, fewer taps read it again from memory. */
typedef struct weight_cut {
    int share, shares; /* panels of a work-group */
    int group, groups; /* taps of a work-group */
    int chunk, chunks;
    size_t part;    /* floats of one chunk's partial sums */
    size_t scratch; /* floats of one work-group's gathered pixels */
} weight_cut;

static weight_cut cut_weight(const cpu_conv *c, int n) {
    const od_conv_gather *g = &c->gather;
    const int want = c->tuned[TUNED_BLOCKS] * (int)od_device_get_info(c->device)->compute_units;
    const int slab = c->tuned[TUNED_SLAB], row_tiles = od_div_up(g->run, c->rows);
    weight_cut cut = {.part = (size_t)c->panels * g->taps * row_tiles * c->rows * c->cols,
                      .scratch = (size_t)row_tiles * (slab * c->rows + c->vw) + (size_t)slab * c->cols};
    const int64_t pixels = (int64_t)n * g->grid_h * g->grid_w;
    cut.group = cut.part * sizeof(float) <= GROUPED_PART_BYTES ? g->taps : 1;
    int64_t chunks = od_div_up(want, od_div_up(g->taps, cut.group));
    const int64_t most = MAX_PART_BYTES / (int64_t)(cut.part * sizeof(float));
    const int64_t useful = pixels / (SLABS_AT_LEAST * slab);
    chunks = chunks < most ? chunks : most;
    chunks = chunks < useful ? chunks : useful;
    chunks = chunks < 1 ? 1 : chunks;
    int shares = od_div_up(want, (int)chunks);
    const int64_t limit = (int64_t)od_device_loop_limit(c->device);
    if (limit) { /* more of everything; the caller has seen to it that the partial sums can be added up */
        cut.group = 1;
        shares = c->panels;
        const int64_t least = pixels * pixel_rounds(&c->shape) / limit + 1;
        chunks = chunks < least ? least : chunks;
    }
    cut.groups = od_div_up(g->taps, cut.group);
    shares = od_div_up(shares, cut.groups);
    cut.share = od_div_up(c->panels, shares < c->panels ? shares : c->panels);
    cut.shares = od_div_up(c->panels, cut.share);
    const int64_t chunk = (pixels + chunks - 1) / chunks;
    cut.chunk = (int)chunk;
    cut.chunks = (int)((pixels + chunk - 1) / chunk);
    return cut;
}

/* Channels that backward by weights reads of dy: whole panels, but of the last one only a vector where that is enough.
 */
static int readable_columns(const cpu_conv *c, int c_out) {
    int full = c_out / c->cols * c->cols, rest = c_out - full;
    return full + (rest == 0 ? 0 : rest <= c->vw ? c->vw : c->cols);
}

static od_status weight_run(cpu_conv *c, const od_conv_args *args) {
    const od_conv_gather *g = &c->gather;
    const od_conv_shape *s = &c->shape;
    weight_cut cut = cut_weight(c, args->n);
    od_span x = args->in, dy = args->grad, x_copy = OD_NO_SPAN, dy_copy = OD_NO_SPAN, part = OD_NO_SPAN,
            scratch = OD_NO_SPAN;
    int dy_pitch = readable_columns(c, s->c_out);
    od_status status = od_span_borrow(c->device, cut.part * cut.chunks, &part);
    if (!status && c->tuned[TUNED_GATHER])
        status = od_span_borrow(c->device, cut.scratch * cut.shares * cut.groups * cut.chunks, &scratch);
    if (!status && g->narrow) {
        status = padded_copy(c, &x_copy, x, args->n, s->h, s->w, s->c_in, s->c_in, g->pad, c->rows);
        x = x_copy;
    }
    if (!status && dy_pitch != s->c_out) {
        status = padded_copy(c, &dy_copy, dy, args->n, g->h_out, g->w_out, s->c_out, dy_pitch, 0, 0);
        dy = dy_copy;
    }
    const double weights = od_conv_weights(s);
    const od_range range = od_conv_work(OD_RANGE3(cut.shares, cut.groups, cut.chunks, 1, 1, 1), s, args->n,
                                        od_conv_flop(s, args->n), weights * cut.chunks);
    if (!status)
        status = OD_LAUNCH(c->main, range, OD_BUF(part.buffer),
                           OD_BUF(c->tuned[TUNED_GATHER] ? scratch.buffer : part.buffer), OD_SPAN(x), OD_SPAN(dy),
                           OD_BUF(g->table), OD_I32(args->n), OD_I32(g->h_in), OD_I32(g->w_in), OD_I32(g->pitch),
                           OD_I32(g->run), OD_I32(dy_pitch), OD_I32(g->step_in), OD_I32(c->panels), OD_I32(cut.share),
                           OD_I32(cut.group), OD_I32(cut.chunk));
    if (!status)
        status = OD_LAUNCH(c->sum, od_conv_sum_work(OD_RANGE2(c->panels, g->taps, 1, 1), weights, cut.chunks),
                           OD_SPAN(args->out), OD_BUF(part.buffer), OD_I32(g->run), OD_I32(s->c_out), OD_I32(c->rows),
                           OD_I32(cut.chunks), OD_I32(args->accumulate));
    od_buffer_release(part.buffer);
    od_buffer_release(scratch.buffer);
    od_buffer_release(x_copy.buffer);
    od_buffer_release(dy_copy.buffer);
    return status;
}

/* Where loop rounds are limited, the images in pieces that conv_weight_sum can add up. */
static od_status cpu_weight_run(void *state, const od_conv_args *args) {
    cpu_conv *c = state;
    const od_conv_gather *g = &c->gather;
    const int64_t limit = (int64_t)od_device_loop_limit(c->device);
    if (!limit)
        return weight_run(c, args);
    const int64_t image = (int64_t)g->grid_h * g->grid_w * pixel_rounds(&c->shape);
    const int64_t chunks = limit / chunk_rounds(&c->shape) - 1; /* the last may be a part of one */
    const int64_t most = chunks * limit / image;
    od_conv_args piece = *args;
    od_status status = OD_OK;
    for (int begin = 0; begin < args->n && !status; begin += piece.n) {
        piece.n = args->n - begin < most ? args->n - begin : most < 1 ? 1 : (int)most;
        piece.in = od_span_at(args->in, (size_t)begin * c->shape.h * c->shape.w * c->shape.c_in);
        piece.grad = od_span_at(args->grad, (size_t)begin * g->grid_h * g->grid_w * c->shape.c_out);
        piece.accumulate = begin > 0 || args->accumulate;
        status = weight_run(c, &piece);
    }
    return status;
}

const od_conv_impl od_conv_cpu = {cpu_create, cpu_destroy, cpu_packed_size, cpu_pack, cpu_run, false, true};
const od_conv_impl od_conv_cpu_weight = {cpu_create, cpu_destroy, NULL, NULL, cpu_weight_run, false};
