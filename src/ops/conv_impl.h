/* What the variants of convolution share: the table that a variant fills for a pass, and the gather form of a pass. */
#ifndef OPS_CONV_IMPL_H
#define OPS_CONV_IMPL_H

#include "offdiag/ops/conv.h"
#include "ops/variant.h"

/* The operands of one run. FORWARD: out y, in x. BACKWARD_DATA: out dx, in dy. BACKWARD_WEIGHT: out dw, in x, grad dy.
 * Only what fuses sees affine and stats, only what sums grads. */
typedef struct od_conv_args {
    od_span out, in, grad;
    od_span weights; /* packed, or w itself; not in BACKWARD_WEIGHT */
    int n;
    bool accumulate; /* BACKWARD_WEIGHT, BACKWARD_DATA */
    od_span affine;  /* in is read as relu(in * slope + shift), see od_conv_input; no buffer: as it is */
    size_t stride;
    int groups;           /* of affine, stats and grads: n is a multiple of it; 1 without them */
    od_conv_stats *stats; /* FORWARD; NULL: not wanted. The variant creates `partial` and sets `parts` */
    od_conv_grads *grads; /* BACKWARD_DATA; the same */
} od_conv_args;

/* One variant of one pass: od_variant.run points to this. */
typedef struct od_conv_impl {
    od_status (*create)(od_device *device, const od_conv_shape *shape, unsigned pass, void **state);
    void (*destroy)(void *state);                              /* NULL is fine */
    size_t (*packed_size)(const void *state, int n);           /* floats; NULL or 0: run reads w itself */
    od_status (*pack)(void *state, od_span packed, od_span w); /* before each run */
    od_status (*run)(void *state, const od_conv_args *args);   /* n > 0 */
    bool fuses;                                                /* whether run heeds affine and stats */
    bool adds; /* BACKWARD_DATA: whether it can add to what dx holds (accumulate) */
    bool sums; /* BACKWARD_DATA: whether run heeds grads */
} od_conv_impl;

extern const od_conv_impl od_conv_ref, od_conv_cpu, od_conv_cpu_weight, od_conv_gpu, od_conv_gpu_weight;
od_status od_conv_create_zeros(od_device *device, size_t bytes, od_buffer **out);
bool od_conv_cpu_supports(const od_device *device, const void *shape, const char **why);
extern const od_conv_impl od_conv_winograd, od_conv_winograd_weight;
bool od_conv_winograd_supports(const od_device *device, const void *shape, const char **why);
/* Whether Winograd runs where it is faster, or never, or wherever it can; for tests and benchmarks. */
typedef enum od_conv_winograd_use { OD_WINOGRAD_AUTO, OD_WINOGRAD_NEVER, OD_WINOGRAD_ALWAYS } od_conv_winograd_use;
extern od_conv_winograd_use od_conv_winograd_mode;
bool od_conv_gpu_supports(const od_device *device, const void *shape, const char **why);
extern const od_conv_impl od_conv_gpu_winograd, od_conv_gpu_winograd_weight;
bool od_conv_gpu_winograd_forward(const od_device *device, const void *shape, const char **why); /* supports, by pass */
bool od_conv_gpu_winograd_backward_data(const od_device *device, const void *shape, const char **why);
bool od_conv_gpu_winograd_backward_weight(const od_device *device, const void *shape, const char **why);

/* The sums of a pass as one form, so that a kernel serves forward and backward by data at any stride:
 *   out[n, p*step_out + a, q*step_out + b, :] = sum over taps of in[n, p*step_in + dh, q*step_in + dw, 0..run) W[tap]
 * Forward has one class of outputs, a = b = 0. Backward by data at stride s has s*s classes (a, b), each with the taps
 * that reach it. Kernels read `table`: for each class {P, Q, a, b, first tap, taps, taps of all classes, 0}, then for
 * each tap {dh, dw, row, followers}: its row in w seen as a matrix (KH*KW*Cin, Cout), or its index in (KH*KW) where the
 * pass transposes it; and how many taps follow it to the right in the same window row. */
enum { OD_CONV_HEADER_INTS = 8, OD_CONV_TAP_INTS = 4 }; /* as in the kernels */
typedef struct od_conv_gather {
    int h_in, w_in, pitch, run; /* input; pitch: floats from pixel to pixel; run: channels that a tap sums */
    int h_out, w_out, c_out;
    int step_in, step_out;
    int classes, taps;
    int pad; /* > 0 or narrow: the input must first be copied with this margin */
    bool narrow;
    int grid_h, grid_w; /* P and Q of the largest class */
    od_buffer *table;
} od_conv_gather;

/* narrow: for few channels: taps are the KH rows, each a run of KW*Cin floats of an input that was copied with its
 * margin. pass: FORWARD (also right for BACKWARD_WEIGHT) or BACKWARD_DATA. */
od_status od_conv_gather_create(od_device *device, const od_conv_shape *shape, unsigned pass, bool narrow,
                                od_conv_gather *out);
void od_conv_gather_destroy(od_conv_gather *gather);

/* The launch of a pass's main kernel with its work, for profiles. flop: what the kernel makes; each pass reads or
 * writes x, y and w, of which `weights` floats. */
static inline od_range od_conv_work(od_range range, const od_conv_shape *s, int n, double flop, double weights) {
    const double x = (double)s->h * s->w * s->c_in, y = (double)od_conv_out_h(s) * od_conv_out_w(s) * s->c_out;
    return od_range_work(range, flop, sizeof(float) * (n * (x + y) + weights));
}
static inline double od_conv_weights(const od_conv_shape *s) {
    return (double)s->kernel_h * s->kernel_w * s->c_in * s->c_out;
}
/* Of launches that add up `parts` results of `count` floats. */
static inline od_range od_conv_sum_work(od_range range, double count, double parts) {
    return od_range_work(range, count * parts, sizeof(float) * count * (parts + 1));
}

static inline int od_div_up(int a, int b) {
    return (a + b - 1) / b;
}

/* What a pass of Winograd's convolution on CPUs reads and writes, seen as a forward pass: backward by data reads dy, at
 * stride 1 with the padding that is left of the window. Backward by weights: as forward. */
typedef struct od_winograd_maps {
    int h_in, w_in, c_in, h_out, w_out, c_out, pad;
    int side;          /* pixels of a tile of the output, down and across */
    int rows, columns; /* tiles of an image */
    int products;      /* of a tile's points and pixels, for each pair of channels */
} od_winograd_maps;
static inline od_winograd_maps od_winograd_maps_of(const od_conv_shape *s, unsigned pass) {
    const int h = od_conv_out_h(s), w = od_conv_out_w(s), products = s->stride == 2 ? 81 : 36;
    od_winograd_maps m = {s->h, s->w, s->c_in, h, w, s->c_out, s->pad, 4, 0, 0, products};
    if (pass == OD_CONV_BACKWARD_DATA)
        m = (od_winograd_maps){h, w, s->c_out, s->h, s->w, s->c_in, 2 - s->pad, 4 * s->stride, 0, 0, products};
    m.rows = od_div_up(m.h_out, m.side);
    m.columns = od_div_up(m.w_out, m.side);
    return m;
}

static inline int64_t od_winograd_tiles(const od_winograd_maps *m, int n) {
    return (int64_t)n * m->rows * m->columns;
}

/* Winograd for CPUs: matrices of transformed weights, floats of a cache line between planes, and floats from row to row
 * of the transformed patches, as in cl/conv_winograd.clh. */
enum { OD_WINOGRAD_POINTS = 36, OD_WINOGRAD_LINE = 16 };
static inline uint64_t od_winograd_pitch(int c, int vw) {
    return ((uint64_t)c + 15) / 16 * 16 + (c < 256 ? 0 : (uint64_t)vw);
}
struct od_cpu_tile;
/* The options of its programs: `rows` of the register tile. data: backward by data. */
enum { OD_WINOGRAD_OPTIONS = 160 };
void od_winograd_options(const struct od_cpu_tile *tile, int rows, int stride, bool data,
                         char options[OD_WINOGRAD_OPTIONS]);
/* *v [36][tiles][pitch] = the transformed patches of all tiles of args->in, `plane` floats from point to point: room
 * for whole register tiles. zeros: c_in of them. The caller releases v->buffer, which is NULL after an error. */
od_status od_winograd_patches(od_device *device, const struct od_cpu_tile *tile, const od_winograd_maps *maps,
                              od_buffer *zeros, const od_conv_args *args, uint64_t plane, od_span *v);

#endif
